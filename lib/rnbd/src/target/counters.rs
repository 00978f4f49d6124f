use rnbd_base::{Errno, Nanos};
use rnbd_bdev::IoOp;

/// Different errnos that a device counts apart.
const ERRNOS: usize = 8;

/// What one kind of I/O did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// How many succeeded.
    pub ops: u64,
    /// Bytes that they covered.
    pub bytes: u64,
    /// The sum of their times, from the arrival of the request to its answer.
    pub latency_ns: u64,
}

/// What one client did on one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Reads.
    pub reads: IoCounters,
    /// Writes.
    pub writes: IoCounters,
    /// Flushes that were asked for as such.
    pub flushes: IoCounters,
    /// Discards.
    pub discards: IoCounters,
    /// Write-zeroes.
    pub write_zeroes: IoCounters,
    errors: [(u16, u64); ERRNOS],
}

impl DeviceCounters {
    pub(super) fn record(
        &mut self,
        op: IoOp,
        bytes: u64,
        latency: Nanos,
        result: Result<(), Errno>,
    ) {
        if let Err(errno) = result {
            return self.record_error(errno);
        }
        let counters = match op {
            IoOp::Read => &mut self.reads,
            IoOp::Write { .. } => &mut self.writes,
            IoOp::Flush => &mut self.flushes,
            IoOp::Unmap => &mut self.discards,
            IoOp::WriteZeroes { .. } => &mut self.write_zeroes,
        };
        counters.ops += 1;
        counters.bytes += bytes;
        counters.latency_ns += latency.0;
    }

    /// Failures by errno. When there are more kinds than are counted apart, the rest is in the
    /// last one's count.
    pub fn errors(&self) -> impl Iterator<Item = (Errno, u64)> + '_ {
        let used = self.errors.iter().filter(|(errno, _)| *errno != 0);
        used.map(|&(errno, count)| (Errno::from_raw(errno.into()), count))
    }

    fn record_error(&mut self, errno: Errno) {
        let fits = |&(other, _): &(u16, u64)| other == errno.get() || other == 0;
        let at = self.errors.iter().position(fits).unwrap_or(ERRNOS - 1);
        let entry = &mut self.errors[at];
        if entry.0 == 0 {
            entry.0 = errno.get();
        }
        entry.1 += 1;
    }
}
