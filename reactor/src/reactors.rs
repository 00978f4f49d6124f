use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use core_affinity::CoreId;
use crossbeam_queue::ArrayQueue;
use rnbd_base::{CoreIndex, Nanos, Poll, Wake};

use crate::clock::Clock;
use crate::command::{Command, NewPoller, PollerId, Reply, ThreadId};
use crate::core_mask::{AbsentCores, CoreMask};
use crate::cpu::numa_node;
use crate::hosted::HostedReactor;
use crate::reactor::{Mode, Placement, Reactor};
use crate::snapshot::ReactorSnapshot;
use crate::waker::Waker;

/// Commands that may wait for one reactor.
const COMMANDS_MAX: usize = 1024;

/// How to start the reactors.
#[derive(Clone, Debug)]
pub struct ReactorConfig {
    /// One reactor for each of these.
    pub cores: CoreMask,
    /// What a reactor does when there is nothing to do.
    pub mode: Mode,
}

/// Why the reactors did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The mask names cores that are not there.
    #[error(transparent)]
    AbsentCores(#[from] AbsentCores),
    /// The kernel refused a thread, an eventfd, or the affinity.
    #[error("cannot start the reactors")]
    Os(#[from] io::Error),
}

/// All reactors of the process, as the control thread holds them.
///
/// Commands to one reactor take effect in the order given. A command waits while more than a
/// thousand are queued before it, which ends as the reactor goes round. To a reactor that has
/// ended (by a panic) commands are dropped, and with them their replies.
///
/// Dropping it stops the reactors as [`Reactors::stop`] does.
#[derive(Debug)]
pub struct Reactors {
    clock: Clock,
    cores: Vec<Core>,
    last_id: AtomicU64,
}

struct Core {
    lcore: u32,
    commands: Arc<ArrayQueue<Command>>,
    waker: Arc<Waker>,
    host: Host,
}

/// Who polls a reactor.
enum Host {
    /// A thread of ours; none once it was joined.
    Thread(Option<JoinHandle<()>>),
    /// The program, until this is set.
    Program(Arc<AtomicBool>),
}

impl Reactors {
    /// Starts a pinned thread on each core and waits until all run.
    ///
    /// # Errors
    /// [`StartError`]; no thread is left behind then.
    pub fn start(config: &ReactorConfig) -> Result<Self, StartError> {
        config.cores.check_within(&CoreMask::available()?)?;
        let mut reactors = Self {
            clock: Clock::start(),
            cores: Vec::with_capacity(config.cores.len()),
            last_id: AtomicU64::new(0),
        };
        for (index, lcore) in (0..).zip(config.cores.cores()) {
            let placement = Placement {
                core: CoreIndex(index),
                lcore,
                numa_id: numa_node(lcore),
                mode: config.mode,
            };
            let core = Core::start(placement, reactors.clock)?;
            reactors.cores.push(core);
        }
        Ok(reactors)
    }

    /// Reactors without threads of their own, for the cores that a program polls itself: each is
    /// to be polled by one thread at a time, and never sleeps.
    ///
    /// # Errors
    /// The kernel refuses an eventfd.
    pub fn hosted(lcores: &[u32]) -> io::Result<(Self, Vec<HostedReactor>)> {
        let mut reactors = Self {
            clock: Clock::start(),
            cores: Vec::with_capacity(lcores.len()),
            last_id: AtomicU64::new(0),
        };
        let mut hosted = Vec::with_capacity(lcores.len());
        for (index, &lcore) in (0..).zip(lcores) {
            let placement = Placement {
                core: CoreIndex(index),
                lcore,
                numa_id: numa_node(lcore),
                mode: Mode::Busy,
            };
            let core = Core::hosted(lcore)?;
            let (commands, waker) = (Arc::clone(&core.commands), Arc::clone(&core.waker));
            let reactor = Reactor::new(placement, reactors.clock, commands, waker);
            if let Host::Program(ended) = &core.host {
                hosted.push(HostedReactor::new(reactor, Arc::clone(ended)));
            }
            reactors.cores.push(core);
        }
        Ok((reactors, hosted))
    }

    /// The clock that all reactors and their snapshots use.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The reactors' indices, from zero.
    pub fn cores(&self) -> impl Iterator<Item = CoreIndex> + use<> {
        let count = u16::try_from(self.cores.len()).unwrap_or(u16::MAX);
        (0..count).map(CoreIndex)
    }

    /// The CPU that a reactor is pinned to.
    ///
    /// # Panics
    /// If there is no such reactor; so do all methods that take a core.
    #[must_use]
    pub fn lcore(&self, core: CoreIndex) -> u32 {
        self.core(core).lcore
    }

    /// Wakes a reactor; for the mailboxes of what it polls.
    #[must_use]
    pub fn waker(&self, core: CoreIndex) -> Arc<dyn Wake> {
        Arc::clone(&self.core(core).waker) as Arc<dyn Wake>
    }

    /// Creates a light thread on `core`.
    pub fn create_thread(&self, core: CoreIndex, name: &str) -> ThreadId {
        let id = ThreadId {
            id: self.next_id(),
            core,
        };
        self.send(core, Command::CreateThread(id, name.into()));
        id
    }

    /// Removes a light thread and gives its pollers back, the one added last first; none if there
    /// is no such thread.
    pub fn destroy_thread(&self, id: ThreadId, reply: Reply<Vec<Box<dyn Poll>>>) {
        self.send(id.core, Command::DestroyThread(id, reply));
    }

    /// Lets `poll` be polled by `thread`: in every round, or, with a `period`, when that has
    /// passed since it was last polled. A thread polls in the order in which pollers were added.
    pub fn add_poller(
        &self,
        thread: ThreadId,
        name: &str,
        period: Option<Nanos>,
        poll: Box<dyn Poll>,
    ) -> PollerId {
        let id = PollerId {
            id: self.next_id(),
            thread,
        };
        let new = NewPoller {
            id,
            name: name.into(),
            period,
            poll,
        };
        self.send(thread.core, Command::AddPoller(new));
        id
    }

    /// Removes a poller and gives it back; `None` if it is not there.
    pub fn remove_poller(&self, id: PollerId, reply: Reply<Option<Box<dyn Poll>>>) {
        self.send(id.thread.core, Command::RemovePoller(id, reply));
    }

    /// Runs `function` once on a reactor, between two rounds. It must not block.
    pub fn run_on(&self, core: CoreIndex, function: Box<dyn FnOnce(Nanos) + Send>) {
        self.send(core, Command::Run(function));
    }

    /// Asks what a reactor, its threads and its pollers did.
    pub fn snapshot(&self, core: CoreIndex, reply: Reply<ReactorSnapshot>) {
        self.send(core, Command::Snapshot(reply));
    }

    /// Lets every reactor carry out what was sent to it, drop its pollers on its own thread (the
    /// one added last first) and end; returns when all have that have a thread of their own.
    pub fn stop(mut self) {
        self.stop_all();
    }

    fn stop_all(&mut self) {
        for core in self.cores() {
            self.send(core, Command::Stop);
        }
        for core in &mut self.cores {
            if let Host::Thread(thread) = &mut core.host
                && let Some(thread) = thread.take()
            {
                core.join(thread);
            }
        }
    }

    fn core(&self, core: CoreIndex) -> &Core {
        &self.cores[usize::from(core.0)]
    }

    fn send(&self, core: CoreIndex, command: Command) {
        self.core(core).send(command);
    }

    fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Drop for Reactors {
    fn drop(&mut self) {
        self.stop_all();
    }
}

impl Core {
    fn start(placement: Placement, clock: Clock) -> io::Result<Self> {
        let commands = Arc::new(ArrayQueue::new(COMMANDS_MAX));
        let waker = Arc::new(Waker::new()?);
        let (started, start) = mpsc::channel();
        let lcore = placement.lcore;
        let mut core = Self {
            lcore,
            commands: Arc::clone(&commands),
            waker: Arc::clone(&waker),
            host: Host::Thread(None),
        };
        let body = move || {
            let pinned = pin(lcore);
            let run = pinned.is_ok();
            let _ = started.send(pinned);
            if run {
                Reactor::new(placement, clock, commands, waker).run();
            }
        };
        let name = format!("reactor_{lcore}");
        let thread = std::thread::Builder::new().name(name).spawn(body)?;
        core.host = Host::Thread(Some(thread));
        start.recv().map_err(io::Error::other)??;
        Ok(core)
    }

    fn hosted(lcore: u32) -> io::Result<Self> {
        Ok(Self {
            lcore,
            commands: Arc::new(ArrayQueue::new(COMMANDS_MAX)),
            waker: Arc::new(Waker::new()?),
            host: Host::Program(Arc::default()),
        })
    }

    fn send(&self, mut command: Command) {
        while let Err(refused) = self.commands.push(command) {
            if self.has_ended() {
                log::error!(
                    "reactor on core {} has ended: {refused:?} dropped",
                    self.lcore
                );
                return;
            }
            command = refused;
            self.waker.wake();
            std::thread::yield_now();
        }
        self.waker.wake();
        if self.has_ended() {
            self.drop_commands();
        }
    }

    fn has_ended(&self) -> bool {
        match &self.host {
            Host::Thread(thread) => thread.as_ref().is_none_or(JoinHandle::is_finished),
            Host::Program(ended) => ended.load(Ordering::Acquire),
        }
    }

    fn join(&self, thread: JoinHandle<()>) {
        if thread.join().is_err() {
            log::error!("the reactor on core {} panicked", self.lcore);
        }
        self.drop_commands();
    }

    fn drop_commands(&self) {
        while self.commands.pop().is_some() {}
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("lcore", &self.lcore)
            .field("waker", &self.waker)
            .finish_non_exhaustive()
    }
}

/// Pins the calling thread, and lets its sleeps end when they are due instead of up to 50 µs
/// later.
fn pin(lcore: u32) -> io::Result<()> {
    let id = usize::try_from(lcore).map_err(io::Error::other)?;
    if !core_affinity::set_for_current(CoreId { id }) {
        return Err(io::Error::other(format!("cannot run on core {lcore}")));
    }
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    Ok(())
}

#[cfg(test)]
mod tests;
