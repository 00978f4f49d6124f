use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::Handle;

/// The time something is due, and a number that tells equal times apart.
type Key = (Instant, u64);

/// Who waits until when.
#[derive(Default)]
pub(crate) struct Timers {
    waiting: RefCell<BTreeMap<Key, Waker>>,
    last: Cell<u64>,
}

impl Timers {
    pub(crate) fn until_next(&self, now: Instant) -> Option<Duration> {
        let waiting = self.waiting.borrow();
        let (&(due, _), _) = waiting.first_key_value()?;
        Some(due.saturating_duration_since(now))
    }

    pub(crate) fn fire(&self, now: Instant) {
        while let Some(waker) = self.take_due(now) {
            waker.wake();
        }
    }

    fn take_due(&self, now: Instant) -> Option<Waker> {
        let mut waiting = self.waiting.borrow_mut();
        let first = waiting.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    fn next_number(&self) -> u64 {
        self.last.set(self.last.get() + 1);
        self.last.get()
    }
}

/// Is done at a set time; see [`Handle::sleep`].
#[must_use = "a future does nothing unless awaited"]
pub struct Sleep {
    handle: Handle,
    key: Key,
}

impl Sleep {
    pub(crate) fn new(handle: Handle, due: Instant) -> Self {
        let number = handle.shared.timers.next_number();
        Self {
            handle,
            key: (due, number),
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.key.0 {
            return Poll::Ready(());
        }
        let mut waiting = self.handle.shared.timers.waiting.borrow_mut();
        waiting.insert(self.key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let mut waiting = self.handle.shared.timers.waiting.borrow_mut();
        waiting.remove(&self.key);
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sleep({:?})", self.key.0)
    }
}
