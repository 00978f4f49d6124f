//! The control thread: an executor over one epoll instance.
//!
//! It runs everything that is not the data path: RPC connections, handlers, timers, signals. It
//! is single-threaded, so futures and the state they share need not be `Send`; wakers are, so a
//! reactor that completes a channel wakes the loop. It sleeps whenever nothing is ready.

mod ready_queue;
mod signals;
mod timers;
mod watch;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use ready_queue::{ReadyQueue, TaskId, TaskWaker};
use timers::Timers;
use watch::Watches;

pub use signals::Signals;
pub use timers::Sleep;
pub use watch::{Interest, Watch};

/// Events taken from the kernel at a time.
const EVENTS_PER_WAIT: usize = 64;
/// Why waiting cannot fail.
const EPOLL_WORKS: &str = "waiting on an own epoll descriptor fails only when interrupted";
/// The future given to [`ControlLoop::run`]; spawned tasks count from 1.
const MAIN_TASK: TaskId = 0;

/// Owns the tasks of the control thread.
///
/// ```
/// use rnbd_rpc::ControlLoop;
/// use std::time::Duration;
///
/// let control = ControlLoop::new()?;
/// let handle = control.handle();
/// let (sender, receiver) = futures_channel::oneshot::channel();
/// handle.spawn(async move { drop(sender.send("from a task")) });
/// let text = control.run(async {
///     handle.sleep(Duration::from_millis(1)).await;
///     receiver.await
/// });
/// assert_eq!(text, Ok("from a task"));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct ControlLoop {
    handle: Handle,
}

/// Spawns tasks and waits for events from within the loop's futures. Cheap to clone; bound to the
/// control thread.
#[derive(Clone)]
pub struct Handle {
    shared: Rc<Shared>,
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

struct Shared {
    epoll: OwnedFd,
    ready: Arc<ReadyQueue>,
    tasks: RefCell<Tasks>,
    timers: Timers,
    watches: Watches,
    /// Wakers may leave the thread; the loop may not.
    _not_send: PhantomData<*const ()>,
}

#[derive(Default)]
struct Tasks {
    last_id: TaskId,
    waiting: HashMap<TaskId, (Task, Arc<TaskWaker>)>,
}

impl ControlLoop {
    /// A loop without tasks, to be run on the calling thread.
    ///
    /// # Errors
    /// If the kernel refuses the descriptors.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let ready = ReadyQueue::new()?;
        epoll::add(
            &epoll,
            ready.event(),
            epoll::EventData::new_u64(watch::READY_QUEUE),
            epoll::EventFlags::IN,
        )?;
        let shared = Shared {
            epoll,
            ready: Arc::new(ready),
            tasks: RefCell::default(),
            timers: Timers::default(),
            watches: Watches::default(),
            _not_send: PhantomData,
        };
        Ok(Self {
            handle: Handle {
                shared: Rc::new(shared),
            },
        })
    }

    /// For the futures that run in the loop.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs all tasks until `future` is done. Tasks that are not done then go on in the next run.
    ///
    /// # Panics
    /// If the kernel's epoll fails, which it does only for arguments that are not used here.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        let shared = &self.handle.shared;
        let mut future = pin!(future);
        let main = TaskWaker::new(MAIN_TASK, &shared.ready);
        Arc::clone(&main).wake_task();
        loop {
            // Those that are woken meanwhile wait for the next round, after the kernel's events.
            for _ in 0..shared.ready.len() {
                match shared.ready.take() {
                    Some(MAIN_TASK) => {
                        let waker = main.to_waker();
                        let mut context = Context::from_waker(&waker);
                        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                            return output;
                        }
                    }
                    Some(id) => shared.poll_task(id),
                    None => break,
                }
            }
            shared.wait(shared.time_to_sleep()).expect(EPOLL_WORKS);
        }
    }

    /// Runs what is ready and returns: for a program whose thread may not sleep here. Whether
    /// anything was.
    ///
    /// # Panics
    /// As [`ControlLoop::run`].
    pub fn turn(&self) -> bool {
        let shared = &self.handle.shared;
        shared.wait(Some(Duration::ZERO)).expect(EPOLL_WORKS);
        let count = shared.ready.len();
        for _ in 0..count {
            if let Some(id) = shared.ready.take() {
                shared.poll_task(id);
            }
        }
        count > 0
    }
}

