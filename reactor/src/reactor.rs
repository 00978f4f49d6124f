use std::os::fd::RawFd;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use rnbd_base::{CoreIndex, Nanos, Progress};

use crate::CoreMask;
use crate::clock::Clock;
use crate::command::{Command, NewPoller, PollerId, ThreadId};
use crate::light_thread::LightThread;
use crate::snapshot::ReactorSnapshot;
use crate::waker::Waker;

/// What a reactor does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It polls on: the lowest latency, for the whole of a core.
    Busy,
    /// It sleeps on the descriptors of its pollers.
    Adaptive {
        /// After this many microseconds in which no poller did work.
        idle_us: u32,
    },
}

/// Commands taken in one round, so that a flood of them does not hold up the pollers.
const COMMANDS_PER_ROUND: usize = 64;

/// What a reactor is started with.
pub(crate) struct Placement {
    pub(crate) core: CoreIndex,
    pub(crate) lcore: u32,
    pub(crate) numa_id: i32,
    pub(crate) mode: Mode,
}

/// The loop of one core.
pub(crate) struct Reactor {
    placement: Placement,
    tid: i32,
    clock: Clock,
    commands: Arc<ArrayQueue<Command>>,
    waker: Arc<Waker>,
    threads: Vec<LightThread>,
    stopping: bool,
    /// The last clock reading in ticks, and as time; neither goes back.
    ticks: u64,
    now: Nanos,
    busy: u64,
    idle: u64,
    sleeps: u64,
    /// Since when nothing was done.
    idle_since: Option<Nanos>,
    /// Scratch space of `sleep`.
    fds: Vec<RawFd>,
    polled: Vec<libc::pollfd>,
}

impl Reactor {
    /// To be called on the reactor's own OS thread.
    pub(crate) fn new(
        placement: Placement,
        clock: Clock,
        commands: Arc<ArrayQueue<Command>>,
        waker: Arc<Waker>,
    ) -> Self {
        let ticks = clock.ticks();
        Self {
            placement,
            tid: rustix::thread::gettid().as_raw_nonzero().get(),
            clock,
            commands,
            waker,
            threads: Vec::new(),
            stopping: false,
            ticks,
            now: clock.at(ticks),
            busy: 0,
            idle: 0,
            sleeps: 0,
            idle_since: None,
            fds: Vec::new(),
            polled: Vec::new(),
        }
    }

    /// Polls until it is told to stop.
    pub(crate) fn run(mut self) {
        while !self.stopping {
            self.round();
            if self.is_tired() {
                self.try_sleep();
            }
        }
    }

    /// Whether it was told to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Commands, then every light thread once. The clock is read after each, and the reading that
    /// ends one's time begins the next one's.
    pub(crate) fn round(&mut self) -> Progress {
        let mut progress = self.run_commands();
        if progress.is_busy() {
            self.busy += self.advance();
        }
        for index in 0..self.threads.len() {
            progress = progress.or(self.poll_thread(index));
        }
        if self.threads.is_empty() {
            self.idle += self.advance();
        }
        self.note_idleness(progress);
        progress
    }

    fn poll_thread(&mut self, index: usize) -> Progress {
        let progress = self.threads[index].poll(self.now);
        let ticks = self.advance();
        self.threads[index].charge(progress, ticks);
        if progress.is_busy() {
            self.busy += ticks;
        } else {
            self.idle += ticks;
        }
        progress
    }

    /// Reads the clock and returns how far it went on.
    fn advance(&mut self) -> u64 {
        let ticks = self.clock.ticks().max(self.ticks);
        let passed = ticks - self.ticks;
        self.ticks = ticks;
        self.now = self.clock.at(ticks);
        passed
    }

    fn run_commands(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        for _ in 0..COMMANDS_PER_ROUND {
            let Some(command) = self.commands.pop() else {
                break;
            };
            self.run_command(command);
            progress = Progress::Busy;
        }
        progress
    }

