use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};
use std::thread::ThreadId;

use rustix::event::{EventfdFlags, eventfd};

/// A task of one loop, never used again after it ended.
pub(crate) type TaskId = u64;

/// The tasks to be polled, filled by any thread.
pub(crate) struct ReadyQueue {
    queue: Mutex<VecDeque<TaskId>>,
    /// Ends the loop's sleep.
    event: OwnedFd,
    home: ThreadId,
}

/// Queues one task, once until it is taken.
pub(crate) struct TaskWaker {
    id: TaskId,
    ready: Arc<ReadyQueue>,
    queued: AtomicBool,
}

impl ReadyQueue {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::default(),
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            home: std::thread::current().id(),
        })
    }

    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    pub(crate) fn clear_event(&self) {
        // Fails only when another event was read in between, which is as good.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
    }

    pub(crate) fn take(&self) -> Option<TaskId> {
        self.lock().pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    fn push(&self, id: TaskId) {
        self.lock().push_back(id);
        if std::thread::current().id() != self.home {
            // The loop looks into the queue before it sleeps, so its own thread needs no event.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<TaskId>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TaskWaker {
    pub(crate) fn new(id: TaskId, ready: &Arc<ReadyQueue>) -> Arc<Self> {
        Arc::new(Self {
            id,
            ready: Arc::clone(ready),
            queued: AtomicBool::new(false),
        })
    }

    /// Queues the task.
    pub(crate) fn wake_task(&self) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.push(self.id);
        }
    }

    /// The waker for one poll; from here on the task may be queued again.
    pub(crate) fn to_waker(self: &Arc<Self>) -> Waker {
        self.queued.store(false, Ordering::Release);
        Waker::from(Arc::clone(self))
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_task();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_task();
    }
}
