//! A disk as drives are: it executes what is queued in any order and at any time, its cache is lost
//! with the power, and it can grow.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use rnbd_base::{CoreIndex, Errno, Nanos, Progress};
use rnbd_bdev::{Bdev, BdevIo, Features, Geometry, IoChannel, IoDone, IoOp};
use rnbd_mem::{Buffer, Memory, Pages, Span};
use uuid::Uuid;

use crate::scenario::DiskSpec;

/// The disk. It outlives the process that uses it.
#[derive(Debug)]
pub(crate) struct CachedDisk {
    name: String,
    uuid: Uuid,
    block_size: u32,
    num_blocks: AtomicU64,
    num_blocks_max: u64,
    /// About how long an I/O takes.
    lag: Nanos,
    /// How many times that the slowest takes.
    slowest: u64,
    /// I/Os that are to be cut short.
    short: Arc<AtomicU32>,
    media: Arc<Mutex<Media>>,
}

impl CachedDisk {
    /// Disk `nth` of the target.
    pub(crate) fn new(nth: usize, spec: &DiskSpec, memory: &Memory) -> Self {
        Self {
            name: format!("cached{nth}"),
            uuid: Uuid::from_u128(1 + nth as u128),
            block_size: spec.block_size,
            num_blocks: AtomicU64::new(spec.first_blocks),
            num_blocks_max: spec.num_blocks,
            lag: Nanos(1_000 * spec.delay_us.unwrap_or(0)),
            slowest: spec.slowest.into(),
            short: Arc::default(),
            media: Arc::new(Mutex::new(Media::new(nth, spec, memory))),
        }
    }

    /// Each block that was not flushed may be as it was when it last was.
    pub(crate) fn lose_power(&self) {
        lock(&self.media).lose_power();
    }

    /// The next `num` reads and writes of several blocks fail after the first half of them.
    pub(crate) fn cut_short(&self, num: u32) {
        self.short.store(num, Ordering::Relaxed);
    }

    /// Takes some of the blocks that there are for it; `false` if it has them all.
    pub(crate) fn grow(&self) -> bool {
        let now = self.num_blocks.load(Ordering::Relaxed);
        if now == self.num_blocks_max {
            return false;
        }
        let grown = lock(&self.media).rng.u64(now + 1..=self.num_blocks_max);
        self.num_blocks.store(grown, Ordering::Relaxed);
        true
    }
}

impl Bdev for CachedDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn product_name(&self) -> &'static str {
        "Cached disk"
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: self.block_size,
            physical_block_size: self.block_size,
            num_blocks: self.num_blocks.load(Ordering::Relaxed),
        }
    }

    fn features(&self) -> Features {
        Features {
            write_cache: true,
            ..Features::default()
        }
    }

    fn open_channel(&self, _core: CoreIndex, _depth: u32) -> Result<Box<dyn IoChannel>, Errno> {
        Ok(Box::new(CachedChannel {
            media: Arc::clone(&self.media),
            lag: self.lag,
            slowest: self.slowest,
            short: Arc::clone(&self.short),
            queued: Vec::new(),
        }))
    }
}

/// Two copies of everything: with what is in the cache, and without.
#[derive(Debug)]
struct Media {
    block_size: usize,
    rng: Rng,
    cached: Buffer,
    durable: Buffer,
}

impl Media {
    fn new(nth: usize, spec: &DiskSpec, memory: &Memory) -> Self {
        let bytes = usize::try_from(spec.num_blocks * u64::from(spec.block_size));
        let bytes = bytes.expect("simulated disks are small");
        let buffer = || memory.alloc("cached disk", bytes, Pages::Small);
        Self {
            block_size: spec.block_size as usize,
            rng: Rng::with_seed(spec.num_blocks ^ nth as u64),
            cached: buffer().expect("there is memory"),
            durable: buffer().expect("there is memory"),
        }
    }