    fn run_command(&mut self, command: Command) {
        match command {
            Command::CreateThread(id, name) => self.create_thread(id, name),
            Command::DestroyThread(id, reply) => {
                let thread = self.position(id).map(|index| self.threads.remove(index));
                reply(
                    thread
                        .into_iter()
                        .flat_map(LightThread::into_pollers)
                        .collect(),
                );
            }
            Command::AddPoller(new) => self.add_poller(new),
            Command::RemovePoller(id, reply) => reply(self.remove_poller(id)),
            Command::Run(function) => function(self.now),
            Command::Snapshot(reply) => reply(self.snapshot()),
            Command::Stop => self.stopping = true,
        }
    }

    fn create_thread(&mut self, id: ThreadId, name: String) {
        let cpumask = CoreMask::single(self.placement.lcore).to_hex();
        self.threads
            .push(LightThread::new(id, name, cpumask, self.ticks));
    }

    fn add_poller(&mut self, new: NewPoller) {
        match self.position(new.id.thread()) {
            Some(index) => self.threads[index].add(new, self.now),
            None => log::error!(
                "poller {} dropped: thread {} is gone",
                new.name,
                new.id.thread().get()
            ),
        }
    }

    fn remove_poller(&mut self, id: PollerId) -> Option<Box<dyn rnbd_base::Poll>> {
        let index = self.position(id.thread())?;
        self.threads[index].remove(id)
    }

    fn position(&self, id: ThreadId) -> Option<usize> {
        self.threads.iter().position(|thread| thread.id() == id)
    }

    fn snapshot(&self) -> ReactorSnapshot {
        let threads = self.threads.iter();
        ReactorSnapshot {
            core: self.placement.core,
            lcore: self.placement.lcore,
            numa_id: self.placement.numa_id,
            tid: self.tid,
            busy: self.busy,
            idle: self.idle,
            in_interrupt: self.placement.mode != Mode::Busy,
            sleeps: self.sleeps,
            threads: threads
                .map(|thread| thread.snapshot(self.ticks, &self.clock))
                .collect(),
        }
    }

    fn note_idleness(&mut self, progress: Progress) {
        if progress.is_busy() {
            self.idle_since = None;
        } else {
            self.idle_since = self.idle_since.or(Some(self.now));
        }
    }

    /// Whether it has been idle for as long as its mode demands before it sleeps.
    fn is_tired(&self) -> bool {
        match (self.placement.mode, self.idle_since) {
            (Mode::Adaptive { idle_us }, Some(since)) => {
                self.now.since(since) >= Nanos::from_micros(idle_us.into())
            }
            _ => false,
        }
    }

    fn try_sleep(&mut self) {
        self.waker.announce();
        // The last look, after the announcement: see `Waker`.
        if !self.round().is_busy() && self.may_sleep() {
            self.sleep();
        }
        self.waker.wake_up();
    }

    fn may_sleep(&mut self) -> bool {
        self.fds.clear();
        let fds = &mut self.fds;
        self.threads
            .iter_mut()
            .all(|thread| thread.prepare_sleep(fds))
    }

    fn sleep(&mut self) {
        let deadlines = self.threads.iter().filter_map(LightThread::next_deadline);
        let timeout = deadlines.min().map(|deadline| deadline.since(self.now));
        if timeout == Some(Nanos::ZERO) {
            return;
        }
        self.waker
            .sleep(&self.fds, &mut self.polled, timeout.map(Nanos::as_duration));
        self.sleeps += 1;
        let slept = self.advance();
        self.idle += slept;
        for thread in &mut self.threads {
            thread.charge(Progress::Idle, slept);
        }
    }
}

impl Drop for Reactor {
    /// The pollers go on its own thread, the one added last first.
    fn drop(&mut self) {
        while let Some(thread) = self.threads.pop() {
            thread.into_pollers().for_each(drop);
        }
    }
}
