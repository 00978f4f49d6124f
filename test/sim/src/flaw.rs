//! Disks that are broken on purpose, to show that the checks find what they are for.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use rnbd_base::{CoreIndex, Errno, Nanos, Progress};
use rnbd_bdev::{Bdev, BdevIo, Features, Geometry, IoChannel, IoDone, IoOp};
use rnbd_mem::{Buffer, Memory, Pages, Span};
use uuid::Uuid;

use crate::scenario::DiskSpec;

/// What a disk does wrong, once in a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A write ends well and did not happen.
    LoseWrite,
    /// A write goes to the block beside its own.
    MisplaceWrite,
    /// Of a write only the first half of its first block happens.
    TearWrite,
    /// A write ends well, happens, and happens again long after.
    GhostWrite,
    /// A read gets what the block beside its own has.
    MisplaceRead,
    /// A read ends well and has brought nothing.
    LoseRead,
    /// Unmap and write-zeroes end well and leave the blocks as they are.
    KeepOld,
    /// An I/O never ends.
    ForgetIo,
    /// An I/O fails, and there is no reason for it.
    FailIo,
}

impl Flaw {
    /// All there are.
    pub const ALL: [Self; 9] = [
        Self::LoseWrite,
        Self::MisplaceWrite,
        Self::TearWrite,
        Self::GhostWrite,
        Self::MisplaceRead,
        Self::LoseRead,
        Self::KeepOld,
        Self::ForgetIo,
        Self::FailIo,
    ];

    fn is_about(self, op: IoOp) -> bool {
        match self {
            Self::LoseWrite | Self::MisplaceWrite | Self::TearWrite | Self::GhostWrite => {
                matches!(op, IoOp::Write { .. })
            }
            Self::MisplaceRead | Self::LoseRead => op == IoOp::Read,
            Self::KeepOld => matches!(op, IoOp::Unmap | IoOp::WriteZeroes { .. }),
            Self::ForgetIo | Self::FailIo => true,
        }
    }
}

/// Every so many I/Os that the flaw is about, it shows.
const EVERY: u32 = 10;
/// After so many more I/Os a ghost appears.
const GHOST_AFTER: u32 = 40;

/// A disk in memory with a flaw.
#[derive(Debug)]
pub(crate) struct FlawedDisk {
    name: String,
    uuid: Uuid,
    flaw: Flaw,
    geometry: Geometry,
    content: Arc<Buffer>,
}

impl FlawedDisk {
    /// Disk `nth` of the target.
    pub(crate) fn new(nth: usize, flaw: Flaw, spec: &DiskSpec, memory: &Memory) -> Self {
        let geometry = Geometry {
            block_size: spec.block_size,
            physical_block_size: spec.block_size,
            num_blocks: spec.num_blocks,
        };
        let bytes = usize::try_from(geometry.bytes()).expect("simulated disks are small");
        let content = memory
            .alloc("flawed disk", bytes, Pages::Small)
            .expect("there is memory");
        Self {
            name: format!("flawed{nth}"),
            uuid: Uuid::from_u128(1 + nth as u128),
            flaw,
            geometry,
            content: Arc::new(content),
        }
    }
}

impl Bdev for FlawedDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn product_name(&self) -> &'static str {
        "Flawed disk"
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn features(&self) -> Features {
        Features::default()
    }

    fn open_channel(&self, _core: CoreIndex, _depth: u32) -> Result<Box<dyn IoChannel>, Errno> {
        Ok(Box::new(FlawedChannel {
            flaw: self.flaw,
            block_size: self.geometry.block_size as usize,
            content: Arc::clone(&self.content),
            count: 0,
            ended: VecDeque::new(),
            ghosts: Vec::new(),
        }))
    }
}

#[derive(Debug)]
struct FlawedChannel {
    flaw: Flaw,
    block_size: usize,
    content: Arc<Buffer>,
    count: u32,
    ended: VecDeque<IoDone>,
    ghosts: Vec<Ghost>,
}

/// A write that will happen once more.
#[derive(Debug)]
struct Ghost {
    blocks: Span,
    bytes: Vec<u8>,
    wait: u32,
}

impl FlawedChannel {
    fn blocks(&self, offset_blocks: u64, num_blocks: u64) -> Span {
        let bytes = |blocks| usize::try_from(blocks).unwrap_or(usize::MAX) * self.block_size;
        self.content
            .span()
            .slice(bytes(offset_blocks), bytes(num_blocks))
            .expect("a channel checks the range")
    }

    /// The blocks beside those of an I/O.
    fn beside(&self, io: &BdevIo) -> Span {
        let neighbour = if io.offset_blocks > 0 {
            io.offset_blocks - 1
        } else {
            io.offset_blocks + 1
        };
        self.blocks(neighbour, io.num_blocks)
    }

    fn obey(io: &BdevIo, blocks: Span) {
        match io.op {
            IoOp::Read => io.buf.copy_from(&blocks),
            IoOp::Write { .. } => blocks.copy_from(&io.buf),
            IoOp::Unmap | IoOp::WriteZeroes { .. } => blocks.fill(0),
            IoOp::Flush => (),
        }
    }

    fn err(&mut self, io: &BdevIo, blocks: Span) -> Option<Result<(), Errno>> {
        match self.flaw {
            Flaw::ForgetIo => return None,
            Flaw::FailIo => return Some(Err(Errno::IO)),
            Flaw::LoseWrite | Flaw::LoseRead | Flaw::KeepOld => (),
            Flaw::MisplaceWrite | Flaw::MisplaceRead => Self::obey(io, self.beside(io)),
            Flaw::TearWrite => {
                let half = io.buf.slice(0, self.block_size / 2);
                blocks.copy_from(&half.expect("a write has a block"));
            }
            Flaw::GhostWrite => {
                Self::obey(io, blocks);
                let mut bytes = vec![0; blocks.len()];
                blocks.read_at(0, &mut bytes);
                let wait = GHOST_AFTER;
                self.ghosts.push(Ghost {
                    blocks,
                    bytes,
                    wait,
                });
            }
        }
        Some(Ok(()))
    }

    fn haunt(&mut self) {
        self.ghosts.retain_mut(|ghost| {
            ghost.wait -= 1;
            if ghost.wait == 0 {
                ghost.blocks.write_at(0, &ghost.bytes);
            }
            ghost.wait > 0
        });
    }
}

impl IoChannel for FlawedChannel {
    fn submit(&mut self, io: &BdevIo, _now: Nanos) {
        self.haunt();
        let blocks = self.blocks(io.offset_blocks, io.num_blocks);
        self.count += u32::from(self.flaw.is_about(io.op));
        let result = if self.flaw.is_about(io.op) && self.count.is_multiple_of(EVERY) {
            self.err(io, blocks)
        } else {
            Self::obey(io, blocks);
            Some(Ok(()))
        };
        let ended = result.map(|result| IoDone {
            tag: io.tag,
            result,
        });
        self.ended.extend(ended);
    }

    fn poll(&mut self, _now: Nanos, done: &mut Vec<IoDone>) -> Progress {
        let before = done.len();
        while done.len() < done.capacity()
            && let Some(ended) = self.ended.pop_front()
        {
            done.push(ended);
        }
        Progress::from_work(done.len() > before)
    }

    fn prepare_sleep(&mut self, _fds: &mut Vec<RawFd>) -> bool {
        self.ended.is_empty()
    }
}
