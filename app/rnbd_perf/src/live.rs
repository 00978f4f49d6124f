//! What is printed while jobs run.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::job::JobProgress;

const BYTES_PER_MIB: f64 = 1_048_576.0;

/// Prints the rates since the last line.
#[derive(Debug)]
pub(crate) struct Live {
    /// Time between two lines.
    pub(crate) period: Duration,
    /// A line overwrites the one before.
    overwrites: bool,
    average: MovingAverage,
    ios: u64,
    bytes: u64,
}

impl Live {
    /// Overwritten lines every second on a terminal, or lines to keep every `period`; smoothed
    /// over `samples`.
    pub(crate) fn new(period: Option<Duration>, samples: u32, is_terminal: bool) -> Self {
        Self {
            period: period.unwrap_or(Duration::from_secs(1)),
            overwrites: period.is_none() && is_terminal,
            average: MovingAverage::over(samples),
            ios: 0,
            bytes: 0,
        }
    }

    /// Prints the rates of the last `elapsed`.
    pub(crate) fn tick(
        &mut self,
        jobs: &[Arc<JobProgress>],
        elapsed: Duration,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let sum = |value: fn(&JobProgress) -> u64| jobs.iter().map(|job| value(job)).sum::<u64>();
        let ios = sum(|job| job.ios.load(Ordering::Relaxed));
        let bytes = sum(|job| job.bytes.load(Ordering::Relaxed));
        let per_second = |count: u64| count as f64 / elapsed.as_secs_f64();
        let iops = per_second(ios.saturating_sub(self.ios));
        let mibps = per_second(bytes.saturating_sub(self.bytes)) / BYTES_PER_MIB;
        (self.ios, self.bytes) = (ios, bytes);
        let (iops, mibps) = self.average.add(iops, mibps);
        let end = if self.overwrites { '\r' } else { '\n' };
        write!(out, "{iops:12.2} IOPS, {mibps:8.2} MiB/s{end}")?;
        out.flush()
    }
}

/// An exponential moving average of IOPS and MiB/s; over one sample it is that sample.
#[derive(Debug)]
struct MovingAverage {
    weight: f64,
    value: Option<(f64, f64)>,
}

impl MovingAverage {
    fn over(samples: u32) -> Self {
        Self {
            weight: 2.0 / (f64::from(samples.max(1)) + 1.0),
            value: None,
        }
    }

    fn add(&mut self, iops: f64, mibps: f64) -> (f64, f64) {
        let (old_iops, old_mibps) = self.value.unwrap_or((iops, mibps));
        let value = (
            old_iops + (iops - old_iops) * self.weight,
            old_mibps + (mibps - old_mibps) * self.weight,
        );
        self.value = Some(value);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(live: &mut Live, ios: &[u64]) -> String {
        let job = Arc::new(JobProgress::default());
        let mut out = Vec::new();
        for total in ios {
            job.ios.store(*total, Ordering::Relaxed);
            job.bytes.store(*total << 20, Ordering::Relaxed);
            live.tick(&[Arc::clone(&job)], Duration::from_secs(2), &mut out)
                .unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_show_the_rate_since_the_line_before() {
        let mut live = Live::new(Some(Duration::from_secs(2)), 1, true);
        assert_eq!(
            lines(&mut live, &[200, 300]),
            "      100.00 IOPS,   100.00 MiB/s\n       50.00 IOPS,    50.00 MiB/s\n"
        );
    }

    #[test]
    fn an_average_over_several_lines_follows_slowly() {
        let mut live = Live::new(None, 3, true);
        let text = lines(&mut live, &[200, 200]);
        assert!(
            text.ends_with("       50.00 IOPS,    50.00 MiB/s\r"),
            "{text:?}"
        );
    }
}
