//! Counters of channels. Each channel's are written by the one core that owns it, with plain
//! loads and stores, and summed by whoever asks.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rnbd_base::{CoreIndex, Errno, Nanos};

use crate::histogram::Histogram;
use crate::io::IoKind;

const KINDS: usize = IoKind::ALL.len();
/// One more than the largest [`Errno`].
const ERRNOS: usize = 512;

/// Which parts of the statistics a reset clears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetMode {
    /// Everything.
    All,
    /// Only the smallest and largest latencies.
    MaxMin,
    /// Only the counts of errors.
    Error,
    /// Nothing.
    None,
}

/// What one kind of I/O did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindStats {
    /// I/Os that succeeded.
    pub ops: u64,
    /// Bytes that they covered.
    pub bytes: u64,
    /// The sum of their latencies, in nanoseconds.
    pub latency_ns: u64,
    /// The smallest latency since it was last reset; zero for none.
    pub min_latency_ns: u64,
    /// The largest latency since it was last reset.
    pub max_latency_ns: u64,
}

impl KindStats {
    fn add(&mut self, other: &Self) {
        self.ops += other.ops;
        self.bytes += other.bytes;
        self.latency_ns += other.latency_ns;
        self.max_latency_ns = self.max_latency_ns.max(other.max_latency_ns);
        self.min_latency_ns = match (self.min_latency_ns, other.min_latency_ns) {
            (0, min) | (min, 0) => min,
            (one, two) => one.min(two),
        };
    }

    fn forget_counts(&mut self, before: &Self) {
        self.ops = self.ops.saturating_sub(before.ops);
        self.bytes = self.bytes.saturating_sub(before.bytes);
        self.latency_ns = self.latency_ns.saturating_sub(before.latency_ns);
    }

    fn clear_extremes(&mut self) {
        self.min_latency_ns = 0;
        self.max_latency_ns = 0;
    }
}

/// Statistics at one moment, of a channel or of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatsSnapshot {
    kinds: [KindStats; KINDS],
    errors: Box<[u64; ERRNOS]>,
}

impl Default for StatsSnapshot {
    fn default() -> Self {
        Self {
            kinds: [KindStats::default(); KINDS],
            errors: Box::new([0; ERRNOS]),
        }
    }
}

impl StatsSnapshot {
    /// What `kind` did.
    #[must_use]
    pub fn kind(&self, kind: IoKind) -> KindStats {
        self.kinds[kind as usize]
    }

    /// How many I/Os failed, by errno; only those that occurred.
    pub fn errors(&self) -> impl Iterator<Item = (Errno, u64)> + '_ {
        self.errors
            .iter()
            .zip(0_i32..)
            .filter(|(count, _)| **count != 0)
            .map(|(count, raw)| (Errno::from_raw(raw), *count))
    }

    /// Adds what `other` counted.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.kinds.iter_mut().zip(&other.kinds) {
            mine.add(theirs);
        }
        for (mine, theirs) in self.errors.iter_mut().zip(other.errors.iter()) {
            *mine += theirs;
        }
    }

    pub(crate) fn forget_counts(&mut self, before: &Self) {
        for (mine, theirs) in self.kinds.iter_mut().zip(&before.kinds) {
            mine.forget_counts(theirs);
        }
        for (mine, theirs) in self.errors.iter_mut().zip(before.errors.iter()) {
            *mine = mine.saturating_sub(*theirs);
        }
    }

    /// Keeps of itself only what a reset of `mode` clears, as a base to be subtracted later.
    pub(crate) fn select(&self, mode: ResetMode) -> Self {
        let mut selected = Self::default();
        match mode {
            ResetMode::All => selected = self.clone(),
            ResetMode::Error => selected.errors = self.errors.clone(),
            ResetMode::MaxMin | ResetMode::None => {}
        }
        selected.clear_extremes();
        selected
    }

    pub(crate) fn clear_extremes(&mut self) {
        self.kinds.iter_mut().for_each(KindStats::clear_extremes);
    }
}

