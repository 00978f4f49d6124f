//! What happened between two samples.

use rnbd_console::units::percent;
use serde::Serialize;

use crate::sample::{Bdev, Path, Paths, Poller, Reactor, Sample, Thread, ThreadPollers};

const BYTES_PER_MIB: f64 = 1_048_576.0;

/// Rates of everything that was there at the end.
#[derive(Debug, Serialize)]
pub(crate) struct Rates {
    /// Between the samples.
    pub(crate) seconds: f64,
    pub(crate) cores: Vec<CoreRates>,
    pub(crate) threads: Vec<ThreadRates>,
    pub(crate) pollers: Vec<PollerRates>,
    pub(crate) bdevs: Vec<BdevRates>,
    pub(crate) sessions: Vec<PathRates>,
    pub(crate) controllers: Vec<PathRates>,
}

#[derive(Debug, Serialize)]
pub(crate) struct CoreRates {
    pub(crate) lcore: u32,
    pub(crate) is_sleeping: bool,
    pub(crate) threads: usize,
    /// Of its rounds, those that found work.
    pub(crate) busy_percent: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ThreadRates {
    pub(crate) name: String,
    pub(crate) lcore: Option<u32>,
    pub(crate) busy_percent: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PollerRates {
    pub(crate) name: String,
    pub(crate) thread: String,
    pub(crate) is_timed: bool,
    pub(crate) runs_per_sec: f64,
    /// Of its runs.
    pub(crate) busy_percent: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct BdevRates {
    pub(crate) name: String,
    pub(crate) read: Flow,
    pub(crate) write: Flow,
    /// Of what completed; none if nothing did.
    pub(crate) read_latency_us: Option<f64>,
    pub(crate) write_latency_us: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PathRates {
    /// The session's or the controller's name.
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) read: Flow,
    pub(crate) write: Flow,
    pub(crate) in_flight: u64,
}

/// Operations and data in a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Flow {
    pub(crate) iops: f64,
    pub(crate) mibps: f64,
}

/// Counters of one thing before, if it was there, and now.
struct Span<'a, T> {
    before: Option<&'a T>,
    now: &'a T,
    seconds: f64,
}

impl<'a, T> Span<'a, T> {
    fn of(before: Option<&'a T>, now: &'a T, seconds: f64) -> Self {
        Self {
            before,
            now,
            seconds,
        }
    }

    /// How much was counted. What is new, or began anew, has no past to compare with.
    fn counted(&self, count: impl Fn(&T) -> u64) -> f64 {
        let now = count(self.now);
        let before = self.before.map_or(now, count);
        now.saturating_sub(before) as f64
    }

    fn flow(&self, ops: impl Fn(&T) -> u64, bytes: impl Fn(&T) -> u64) -> Flow {
        Flow {
            iops: self.counted(ops) / self.seconds,
            mibps: self.counted(bytes) / BYTES_PER_MIB / self.seconds,
        }
    }

