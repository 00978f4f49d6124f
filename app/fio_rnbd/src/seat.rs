//! Reactors and who polls them: the job that has taken one, or, while it rests, the control thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use rnbd_base::{CoreIndex, Nanos, Poll, Progress};
use rnbd_reactor::HostedReactor;

/// How long a job may rest before its reactor is polled for it: much less than what a heartbeat is
/// missed after, and more than a job that is at work ever takes between two I/Os.
const REST: Duration = Duration::from_millis(10);

/// A reactor's place.
#[derive(Debug)]
pub(crate) struct Seat {
    core: CoreIndex,
    reactor: Mutex<HostedReactor>,
    /// Times that its job has polled.
    rounds: AtomicU64,
    is_taken: AtomicBool,
}

impl Seat {
    pub(crate) fn new(core: CoreIndex, reactor: HostedReactor) -> Arc<Self> {
        Arc::new(Self {
            core,
            reactor: Mutex::new(reactor),
            rounds: AtomicU64::new(0),
            is_taken: AtomicBool::new(false),
        })
    }

    /// Takes it for a job; nothing if another job has it.
    pub(crate) fn take(self: &Arc<Self>) -> Option<TakenSeat> {
        let was_taken = self.is_taken.swap(true, Ordering::AcqRel);
        (!was_taken).then(|| TakenSeat(Arc::clone(self)))
    }

    /// Never waits: a reactor that is being polled elsewhere is as good as polled.
    fn poll(&self) -> Progress {
        match self.reactor.try_lock() {
            Ok(mut reactor) => reactor.poll(Nanos::ZERO),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().poll(Nanos::ZERO),
            Err(TryLockError::WouldBlock) => Progress::Idle,
        }
    }
}

/// A reactor as its job has it.
#[derive(Debug)]
pub(crate) struct TakenSeat(Arc<Seat>);

impl TakenSeat {
    pub(crate) fn core(&self) -> CoreIndex {
        self.0.core
    }

    /// One round.
    pub(crate) fn poll(&self) -> Progress {
        let rounds = self.0.rounds.load(Ordering::Relaxed);
        self.0.rounds.store(rounds + 1, Ordering::Relaxed);
        self.0.poll()
    }
}

impl Drop for TakenSeat {
    fn drop(&mut self) {
        self.0.is_taken.store(false, Ordering::Release);
    }
}

/// The control thread's part for one reactor.
#[derive(Debug)]
pub(crate) struct Caretaker {
    seat: Arc<Seat>,
    seen: u64,
    since: Instant,
}

impl Caretaker {
    pub(crate) fn new(seat: Arc<Seat>) -> Self {
        Self {
            seat,
            seen: 0,
            since: Instant::now(),
        }
    }

    /// Polls it unless its job does.
    pub(crate) fn look_after(&mut self) -> Progress {
        let rounds = self.seat.rounds.load(Ordering::Relaxed);
        if rounds != self.seen {
            self.seen = rounds;
            self.since = Instant::now();
        }
        let is_taken = self.seat.is_taken.load(Ordering::Acquire);
        if is_taken && self.since.elapsed() < REST {
            return Progress::Idle;
        }
        self.seat.poll()
    }
}
