//! Load on one disk from one core, checked against the disk's model.

use std::ops::Range;
use std::sync::Arc;

use fastrand::Rng;
use rnbd_base::{CoreIndex, Errno, Nanos, Progress};
use rnbd_bdev::{BdevIo, Channel, Desc, IoDone, IoOp};
use rnbd_mem::{Buffer, Memory, Pages, Span};

use crate::model::{Change, Content, DiskModel, FlushId, ReadId};

/// Most blocks of one I/O.
const BLOCKS_MAX: u64 = 8;
/// The same, as a factor of sizes in memory.
const BLOCKS_MAX_COUNT: usize = 8;

/// How a job works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JobSpec {
    /// I/Os in flight.
    pub(crate) depth: u32,
    /// Mean time between two.
    pub(crate) think: Nanos,
    /// Nothing of it is checked.
    pub(crate) is_hostile: bool,
}

/// What a job does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Random I/O.
    Load,
    /// Nothing new.
    Drain,
    /// Reads every block once.
    Verify,
}

#[derive(Clone, Debug)]
enum Pending {
    Read(ReadId, Range<u64>),
    Change(Range<u64>, Change),
    Flush(FlushId),
}

/// One user of a disk.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) disk: usize,
    spec: JobSpec,
    channel: Channel,
    desc: Arc<Desc>,
    buffer: Buffer,
    slot_bytes: usize,
    /// When each I/O in flight was submitted, and what it is.
    pending: Vec<Option<(Nanos, Pending)>>,
    done: Vec<IoDone>,
    next_issue: Nanos,
    verified: u64,
    phase: Phase,
    is_shut_out: bool,
    rng: Rng,
    pub(crate) tally: Tally,
}

/// What a job did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) completed: u64,
    pub(crate) failed: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.completed += other.completed;
        self.failed += other.failed;
    }
}

/// What a disk's users may meet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// I/O may fail.
    pub(crate) may_fail: bool,
    /// A change that failed may still happen: there are other paths than the one it was lost on.
    pub(crate) lingers: bool,
    /// Since when the disk is not exported: what is submitted later must fail.
    pub(crate) closed_since: Option<Nanos>,
}

impl Job {
    pub(crate) fn open(
        desc: &Arc<Desc>,
        core: CoreIndex,
        disk: usize,
        spec: JobSpec,
        memory: &Memory,
        rng: Rng,
    ) -> Self {
        let depth = spec.depth as usize;
        let block_size = desc.geometry().block_size as usize;
        let slot_bytes = block_size * BLOCKS_MAX_COUNT;
        let channel = desc
            .open_channel(core, spec.depth)
            .expect("a core with a shard");
        Self {
            disk,
            spec,
            channel,
            desc: Arc::clone(desc),
            buffer: memory
                .alloc("job", slot_bytes * depth, Pages::Small)
                .expect("there is memory"),
            slot_bytes,
            pending: vec![None; depth],
            done: Vec::with_capacity(depth),
            next_issue: Nanos::ZERO,
            verified: 0,
            phase: Phase::Load,
            is_shut_out: false,
            rng,
            tally: Tally::default(),
        }
    }