/// How many I/Os a device had outstanding, looked at from time to time. Times are in
/// microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueDepth {
    /// Time between two looks.
    pub period_us: u64,
    /// At the last look.
    pub queue_depth: u64,
    /// For how long there was any I/O.
    pub io_time_us: u64,
    /// That, times the depth.
    pub weighted_io_time_us: u64,
}

impl QueueDepth {
    /// `outstanding` I/Os now, and as if for a whole period.
    pub(crate) fn add(&mut self, outstanding: u64) {
        self.queue_depth = outstanding;
        if outstanding > 0 {
            self.io_time_us += self.period_us;
            self.weighted_io_time_us += self.period_us * outstanding;
        }
    }
}

/// Names one call of [`crate::Registry::set_qd_sampling_period`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplingId(pub(crate) u64);

/// The statistics of one open channel.
#[derive(Clone, Debug)]
pub struct ChannelStats {
    /// Where it is polled.
    pub core: CoreIndex,
    /// What it did.
    pub stats: StatsSnapshot,
}

/// The statistics of a device.
#[derive(Clone, Debug, Default)]
pub struct BdevStats {
    /// Of all channels, closed ones included.
    pub total: StatsSnapshot,
    /// Of those that are open.
    pub channels: Vec<ChannelStats>,
    /// Of all channels together, if it is looked at.
    pub queue_depth: Option<QueueDepth>,
}

/// The live counters of one channel.
#[derive(Debug)]
pub(crate) struct IoStats {
    kinds: [KindCounters; KINDS],
    errors: Box<[AtomicU64]>,
    /// Counted up by whoever wants the extremes to be forgotten, …
    extremes_wanted: AtomicU32,
    /// … and followed by the owner once it has done so.
    extremes_cleared: AtomicU32,
    histogram: Mutex<Option<Arc<Histogram>>>,
    /// Counted up after `histogram` was exchanged, so that the owner locks only then.
    histogram_generation: AtomicU32,
    outstanding: AtomicU64,
}

#[derive(Debug, Default)]
struct KindCounters {
    ops: AtomicU64,
    bytes: AtomicU64,
    latency_ns: AtomicU64,
    min_latency_ns: AtomicU64,
    max_latency_ns: AtomicU64,
}

/// What the owner of the counters keeps beside them.
#[derive(Debug, Default)]
pub(crate) struct IoStatsOwner {
    histogram: Option<Arc<Histogram>>,
    histogram_generation: u32,
}

impl IoStats {
    pub(crate) fn new() -> Self {
        Self {
            kinds: Default::default(),
            errors: (0..ERRNOS).map(|_| AtomicU64::new(0)).collect(),
            extremes_wanted: AtomicU32::new(0),
            extremes_cleared: AtomicU32::new(0),
            histogram: Mutex::new(None),
            histogram_generation: AtomicU32::new(0),
            outstanding: AtomicU64::new(0),
        }
    }

    /// Counts an I/O that ended. Only the owner of the channel calls this.
    pub(crate) fn record(
        &self,
        owner: &mut IoStatsOwner,
        kind: IoKind,
        bytes: u64,
        latency: Nanos,
        result: Result<(), Errno>,
    ) {
        self.follow_reset();
        self.follow_histogram(owner);
        match result {
            Ok(()) => self.kinds[kind as usize].record(bytes, latency.0),
            Err(errno) => add(&self.errors[usize::from(errno.get())], 1),
        }
        if let Some(histogram) = &owner.histogram {
            histogram.record(kind, latency.0);
        }
    }

    /// For those who look at queue depths.
    pub(crate) fn set_outstanding(&self, count: usize) {
        self.outstanding.store(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::Relaxed)
    }

    pub(crate) fn snapshot(&self) -> StatsSnapshot {
        let mut snapshot = StatsSnapshot::default();
        for (to, from) in snapshot.kinds.iter_mut().zip(&self.kinds) {
            *to = from.snapshot();
        }
        for (to, from) in snapshot.errors.iter_mut().zip(&self.errors) {
            *to = from.load(Ordering::Relaxed);
        }
        let wanted = self.extremes_wanted.load(Ordering::Relaxed);
        if wanted != self.extremes_cleared.load(Ordering::Relaxed) {
            snapshot.clear_extremes();
        }
        snapshot
    }

