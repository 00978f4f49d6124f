use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;

use rnbd_base::{Errno, Nanos, Progress};
use rnbd_mem::Span;

use crate::bdev::{Bdev, Features};
use crate::desc::ChannelHold;
use crate::io::{BdevIo, IoDone, IoKind, IoOp};
use crate::node::NodeState;
use crate::stats::{IoStats, IoStatsOwner};

mod bounce;
mod throttle;

pub(crate) use bounce::Bounce;
use bounce::StandIn;
use throttle::Throttle;

/// What a bdev module implements per user and core.
///
/// The submitter has checked range, alignment and depth: see [`Channel`].
pub trait IoChannel: Send + fmt::Debug {
    /// Takes an I/O; its [`IoDone`] comes out of a later `poll`, exactly once, never from here.
    ///
    /// Tags that are outstanding are distinct and below the depth of the channel, so that they
    /// can index a table.
    fn submit(&mut self, io: &BdevIo, now: Nanos);

    /// Submits what was queued to the device and appends what completed to `done`, up to its
    /// spare capacity: it never makes the vector grow.
    fn poll(&mut self, now: Nanos, done: &mut Vec<IoDone>) -> Progress;

    /// As [`rnbd_base::Poll::next_deadline`].
    fn next_deadline(&self) -> Option<Nanos> {
        None
    }

    /// As [`rnbd_base::Poll::prepare_sleep`].
    fn prepare_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool;
}

/// A user's way to a device from one core.
///
/// What is submitted is checked first: a refused I/O has not happened and nothing of it follows.
/// An accepted one comes out of [`Channel::poll`] exactly once. I/O larger than the device takes
/// is done piece by piece, write-zeroes that it has no command for is done by writing, and what
/// lies where the device cannot use it ([`Features::buf_align`]) goes through aligned buffers.
/// Reads and writes wait where the device has a rate limit.
///
/// Nothing is allocated after it was opened. Dropping it waits for outstanding I/O where the
/// device would else go on using the buffers; see the modules.
#[derive(Debug)]
pub struct Channel {
    // Dropped first: until the device has let go, it may use the buffers.
    io: Box<dyn IoChannel>,
    bounce: Bounce,
    device: Arc<dyn Bdev>,
    memory: Option<Span>,
    features: Features,
    block_size: u32,
    write: bool,
    zeroes: Span,
    slots: Vec<Slot>,
    free: Vec<u32>,
    throttle: Throttle,
    stats: Arc<IoStats>,
    stats_owner: IoStatsOwner,
    hold: ChannelHold,
}

/// An outstanding I/O.
#[derive(Clone, Copy, Debug)]
struct Slot {
    tag: u64,
    op: IoOp,
    bytes: u64,
    submitted: Nanos,
    /// What has not been given to the device yet.
    rest: BdevIo,
    /// The device cannot use the submitter's buffer.
    is_misaligned: bool,
    /// What it uses instead for the piece that it has.
    stand_in: Option<StandIn>,
}

impl Slot {
    const FREE: Self = Self {
        tag: 0,
        op: IoOp::Flush,
        bytes: 0,
        submitted: Nanos::ZERO,
        rest: BdevIo {
            tag: 0,
            op: IoOp::Flush,
            offset_blocks: 0,
            num_blocks: 0,
            buf: Span::EMPTY,
            prio: 0,
        },
        is_misaligned: false,
        stand_in: None,
    };
}

/// What [`Channel::new`] is made from.
pub(crate) struct ChannelParts {
    pub(crate) io: Box<dyn IoChannel>,
    pub(crate) device: Arc<dyn Bdev>,
    pub(crate) write: bool,
    pub(crate) depth: u32,
    /// Source of zeroes, a whole number of blocks; empty if the device needs none.
    pub(crate) zeroes: Span,
    pub(crate) bounce: Bounce,
    pub(crate) stats: Arc<IoStats>,
    pub(crate) hold: ChannelHold,
}

impl Channel {
    pub(crate) fn new(parts: ChannelParts) -> Self {
        let depth = parts.depth as usize;
        Self {
            memory: parts.device.memory(),
            features: parts.device.features(),
            block_size: parts.device.geometry().block_size,
            io: parts.io,
            bounce: parts.bounce,
            throttle: Throttle::new(parts.depth),
            device: parts.device,
            write: parts.write,
            zeroes: parts.zeroes,
            slots: vec![Slot::FREE; depth],
            free: (0..parts.depth).rev().collect(),
            stats: parts.stats,
            stats_owner: IoStatsOwner::default(),
            hold: parts.hold,
        }
    }