    /// What it does from now on.
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.verified = 0;
    }

    /// Whether nothing is in flight, and nothing left to do by itself.
    pub(crate) fn is_quiet(&self, disk: &DiskModel) -> bool {
        let is_verified = self.phase != Phase::Verify || self.verified >= self.num_blocks(disk);
        is_verified && self.in_flight() == 0
    }

    /// Blocks that the disk has now, as far as its user knows.
    pub(crate) fn num_blocks(&self, disk: &DiskModel) -> u64 {
        self.desc.geometry().num_blocks.min(disk.num_blocks())
    }

    /// Whether I/O has failed because the disk is not to be had; asked once.
    pub(crate) fn take_shut_out(&mut self) -> bool {
        std::mem::take(&mut self.is_shut_out)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.pending.iter().flatten().count()
    }

    pub(crate) fn next_deadline(&self) -> Option<Nanos> {
        let may_issue = self.phase == Phase::Load && self.in_flight() < self.pending.len();
        let load = may_issue.then_some(self.next_issue);
        self.channel.next_deadline().into_iter().chain(load).min()
    }

    /// Takes what has ended and starts what is due.
    pub(crate) fn poll(
        &mut self,
        disk: &mut DiskModel,
        terms: Terms,
        now: Nanos,
    ) -> Result<Progress, String> {
        let mut progress = self.channel.poll(now, &mut self.done);
        while let Some(done) = self.done.pop() {
            self.complete(disk, &done, terms)?;
        }
        while let Some(slot) = self.free_slot(now) {
            let Some(started) = self.start(disk, slot, now) else {
                break;
            };
            progress = Progress::Busy;
            self.settle_start(disk, slot, started, terms)?;
        }
        Ok(progress)
    }

    fn complete(
        &mut self,
        disk: &mut DiskModel,
        done: &IoDone,
        terms: Terms,
    ) -> Result<(), String> {
        let slot = usize::try_from(done.tag).ok();
        let (submitted, pending) = slot
            .and_then(|slot| self.pending.get_mut(slot))
            .and_then(Option::take)
            .ok_or_else(|| format!("{done:?} of an I/O that is not in flight"))?;
        self.tally.completed += 1;
        if let Err(errno) = done.result {
            self.tally.failed += 1;
            self.is_shut_out |= !matches!(errno, Errno::IO | Errno::TIMEDOUT);
            self.permit(errno, terms, &pending)?;
        } else {
            self.forbid(submitted, terms, &pending)?;
        }
        match pending {
            Pending::Flush(id) => {
                if done.result.is_ok() {
                    disk.end_flush(id);
                }
                Ok(())
            }
            Pending::Change(blocks, how) => {
                let failed = if terms.lingers {
                    Change::Lingering
                } else {
                    Change::Unknown
                };
                disk.end_change(blocks, done.result.map_or(failed, |()| how));
                Ok(())
            }
            Pending::Read(id, _) if done.result.is_err() => {
                disk.fail_read(id);
                Ok(())
            }
            Pending::Read(id, blocks) => self.check_read(disk, done.tag, id, &blocks),
        }
    }

    fn permit(&self, errno: Errno, terms: Terms, pending: &Pending) -> Result<(), String> {
        if terms.may_fail || self.spec.is_hostile {
            return Ok(());
        }
        Err(format!(
            "disk {}: {pending:?} failed with {errno}, which nothing in the scenario explains",
            self.disk
        ))
    }

    /// Nothing may succeed on a disk that is not exported, but for flushes: those of a disk
    /// without a cache need no answer.
    fn forbid(&self, submitted: Nanos, terms: Terms, pending: &Pending) -> Result<(), String> {
        if matches!(pending, Pending::Flush(_)) {
            return Ok(());
        }
        match terms.closed_since {
            Some(closed) if closed <= submitted && !self.spec.is_hostile => Err(format!(
                "disk {}: {pending:?} of {submitted:?} succeeded, and it was closed at {closed:?}",
                self.disk
            )),
            _ => Ok(()),
        }
    }

    fn check_read(
        &self,
        disk: &mut DiskModel,
        tag: u64,
        id: ReadId,
        blocks: &Range<u64>,
    ) -> Result<(), String> {
        let span = self.span(tag, blocks, disk.block_size());
        let mut bytes = vec![0; span.len()];
        span.read_at(0, &mut bytes);
        let result = disk.end_read(id, &bytes);
        if self.spec.is_hostile {
            return Ok(());
        }
        result.map_err(|mismatch| mismatch.0)
    }

    fn free_slot(&self, now: Nanos) -> Option<usize> {
        let is_due = self.phase != Phase::Load || self.next_issue <= now;
        let free = self.pending.iter().position(Option::is_none);
        free.filter(|_| is_due && self.phase != Phase::Drain)
    }

    /// Submits something, unless there is nothing to do now.
    fn start(
        &mut self,
        disk: &mut DiskModel,
        slot: usize,
        now: Nanos,
    ) -> Option<Result<(), Errno>> {
        let (op, blocks) = match self.phase {
            Phase::Drain => return None,
            Phase::Verify => (IoOp::Read, self.next_to_verify(disk)?),
            Phase::Load => {
                self.next_issue = now + self.think();
                self.choose(disk)
            }
        };
        let pending = self.prepare(disk, slot, op, &blocks);
        self.pending[slot] = Some((now, pending));
        let io = BdevIo {
            tag: slot as u64,
            op,
            offset_blocks: blocks.start,
            num_blocks: blocks.end - blocks.start,
            buf: match op.has_data() {
                true => self.span(slot as u64, &blocks, disk.block_size()),
                false => Span::EMPTY,
            },
            prio: 0,
        };
        Some(self.channel.submit(&io, now))
    }

    /// A refused I/O has ended already.
    fn settle_start(
        &mut self,
        disk: &mut DiskModel,
        slot: usize,
        started: Result<(), Errno>,
        terms: Terms,
    ) -> Result<(), String> {
        if started.is_ok() {
            return Ok(());
        }
        let done = IoDone {
            tag: slot as u64,
            result: started,
        };
        self.complete(disk, &done, terms)
    }

    fn think(&mut self) -> Nanos {
        Nanos(self.rng.u64(0..=self.spec.think.0.saturating_mul(2)))
    }

    fn next_to_verify(&mut self, disk: &DiskModel) -> Option<Range<u64>> {
        let start = self.verified;
        let end = (start + BLOCKS_MAX).min(self.num_blocks(disk));
        self.verified = end;
        (start < end).then_some(start..end)
    }

    /// Half reads; changes only where no other change is under way, and they are allowed.
    fn choose(&mut self, disk: &DiskModel) -> (IoOp, Range<u64>) {
        let blocks = self.choose_blocks(disk);
        let op = match self.rng.u8(..16) {
            0 => IoOp::Flush,
            1 => IoOp::Unmap,
            2 => IoOp::WriteZeroes {
                no_unmap: self.rng.bool(),
            },
            3..=8 => IoOp::Write {
                fua: self.rng.u8(..4) == 0,
            },
            _ => IoOp::Read,
        };
        if op == IoOp::Flush {
            return (op, 0..0);
        }
        let is_free = self.desc.may_write() && disk.is_unchanging(blocks.clone());
        if op.modifies() && !is_free {
            return (IoOp::Read, blocks);
        }
        (op, blocks)
    }

    fn choose_blocks(&mut self, disk: &DiskModel) -> Range<u64> {
        let count = self.rng.u64(1..=BLOCKS_MAX);
        let start = self.rng.u64(0..=self.num_blocks(disk) - count);
        start..start + count
    }

    /// Tells the model, and fills the buffer.
    fn prepare(
        &mut self,
        disk: &mut DiskModel,
        slot: usize,
        op: IoOp,
        blocks: &Range<u64>,
    ) -> Pending {
        match op {
            IoOp::Flush => Pending::Flush(disk.begin_flush()),
            IoOp::Read => {
                let span = self.span(slot as u64, blocks, disk.block_size());
                span.fill(0xEE);
                Pending::Read(disk.begin_read(blocks.clone()), blocks.clone())
            }
            IoOp::Unmap | IoOp::WriteZeroes { .. } => {
                disk.begin_change(blocks.clone(), Content::Zeroes);
                Pending::Change(blocks.clone(), Change::Done)
            }
            IoOp::Write { fua } => {
                let content = disk.next_write();
                self.fill(disk, slot, blocks, content);
                disk.begin_change(blocks.clone(), content);
                let how = if fua { Change::Durable } else { Change::Done };
                Pending::Change(blocks.clone(), how)
            }
        }
    }

    fn fill(&self, disk: &DiskModel, slot: usize, blocks: &Range<u64>, content: Content) {
        let block_size = disk.block_size();
        let span = self.span(slot as u64, blocks, block_size);
        let mut bytes = vec![0; block_size];
        for (nth, at) in blocks.clone().enumerate() {
            disk.encode(at, content, &mut bytes);
            span.write_at(nth * block_size, &bytes);
        }
    }

    fn span(&self, tag: u64, blocks: &Range<u64>, block_size: usize) -> Span {
        let slot = usize::try_from(tag).expect("tags are slots");
        let count = usize::try_from(blocks.end - blocks.start).expect("at most eight");
        self.buffer
            .span()
            .slice(slot * self.slot_bytes, count * block_size)
            .expect("each slot has room for the largest I/O")
    }
}
