use rnbd_wire::limits::SECTOR_BYTES;
use rnbd_wire::rnbd::{CachePolicy, OpenRsp};

/// What a server said about a device it opened, checked (protocol.md 9.5, 14.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Names the device in I/O, within one incarnation of the session.
    pub device_id: u32,
    /// Bytes per block, a power of two from 512 to 4096.
    pub block_size: u32,
    /// Bytes per physical block.
    pub physical_block_size: u32,
    /// Capacity in blocks.
    pub num_blocks: u64,
    /// Most blocks of one discard; zero if it cannot discard.
    pub max_discard_blocks: u32,
    /// Bytes in which discard gives space back.
    pub discard_granularity: u32,
    /// Most blocks of one write-zeroes; zero if it cannot.
    pub max_write_zeroes_blocks: u32,
    /// Flush means something.
    pub write_cache: bool,
}

impl DeviceInfo {
    /// What one request can name: `bi_size` has 32 bits.
    const MAX_RANGE_SECTORS: u32 = u32::MAX / SECTOR_BYTES;

    /// From an answer.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_open_rsp(rsp: &OpenRsp) -> Result<Self, &'static str> {
        let block_size = u32::from(rsp.logical_block_size);
        if !block_size.is_power_of_two() || !(SECTOR_BYTES..=4096).contains(&block_size) {
            return Err("the logical block size is no power of two from 512 to 4096");
        }
        let physical_block_size = u32::from(rsp.physical_block_size);
        if physical_block_size < block_size {
            return Err("the physical block size is below the logical one");
        }
        let sectors_per_block = block_size / SECTOR_BYTES;
        if !rsp.nsectors.is_multiple_of(u64::from(sectors_per_block)) {
            return Err("the capacity is no multiple of the block size");
        }
        if rsp.nsectors.checked_mul(u64::from(SECTOR_BYTES)).is_none() {
            return Err("the capacity exceeds 64 bits");
        }
        let blocks = |sectors: u32| sectors.min(Self::MAX_RANGE_SECTORS) / sectors_per_block;
        let granularity = rsp.discard_granularity;
        Ok(Self {
            device_id: rsp.device_id,
            block_size,
            physical_block_size,
            num_blocks: rsp.nsectors / u64::from(sectors_per_block),
            max_discard_blocks: blocks(rsp.max_discard_sectors),
            discard_granularity: if granularity.is_multiple_of(block_size) {
                granularity.max(block_size)
            } else {
                block_size
            },
            max_write_zeroes_blocks: blocks(rsp.max_write_zeroes_sectors),
            write_cache: rsp.cache_policy.contains(CachePolicy::WRITE_BACK),
        })
    }

    /// Whether a device that was like `before` may go on as this: the same blocks, and no fewer.
    ///
    /// # Errors
    /// What is different.
    pub fn continues(&self, before: &Self) -> Result<(), &'static str> {
        if self.block_size != before.block_size {
            return Err("the block size changed");
        }
        if self.num_blocks < before.num_blocks {
            return Err("the device shrank");
        }
        Ok(())
    }
}
