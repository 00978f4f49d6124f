use hdrhistogram::Histogram;
use rnbd_base::{Errno, Nanos};

use crate::workload::Action;

/// Latencies above an hour are counted as one.
const LONGEST_NS: u64 = 3_600_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;
/// More kinds of errors than this are counted with the last.
const ERROR_KINDS: usize = 16;

/// What a job counts while it is measured. Nothing in it grows.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) others: u64,
    pub(crate) bytes: u64,
    pub(crate) failed: u64,
    pub(crate) timed_out: u64,
    /// Nanoseconds from submission to completion of what succeeded.
    pub(crate) latency: Histogram<u64>,
    latency_sum_ns: u128,
    latency_min: Nanos,
    latency_max: Nanos,
    errors: Vec<(Errno, u64)>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, LONGEST_NS, SIGNIFICANT_DIGITS)
            .expect("the bounds are in order and the digits at most 5");
        Self {
            reads: 0,
            writes: 0,
            others: 0,
            bytes: 0,
            failed: 0,
            timed_out: 0,
            latency,
            latency_sum_ns: 0,
            latency_min: Nanos::MAX,
            latency_max: Nanos::ZERO,
            errors: Vec::with_capacity(ERROR_KINDS),
        }
    }

    /// Counts an I/O that succeeded.
    pub(crate) fn succeeded(&mut self, action: Action, bytes: u64, latency: Nanos) {
        match action {
            Action::Read => self.reads += 1,
            Action::Write => self.writes += 1,
            Action::Unmap | Action::WriteZeroes | Action::Flush => self.others += 1,
        }
        self.bytes += bytes;
        self.latency.saturating_record(latency.0);
        self.latency_sum_ns += u128::from(latency.0);
        self.latency_min = self.latency_min.min(latency);
        self.latency_max = self.latency_max.max(latency);
    }

    /// Counts an I/O that failed.
    pub(crate) fn failed(&mut self, errno: Errno) {
        self.failed += 1;
        let is_full = self.errors.len() == ERROR_KINDS;
        match self.errors.iter_mut().find(|(kind, _)| *kind == errno) {
            Some((_, count)) => *count += 1,
            None if is_full => self.errors[ERROR_KINDS - 1].1 += 1,
            None => self.errors.push((errno, 1)),
        }
    }

    /// I/Os that succeeded.
    pub(crate) fn ios(&self) -> u64 {
        self.reads + self.writes + self.others
    }

    /// Errors and how often each occurred, in the order of their first occurrence.
    pub(crate) fn errors(&self) -> &[(Errno, u64)] {
        &self.errors
    }

    /// In microseconds; zero if nothing succeeded.
    pub(crate) fn average_us(&self) -> f64 {
        match self.ios() {
            0 => 0.0,
            ios => self.latency_sum_ns as f64 / ios as f64 / 1e3,
        }
    }

    /// In microseconds; zero if nothing succeeded.
    pub(crate) fn min_us(&self) -> f64 {
        match self.ios() {
            0 => 0.0,
            _ => self.latency_min.0 as f64 / 1e3,
        }
    }

    /// In microseconds.
    pub(crate) fn max_us(&self) -> f64 {
        self.latency_max.0 as f64 / 1e3
    }

    /// The latency in microseconds that `percent` of the I/Os did not exceed.
    pub(crate) fn percentile_us(&self, percent: f64) -> f64 {
        match self.ios() {
            0 => 0.0,
            _ => self.latency.value_at_percentile(percent) as f64 / 1e3,
        }
    }

    /// Adds what another job counted.
    pub(crate) fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.others += other.others;
        self.bytes += other.bytes;
        self.failed += other.failed;
        self.timed_out += other.timed_out;
        self.latency
            .add(&other.latency)
            .expect("all histograms have the same bounds");
        self.latency_sum_ns += other.latency_sum_ns;
        self.latency_min = self.latency_min.min(other.latency_min);
        self.latency_max = self.latency_max.max(other.latency_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_has_the_extremes_and_the_mean_of_its_parts() {
        let (mut a, mut b) = (Tally::new(), Tally::new());
        a.succeeded(Action::Read, 4096, Nanos(1_000));
        b.succeeded(Action::Write, 4096, Nanos(3_000));
        a.add(&b);
        assert_eq!((a.ios(), a.bytes), (2, 8192));
        assert_eq!([a.min_us(), a.average_us(), a.max_us()], [1.0, 2.0, 3.0]);
    }

    #[test]
    fn nothing_done_is_all_zeroes() {
        let tally = Tally::new();
        let figures = [
            tally.min_us(),
            tally.average_us(),
            tally.max_us(),
            tally.percentile_us(99.0),
        ];
        assert_eq!(figures, [0.0; 4]);
    }

    #[test]
    fn errors_are_counted_by_kind() {
        let mut tally = Tally::new();
        tally.failed(Errno::IO);
        tally.failed(Errno::NOSPC);
        tally.failed(Errno::IO);
        assert_eq!(tally.errors(), [(Errno::IO, 2), (Errno::NOSPC, 1)]);
        assert_eq!(tally.failed, 3);
    }
}