    fn obey(&mut self, io: &BdevIo) {
        let bytes = |blocks| usize::try_from(blocks).unwrap_or(usize::MAX) * self.block_size;
        let (at, len) = (bytes(io.offset_blocks), bytes(io.num_blocks));
        let of = |buffer: &Buffer| buffer.span().slice(at, len).expect("a channel checks it");
        match io.op {
            IoOp::Read => io.buf.copy_from(&of(&self.cached)),
            IoOp::Write { fua } => {
                of(&self.cached).copy_from(&io.buf);
                if fua {
                    of(&self.durable).copy_from(&io.buf);
                }
            }
            IoOp::Unmap | IoOp::WriteZeroes { .. } => of(&self.cached).fill(0),
            IoOp::Flush => self.durable.span().copy_from(&self.cached.span()),
        }
    }

    fn lose_power(&mut self) {
        let (cached, durable) = (self.cached.span(), self.durable.span());
        for at in (0..cached.len()).step_by(self.block_size) {
            let block = |span: &Span| span.slice(at, self.block_size);
            let (Some(cached), Some(durable)) = (block(&cached), block(&durable)) else {
                return;
            };
            if self.rng.bool() {
                durable.copy_from(&cached);
            } else {
                cached.copy_from(&durable);
            }
        }
    }
}

fn lock(media: &Mutex<Media>) -> MutexGuard<'_, Media> {
    media.lock().unwrap_or_else(PoisonError::into_inner)
}

/// I/Os that wait for their time; those of a process that dies are never executed.
#[derive(Debug)]
struct CachedChannel {
    media: Arc<Mutex<Media>>,
    lag: Nanos,
    slowest: u64,
    short: Arc<AtomicU32>,
    queued: Vec<(Nanos, BdevIo)>,
}

impl CachedChannel {
    /// Mostly about the lag, sometimes much more.
    fn draw_lag(&self) -> Nanos {
        let rng = &mut lock(&self.media).rng;
        let times = if rng.u8(..50) == 0 { self.slowest } else { 2 };
        Nanos(rng.u64(0..=times * self.lag.0))
    }

    /// Does it, or the first half of it.
    fn execute(&self, io: &BdevIo) -> Result<(), Errno> {
        let is_short = io.op.has_data() && io.num_blocks > 1 && self.take_short();
        let done = BdevIo {
            num_blocks: if is_short {
                io.num_blocks / 2
            } else {
                io.num_blocks
            },
            ..*io
        };
        let mut media = lock(&self.media);
        let bytes = usize::try_from(done.num_blocks).unwrap_or(usize::MAX) * media.block_size;
        let buf = if io.op.has_data() {
            io.buf.slice(0, bytes).ok_or(Errno::INVAL)?
        } else {
            io.buf
        };
        media.obey(&BdevIo { buf, ..done });
        if is_short { Err(Errno::IO) } else { Ok(()) }
    }

    fn take_short(&self) -> bool {
        let left = |left: u32| left.checked_sub(1);
        let taken = self
            .short
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        taken.is_ok()
    }
}

impl IoChannel for CachedChannel {
    fn submit(&mut self, io: &BdevIo, now: Nanos) {
        let due = now + self.draw_lag();
        self.queued.push((due, *io));
    }

    fn poll(&mut self, now: Nanos, done: &mut Vec<IoDone>) -> Progress {
        let mut progress = Progress::Idle;
        while done.len() < done.capacity()
            && let Some(at) = self.queued.iter().position(|(due, _)| *due <= now)
        {
            let (_, io) = self.queued.swap_remove(at);
            let (tag, result) = (io.tag, self.execute(&io));
            done.push(IoDone { tag, result });
            progress = Progress::Busy;
        }
        progress
    }

    fn next_deadline(&self) -> Option<Nanos> {
        self.queued.iter().map(|(due, _)| *due).min()
    }

    fn prepare_sleep(&mut self, _fds: &mut Vec<RawFd>) -> bool {
        self.queued.is_empty()
    }
}
