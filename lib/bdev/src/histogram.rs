//! Latency histograms in the bucket layout of SPDK, so that its tools can read them
//! (spdk-conventions.md A.7, "Histogram layout").
//!
//! Values are sorted by magnitude into ranges of `2^granularity` buckets. Ranges 0 and 1 have
//! buckets of width 1; each later range is twice as wide as the one before. Only the ranges
//! between those of the smallest and the largest value of interest are kept.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::io::IoKind;

/// What a histogram shall count; the defaults are those of `bdev_enable_histogram`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistogramOptions {
    /// Only this kind of I/O; `None` for all.
    pub kind: Option<IoKind>,
    /// Binary logarithm of the number of buckets per range, 1 to 16.
    pub granularity: u8,
    /// Shorter latencies count as this, in nanoseconds.
    pub min_ns: u64,
    /// Longer latencies count as this, in nanoseconds.
    pub max_ns: u64,
}

impl Default for HistogramOptions {
    fn default() -> Self {
        Self {
            kind: None,
            granularity: 7,
            min_ns: 1_000,
            max_ns: 120_000_000_000,
        }
    }
}

impl HistogramOptions {
    /// Whether the values make a histogram of a sane size.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        (1..=16).contains(&self.granularity) && self.min_ns < self.max_ns
    }

    fn range_of(&self, value: u64) -> u32 {
        (u64::BITS - value.leading_zeros()).saturating_sub(u32::from(self.granularity))
    }

    fn min_range(&self) -> u32 {
        self.range_of(self.min_ns)
    }

    fn max_range(&self) -> u32 {
        self.range_of(self.max_ns)
    }

    fn bucket_count(&self) -> usize {
        ((self.max_range() - self.min_range() + 1) as usize) << self.granularity
    }

    fn bucket_of(&self, value: u64) -> usize {
        let range = self.range_of(value);
        if range < self.min_range() {
            return 0;
        }
        if range > self.max_range() {
            return self.bucket_count() - 1;
        }
        let mask = (1_u64 << self.granularity) - 1;
        let in_range = (value >> range.saturating_sub(1)) & mask;
        let ranges_before = u64::from(range - self.min_range());
        usize::try_from((ranges_before << self.granularity) + in_range)
            .expect("there are at most 64 ranges of 65536 buckets")
    }
}

/// The buckets of one channel: written by the core that owns it, read by anyone.
#[derive(Debug)]
pub(crate) struct Histogram {
    options: HistogramOptions,
    buckets: Box<[AtomicU64]>,
}

impl Histogram {
    pub(crate) fn new(options: HistogramOptions) -> Self {
        Self {
            options,
            buckets: (0..options.bucket_count())
                .map(|_| AtomicU64::new(0))
                .collect(),
        }
    }

    pub(crate) fn record(&self, kind: IoKind, latency_ns: u64) {
        if self.options.kind.is_none_or(|only| only == kind) {
            let bucket = &self.buckets[self.options.bucket_of(latency_ns)];
            bucket.store(bucket.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    pub(crate) fn add_to(&self, sum: &mut HistogramSnapshot) {
        for (total, bucket) in sum.buckets.iter_mut().zip(&self.buckets) {
            *total += bucket.load(Ordering::Relaxed);
        }
    }
}

/// The sum over the channels of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// What is counted.
    pub options: HistogramOptions,
    /// Range of the first bucket.
    pub min_range: u32,
    /// Range of the last bucket.
    pub max_range: u32,
    /// Counts, `2^granularity` per range.
    pub buckets: Vec<u64>,
}

impl HistogramSnapshot {
    pub(crate) fn new(options: HistogramOptions) -> Self {
        Self {
            options,
            min_range: options.min_range(),
            max_range: options.max_range(),
            buckets: vec![0; options.bucket_count()],
        }
    }

    /// How many I/Os took less than `border_ns`, as far as buckets can tell: a bucket counts
    /// when it begins below the border.
    #[must_use]
    pub fn count_below(&self, border_ns: u64) -> u64 {
        let end = match border_ns {
            0 => 0,
            border => self.options.bucket_of(border - 1) + 1,
        };
        self.buckets[..end].iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_of_width_one_in_the_first_two_ranges_and_double_then() {
        let all = HistogramOptions {
            min_ns: 0,
            max_ns: u64::MAX,
            ..HistogramOptions::default()
        };
        assert_eq!(all.bucket_of(0), 0);
        assert_eq!(all.bucket_of(127), 127);
        assert_eq!(all.bucket_of(128), 128);
        assert_eq!(all.bucket_of(255), 255);
        assert_eq!(all.bucket_of(256), 256);
        assert_eq!(all.bucket_of(257), 256);
        assert_eq!(all.bucket_of(258), 257);
        assert_eq!(all.bucket_of(511), 383);
        assert_eq!(all.bucket_of(512), 384);
        assert_eq!(all.bucket_of(u64::MAX), all.bucket_count() - 1);
        assert_eq!(all.bucket_count(), 58 * 128);
    }

    #[test]
    fn what_is_outside_the_limits_counts_as_the_limit() {
        let options = HistogramOptions::default();
        let histogram = Histogram::new(options);
        histogram.record(IoKind::Read, 0);
        histogram.record(IoKind::Read, u64::MAX);
        let mut sum = HistogramSnapshot::new(options);
        histogram.add_to(&mut sum);
        assert_eq!(sum.buckets[0], 1);
        assert_eq!(sum.buckets.last(), Some(&1));
        assert_eq!((sum.min_range, sum.max_range), (3, 30));
    }

    #[test]
    fn borders_count_what_is_below_them() {
        let options = HistogramOptions::default();
        let histogram = Histogram::new(options);
        for latency in [2_000, 10_000, 100_000] {
            histogram.record(IoKind::Write, latency);
        }
        let mut sum = HistogramSnapshot::new(options);
        histogram.add_to(&mut sum);
        assert_eq!(sum.count_below(0), 0);
        assert_eq!(sum.count_below(5_000), 1);
        assert_eq!(sum.count_below(50_000), 2);
        assert_eq!(sum.count_below(u64::MAX), 3);
    }
}