    pub(crate) fn reset_extremes(&self) {
        self.extremes_wanted.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set_histogram(&self, histogram: Option<Arc<Histogram>>) {
        *self
            .histogram
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = histogram;
        self.histogram_generation.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn histogram(&self) -> Option<Arc<Histogram>> {
        self.histogram
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn follow_reset(&self) {
        let wanted = self.extremes_wanted.load(Ordering::Relaxed);
        if wanted != self.extremes_cleared.load(Ordering::Relaxed) {
            for kind in &self.kinds {
                kind.min_latency_ns.store(0, Ordering::Relaxed);
                kind.max_latency_ns.store(0, Ordering::Relaxed);
            }
            self.extremes_cleared.store(wanted, Ordering::Relaxed);
        }
    }

    fn follow_histogram(&self, owner: &mut IoStatsOwner) {
        let generation = self.histogram_generation.load(Ordering::Acquire);
        if generation != owner.histogram_generation {
            owner.histogram = self.histogram();
            owner.histogram_generation = generation;
        }
    }
}

impl KindCounters {
    fn record(&self, bytes: u64, latency_ns: u64) {
        add(&self.ops, 1);
        add(&self.bytes, bytes);
        add(&self.latency_ns, latency_ns);
        let min = self.min_latency_ns.load(Ordering::Relaxed);
        // Zero stands for "none yet", so an I/O that took no time counts as one nanosecond.
        if min == 0 || latency_ns < min {
            self.min_latency_ns
                .store(latency_ns.max(1), Ordering::Relaxed);
        }
        if latency_ns > self.max_latency_ns.load(Ordering::Relaxed) {
            self.max_latency_ns.store(latency_ns, Ordering::Relaxed);
        }
    }

    fn snapshot(&self) -> KindStats {
        KindStats {
            ops: self.ops.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            latency_ns: self.latency_ns.load(Ordering::Relaxed),
            min_latency_ns: self.min_latency_ns.load(Ordering::Relaxed),
            max_latency_ns: self.max_latency_ns.load(Ordering::Relaxed),
        }
    }
}

/// There is one writer, so no read-modify-write is needed.
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(amount),
        Ordering::Relaxed,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_are_forgotten_at_once_and_counted_anew() {
        let stats = IoStats::new();
        let mut owner = IoStatsOwner::default();
        stats.record(&mut owner, IoKind::Read, 512, Nanos(50), Ok(()));
        stats.reset_extremes();
        let read = stats.snapshot().kind(IoKind::Read);
        assert_eq!(
            (read.ops, read.min_latency_ns, read.max_latency_ns),
            (1, 0, 0)
        );
        stats.record(&mut owner, IoKind::Read, 512, Nanos(7), Ok(()));
        let read = stats.snapshot().kind(IoKind::Read);
        assert_eq!(
            (read.ops, read.min_latency_ns, read.max_latency_ns),
            (2, 7, 7)
        );
        assert_eq!(read.latency_ns, 57);
    }

    #[test]
    fn errors_are_counted_by_errno_and_not_as_operations() {
        let stats = IoStats::new();
        let mut owner = IoStatsOwner::default();
        stats.record(&mut owner, IoKind::Write, 512, Nanos(1), Err(Errno::IO));
        stats.record(&mut owner, IoKind::Write, 512, Nanos(1), Err(Errno::NOSPC));
        stats.record(&mut owner, IoKind::Read, 512, Nanos(1), Err(Errno::IO));
        let snapshot = stats.snapshot();
        assert_eq!(snapshot.kind(IoKind::Write).ops, 0);
        let errors: Vec<_> = snapshot.errors().collect();
        assert_eq!(errors, [(Errno::IO, 2), (Errno::NOSPC, 1)]);
    }
}
