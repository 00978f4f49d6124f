//! A device as the process remembers it, through all its lives.
//!
//! ```text
//!                    ┌──────── opens again when nobody uses the old life any more ────────┐
//!                    v                                                                    │
//!  appears ──────> Active ──rdma_reset_device──> Resetting ───────────────────────────────┤
//!                    │ └──the device says so───> Fatal ──(tried again every second)───────┤
//!                    │                             │                                      │
//!                    └──vanishes──> Removed <──────┴── from any state, when it vanishes   │
//!                                      └──appears─────────────────────────────────────────┘
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::instance::Instance;
use super::sysfs::Seen;
use crate::probe::WindowSupport;
use crate::sys::DeviceLimits;

/// What a device is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// It can be used.
    Active,
    /// It is let go of on request, to be taken up again.
    Resetting,
    /// It said that it is broken.
    Fatal,
    /// It is gone, or going.
    Removed,
}

impl DeviceState {
    /// As in RPC answers and notifications.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Resetting => "resetting",
            Self::Fatal => "fatal",
            Self::Removed => "removed",
        }
    }
}

/// Why a device is not to be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The kernel removes it.
    Removed,
    /// It is broken.
    Fatal,
    /// Somebody wants it reset.
    Reset,
    /// A completion queue of one fabric is broken, and that fabric let go of the device.
    Queue,
}

/// What happened to a device since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Times that it was removed.
    pub removals: u64,
    /// Times that it said that it is broken.
    pub fatal_events: u64,
    /// Times that `rdma_reset_device` was called.
    pub resets_requested: u64,
    /// Completion queues that broke.
    pub queue_errors: u64,
    /// Times that it came back after any of these.
    pub resets_survived: u64,
}

#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) instance: Arc<Instance>,
    pub(crate) state: DeviceState,
    pub(crate) counters: DeviceCounters,
    /// Since when it has been in this state.
    since: Instant,
    /// Found out when it is first opened.
    pub(crate) abilities: Option<(WindowSupport, DeviceLimits)>,
    has_complained: bool,
}

/// How long a device that is being removed may take to vanish. One that is still there after that
/// was not removed.
const VANISHES_WITHIN: Duration = Duration::from_secs(3);
const FATAL_RETRY: Duration = Duration::from_secs(1);
/// Within which all users of a device that is gone have let go of it.
const RELEASED_WITHIN: Duration = Duration::from_secs(2);

impl Record {
    pub(crate) fn new(seen: Seen, now: Instant) -> Self {
        Self {
            instance: Instance::new(seen),
            state: DeviceState::Active,
            counters: DeviceCounters::default(),
            since: now,
            abilities: None,
            has_complained: false,
        }
    }

    /// The device must not be used any more. Returns whether that is news.
    pub(crate) fn lose(&mut self, loss: Loss, now: Instant) -> bool {
        let counters = &mut self.counters;
        let (next, count) = match loss {
            Loss::Removed => (DeviceState::Removed, &mut counters.removals),
            Loss::Fatal => (DeviceState::Fatal, &mut counters.fatal_events),
            Loss::Reset => (DeviceState::Resetting, &mut counters.resets_requested),
            Loss::Queue => {
                counters.queue_errors += 1;
                return false;
            }
        };
        let is_news = self.state == DeviceState::Active
            || (next == DeviceState::Removed && self.state != DeviceState::Removed);
        if is_news {
            *count += 1;
            self.enter(next, now);
        }
        is_news
    }

    /// Whether the device may be taken up again as `seen`.
    pub(crate) fn may_return(&self, seen: &Seen, now: Instant) -> bool {
        let is_another = seen.inode != self.instance.seen.inode;
        let waited = now.saturating_duration_since(self.since);
        let is_due = match self.state {
            DeviceState::Active => false,
            DeviceState::Resetting => true,
            DeviceState::Fatal => is_another || waited >= FATAL_RETRY,
            DeviceState::Removed => is_another || waited >= VANISHES_WITHIN,
        };
        is_due && seen.name == self.instance.name() && self.instance.users() == 0
    }

    /// The device is back.
    pub(crate) fn come_back(&mut self, seen: Seen, now: Instant) {
        self.instance = Instance::new(seen);
        self.abilities = None;
        self.counters.resets_survived += 1;
        self.enter(DeviceState::Active, now);
    }

    /// Whether users hold a device that is gone for too long; said once.
    pub(crate) fn is_held_too_long(&mut self, now: Instant) -> bool {
        let is_held = self.state != DeviceState::Active && self.instance.users() > 0;
        let is_late = now.saturating_duration_since(self.since) > RELEASED_WITHIN;
        let is_news = is_held && is_late && !self.has_complained;
        self.has_complained |= is_news;
        is_news
    }

    fn enter(&mut self, state: DeviceState, now: Instant) {
        self.state = state;
        self.since = now;
        self.has_complained = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::instance::User;
    use super::*;

    fn seen(inode: u64) -> Seen {
        let name = "rxe0".to_owned();
        Seen { name, inode }
    }

    fn record() -> (Record, Instant) {
        let now = Instant::now();
        (Record::new(seen(1), now), now)
    }

    #[test]
    fn a_removed_device_returns_as_another_one_when_nobody_uses_it() {
        let (mut record, now) = record();
        let user = User::new(&record.instance);
        assert!(record.lose(Loss::Removed, now));
        assert!(!record.may_return(&seen(2), now), "somebody has it open");
        drop(user);
        assert!(!record.may_return(&seen(1), now), "it is still going");
        assert!(record.may_return(&seen(2), now));
        record.come_back(seen(2), now);
        assert_eq!(record.state, DeviceState::Active);
        assert_eq!(record.counters.resets_survived, 1);
    }

    #[test]
    fn a_device_that_is_reset_returns_as_itself() {
        let (mut record, now) = record();
        assert!(record.lose(Loss::Reset, now));
        assert!(record.may_return(&seen(1), now));
    }

    #[test]
    fn a_broken_device_is_tried_again_after_a_while() {
        let (mut record, now) = record();
        assert!(record.lose(Loss::Fatal, now));
        assert!(!record.may_return(&seen(1), now));
        assert!(record.may_return(&seen(1), now + FATAL_RETRY));
    }

    #[test]
    fn a_loss_is_news_once_and_a_removal_tops_the_others() {
        let (mut record, now) = record();
        assert!(record.lose(Loss::Fatal, now));
        assert!(!record.lose(Loss::Fatal, now), "every fabric says so");
        assert!(!record.lose(Loss::Reset, now));
        assert!(record.lose(Loss::Removed, now));
        assert!(!record.lose(Loss::Removed, now));
        let counters = record.counters;
        assert_eq!((counters.fatal_events, counters.removals), (1, 1));
    }

    #[test]
    fn a_broken_queue_costs_one_fabric_the_device() {
        let (mut record, now) = record();
        assert!(!record.lose(Loss::Queue, now));
        assert_eq!(record.state, DeviceState::Active);
    }

    #[test]
    fn users_that_hold_on_are_complained_of_once() {
        let (mut record, now) = record();
        let _user = User::new(&record.instance);
        record.lose(Loss::Removed, now);
        assert!(!record.is_held_too_long(now));
        let later = now + RELEASED_WITHIN + Duration::from_millis(1);
        assert!(record.is_held_too_long(later));
        assert!(!record.is_held_too_long(later));
    }
}
