//! Whether a block request is good, and what it makes a bdev do (protocol.md 9.7, 14.1).

use rnbd_base::Errno;
use rnbd_bdev::IoOp;
use rnbd_rtrs::srv::{Direction, Request};
use rnbd_wire::limits::SECTOR_BYTES;
use rnbd_wire::rnbd::{Io, IoFlags, Op};

/// A device as one opener was told that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceView {
    /// Changes are refused.
    pub read_only: bool,
    /// Bytes per block: a power of two, 512 to 4096.
    pub block_bytes: u32,
    /// Capacity in blocks.
    pub num_blocks: u64,
    /// Most bytes of one discard; zero if it is not offered.
    pub max_discard_bytes: u32,
    /// Most bytes of one write-zeroes; zero if it is not offered.
    pub max_write_zeroes_bytes: u32,
}

/// What to do for a good request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: no bytes are affected.
    Nothing,
    /// One I/O, maybe with a flush before it.
    Io {
        /// What.
        op: IoOp,
        /// First block.
        offset_blocks: u64,
        /// How many.
        num_blocks: u64,
        /// What was written before must be durable first.
        flush_first: bool,
    },
}

impl Plan {
    const FLUSH: Self = Self::Io {
        op: IoOp::Flush,
        offset_blocks: 0,
        num_blocks: 0,
        flush_first: false,
    };
}

impl DeviceView {
    /// Judges `io`, which came with `request`.
    ///
    /// # Errors
    /// What to answer: `EINVAL` for what contradicts itself or the block size, `EIO` and `ENOSPC`
    /// beyond the end, `EROFS`, and `EOPNOTSUPP` for what was not offered.
    pub fn plan(&self, io: &Io, request: &Request) -> Result<Plan, Errno> {
        match io.op {
            Op::Read => self.plan_read(io, request),
            Op::Write => self.plan_write(io, request),
            Op::Flush => plan_flush(request),
            Op::Discard => self.plan_discard(io, request),
            Op::WriteZeroes => self.plan_write_zeroes(io, request),
            Op::SecureErase => Err(Errno::OPNOTSUPP),
        }
    }

    fn plan_read(&self, io: &Io, request: &Request) -> Result<Plan, Errno> {
        if request.direction != Direction::Read || io.bi_size != request.data_len {
            return Err(Errno::INVAL);
        }
        if io.bi_size == 0 {
            return Ok(Plan::Nothing);
        }
        if !request.has_descriptor {
            return Err(Errno::INVAL);
        }
        self.plan_range(io, IoOp::Read, Errno::IO)
    }

    fn plan_write(&self, io: &Io, request: &Request) -> Result<Plan, Errno> {
        if request.direction != Direction::Write || io.bi_size != request.data_len {
            return Err(Errno::INVAL);
        }
        if io.bi_size == 0 {
            return Ok(Plan::FLUSH);
        }
        let fua = io.flags.contains(IoFlags::FUA);
        self.plan_change(io, IoOp::Write { fua })
    }

    fn plan_discard(&self, io: &Io, request: &Request) -> Result<Plan, Errno> {
        if request.direction != Direction::Write || request.data_len != 0 {
            return Err(Errno::INVAL);
        }
        self.expect_offered(io.bi_size, self.max_discard_bytes)?;
        self.plan_change(io, IoOp::Unmap)
    }

    /// With data it is the WRITE_SAME of old clients, which is never offered.
    fn plan_write_zeroes(&self, io: &Io, request: &Request) -> Result<Plan, Errno> {
        if request.data_len != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        if request.direction != Direction::Write {
            return Err(Errno::INVAL);
        }
        self.expect_offered(io.bi_size, self.max_write_zeroes_bytes)?;
        let no_unmap = io.flags.contains(IoFlags::NOUNMAP);
        self.plan_change(io, IoOp::WriteZeroes { no_unmap })
    }

    fn expect_offered(&self, bytes: u32, max_bytes: u32) -> Result<(), Errno> {
        if self.read_only {
            return Err(Errno::ROFS);
        }
        if max_bytes == 0 {
            return Err(Errno::OPNOTSUPP);
        }
        if bytes == 0 || bytes > max_bytes {
            return Err(Errno::INVAL);
        }
        Ok(())
    }

    fn plan_change(&self, io: &Io, op: IoOp) -> Result<Plan, Errno> {
        if self.read_only {
            return Err(Errno::ROFS);
        }
        self.plan_range(io, op, Errno::NOSPC)
    }

    fn plan_range(&self, io: &Io, op: IoOp, beyond: Errno) -> Result<Plan, Errno> {
        let block_bytes = u64::from(self.block_bytes);
        let bytes = u64::from(io.bi_size);
        let start = io.sector.checked_mul(SECTOR_BYTES.into()).ok_or(beyond)?;
        if !start.is_multiple_of(block_bytes) || !bytes.is_multiple_of(block_bytes) {
            return Err(Errno::INVAL);
        }
        let offset_blocks = start / block_bytes;
        let num_blocks = bytes / block_bytes;
        match offset_blocks.checked_add(num_blocks) {
            Some(end) if end <= self.num_blocks => Ok(Plan::Io {
                op,
                offset_blocks,
                num_blocks,
                flush_first: op.modifies() && io.flags.contains(IoFlags::PREFLUSH),
            }),
            _ => Err(beyond),
        }
    }
}

/// A flush may come in either direction; its sector means nothing.
fn plan_flush(request: &Request) -> Result<Plan, Errno> {
    if request.data_len != 0 {
        return Err(Errno::INVAL);
    }
    Ok(Plan::FLUSH)
}
