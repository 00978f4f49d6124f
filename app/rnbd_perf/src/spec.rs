use rnbd_base::{CoreIndex, Nanos};

use crate::places::Order;
use crate::workload::Workload;

/// One job: what one core does to one device.
#[derive(Clone, Debug)]
pub(crate) struct JobSpec {
    /// The device, which names the job.
    pub(crate) bdev: String,
    pub(crate) core: CoreIndex,
    /// The CPU number of that core.
    pub(crate) lcore: u32,
    pub(crate) workload: Workload,
    /// I/Os in flight.
    pub(crate) depth: u32,
    /// Bytes of one I/O.
    pub(crate) io_bytes: u32,
    /// Share of reads in mixed workloads.
    pub(crate) read_percent: u8,
    pub(crate) order: Order,
    /// The part of the device that is used; to its end if the length is zero.
    pub(crate) offset: Extent,
    pub(crate) length: Extent,
    /// Which part of that is this job's, if several share it.
    pub(crate) share: Share,
    /// How long I/O is generated.
    pub(crate) duration: Nanos,
    /// I/O that takes longer is counted as timed out.
    pub(crate) timeout: Option<Nanos>,
    /// Go on after an I/O that failed.
    pub(crate) continue_on_failure: bool,
    /// Stamp what is written and check what is read.
    pub(crate) verify: bool,
    /// Write other bytes each time.
    pub(crate) unique_writes: bool,
    /// Keep the buffers in ordinary pages.
    pub(crate) small_pages: bool,
    pub(crate) seed: u64,
}

/// A place on a device, or the size of a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    Blocks(u64),
    Bytes(u64),
}

impl Extent {
    pub(crate) const ZERO: Self = Self::Blocks(0);

    /// In whole blocks of `block_bytes`.
    ///
    /// # Errors
    /// The bytes, if they are no multiple of that.
    fn in_blocks(self, block_bytes: u32) -> Result<u64, u64> {
        let block = u64::from(block_bytes);
        match self {
            Self::Blocks(blocks) => Ok(blocks),
            Self::Bytes(bytes) if bytes.is_multiple_of(block) => Ok(bytes / block),
            Self::Bytes(bytes) => Err(bytes),
        }
    }
}

/// The `index`th of `count` equal parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) index: u32,
    pub(crate) count: u32,
}

impl Share {
    /// Everything.
    pub(crate) const WHOLE: Self = Self { index: 0, count: 1 };
}

/// The blocks that a job works on, in units of one I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first_block: u64,
    pub(crate) block_bytes: u32,
    pub(crate) blocks_per_unit: u64,
    pub(crate) units: u64,
}

/// More units than this are not verified, which bounds the ledger to 192 MiB.
pub(crate) const MOST_VERIFIED_UNITS: u64 = 8 << 20;

impl JobSpec {
    /// Whether the job writes, to fill the device first if nothing else.
    pub(crate) fn writes(&self) -> bool {
        self.workload.modifies() || self.verify
    }

    /// Where the job works on a device of `num_blocks` blocks.
    ///
    /// # Errors
    /// Why it cannot: a sentence.
    pub(crate) fn range(&self, block_bytes: u32, num_blocks: u64) -> Result<Range, String> {
        let bdev = &self.bdev;
        if self.io_bytes == 0 || !self.io_bytes.is_multiple_of(block_bytes) {
            let io_bytes = self.io_bytes;
            return Err(format!(
                "{bdev}: an I/O of {io_bytes} bytes is no multiple of its blocks of {block_bytes} bytes"
            ));
        }
        let offset = self.in_blocks("offset", self.offset, block_bytes)?;
        let length = self.in_blocks("length", self.length, block_bytes)?;
        let behind_offset = num_blocks.saturating_sub(offset);
        let usable = match length {
            0 => behind_offset,
            length => length.min(behind_offset),
        };
        let blocks_per_unit = u64::from(self.io_bytes / block_bytes);
        let mut units = usable / blocks_per_unit / u64::from(self.share.count);
        if units == 0 {
            return Err(format!(
                "{bdev}: it has no room for one I/O of {} bytes",
                self.io_bytes
            ));
        }
        let before = u64::from(self.share.index) * units * blocks_per_unit;
        if self.verify {
            units = units.min(MOST_VERIFIED_UNITS);
        }
        Ok(Range {
            first_block: offset + before,
            block_bytes,
            blocks_per_unit,
            units,
        })
    }

    fn in_blocks(&self, what: &str, extent: Extent, block_bytes: u32) -> Result<u64, String> {
        let bdev = &self.bdev;
        extent.in_blocks(block_bytes).map_err(|bytes| {
            format!("{bdev}: {what} {bytes} is no multiple of its blocks of {block_bytes} bytes")
        })
    }
}

#[cfg(test)]
impl JobSpec {
    /// Random reads of 4 KiB, eight at a time.
    pub(crate) fn example(bdev: &str, workload: Workload) -> Self {
        Self {
            bdev: bdev.to_owned(),
            core: CoreIndex(0),
            lcore: 0,
            workload,
            depth: 8,
            io_bytes: 4096,
            read_percent: 50,
            order: workload.order(),
            offset: Extent::ZERO,
            length: Extent::ZERO,
            share: Share::WHOLE,
            duration: Nanos::from_millis(1),
            timeout: None,
            continue_on_failure: false,
            verify: workload == Workload::Verify,
            unique_writes: false,
            small_pages: false,
            seed: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_range_lie_side_by_side() {
        let range = |index| {
            let spec = JobSpec {
                offset: Extent::Bytes(4096),
                share: Share { index, count: 3 },
                ..JobSpec::example("Malloc0", Workload::Write)
            };
            spec.range(512, 8 + 8 * 10).unwrap()
        };
        let firsts = [0, 1, 2].map(|index| range(index).first_block);
        assert_eq!(firsts, [8, 8 + 24, 8 + 48]);
        assert_eq!(range(0).units, 3);
    }

    #[test]
    fn ranges_that_hold_no_io_are_refused_with_a_reason() {
        let spec = JobSpec::example("Malloc0", Workload::Read);
        assert!(spec.range(512, 7).unwrap_err().contains("no room"));
        assert!(spec.range(8192, 100).unwrap_err().contains("no multiple"));
        let odd = JobSpec {
            offset: Extent::Bytes(100),
            ..spec
        };
        assert!(odd.range(512, 100).unwrap_err().contains("offset 100"));
    }

    #[test]
    fn a_part_can_be_said_in_blocks_and_in_bytes() {
        let range = |offset, length| {
            let spec = JobSpec {
                offset,
                length,
                ..JobSpec::example("Malloc0", Workload::Read)
            };
            let range = spec.range(512, 1000).unwrap();
            (range.first_block, range.units)
        };
        let in_blocks = range(Extent::Blocks(16), Extent::Blocks(80));
        let in_bytes = range(Extent::Bytes(8192), Extent::Bytes(40960));
        assert_eq!((in_blocks, in_bytes), ((16, 10), (16, 10)));
    }
}
