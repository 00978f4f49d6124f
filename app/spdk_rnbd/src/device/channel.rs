//! SPDK's I/O on one of our channels.
//!
//! ```text
//!  SPDK ──> waiting ──> parts, one for each stretch of memory ──> channel ──> all ended ──> SPDK
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use rnbd_base::{Errno, Nanos, Progress};
use rnbd_bdev::{BdevIo, Channel, Desc, IoDone, IoOp};
use rnbd_mem::Span;
use rnbd_spdk::{DiskChannel, Ended, Io, IoKind};

use super::bounce::Bounce;
use super::memory::spans;
use crate::runtime::Shared;

/// Parts of I/Os that may be on their way.
const DEPTH: u32 = 1024;

/// One light thread's way to a bdev.
pub(super) struct FaceChannel {
    // Dropped in this order: the channel before the descriptor.
    channel: Channel,
    _desc: Desc,
    shared: Arc<Shared>,
    block_size: usize,
    /// The time of the last poll, which is that of what is submitted: SPDK polls in every round.
    now: Nanos,
    /// I/Os on their way, by the tag of their parts.
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    /// What there was no room for.
    waiting: VecDeque<Io>,
    done: Vec<IoDone>,
}

/// An I/O of SPDK's that is on its way.
struct Slot {
    io: Io,
    /// Parts that have not ended.
    parts: u32,
    result: Result<(), Errno>,
    bounce: Option<Bounce>,
}

/// What became of an attempt to begin an I/O.
enum Begun {
    OnItsWay,
    Ended(Ended),
    NoRoom(Io),
}

impl FaceChannel {
    pub(super) fn open(desc: Desc, shared: Arc<Shared>) -> Result<Self, Errno> {
        let channel = desc.open_channel(shared.core(), DEPTH)?;
        let block_size = usize::try_from(desc.geometry().block_size).map_err(|_| Errno::INVAL)?;
        Ok(Self {
            channel,
            _desc: desc,
            now: shared.clock.now(),
            shared,
            block_size,
            slots: std::iter::repeat_with(|| None)
                .take(DEPTH as usize)
                .collect(),
            free: (0..DEPTH).rev().collect(),
            waiting: VecDeque::with_capacity(DEPTH as usize),
            done: Vec::with_capacity(DEPTH as usize),
        })
    }

    fn begin(&mut self, io: Io) -> Begun {
        let parts = match io.kind() {
            IoKind::Read | IoKind::Write => io.buffers().count(),
            _ => 1,
        };
        if parts > self.channel.depth() {
            return Begun::Ended((io, Err(Errno::INVAL)));
        }
        if parts > self.channel.depth() - self.channel.outstanding() {
            return Begun::NoRoom(io);
        }
        let Some(tag) = self.free.pop() else {
            return Begun::NoRoom(io);
        };
        let (parts, result, bounce) = match io.kind() {
            IoKind::Read => self.begin_data(&io, tag, IoOp::Read),
            IoKind::Write => self.begin_data(&io, tag, IoOp::Write { fua: false }),
            IoKind::Flush => self.begin_plain(&io, tag, IoOp::Flush),
            IoKind::Unmap => self.begin_plain(&io, tag, IoOp::Unmap),
            IoKind::WriteZeroes => {
                self.begin_plain(&io, tag, IoOp::WriteZeroes { no_unmap: false })
            }
        };
        if parts == 0 {
            self.free.push(tag);
            return Begun::Ended((io, result));
        }
        self.slots[tag as usize] = Some(Slot {
            io,
            parts,
            result,
            bounce,
        });
        Begun::OnItsWay
    }

    fn begin_plain(&mut self, io: &Io, tag: u32, op: IoOp) -> Started {
        let whole = BdevIo {
            tag: tag.into(),
            op,
            offset_blocks: io.offset_blocks(),
            num_blocks: io.num_blocks(),
            buf: Span::EMPTY,
            prio: 0,
        };
        match self.channel.submit(&whole, self.now) {
            Ok(()) => (1, Ok(()), None),
            Err(errno) => (0, Err(errno), None),
        }
    }

