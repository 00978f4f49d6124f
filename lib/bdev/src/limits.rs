//! Rate limits of a device, which its channels on all cores share.

use std::sync::atomic::{AtomicU64, Ordering};

use rnbd_base::Nanos;

use crate::io::IoKind;

/// How far ahead of its rate a device may be: what it did not use so long ago is lost.
const BURST: Nanos = Nanos::from_millis(1);
const BYTES_PER_MIB: u64 = 1 << 20;
const NANOS_PER_SEC: u128 = 1_000_000_000;

/// How much may be read and written in a second; zero is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Reads and writes.
    pub rw_ios_per_sec: u64,
    /// MiB of reads and writes.
    pub rw_mbytes_per_sec: u64,
    /// MiB of reads.
    pub r_mbytes_per_sec: u64,
    /// MiB of writes.
    pub w_mbytes_per_sec: u64,
}

impl RateLimits {
    /// Whether there is none.
    #[must_use]
    pub fn are_off(&self) -> bool {
        *self == Self::default()
    }
}

/// The limits at work. Several cores may let an I/O pass at the same moment; the device is then
/// that much ahead, and what follows waits for longer.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    rw_ios: Rate,
    rw_bytes: Rate,
    r_bytes: Rate,
    w_bytes: Rate,
}

impl Limits {
    /// Replaces the limits; earlier I/O is forgotten.
    pub(crate) fn set(&self, limits: RateLimits) {
        let bytes = |mib: u64| mib.saturating_mul(BYTES_PER_MIB);
        self.rw_ios.set(limits.rw_ios_per_sec);
        self.rw_bytes.set(bytes(limits.rw_mbytes_per_sec));
        self.r_bytes.set(bytes(limits.r_mbytes_per_sec));
        self.w_bytes.set(bytes(limits.w_mbytes_per_sec));
    }

    /// The limits as they were set.
    pub(crate) fn get(&self) -> RateLimits {
        let mib = |rate: &Rate| rate.per_sec() / BYTES_PER_MIB;
        RateLimits {
            rw_ios_per_sec: self.rw_ios.per_sec(),
            rw_mbytes_per_sec: mib(&self.rw_bytes),
            r_mbytes_per_sec: mib(&self.r_bytes),
            w_mbytes_per_sec: mib(&self.w_bytes),
        }
    }

    /// When the next read or write may go to the device.
    pub(crate) fn ready_at(&self, kind: IoKind) -> Nanos {
        let rates = [&self.rw_ios, &self.rw_bytes, self.bytes_of(kind)];
        rates
            .map(Rate::ready_at)
            .into_iter()
            .max()
            .unwrap_or_default()
    }

    /// A read or write of `bytes` goes to the device.
    pub(crate) fn take(&self, kind: IoKind, bytes: u64, now: Nanos) {
        self.rw_ios.take(1, now);
        self.rw_bytes.take(bytes, now);
        self.bytes_of(kind).take(bytes, now);
    }

    fn bytes_of(&self, kind: IoKind) -> &Rate {
        match kind {
            IoKind::Read => &self.r_bytes,
            _ => &self.w_bytes,
        }
    }
}

/// So much in a second, or anything if that is zero.
#[derive(Debug, Default)]
struct Rate {
    per_sec: AtomicU64,
    /// When, at this rate, everything that was let through would be done.
    done_at: AtomicU64,
}

impl Rate {
    fn set(&self, per_sec: u64) {
        self.per_sec.store(per_sec, Ordering::Relaxed);
        self.done_at.store(0, Ordering::Relaxed);
    }

    fn per_sec(&self) -> u64 {
        self.per_sec.load(Ordering::Relaxed)
    }

    fn ready_at(&self) -> Nanos {
        Nanos(self.done_at.load(Ordering::Relaxed).saturating_sub(BURST.0))
    }

    fn take(&self, amount: u64, now: Nanos) {
        let per_sec = self.per_sec();
        if per_sec == 0 {
            return;
        }
        let lasts = u128::from(amount) * NANOS_PER_SEC / u128::from(per_sec);
        let lasts = u64::try_from(lasts).unwrap_or(u64::MAX);
        let after = |done_at: u64| Some(done_at.max(now.0).saturating_add(lasts));
        let updated = self
            .done_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, after);
        debug_assert!(updated.is_ok(), "there is always a new value");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many I/Os of 4 KiB pass in the second from `from` on.
    fn passed(limits: &Limits, kind: IoKind, from: Nanos) -> u64 {
        let mut passed = 0;
        for microsecond in 0..1_000_000 {
            let now = from + Nanos::from_micros(microsecond);
            while limits.ready_at(kind) <= now {
                limits.take(kind, 4096, now);
                passed += 1;
            }
        }
        passed
    }

    fn limits(limits: RateLimits) -> Limits {
        let set = Limits::default();
        set.set(limits);
        assert_eq!(set.get(), limits);
        set
    }

    #[test]
    fn a_second_lets_through_what_the_limit_says_and_one_burst() {
        let ios = limits(RateLimits {
            rw_ios_per_sec: 10_000,
            ..RateLimits::default()
        });
        assert_eq!(passed(&ios, IoKind::Read, Nanos::ZERO), 10_010);
        assert_eq!(passed(&ios, IoKind::Write, Nanos::from_secs(1)), 10_000);
    }

    #[test]
    fn bytes_of_reads_and_of_writes_are_limited_apart() {
        let reads = limits(RateLimits {
            r_mbytes_per_sec: 4,
            ..RateLimits::default()
        });
        let at_rate = 4 * 256;
        let passed = passed(&reads, IoKind::Read, Nanos::ZERO);
        assert!((at_rate..at_rate + 4).contains(&passed), "{passed}");
        assert_eq!(reads.ready_at(IoKind::Write), Nanos::ZERO);
    }

    #[test]
    fn what_was_not_used_is_lost() {
        let ios = limits(RateLimits {
            rw_ios_per_sec: 1000,
            ..RateLimits::default()
        });
        let late = Nanos::from_secs(100);
        assert_eq!(passed(&ios, IoKind::Read, late), 1001);
    }

    #[test]
    fn the_tightest_limit_counts() {
        let both = limits(RateLimits {
            rw_ios_per_sec: 100_000,
            rw_mbytes_per_sec: 1,
            ..RateLimits::default()
        });
        assert!(passed(&both, IoKind::Write, Nanos::ZERO) < 260);
    }
}
