//! Target and initiator, once they were needed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use rnbd_base::{CoreIndex, Errno, Progress};
use rnbd_bdev::Registry;
use rnbd_framework::Hosted;
use rnbd_mem::{Memory, MemoryConfig};
use rnbd_reactor::{Clock, HostedReactor, Reactors};
use rnbd_rpc::Notifications;
use rnbd_spdk::{MemoryMap, Poller, Thread, env, install_logger, notify, share};

use crate::app_only::AppOnly;
use crate::faces::Faces;
use crate::seats::Seat;
use crate::source::SpdkSource;

/// Microseconds between two looks at what the control side has to do.
const CONTROL_PERIOD_US: u64 = 200;

/// Whether SPDK's subsystems are up.
static RUNNING: AtomicBool = AtomicBool::new(false);
static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

/// All that runs.
#[derive(Debug)]
struct Runtime {
    hosted: AppOnly<Hosted>,
    seats: Vec<Arc<Seat>>,
    faces: Arc<Faces>,
    _control: Poller,
}

/// What disks and their channels share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) bdevs: Registry,
    pub(crate) memory: Memory,
    pub(crate) memory_map: MemoryMap,
    pub(crate) clock: Clock,
    /// By index of the reactor.
    cores: Vec<u32>,
}

impl Shared {
    /// The reactor that serves this thread: that of the same core, or, where there is no such, any.
    pub(crate) fn core(&self) -> CoreIndex {
        let core = env::current_core();
        let same = self.cores.iter().position(|&other| Some(other) == core);
        CoreIndex(same.and_then(|at| u16::try_from(at).ok()).unwrap_or(0))
    }
}

fn lock() -> MutexGuard<'static, Option<Runtime>> {
    RUNTIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Works with target and initiator, if they run. To be called on the application's thread.
pub(crate) fn with<R>(work: impl FnOnce(&Hosted, &Arc<Faces>) -> R) -> Option<R> {
    let runtime = lock();
    let runtime = runtime.as_ref()?;
    Some(work(runtime.hosted.get(), &runtime.faces))
}

/// The same, and starts them if they do not run.
pub(crate) fn with_started<R>(work: impl FnOnce(&Hosted, &Arc<Faces>) -> R) -> anyhow::Result<R> {
    let mut slot = lock();
    let runtime = match slot.take() {
        Some(runtime) => runtime,
        None => Runtime::start()?,
    };
    let runtime = slot.insert(runtime);
    Ok(work(runtime.hosted.get(), &runtime.faces))
}

/// SPDK's subsystems are up: the methods of a running program may be called.
pub(crate) fn set_running() {
    RUNNING.store(true, Ordering::Relaxed);
    with(|hosted, _| hosted.set_running());
}

impl Runtime {
    fn start() -> anyhow::Result<Self> {
        install_logger();
        let cores = env::cores();
        let memory = Memory::new(MemoryConfig::default());
        memory.announce(share);
        let memory_map = MemoryMap::new(&memory).context("SPDK's memory cannot be mapped")?;
        let (reactors, hosted_reactors) = Reactors::hosted(&cores)?;
        let clock = reactors.clock();
        let hosted = Hosted::new(reactors, memory.clone(), |bdevs| {
            Box::new(SpdkSource::new(bdevs.clone()))
        })?;
        if RUNNING.load(Ordering::Relaxed) {
            hosted.set_running();
        }
        let seats = seats(&cores, hosted_reactors).context("a reactor cannot be polled")?;
        let shared = Arc::new(Shared {
            bdevs: hosted.bdevs().clone(),
            memory,
            memory_map,
            clock,
            cores,
        });
        let faces = Faces::start(shared)?;
        let mut forwarder = Forwarder::new(hosted.notifications());
        let turn = move || turn(&mut forwarder);
        let control = Poller::register("rnbd_control", CONTROL_PERIOD_US, turn)?;
        Ok(Self {
            hosted: AppOnly::new(hosted),
            seats,
            faces,
            _control: control,
        })
    }
}

fn seats(cores: &[u32], reactors: Vec<HostedReactor>) -> Result<Vec<Arc<Seat>>, Errno> {
    let here = env::current_core();
    let here = cores.iter().position(|&core| Some(core) == here);
    let seat = |(index, (reactor, &core))| match index == here.unwrap_or(0) {
        true => Seat::here(reactor),
        false => Seat::on(core, &format!("rnbd_{index:03}"), reactor),
    };
    reactors
        .into_iter()
        .zip(cores)
        .enumerate()
        .map(seat)
        .collect()
}

fn turn(forwarder: &mut Forwarder) -> Progress {
    let worked = with(|hosted, _| {
        let worked = hosted.turn();
        if worked {
            forwarder.forward(hosted.notifications());
        }
        worked
    });
    Progress::from_work(worked.unwrap_or(false))
}

/// Passes notifications on to SPDK. Those of bdevs SPDK makes itself.
struct Forwarder {
    next: u64,
}

impl Forwarder {
    fn new(notifications: &Notifications) -> Self {
        let types = notifications.types();
        let ours = types.iter().filter(|kind| !Self::is_spdks(kind));
        ours.for_each(|kind| notify::register_type(kind));
        Self { next: 0 }
    }

    fn is_spdks(kind: &str) -> bool {
        ["bdev_register", "bdev_unregister", "bdev_resize"].contains(&kind)
    }

    fn forward(&mut self, notifications: &Notifications) {
        for one in notifications.since(self.next, usize::MAX) {
            self.next = one.id + 1;
            if !Self::is_spdks(&one.kind) {
                notify::send(&one.kind, &one.ctx);
            }
        }
    }
}

/// Ends all sessions of clients; then `done` is called on the application's thread.
pub(crate) fn stop_target(done: Box<dyn FnOnce()>) {
    let mut done = Some(AppOnly::new(done));
    with(|hosted, _| {
        let done = done.take();
        hosted.shut_down_target(move || later(done));
    });
    if let Some(done) = done {
        (done.into_inner())();
    }
}

/// Ends everything; then `done` is called on the application's thread. All disks are gone.
pub(crate) fn stop(done: Box<dyn FnOnce()>) {
    let done = AppOnly::new(done);
    let begun = with(|hosted, _| {
        hosted.shut_down_initiator(|| {
            // From outside of the loop that is about to be dropped.
            if let Some(app) = Thread::app() {
                app.send(take_down);
            }
        });
    });
    *lock_done() = Some(done);
    if begun.is_none() {
        finish();
    }
}

/// Calls it from outside of the loop, which may have to end for what follows.
fn later(done: Option<Done>) {
    if let (Some(app), Some(done)) = (Thread::app(), done) {
        app.send(move || (done.into_inner())());
    }
}

/// What SPDK waits for.
type Done = AppOnly<Box<dyn FnOnce()>>;

static DONE: Mutex<Option<Done>> = Mutex::new(None);

fn lock_done() -> MutexGuard<'static, Option<Done>> {
    DONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn finish() {
    let done = lock_done().take();
    if let Some(done) = done {
        (done.into_inner())();
    }
}

fn take_down() {
    let Some(Runtime {
        hosted,
        seats,
        faces,
        _control,
    }) = lock().take()
    else {
        return finish();
    };
    faces.stop();
    // The last of these references calls `finish`.
    let last = Arc::new(AllGone);
    for seat in &seats {
        let last = Arc::clone(&last);
        seat.leave(move || drop(last));
    }
    drop(hosted);
}

/// Counts, by its references, the threads that still run.
struct AllGone;

impl Drop for AllGone {
    fn drop(&mut self) {
        if let Some(app) = Thread::app() {
            app.send(finish);
        }
    }
}