    /// One part for each stretch of memory, in place; if one is no whole number of blocks, one part
    /// for all, through a copy.
    fn begin_data(&mut self, io: &Io, tag: u32, op: IoOp) -> Started {
        let mut submission = Submission {
            channel: &mut self.channel,
            block_size: self.block_size,
            now: self.now,
            tag,
            op,
        };
        let whole = |(_, len): (_, usize)| len.is_multiple_of(self.block_size);
        if io.buffers().all(whole) {
            let (parts, result) = submission.parts(io, spans(io, &self.shared.memory_map));
            return (parts, result, None);
        }
        match Bounce::new(&self.shared, io) {
            Ok(bounce) => {
                let (parts, result) = submission.parts(io, std::iter::once(bounce.span()));
                (parts, result, Some(bounce))
            }
            Err(errno) => (0, Err(errno), None),
        }
    }

    fn end_part(&mut self, part: IoDone) -> Option<Ended> {
        let index = usize::try_from(part.tag).ok()?;
        let slot = self.slots.get_mut(index)?.as_mut()?;
        slot.parts -= 1;
        slot.result = slot.result.and(part.result);
        if slot.parts > 0 {
            return None;
        }
        let slot = self.slots[index].take()?;
        self.free.push(u32::try_from(index).ok()?);
        if let (Some(bounce), IoKind::Read, Ok(())) = (&slot.bounce, slot.io.kind(), slot.result) {
            bounce.copy_out(&slot.io, &self.shared);
        }
        Some((slot.io, slot.result))
    }

    fn begin_waiting(&mut self, ended: &mut Vec<Ended>) {
        while let Some(io) = self.waiting.pop_front() {
            match self.begin(io) {
                Begun::OnItsWay => {}
                Begun::Ended(one) => ended.push(one),
                Begun::NoRoom(io) => {
                    self.waiting.push_front(io);
                    return;
                }
            }
        }
    }
}

/// The way of one I/O's data to the channel.
struct Submission<'a> {
    channel: &'a mut Channel,
    block_size: usize,
    now: Nanos,
    tag: u32,
    op: IoOp,
}

impl Submission<'_> {
    /// A part that is refused ends the I/O with those before it.
    fn parts(&mut self, io: &Io, spans: impl Iterator<Item = Span>) -> (u32, Result<(), Errno>) {
        let (mut parts, mut offset_blocks) = (0, io.offset_blocks());
        for buf in spans {
            let num_blocks = (buf.len() / self.block_size) as u64;
            let part = BdevIo {
                tag: self.tag.into(),
                op: self.op,
                offset_blocks,
                num_blocks,
                buf,
                prio: 0,
            };
            if let Err(errno) = self.channel.submit(&part, self.now) {
                return (parts, Err(errno));
            }
            parts += 1;
            offset_blocks += num_blocks;
        }
        (parts, Ok(()))
    }
}

/// Parts on their way, what the first refused one was told, and the copy of the data.
type Started = (u32, Result<(), Errno>, Option<Bounce>);

impl DiskChannel for FaceChannel {
    fn submit(&mut self, io: Io) -> Option<Ended> {
        if !self.waiting.is_empty() {
            self.waiting.push_back(io);
            return None;
        }
        match self.begin(io) {
            Begun::OnItsWay => None,
            Begun::Ended(ended) => Some(ended),
            Begun::NoRoom(io) => {
                self.waiting.push_back(io);
                None
            }
        }
    }

    fn poll(&mut self, ended: &mut Vec<Ended>) -> Progress {
        self.now = self.shared.clock.now();
        let mut done = std::mem::take(&mut self.done);
        self.channel.poll(self.now, &mut done);
        for part in done.drain(..) {
            ended.extend(self.end_part(part));
        }
        self.done = done;
        self.begin_waiting(ended);
        Progress::from_work(!ended.is_empty())
    }

    fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len() + self.waiting.len()
    }

    fn take_waiting(&mut self, wanted: &dyn Fn(&Io) -> bool) -> Vec<Io> {
        let (taken, kept) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|io| wanted(io));
        self.waiting = kept;
        let taken: VecDeque<Io> = taken;
        taken.into()
    }
}

impl fmt::Debug for FaceChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaceChannel({} outstanding)", self.outstanding())
    }
}