impl Drop for ControlLoop {
    fn drop(&mut self) {
        // Tasks hold handles: without this the two would keep each other.
        let tasks = std::mem::take(&mut *self.handle.shared.tasks.borrow_mut());
        drop(tasks);
    }
}

impl Handle {
    /// Runs `future` beside all others; it ends with the loop at the latest.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let (id, waker) = self.shared.new_task();
        self.shared.keep(id, Box::pin(future), &waker);
        waker.wake_task();
    }

    /// [`Handle::spawn`] that goes on with the caller only when `future` first waits, or is done.
    pub(crate) fn spawn_now(&self, future: impl Future<Output = ()> + 'static) {
        let (id, waker) = self.shared.new_task();
        self.shared.advance(id, Box::pin(future), &waker);
    }

    /// Is done when `span` has passed.
    pub fn sleep(&self, span: Duration) -> Sleep {
        Sleep::new(self.clone(), Instant::now() + span)
    }

    /// Waits for `object`, which must be non-blocking, to become ready.
    ///
    /// # Errors
    /// If the kernel cannot watch it.
    pub fn watch<T: AsFd>(&self, object: T) -> io::Result<Watch<T>> {
        Watch::new(self.clone(), object)
    }

    /// Takes the given signals, which then no longer end the process.
    ///
    /// # Errors
    /// For signals that cannot be caught, and if the kernel refuses the descriptors.
    pub fn signals(&self, signals: &[i32]) -> io::Result<Signals> {
        Signals::new(self, signals)
    }
}

impl Tasks {
    fn next_id(&mut self) -> TaskId {
        self.last_id += 1;
        self.last_id
    }
}

impl Shared {
    fn new_task(&self) -> (TaskId, Arc<TaskWaker>) {
        let id = self.tasks.borrow_mut().next_id();
        (id, TaskWaker::new(id, &self.ready))
    }

    /// Polls one task; a task that has ended may still be in the queue.
    fn poll_task(&self, id: TaskId) {
        let taken = self.tasks.borrow_mut().waiting.remove(&id);
        if let Some((task, waker)) = taken {
            self.advance(id, task, &waker);
        }
    }

    fn advance(&self, id: TaskId, mut task: Task, task_waker: &Arc<TaskWaker>) {
        let waker = task_waker.to_waker();
        let mut context = Context::from_waker(&waker);
        if task.as_mut().poll(&mut context).is_pending() {
            self.keep(id, task, task_waker);
        }
    }

    fn keep(&self, id: TaskId, task: Task, waker: &Arc<TaskWaker>) {
        let mut tasks = self.tasks.borrow_mut();
        tasks.waiting.insert(id, (task, Arc::clone(waker)));
    }

    /// Sleeps until something is ready, or for `most`, and wakes the tasks that wait for it.
    fn wait(&self, most: Option<Duration>) -> io::Result<()> {
        let timeout = most.map(|span| Timespec {
            tv_sec: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: span.subsec_nanos().into(),
        });
        let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, spare, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for event in events {
            match event.data.u64() {
                watch::READY_QUEUE => self.ready.clear_event(),
                token => self.watches.note(token),
            }
        }
        self.timers.fire(Instant::now());
        Ok(())
    }

    fn time_to_sleep(&self) -> Option<Duration> {
        if self.ready.len() > 0 {
            return Some(Duration::ZERO);
        }
        self.timers.until_next(Instant::now())
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tasks = self.shared.tasks.borrow().waiting.len();
        write!(f, "Handle({tasks} tasks)")
    }
}

#[cfg(test)]
mod tests;