    /// Starts an I/O.
    ///
    /// # Errors
    /// Nothing was started, and nothing of it will come out of `poll`:
    /// - `EINVAL`: no blocks, beyond the end, or a buffer of another length;
    /// - `EROFS`: a change through a descriptor, or of a device, that is read-only;
    /// - `EOPNOTSUPP`: the device has no such operation;
    /// - `ENOMEM`: [`Channel::depth`] I/Os are outstanding; try again after a completion;
    /// - `ENODEV`: the device was removed.
    pub fn submit(&mut self, io: &BdevIo, now: Nanos) -> Result<(), Errno> {
        let state = self.hold.state();
        let bytes = self.check(io, state)?;
        let index = self.free.pop().ok_or(Errno::NOMEM)?;
        self.slots[index as usize] = Slot {
            tag: io.tag,
            op: io.op,
            bytes,
            submitted: now,
            rest: BdevIo {
                tag: u64::from(index),
                ..*io
            },
            is_misaligned: io.op.has_data() && !self.is_aligned(io.buf),
            stand_in: None,
        };
        self.stats.set_outstanding(self.outstanding());
        if !state.is_limited() || self.is_admitted(index, now) {
            self.go_on(index, now);
        }
        Ok(())
    }

    /// Whether the device is memory that may be read in place now: not while it has a rate limit.
    #[must_use]
    pub fn lends_memory(&self) -> bool {
        self.memory.is_some() && !self.hold.state().is_limited()
    }

    /// Reads without a copy from a device that is memory ([`Bdev::memory`]): it counts as a read
    /// that took no time, and the bytes are to be taken from the device's own memory. They are
    /// those of the moment when they are taken, and stay there as long as the channel is open.
    ///
    /// # Errors
    /// As for a read by [`Channel::submit`]; `EOPNOTSUPP` if the device is not memory.
    pub fn read_in_place(&mut self, offset_blocks: u64, num_blocks: u64) -> Result<Span, Errno> {
        if self.hold.state().is_removed() {
            return Err(Errno::NODEV);
        }
        let memory = self.memory.ok_or(Errno::OPNOTSUPP)?;
        let io = BdevIo {
            tag: 0,
            op: IoOp::Read,
            offset_blocks,
            num_blocks,
            buf: Span::EMPTY,
            prio: 0,
        };
        let bytes = self.check_range(&io)?;
        let data = memory
            .slice(
                bytes_of(offset_blocks, self.block_size),
                bytes_of(num_blocks, self.block_size),
            )
            .ok_or(Errno::INVAL)?;
        self.stats.record(
            &mut self.stats_owner,
            IoKind::Read,
            bytes,
            Nanos::ZERO,
            Ok(()),
        );
        Ok(data)
    }

    /// Gives the device what was submitted and appends what completed to `done`, as far as there
    /// is spare capacity; the rest follows in later calls.
    pub fn poll(&mut self, now: Nanos, done: &mut Vec<IoDone>) -> Progress {
        if self.outstanding() == 0 {
            return Progress::Idle;
        }
        self.go_on_with_ready(now);
        let first = done.len();
        let progress = self.io.poll(now, done);
        let mut kept = first;
        for at in first..done.len() {
            if let Some(ended) = self.end_or_continue(done[at], now) {
                done[kept] = ended;
                kept += 1;
            }
        }
        done.truncate(kept);
        self.stats.set_outstanding(self.outstanding());
        progress
    }

