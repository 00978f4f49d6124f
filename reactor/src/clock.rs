use std::time::Duration;

use rnbd_base::Nanos;
use rustix::time::{ClockId, clock_gettime};

const NANOS_PER_SEC: u64 = 1_000_000_000;
/// How long the time stamp counter is compared with the kernel's clock. An error of 50 ns at
/// either end is then 5 ppm of the rate.
const CALIBRATION: Duration = Duration::from_millis(20);

/// A monotonic clock that is cheap enough to be read in every round of a reactor.
///
/// It counts the CPU's time stamp counter where the kernel itself trusts that, else nanoseconds
/// of `CLOCK_MONOTONIC` (which needs no syscall either). All copies of one clock agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    source: Source,
    /// The reading that is [`Nanos::ZERO`].
    epoch: u64,
    /// Ticks a second.
    tick_rate: u64,
    tick: Tick,
}

/// How long a tick is: this many nanoseconds, and so many parts of one that has 2^64. So that a
/// reading becomes a time by multiplying, where dividing would take longer than the reading.
#[derive(Clone, Copy, Debug)]
struct Tick {
    nanos: u64,
    parts: u64,
}

impl Tick {
    fn of_rate(tick_rate: u64) -> Self {
        let (nanos, rest) = (NANOS_PER_SEC / tick_rate, NANOS_PER_SEC % tick_rate);
        // Rounded up, so that what was rounded down to ticks does not lose another nanosecond.
        let parts = (u128::from(rest) << 64).div_ceil(u128::from(tick_rate));
        Self {
            nanos,
            parts: u64::try_from(parts).unwrap_or(u64::MAX),
        }
    }

    fn times(self, ticks: u64) -> u64 {
        let parts = u128::from(ticks) * u128::from(self.parts);
        let nanos = u64::try_from(parts >> 64).unwrap_or(u64::MAX);
        ticks.saturating_mul(self.nanos).saturating_add(nanos)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Tsc,
    Kernel,
}

impl Clock {
    /// Chooses the source and starts at [`Nanos::ZERO`]; calibrating takes 20 ms.
    #[must_use]
    pub fn start() -> Self {
        let source = if tsc::is_trusted() {
            Source::Tsc
        } else {
            Source::Kernel
        };
        Self::with_source(source)
    }

    fn with_source(source: Source) -> Self {
        let tick_rate = match source {
            Source::Tsc => tsc::calibrate(),
            Source::Kernel => NANOS_PER_SEC,
        };
        Self::new(source, source.read(), tick_rate)
    }

    fn new(source: Source, epoch: u64, tick_rate: u64) -> Self {
        Self {
            source,
            epoch,
            tick_rate,
            tick: Tick::of_rate(tick_rate),
        }
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.at(self.ticks())
    }

    /// The reading now, in ticks since some time before the clock started.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        self.source.read()
    }

    /// Ticks a second.
    #[must_use]
    pub fn tick_rate(&self) -> u64 {
        self.tick_rate
    }

    /// The time at which [`Clock::ticks`] was `reading`.
    #[must_use]
    pub fn at(&self, reading: u64) -> Nanos {
        self.to_nanos(reading.saturating_sub(self.epoch))
    }

    /// A span of `ticks` as time.
    #[must_use]
    pub fn to_nanos(&self, ticks: u64) -> Nanos {
        Nanos(self.tick.times(ticks))
    }

    /// A span of time in ticks, rounded down.
    #[must_use]
    pub fn to_ticks(&self, span: Nanos) -> u64 {
        let ticks = u128::from(span.0) * u128::from(self.tick_rate) / u128::from(NANOS_PER_SEC);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

impl Source {
    fn read(self) -> u64 {
        match self {
            Self::Tsc => tsc::read(),
            Self::Kernel => kernel_nanos(),
        }
    }
}

fn kernel_nanos() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(NANOS_PER_SEC).saturating_add(nanos)
}

#[cfg(target_arch = "x86_64")]
mod tsc {
    use super::{CALIBRATION, NANOS_PER_SEC, kernel_nanos};

    const CLOCK_SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    /// Clock sources of the kernel that read the counter; it moves to another one when it finds
    /// that the counters of two CPUs disagree.
    const COUNTER_SOURCES: [&str; 3] = ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page"];

