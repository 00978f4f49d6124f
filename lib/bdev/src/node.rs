//! What the holders of a device share with the registry: its flags and its statistics.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rnbd_base::CoreIndex;

use crate::histogram::{Histogram, HistogramOptions, HistogramSnapshot};
use crate::limits::{Limits, RateLimits};
use crate::stats::{
    BdevStats, ChannelStats, IoStats, QueueDepth, ResetMode, SamplingId, StatsSnapshot,
};

#[derive(Debug, Default)]
pub(crate) struct Node {
    /// Flags that every I/O looks at, at once.
    state: AtomicU8,
    resizes: AtomicU32,
    limits: Limits,
    stats: Mutex<NodeStats>,
}

const REMOVED: u8 = 1 << 0;
const LIMITED: u8 = 1 << 1;

/// What every I/O must know of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeState(u8);

impl NodeState {
    pub(crate) fn is_removed(self) -> bool {
        self.0 & REMOVED != 0
    }

    pub(crate) fn is_limited(self) -> bool {
        self.0 & LIMITED != 0
    }
}

#[derive(Debug, Default)]
struct NodeStats {
    open: Vec<OpenChannel>,
    /// What channels counted that are closed now.
    closed: StatsSnapshot,
    histogram: Option<HistogramOptions>,
    closed_histogram: Option<HistogramSnapshot>,
    queue_depth: Option<(SamplingId, QueueDepth)>,
}

#[derive(Debug)]
struct OpenChannel {
    core: CoreIndex,
    stats: Arc<IoStats>,
    /// What it had counted when it was last reset.
    forgotten: StatsSnapshot,
}

impl OpenChannel {
    fn snapshot(&self) -> StatsSnapshot {
        let mut snapshot = self.stats.snapshot();
        snapshot.forget_counts(&self.forgotten);
        snapshot
    }
}

impl Node {
    pub(crate) fn state(&self) -> NodeState {
        NodeState(self.state.load(Ordering::Acquire))
    }

    pub(crate) fn mark_removed(&self) {
        self.state.fetch_or(REMOVED, Ordering::Release);
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn set_limits(&self, limits: RateLimits) {
        self.limits.set(limits);
        match limits.are_off() {
            true => self.state.fetch_and(!LIMITED, Ordering::Release),
            false => self.state.fetch_or(LIMITED, Ordering::Release),
        };
    }

    pub(crate) fn resizes(&self) -> u32 {
        self.resizes.load(Ordering::Acquire)
    }

    pub(crate) fn count_resize(&self) {
        self.resizes.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn open_channel(&self, core: CoreIndex) -> Arc<IoStats> {
        let mut node = self.lock();
        let stats = Arc::new(IoStats::new());
        if let Some(options) = node.histogram {
            stats.set_histogram(Some(Arc::new(Histogram::new(options))));
        }
        node.open.push(OpenChannel {
            core,
            stats: Arc::clone(&stats),
            forgotten: StatsSnapshot::default(),
        });
        stats
    }

    pub(crate) fn close_channel(&self, stats: &Arc<IoStats>) {
        let mut node = self.lock();
        let Some(at) = node
            .open
            .iter()
            .position(|open| Arc::ptr_eq(&open.stats, stats))
        else {
            return;
        };
        let open = node.open.swap_remove(at);
        node.closed.add(&open.snapshot());
        if let (Some(sum), Some(histogram)) = (&mut node.closed_histogram, open.stats.histogram()) {
            histogram.add_to(sum);
        }
    }

    pub(crate) fn stats(&self) -> BdevStats {
        let node = self.lock();
        let mut total = node.closed.clone();
        let mut channels = Vec::with_capacity(node.open.len());
        for open in &node.open {
            let stats = open.snapshot();
            total.add(&stats);
            channels.push(ChannelStats {
                core: open.core,
                stats,
            });
        }
        BdevStats {
            total,
            channels,
            queue_depth: node.queue_depth.map(|(_, sampled)| sampled),
        }
    }

    /// Samples from now on, or not any more with a period of zero.
    pub(crate) fn set_sampling(&self, id: SamplingId, period_us: u64) {
        let sampled = QueueDepth {
            period_us,
            ..QueueDepth::default()
        };
        self.lock().queue_depth = (period_us > 0).then_some((id, sampled));
    }

    /// Returns whether that is still wanted.
    pub(crate) fn sample(&self, id: SamplingId) -> bool {
        let mut node = self.lock();
        let outstanding = node.open.iter().map(|open| open.stats.outstanding()).sum();
        match &mut node.queue_depth {
            Some((current, sampled)) if *current == id => sampled.add(outstanding),
            _ => return false,
        }
        true
    }

    pub(crate) fn reset_stats(&self, mode: ResetMode) {
        if mode == ResetMode::None {
            return;
        }
        let mut node = self.lock();
        let forgotten = node.closed.select(mode);
        node.closed.forget_counts(&forgotten);
        let with_extremes = mode != ResetMode::Error;
        if with_extremes {
            node.closed.clear_extremes();
        }
        for open in &mut node.open {
            let forgotten = open.snapshot().select(mode);
            open.forgotten.add(&forgotten);
            if with_extremes {
                open.stats.reset_extremes();
            }
        }
    }

    /// Starts counting anew, or stops with `None`.
    pub(crate) fn set_histogram(&self, options: Option<HistogramOptions>) {
        let mut node = self.lock();
        node.histogram = options;
        node.closed_histogram = options.map(HistogramSnapshot::new);
        for open in &node.open {
            let histogram = options.map(|options| Arc::new(Histogram::new(options)));
            open.stats.set_histogram(histogram);
        }
    }

    pub(crate) fn histogram(&self) -> Option<HistogramSnapshot> {
        let node = self.lock();
        let mut sum = node.closed_histogram.clone()?;
        for open in &node.open {
            if let Some(histogram) = open.stats.histogram() {
                histogram.add_to(&mut sum);
            }
        }
        Some(sum)
    }

    fn lock(&self) -> MutexGuard<'_, NodeStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