    /// Of the sum of two counters, the share of the first.
    fn share(&self, part: impl Fn(&T) -> u64, rest: impl Fn(&T) -> u64) -> Option<f64> {
        let part = self.counted(part);
        percent(part, part + self.counted(rest))
    }
}

impl Rates {
    pub(crate) fn between(before: &Sample, now: &Sample) -> Self {
        let seconds = now.taken.duration_since(before.taken).as_secs_f64();
        Self {
            seconds,
            cores: cores(before, now, seconds),
            threads: threads(before, now, seconds),
            pollers: pollers(before, now, seconds),
            bdevs: bdevs(before, now, seconds),
            sessions: paths(&before.sessions, &now.sessions, seconds),
            controllers: paths(&before.controllers, &now.controllers, seconds),
        }
    }
}

fn cores(before: &Sample, now: &Sample, seconds: f64) -> Vec<CoreRates> {
    let rates = |reactor: &Reactor| {
        let earlier = before.reactors.iter().find(|r| r.lcore == reactor.lcore);
        let span = Span::of(earlier, reactor, seconds);
        CoreRates {
            lcore: reactor.lcore,
            is_sleeping: reactor.in_interrupt,
            threads: reactor.lw_threads.len(),
            busy_percent: span.share(|r| r.busy, |r| r.idle),
        }
    };
    now.reactors.iter().map(rates).collect()
}

fn threads(before: &Sample, now: &Sample, seconds: f64) -> Vec<ThreadRates> {
    let rates = |thread: &Thread| {
        let earlier = before.threads.iter().find(|t| t.id == thread.id);
        let span = Span::of(earlier, thread, seconds);
        let runs_it = |r: &&Reactor| r.lw_threads.iter().any(|t| t.id == thread.id);
        ThreadRates {
            name: thread.name.clone(),
            lcore: now.reactors.iter().find(runs_it).map(|r| r.lcore),
            busy_percent: span.share(|t| t.busy, |t| t.idle),
        }
    };
    now.threads.iter().map(rates).collect()
}

fn pollers(before: &Sample, now: &Sample, seconds: f64) -> Vec<PollerRates> {
    let earlier: Vec<&Poller> = before.pollers.iter().flat_map(of_thread).collect();
    let rates = |thread: &ThreadPollers, poller: &Poller, is_timed: bool| {
        let earlier = earlier.iter().find(|p| p.id == poller.id).copied();
        let span = Span::of(earlier, poller, seconds);
        let runs = span.counted(|p| p.run_count);
        PollerRates {
            name: poller.name.clone(),
            thread: thread.name.clone(),
            is_timed,
            runs_per_sec: runs / seconds,
            busy_percent: percent(span.counted(|p| p.busy_count), runs),
        }
    };
    let mut all = Vec::new();
    for thread in &now.pollers {
        let active = thread.active_pollers.iter();
        all.extend(active.map(|poller| rates(thread, poller, false)));
        let timed = thread.timed_pollers.iter();
        all.extend(timed.map(|poller| rates(thread, poller, true)));
    }
    all
}

fn of_thread(thread: &ThreadPollers) -> impl Iterator<Item = &Poller> {
    thread.active_pollers.iter().chain(&thread.timed_pollers)
}

fn bdevs(before: &Sample, now: &Sample, seconds: f64) -> Vec<BdevRates> {
    let ticks_per_us = now.latency_tick_rate / 1e6;
    let mean_us = |ticks: f64, ops: f64| (ops > 0.0).then(|| ticks / ops / ticks_per_us);
    let rates = |bdev: &Bdev| {
        let earlier = before.bdevs.iter().find(|b| b.name == bdev.name);
        let span = Span::of(earlier, bdev, seconds);
        let reads = span.counted(|b| b.num_read_ops);
        let writes = span.counted(|b| b.num_write_ops);
        BdevRates {
            name: bdev.name.clone(),
            read: span.flow(|b| b.num_read_ops, |b| b.bytes_read),
            write: span.flow(|b| b.num_write_ops, |b| b.bytes_written),
            read_latency_us: mean_us(span.counted(|b| b.read_latency_ticks), reads),
            write_latency_us: mean_us(span.counted(|b| b.write_latency_ticks), writes),
        }
    };
    now.bdevs.iter().map(rates).collect()
}

fn paths(before: &[Paths], now: &[Paths], seconds: f64) -> Vec<PathRates> {
    let rates = |owner: &Paths, path: &Path| {
        let same_owner = before.iter().filter(|other| other.name == owner.name);
        let mut earlier = same_owner.flat_map(|other| &other.paths);
        let earlier = earlier.find(|other| other.path == path.path);
        let span = Span::of(earlier, path, seconds);
        PathRates {
            name: owner.name.clone(),
            path: path.path.clone(),
            read: span.flow(|p| p.read_count, |p| p.read_total_size),
            write: span.flow(|p| p.write_count, |p| p.write_total_size),
            in_flight: path.inflights,
        }
    };
    let all = now
        .iter()
        .flat_map(|owner| owner.paths.iter().map(move |path| (owner, path)));
    all.map(|(owner, path)| rates(owner, path)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn bdev(name: &str, reads: u64) -> Bdev {
        Bdev {
            name: name.to_owned(),
            num_read_ops: reads,
            num_write_ops: 7,
            bytes_read: reads << 20,
            bytes_written: 7 << 20,
            read_latency_ticks: reads * 5_000,
            write_latency_ticks: 0,
        }
    }

    fn sample(taken: Instant, bdevs: Vec<Bdev>) -> Sample {
        Sample {
            taken,
            reactors: Vec::new(),
            threads: Vec::new(),
            pollers: Vec::new(),
            bdevs,
            latency_tick_rate: 1e9,
            sessions: Vec::new(),
            controllers: Vec::new(),
        }
    }

    fn bdev_rates(before: Vec<Bdev>, now: Vec<Bdev>) -> Vec<BdevRates> {
        let start = Instant::now();
        let end = start + Duration::from_secs(2);
        Rates::between(&sample(start, before), &sample(end, now)).bdevs
    }

    #[test]
    fn a_rate_is_what_was_counted_in_the_time() {
        let rates = bdev_rates(vec![bdev("a", 100)], vec![bdev("a", 300)]);
        let read = Flow {
            iops: 100.0,
            mibps: 100.0,
        };
        assert_eq!(rates[0].read, read);
        assert_eq!(rates[0].read_latency_us, Some(5.0));
        assert_eq!(rates[0].write.iops, 0.0);
        assert_eq!(rates[0].write_latency_us, None);
    }

    #[test]
    fn what_is_new_or_was_reset_has_no_rate() {
        let rates = bdev_rates(vec![bdev("a", 100)], vec![bdev("a", 3), bdev("b", 50)]);
        let iops: Vec<f64> = rates.iter().map(|rates| rates.read.iops).collect();
        assert_eq!(iops, [0.0, 0.0]);
    }

    #[test]
    fn a_share_is_of_both_counters() {
        let reactor = |busy, idle| Reactor {
            lcore: 0,
            busy,
            idle,
            in_interrupt: false,
            lw_threads: Vec::new(),
        };
        let (before, now) = (reactor(100, 100), reactor(130, 170));
        let span = Span::of(Some(&before), &now, 1.0);
        assert_eq!(span.share(|r| r.busy, |r| r.idle), Some(30.0));
        let still = Span::of(Some(&now), &now, 1.0);
        assert_eq!(still.share(|r| r.busy, |r| r.idle), None);
    }
}