    /// I/Os submitted and not completed.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Most I/Os that may be outstanding.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.slots.len()
    }

    /// As [`rnbd_base::Poll::next_deadline`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        let throttled = self.throttle.next_deadline(self.hold.limits());
        let deadlines = [self.io.next_deadline(), throttled];
        deadlines.into_iter().flatten().min()
    }

    /// As [`rnbd_base::Poll::prepare_sleep`].
    pub fn prepare_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool {
        self.outstanding() == 0 || self.io.prepare_sleep(fds)
    }

    /// Returns the bytes that `io` covers.
    fn check(&self, io: &BdevIo, state: NodeState) -> Result<u64, Errno> {
        if state.is_removed() {
            return Err(Errno::NODEV);
        }
        if io.op == IoOp::Flush {
            return Ok(0);
        }
        if io.op.modifies() && (!self.write || self.features.read_only) {
            return Err(Errno::ROFS);
        }
        if io.op == IoOp::Unmap && !self.features.unmap {
            return Err(Errno::OPNOTSUPP);
        }
        let bytes = self.check_range(io)?;
        if io.op.has_data() && io.buf.len() as u64 != bytes {
            return Err(Errno::INVAL);
        }
        Ok(bytes)
    }

    fn check_range(&self, io: &BdevIo) -> Result<u64, Errno> {
        let end = io
            .offset_blocks
            .checked_add(io.num_blocks)
            .ok_or(Errno::INVAL)?;
        if io.num_blocks == 0 || end > self.device.num_blocks() {
            return Err(Errno::INVAL);
        }
        io.num_blocks
            .checked_mul(u64::from(self.block_size))
            .ok_or(Errno::INVAL)
    }

    fn is_aligned(&self, buf: Span) -> bool {
        let align = u64::from(self.features.buf_align);
        buf.addr().is_multiple_of(align)
    }

    /// Whether the rate limits let a slot's I/O go to the device now; else it waits.
    fn is_admitted(&mut self, index: u32, now: Nanos) -> bool {
        let Slot { op, bytes, .. } = self.slots[index as usize];
        let limits = self.hold.limits();
        self.throttle.admits(index, op.kind(), bytes, limits, now)
    }

    /// Goes on with the I/O that the rate limits let go now.
    fn go_on_with_ready(&mut self, now: Nanos) {
        while !self.throttle.is_empty() {
            let slots = &self.slots;
            let bytes = |index: u32| slots[index as usize].bytes;
            let ready = self.throttle.next_ready(self.hold.limits(), now, bytes);
            let Some(index) = ready else {
                return;
            };
            self.go_on(index, now);
        }
    }

    /// Gives the device the next piece of a slot's I/O, if there is a buffer that it can use.
    fn go_on(&mut self, index: u32, now: Nanos) {
        let slot = &mut self.slots[index as usize];
        let mut most_blocks = u64::MAX;
        if slot.is_misaligned {
            if !self.bounce.has_room_for(index) {
                return;
            }
            most_blocks = Bounce::most_blocks(self.block_size);
        }
        let rest = &mut slot.rest;
        let mut piece = next_piece(
            rest,
            &self.features,
            self.zeroes,
            self.block_size,
            most_blocks,
        );
        if slot.is_misaligned {
            let stand_in = self.bounce.stand_in(piece.buf);
            if slot.op != IoOp::Read {
                stand_in.aligned.copy_from(&stand_in.user);
            }
            piece.buf = stand_in.aligned;
            slot.stand_in = Some(stand_in);
        }
        self.io.submit(&piece, now);
    }

    /// A piece has ended: its aligned buffer, if it had one, goes to whoever has waited longest.
    fn end_stand_in(&mut self, index: u32, result: Result<(), Errno>, now: Nanos) {
        let slot = &mut self.slots[index as usize];
        let Some(stand_in) = slot.stand_in.take() else {
            return;
        };
        if slot.op == IoOp::Read && result.is_ok() {
            stand_in.user.copy_from(&stand_in.aligned);
        }
        self.bounce.give_back(stand_in);
        if let Some(waiting) = self.bounce.next_waiting() {
            self.go_on(waiting, now);
        }
    }

    fn end_or_continue(&mut self, piece: IoDone, now: Nanos) -> Option<IoDone> {
        let index = u32::try_from(piece.tag).ok()?;
        self.end_stand_in(index, piece.result, now);
        let slot = &self.slots[index as usize];
        if slot.rest.num_blocks > 0 && piece.result.is_ok() {
            self.go_on(index, now);
            return None;
        }
        let latency = now.since(slot.submitted);
        let (tag, kind, bytes) = (slot.tag, slot.op.kind(), slot.bytes);
        self.stats
            .record(&mut self.stats_owner, kind, bytes, latency, piece.result);
        self.free.push(index);
        Some(IoDone {
            tag,
            result: piece.result,
        })
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.hold.close_stats(&self.stats);
    }
}

/// Takes as much from the front of `rest` as the device does at once, up to `most` blocks.
fn next_piece(
    rest: &mut BdevIo,
    features: &Features,
    zeroes: Span,
    block_size: u32,
    most: u64,
) -> BdevIo {
    let writes_zeroes = matches!(rest.op, IoOp::WriteZeroes { .. }) && !features.write_zeroes;
    let limit = if writes_zeroes {
        zero_write_blocks(features, zeroes, block_size)
    } else {
        most_blocks(rest.op, features)
    };
    let num_blocks = rest.num_blocks.min(limit).min(most);
    let bytes = bytes_of(num_blocks, block_size);
    let mut piece = BdevIo {
        num_blocks,
        ..*rest
    };
    if writes_zeroes {
        piece.op = IoOp::Write { fua: false };
        piece.buf = part(zeroes, 0, bytes);
    } else if rest.op.has_data() && num_blocks < rest.num_blocks {
        piece.buf = part(rest.buf, 0, bytes);
        rest.buf = part(rest.buf, bytes, rest.buf.len() - bytes);
    }
    rest.offset_blocks += num_blocks;
    rest.num_blocks -= num_blocks;
    piece
}

fn most_blocks(op: IoOp, features: &Features) -> u64 {
    let limit = match op {
        IoOp::Read | IoOp::Write { .. } => u64::from(features.max_rw_blocks),
        IoOp::Unmap => features.max_unmap_blocks,
        IoOp::WriteZeroes { .. } => features.max_write_zeroes_blocks,
        IoOp::Flush => 0,
    };
    if limit == 0 { u64::MAX } else { limit }
}

fn zero_write_blocks(features: &Features, zeroes: Span, block_size: u32) -> u64 {
    let held = zeroes.len() as u64 / u64::from(block_size);
    held.min(most_blocks(IoOp::Write { fua: false }, features))
}

fn bytes_of(num_blocks: u64, block_size: u32) -> usize {
    usize::try_from(num_blocks.saturating_mul(u64::from(block_size))).unwrap_or(usize::MAX)
}

fn part(span: Span, offset: usize, len: usize) -> Span {
    span.slice(offset, len)
        .expect("the buffer's length was checked when the I/O was submitted")
}

#[cfg(test)]
mod tests;
