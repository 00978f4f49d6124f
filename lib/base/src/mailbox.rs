use std::fmt;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

/// Ends the sleep of the runtime that owns a mailbox; a no-op while it is awake.
pub trait Wake: Send + Sync {
    /// Called after every message sent.
    fn wake(&self);
}

/// For runtimes that never sleep: the simulator, and reactors in `busy` mode.
#[derive(Debug)]
pub struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

/// The message that did not fit: the receiver is `capacity` messages behind.
#[derive(Debug)]
pub struct Full<T>(pub T);

/// The sending end; any number of threads may hold one.
pub struct Sender<T> {
    queue: Arc<ArrayQueue<T>>,
    wake: Arc<dyn Wake>,
}

/// The receiving end, owned by one core.
pub struct Receiver<T> {
    queue: Arc<ArrayQueue<T>>,
}

/// A bounded queue of control messages to a core. Data-path I/O never goes through one.
///
/// # Panics
/// If `capacity` is zero.
#[must_use]
pub fn mailbox<T>(capacity: usize, wake: Arc<dyn Wake>) -> (Sender<T>, Receiver<T>) {
    let queue = Arc::new(ArrayQueue::new(capacity));
    (
        Sender {
            queue: Arc::clone(&queue),
            wake,
        },
        Receiver { queue },
    )
}

impl<T> Sender<T> {
    /// Queues `message` and wakes the receiver's runtime.
    ///
    /// # Errors
    /// [`Full`] hands the message back; the caller decides whether to retry or to report it.
    pub fn send(&self, message: T) -> Result<(), Full<T>> {
        self.queue.push(message).map_err(Full)?;
        self.wake.wake();
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            queue: Arc::clone(&self.queue),
            wake: Arc::clone(&self.wake),
        }
    }
}

impl<T> Receiver<T> {
    /// The oldest message not yet taken.
    #[must_use]
    pub fn take(&mut self) -> Option<T> {
        self.queue.pop()
    }

    /// Whether a message waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sender({}/{})", self.queue.len(), self.queue.capacity())
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Receiver({}/{})",
            self.queue.len(),
            self.queue.capacity()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_full_mailbox_hands_the_message_back_and_wakes_nobody() {
        let wakes = Arc::new(Count::default());
        let (tx, mut rx) = mailbox(1, Arc::clone(&wakes) as Arc<dyn Wake>);
        tx.send(1).unwrap();
        let Full(refused) = tx.clone().send(2).unwrap_err();
        assert_eq!(refused, 2);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(rx.take(), Some(1));
        assert!(rx.take().is_none() && rx.is_empty());
    }
}
