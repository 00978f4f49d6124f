use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rnbd_base::{Nanos, Poll, Progress};

use crate::reactor::Reactor;

/// A reactor that the program polls: all light threads and pollers of one core. It may be polled
/// by another thread from one round to the next, by one at a time.
///
/// It drops its pollers when it is dropped, or told to stop.
pub struct HostedReactor {
    reactor: Option<Reactor>,
    ended: Arc<AtomicBool>,
}

impl HostedReactor {
    pub(crate) fn new(reactor: Reactor, ended: Arc<AtomicBool>) -> Self {
        Self {
            reactor: Some(reactor),
            ended,
        }
    }

    fn end(&mut self) {
        self.reactor = None;
        self.ended.store(true, Ordering::Release);
    }
}

impl Poll for HostedReactor {
    /// One round. It reads its own clock, which is that of all reactors of the process.
    fn poll(&mut self, _now: Nanos) -> Progress {
        let Some(reactor) = &mut self.reactor else {
            return Progress::Idle;
        };
        let progress = reactor.round();
        if reactor.is_stopping() {
            self.end();
        }
        progress
    }
}

impl Drop for HostedReactor {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for HostedReactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.reactor.is_some() {
            "runs"
        } else {
            "ended"
        };
        write!(f, "HostedReactor({state})")
    }
}
