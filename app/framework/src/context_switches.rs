//! Tells when the kernel gives a reactor's core to somebody else.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use rnbd_reactor::{ContextSwitches, ReactorSnapshot};

use crate::system::System;

const PERIOD: Duration = Duration::from_secs(1);

/// What `framework_monitor_context_switch` switches on and off.
#[derive(Debug, Default)]
pub(crate) struct SwitchMonitor {
    enabled: Cell<bool>,
    /// Counts how often it was switched on, so that an earlier watch ends.
    watch: Cell<u64>,
}

/// A reactor's OS thread, and what was read of it last.
struct Watched {
    lcore: u32,
    tid: i32,
    last: ContextSwitches,
}

impl SwitchMonitor {
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.get()
    }

    pub(crate) fn disable(&self) {
        self.enabled.set(false);
    }
}

/// Logs, once a second, what happened to each reactor.
pub(crate) fn enable(system: &Rc<System>, reactors: &[ReactorSnapshot]) {
    let monitor = &system.switch_monitor;
    if monitor.enabled.replace(true) {
        return;
    }
    let watch = monitor.watch.get() + 1;
    monitor.watch.set(watch);
    let mut watched: Vec<Watched> = reactors.iter().map(Watched::new).collect();
    let system = Rc::clone(system);
    system.handle.clone().spawn(async move {
        let monitor = &system.switch_monitor;
        loop {
            system.handle.sleep(PERIOD).await;
            if !monitor.enabled.get() || monitor.watch.get() != watch {
                return;
            }
            watched.iter_mut().for_each(Watched::tell);
        }
    });
}

impl Watched {
    fn new(reactor: &ReactorSnapshot) -> Self {
        Self {
            lcore: reactor.lcore,
            tid: reactor.tid,
            last: ContextSwitches::read(reactor.tid).unwrap_or_default(),
        }
    }

    fn tell(&mut self) {
        if let Some(switches) = self.look() {
            log::info!(
                "Reactor {}: {} voluntary context switches and {} involuntary context switches in \
                 the last second.",
                self.lcore,
                switches.voluntary,
                switches.involuntary
            );
        }
    }

    /// What was added since the last look, if anything was.
    fn look(&mut self) -> Option<ContextSwitches> {
        let now = ContextSwitches::read(self.tid).ok()?;
        let since = now.since(self.last);
        self.last = now;
        (since != ContextSwitches::default()).then_some(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_look_tells_what_came_since_the_last() {
        let mut watched = Watched {
            lcore: 0,
            tid: rustix::thread::gettid().as_raw_nonzero().get(),
            last: ContextSwitches::default(),
        };
        watched.look();
        std::thread::sleep(Duration::from_millis(1));
        let slept = watched.look().unwrap_or_default();
        assert!(slept.voluntary >= 1, "{slept:?}");
        watched.tid = i32::MAX;
        assert_eq!(watched.look(), None);
    }
}
