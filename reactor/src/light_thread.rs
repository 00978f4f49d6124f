use std::os::fd::RawFd;

use rnbd_base::{Nanos, Poll, Progress};

use crate::clock::Clock;
use crate::command::{NewPoller, PollerId, ThreadId};
use crate::snapshot::{PollerSnapshot, ThreadSnapshot};

/// A named group of pollers on one reactor; users see it as a thread.
pub(crate) struct LightThread {
    id: ThreadId,
    name: String,
    cpumask: String,
    created: u64,
    busy: u64,
    idle: u64,
    pollers: Vec<Poller>,
}

struct Poller {
    id: PollerId,
    name: String,
    /// Timed pollers only.
    timer: Option<Timer>,
    run_count: u64,
    busy_count: u64,
    poll: Box<dyn Poll>,
}

struct Timer {
    period: Nanos,
    due: Nanos,
}

impl LightThread {
    /// `created` is in ticks.
    pub(crate) fn new(id: ThreadId, name: String, cpumask: String, created: u64) -> Self {
        Self {
            id,
            name,
            cpumask,
            created,
            busy: 0,
            idle: 0,
            pollers: Vec::new(),
        }
    }

    pub(crate) fn id(&self) -> ThreadId {
        self.id
    }

    pub(crate) fn add(&mut self, new: NewPoller, now: Nanos) {
        self.pollers.push(Poller {
            id: new.id,
            name: new.name,
            timer: new.period.map(|period| Timer {
                period,
                due: now + period,
            }),
            run_count: 0,
            busy_count: 0,
            poll: new.poll,
        });
    }

    pub(crate) fn remove(&mut self, id: PollerId) -> Option<Box<dyn Poll>> {
        let position = self.pollers.iter().position(|poller| poller.id == id)?;
        Some(self.pollers.remove(position).poll)
    }

    /// Its pollers, the one added last first.
    pub(crate) fn into_pollers(self) -> impl Iterator<Item = Box<dyn Poll>> {
        self.pollers.into_iter().rev().map(|poller| poller.poll)
    }

    pub(crate) fn poll(&mut self, now: Nanos) -> Progress {
        self.pollers
            .iter_mut()
            .fold(Progress::Idle, |progress, poller| {
                progress.or(poller.poll_if_due(now))
            })
    }

    /// Accounts `ticks` to what the last round was.
    pub(crate) fn charge(&mut self, progress: Progress, ticks: u64) {
        if progress.is_busy() {
            self.busy += ticks;
        } else {
            self.idle += ticks;
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Nanos> {
        self.pollers.iter().filter_map(Poller::next_deadline).min()
    }

    /// Whether all pollers let the reactor sleep. A timed poller is not asked: between two periods
    /// it would not be polled anyway.
    pub(crate) fn prepare_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool {
        self.pollers
            .iter_mut()
            .filter(|poller| poller.timer.is_none())
            .all(|poller| poller.poll.prepare_sleep(fds))
    }

    pub(crate) fn snapshot(&self, ticks: u64, clock: &Clock) -> ThreadSnapshot {
        ThreadSnapshot {
            id: self.id.get(),
            name: self.name.clone(),
            cpumask: self.cpumask.clone(),
            elapsed: ticks.saturating_sub(self.created),
            busy: self.busy,
            idle: self.idle,
            pollers: self.pollers.iter().map(|p| p.snapshot(clock)).collect(),
        }
    }
}

impl Poller {
    fn poll_if_due(&mut self, now: Nanos) -> Progress {
        if let Some(timer) = &mut self.timer {
            if now < timer.due {
                return Progress::Idle;
            }
            timer.due = now + timer.period;
        }
        let progress = self.poll.poll(now);
        self.run_count += 1;
        self.busy_count += u64::from(progress.is_busy());
        progress
    }

    fn next_deadline(&self) -> Option<Nanos> {
        match &self.timer {
            Some(timer) => Some(timer.due),
            None => self.poll.next_deadline(),
        }
    }

    fn snapshot(&self, clock: &Clock) -> PollerSnapshot {
        PollerSnapshot {
            id: self.id.get(),
            name: self.name.clone(),
            run_count: self.run_count,
            busy_count: self.busy_count,
            period_ticks: self
                .timer
                .as_ref()
                .map(|timer| clock.to_ticks(timer.period)),
        }
    }
}