    pub(super) fn is_trusted() -> bool {
        is_invariant()
            && std::fs::read_to_string(CLOCK_SOURCE)
                .is_ok_and(|name| COUNTER_SOURCES.contains(&name.trim()))
    }

    /// Whether it ticks at one rate in all power states.
    fn is_invariant() -> bool {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = text.lines().find(|line| line.starts_with("flags"));
        let flags: Vec<&str> = flags.unwrap_or_default().split_whitespace().collect();
        flags.contains(&"constant_tsc") && flags.contains(&"nonstop_tsc")
    }

    pub(super) fn read() -> u64 {
        // SAFETY: every x86_64 CPU has the instruction; it only reads a counter.
        unsafe { std::arch::x86_64::_rdtsc() }
    }

    pub(super) fn calibrate() -> u64 {
        let (ticks_before, nanos_before) = simultaneous();
        std::thread::sleep(CALIBRATION);
        let (ticks_after, nanos_after) = simultaneous();
        let ticks = u128::from(ticks_after.saturating_sub(ticks_before));
        let nanos = u128::from(nanos_after.saturating_sub(nanos_before).max(1));
        u64::try_from(ticks * u128::from(NANOS_PER_SEC) / nanos)
            .unwrap_or(u64::MAX)
            .max(1)
    }

    /// Both clocks as close together as eight tries bring them.
    fn simultaneous() -> (u64, u64) {
        let tries = (0..8).map(|_| {
            let (before, nanos, after) = (read(), kernel_nanos(), read());
            let apart = after.saturating_sub(before);
            (apart, (before + apart / 2, nanos))
        });
        tries
            .min_by_key(|(apart, _)| *apart)
            .map_or((0, 0), |(_, readings)| readings)
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod tsc {
    pub(super) fn is_trusted() -> bool {
        false
    }

    pub(super) fn read() -> u64 {
        super::kernel_nanos()
    }

    pub(super) fn calibrate() -> u64 {
        super::NANOS_PER_SEC
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn readings_never_decrease() {
        for source in [Source::Tsc, Source::Kernel] {
            let clock = Clock::with_source(source);
            let mut last = clock.now();
            for _ in 0..100_000 {
                let now = clock.now();
                assert!(now >= last);
                last = now;
            }
        }
    }

    #[test]
    fn the_counter_and_the_kernel_agree_on_a_span() {
        if !tsc::is_trusted() {
            return;
        }
        let clock = Clock::with_source(Source::Tsc);
        let outer_start = kernel_nanos();
        let start = clock.now();
        let inner_start = kernel_nanos();
        while kernel_nanos() - inner_start < 50_000_000 {
            std::hint::spin_loop();
        }
        let inner = kernel_nanos() - inner_start;
        let span = clock.now().since(start).0;
        let outer = kernel_nanos() - outer_start;
        assert!(span <= outer + outer / 1_000, "{span} ns within {outer} ns");
        assert!(span >= inner - inner / 1_000, "{span} ns around {inner} ns");
    }

    proptest! {
        #[test]
        fn a_time_is_what_dividing_says_but_for_a_nanosecond(
            ticks: u64,
            tick_rate in 1u64..6_000_000_000,
        ) {
            let clock = Clock::new(Source::Kernel, 0, tick_rate);
            let exact = u128::from(ticks) * u128::from(NANOS_PER_SEC) / u128::from(tick_rate);
            let exact = u64::try_from(exact).unwrap_or(u64::MAX);
            let nanos = clock.to_nanos(ticks).0;
            prop_assert!(nanos.abs_diff(exact) <= 1, "{nanos} ns, not {exact}");
        }

        #[test]
        fn spans_survive_the_conversion_within_a_tick(
            nanos in 0u64..1_000_000_000_000_000,
            tick_rate in 1_000_000_000u64..6_000_000_000,
        ) {
            let clock = Clock::new(Source::Kernel, 0, tick_rate);
            let back = clock.to_nanos(clock.to_ticks(Nanos(nanos)));
            prop_assert!(back.0 <= nanos && nanos - back.0 <= 1);
        }

        #[test]
        fn no_conversion_overflows(value: u64, tick_rate in 1u64..) {
            let clock = Clock::new(Source::Kernel, 0, tick_rate);
            let (_, _) = (clock.to_nanos(value), clock.to_ticks(Nanos(value)));
        }
    }
}
