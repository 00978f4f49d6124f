use rnbd_base::Errno;
use rnbd_bdev::IoOp;
use rnbd_rtrs::clt::Direction;
use rnbd_wire::limits::SECTOR_BYTES;
use rnbd_wire::rnbd::{Io, IoFlags, Op};

use super::info::DeviceInfo;

/// How an I/O is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoPlan {
    /// It needs nothing done: a flush of a device without a cache.
    Nothing,
    /// By this request.
    Send {
        /// The user message.
        message: Io,
        /// Of the RTRS request. A flush is a read without data, as Linux sends it
        /// (protocol.md 9.1).
        direction: Direction,
        /// How much data goes along.
        data_bytes: u32,
    },
}

impl IoPlan {
    /// How to do `op` on `num_blocks` blocks from `offset_blocks` on; `max_io_bytes` is what the
    /// session carries in one request.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for what the device did not announce; `EMSGSIZE` for what is larger than one
    /// request can say or carry; `EINVAL` for positions that do not exist.
    pub fn new(
        device: &DeviceInfo,
        max_io_bytes: u32,
        op: IoOp,
        offset_blocks: u64,
        num_blocks: u64,
        prio: u16,
    ) -> Result<Self, Errno> {
        let (op, flags, direction, max_bytes) = match op {
            IoOp::Read => (Op::Read, IoFlags::SYNC, Direction::Read, max_io_bytes),
            IoOp::Write { fua } => (Op::Write, write_flags(fua), Direction::Write, max_io_bytes),
            IoOp::Unmap => {
                let max = range_bytes(device, device.max_discard_blocks)?;
                (Op::Discard, IoFlags::empty(), Direction::Write, max)
            }
            IoOp::WriteZeroes { no_unmap } => {
                let max = range_bytes(device, device.max_write_zeroes_blocks)?;
                (Op::WriteZeroes, zero_flags(no_unmap), Direction::Write, max)
            }
            IoOp::Flush => return Ok(Self::flush(device)),
        };
        let bi_size = num_blocks
            .checked_mul(device.block_size.into())
            .and_then(|bytes| u32::try_from(bytes).ok())
            .filter(|bytes| *bytes <= max_bytes)
            .ok_or(Errno::MSGSIZE)?;
        let sectors_per_block = u64::from(device.block_size / SECTOR_BYTES);
        let message = Io {
            device_id: device.device_id,
            sector: offset_blocks
                .checked_mul(sectors_per_block)
                .ok_or(Errno::INVAL)?,
            op,
            flags,
            bi_size,
            prio,
        };
        let has_data = matches!(op, Op::Read | Op::Write);
        Ok(Self::Send {
            message,
            direction,
            data_bytes: if has_data { bi_size } else { 0 },
        })
    }

    fn flush(device: &DeviceInfo) -> Self {
        if !device.write_cache {
            return Self::Nothing;
        }
        let message = Io {
            device_id: device.device_id,
            sector: u64::MAX,
            op: Op::Flush,
            flags: IoFlags::SYNC | IoFlags::FUA,
            bi_size: 0,
            prio: 0,
        };
        Self::Send {
            message,
            direction: Direction::Read,
            data_bytes: 0,
        }
    }
}

/// FUA goes out whether or not the device announced it: servers that have no such operation make
/// the write durable by other means (protocol.md 9.7).
fn write_flags(fua: bool) -> IoFlags {
    if fua {
        IoFlags::SYNC | IoFlags::FUA
    } else {
        IoFlags::empty()
    }
}

fn zero_flags(no_unmap: bool) -> IoFlags {
    if no_unmap {
        IoFlags::NOUNMAP
    } else {
        IoFlags::empty()
    }
}

/// Servers before 6.8 execute operations that they do not know as reads, so nothing is sent that
/// was not announced (protocol.md 12.3).
fn range_bytes(device: &DeviceInfo, max_blocks: u32) -> Result<u32, Errno> {
    match max_blocks {
        0 => Err(Errno::OPNOTSUPP),
        blocks => Ok(blocks.saturating_mul(device.block_size)),
    }
}
