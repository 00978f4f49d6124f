//! The load generator: one device, one core, a queue that is kept full.
//!
//! ```text
//!           reads are to be verified                          time is up, stopped,
//!   Idle ------------------------------> Filling              or an I/O failed
//!     |                                     | all written        |
//!     +------------------------------> Running ------------> Draining
//!                                                               |  | not to be verified, or stopped
//!                                        all checked            v  v
//!                             Done <---------------------- Checking / Done
//! ```
//!
//! A phase ends when nothing is in flight any more. Only what `Running` does is measured; what it
//! submitted is measured until it completes. `Checking` reads everything back that was written.

use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fastrand::Rng;
use rnbd_base::{CoreIndex, Errno, Nanos, Poll, Progress};
use rnbd_bdev::{BdevIo, Channel, Desc, IoDone, IoOp};
use rnbd_mem::{Buffer, Span};

use crate::ledger::{Ledger, Mismatch};
use crate::places::Places;
use crate::spec::{JobSpec, Range};
use crate::stamp::mix;
use crate::tally::Tally;
use crate::workload::Action;

/// Mismatches that are kept to be named; all are counted.
const NAMED_MISMATCHES: usize = 16;
/// How often outstanding I/O is looked through for timeouts.
const TIMEOUT_CHECK_INTERVAL: Nanos = Nanos::from_millis(100);
/// When to ask again a device that had no resources.
const RETRY_INTERVAL: Nanos = Nanos::from_micros(100);

/// What a job and those who watch it share. One writer each, so no atomic arithmetic.
#[derive(Debug, Default)]
pub(crate) struct JobProgress {
    /// I/Os that succeeded, and their bytes, measured or not.
    pub(crate) ios: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) stop: AtomicBool,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// As planned.
    Finished,
    /// An I/O failed, or wrong data was read.
    Failed,
    /// By a signal, before its time.
    Terminated,
}

/// What a job has to report.
#[derive(Debug)]
pub(crate) struct JobResult {
    pub(crate) spec: JobSpec,
    pub(crate) range: Range,
    pub(crate) status: Status,
    pub(crate) runtime: Nanos,
    pub(crate) tally: Tally,
    /// Blocks that were compared with what was written.
    pub(crate) verified_blocks: u64,
    /// I/Os with wrong data.
    pub(crate) mismatch_count: u64,
    /// The first of them.
    pub(crate) mismatches: Vec<Mismatch>,
}

/// Called once, on the job's core.
pub(crate) type OnDone = Box<dyn FnOnce(JobResult) + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Filling,
    Running,
    Draining,
    Checking,
    Done,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    action: Action,
    unit: u64,
    submitted: Nanos,
    is_measured: bool,
    is_in_flight: bool,
    has_timed_out: bool,
}

/// The generator.
pub(crate) struct Job {
    // Dropped first: until the device has let go, it may use the buffers.
    channel: Channel,
    // Kept so that the device counts as open, for writing if the job writes.
    _desc: Desc,
    spec: JobSpec,
    range: Range,
    phase: Phase,
    /// When `Running` began and `Draining` ended.
    start: Option<Nanos>,
    end: Nanos,
    /// The next unit of a pass over all.
    pass: u64,
    slots: Vec<Slot>,
    free: Vec<u32>,
    done: Vec<IoDone>,
    buffers: Buffer,
    places: Places,
    ledger: Option<Ledger>,
    rng: Rng,
    retry_at: Option<Nanos>,
    next_timeout_check: Nanos,
    /// I/Os and bytes of all phases.
    moved: (u64, u64),
    tally: Tally,
    status: Status,
    verified_blocks: u64,
    mismatch_count: u64,
    mismatches: Vec<Mismatch>,
    progress: Arc<JobProgress>,
    report_to: Option<OnDone>,
}

impl Job {
    /// A job on `channel` of `desc`, whose depth is at least the job's. `buffers` has room for all
    /// I/Os.
    pub(crate) fn new(
        spec: JobSpec,
        range: Range,
        desc: Desc,
        channel: Channel,
        buffers: Buffer,
        progress: Arc<JobProgress>,
        on_done: OnDone,
    ) -> Self {
        let idle = Slot {
            action: Action::Flush,
            unit: 0,
            submitted: Nanos::ZERO,
            is_measured: false,
            is_in_flight: false,
            has_timed_out: false,
        };
        let mut rng = Rng::with_seed(spec.seed);
        fill_randomly(buffers.span(), &mut rng);
        Self {
            places: Places::new(range.units, spec.order, spec.verify),
            ledger: spec.verify.then(|| new_ledger(&spec, &range)),
            slots: vec![idle; spec.depth as usize],
            free: (0..spec.depth).rev().collect(),
            done: Vec::with_capacity(spec.depth as usize),
            mismatches: Vec::with_capacity(NAMED_MISMATCHES),
            phase: Phase::Idle,
            start: None,
            end: Nanos::ZERO,
            pass: 0,
            retry_at: None,
            next_timeout_check: Nanos::ZERO,
            moved: (0, 0),
            tally: Tally::new(),
            status: Status::Finished,
            verified_blocks: 0,
            mismatch_count: 0,
            report_to: Some(on_done),
            channel,
            _desc: desc,
            spec,
            range,
            buffers,
            rng,
            progress,
        }
    }

    /// Where it is to be polled.
    pub(crate) fn core(&self) -> CoreIndex {
        self.spec.core
    }

    /// The device.
    pub(crate) fn bdev(&self) -> &str {
        &self.spec.bdev
    }

    fn begin(&mut self, now: Nanos) {
        // A verified read needs something that it can be compared with.
        if self.ledger.is_some() && !self.spec.workload.modifies() {
            self.begin_pass(Phase::Filling);
        } else {
            self.begin_running(now);
        }
    }

    fn begin_pass(&mut self, phase: Phase) {
        self.pass = 0;
        self.phase = phase;
    }

    fn begin_running(&mut self, now: Nanos) {
        self.phase = Phase::Running;
        self.start = Some(now);
    }

    /// Goes on to the next phase where this one has nothing left to do.
    fn advance(&mut self, now: Nanos) {
        let is_quiet = self.free.len() == self.slots.len();
        let pass_is_over = self.pass == self.range.units && is_quiet;
        match self.phase {
            Phase::Idle => self.begin(now),
            Phase::Filling if pass_is_over => self.begin_running(now),
            Phase::Running if self.running_ends().is_some_and(|end| now >= end) => {
                self.phase = Phase::Draining;
            }
            Phase::Draining if is_quiet => self.on_drained(now),
            Phase::Checking if pass_is_over => self.finish(),
            _ => {}
        }
    }

    fn running_ends(&self) -> Option<Nanos> {
        self.start.map(|start| start + self.spec.duration)
    }

    fn on_drained(&mut self, now: Nanos) {
        self.end = now;
        if self.ledger.is_some() && self.status == Status::Finished {
            self.begin_pass(Phase::Checking);
        } else {
            self.finish();
        }
    }

    /// Ends before the time; what is in flight is waited for.
    fn give_up(&mut self, status: Status) {
        if self.status == Status::Finished {
            self.status = status;
        }
        if self.phase == Phase::Checking {
            self.pass = self.range.units;
        } else {
            self.phase = Phase::Draining;
        }
    }

    fn finish(&mut self) {
        self.phase = Phase::Done;
        let Some(report_to) = self.report_to.take() else {
            return;
        };
        report_to(JobResult {
            spec: self.spec.clone(),
            range: self.range,
            status: self.status,
            runtime: self
                .start
                .map_or(Nanos::ZERO, |start| self.end.since(start)),
            tally: self.tally.clone(),
            verified_blocks: self.verified_blocks,
            mismatch_count: self.mismatch_count,
            mismatches: std::mem::take(&mut self.mismatches),
        });
    }

    /// Keeps the queue full.
    fn submit(&mut self, now: Nanos) -> bool {
        if self.retry_at.is_some_and(|retry_at| now < retry_at) {
            return false;
        }
        self.retry_at = None;
        let mut did_work = false;
        // Slots whose I/O is refused at once are free again, and are left for the next round.
        for _ in 0..self.free.len() {
            let Some((action, unit)) = self.next_io() else {
                break;
            };
            let slot = self.free.pop().expect("there is one for each turn");
            self.submit_one(slot, action, unit, now);
            did_work = true;
            if self.retry_at.is_some() {
                break;
            }
        }
        did_work
    }

    /// What to do next, and where; `None` if the phase has nothing now.
    fn next_io(&mut self) -> Option<(Action, u64)> {
        match self.phase {
            Phase::Running => {
                let percent = self.rng.u8(..100);
                let action = self.spec.workload.action(self.spec.read_percent, percent);
                Some((action, self.places.take(&mut self.rng)?))
            }
            Phase::Filling => Some((Action::Write, self.next_of_pass(|_, _| true)?)),
            Phase::Checking => Some((Action::Read, self.next_of_pass(Ledger::can_check)?)),
            Phase::Idle | Phase::Draining | Phase::Done => None,
        }
    }

    fn next_of_pass(&mut self, is_wanted: fn(&Ledger, usize) -> bool) -> Option<u64> {
        let ledger = self.ledger.as_ref()?;
        let unit = (self.pass..self.range.units).find(|&unit| is_wanted(ledger, index(unit)));
        self.pass = unit.map_or(self.range.units, |unit| unit + 1);
        self.places.take_this(unit?);
        unit
    }

    fn submit_one(&mut self, slot: u32, action: Action, unit: u64, now: Nanos) {
        let buf = self.buffer(slot);
        if action == Action::Write {
            self.prepare_write(unit, buf, now);
        }
        self.slots[slot as usize] = Slot {
            action,
            unit,
            submitted: now,
            is_measured: self.phase == Phase::Running,
            is_in_flight: true,
            has_timed_out: false,
        };
        let io = self.io(slot, action, unit, buf);
        match self.channel.submit(&io, now) {
            Ok(()) => {}
            Err(Errno::NOMEM) => self.postpone(slot, now),
            Err(errno) => self.on_done(slot, Err(errno), now),
        }
    }

    fn prepare_write(&mut self, unit: u64, buf: Span, now: Nanos) {
        if let Some(ledger) = &mut self.ledger {
            ledger.begin_write(index(unit), buf, now);
        } else if self.spec.unique_writes {
            fill_randomly(buf, &mut self.rng);
        }
    }

    fn io(&self, slot: u32, action: Action, unit: u64, buf: Span) -> BdevIo {
        let (op, buf) = match action {
            Action::Read => (IoOp::Read, buf),
            Action::Write => (IoOp::Write { fua: false }, buf),
            Action::Unmap => (IoOp::Unmap, Span::EMPTY),
            Action::WriteZeroes => (IoOp::WriteZeroes { no_unmap: false }, Span::EMPTY),
            Action::Flush => (IoOp::Flush, Span::EMPTY),
        };
        let is_flush = op == IoOp::Flush;
        BdevIo {
            tag: u64::from(slot),
            op,
            offset_blocks: self.range.first_block + unit * self.range.blocks_per_unit,
            num_blocks: if is_flush {
                0
            } else {
                self.range.blocks_per_unit
            },
            buf,
            prio: 0,
        }
    }

    /// The device has no resources for more: that is no failure, and it is asked again soon. In a
    /// pass, the unit must not be left out.
    fn postpone(&mut self, slot: u32, now: Nanos) {
        let Slot { action, unit, .. } = self.slots[slot as usize];
        self.settle(action, unit, false, now);
        if matches!(self.phase, Phase::Filling | Phase::Checking) {
            self.pass = unit;
        }
        self.release(slot);
        self.retry_at = Some(now + RETRY_INTERVAL);
    }

    fn complete(&mut self, now: Nanos) -> bool {
        let progress = self.channel.poll(now, &mut self.done);
        let mut done = std::mem::take(&mut self.done);
        for ended in done.drain(..) {
            let slot = u32::try_from(ended.tag).expect("tags are slots");
            self.on_done(slot, ended.result, now);
        }
        self.done = done;
        progress.is_busy()
    }

    fn on_done(&mut self, slot_index: u32, result: Result<(), Errno>, now: Nanos) {
        let slot = self.slots[slot_index as usize];
        if result.is_ok() && slot.action == Action::Read {
            self.check(slot_index, &slot, now);
        }
        self.settle(slot.action, slot.unit, result.is_ok(), now);
        self.release(slot_index);
        let latency = now.since(slot.submitted);
        self.count_timeout(slot_index, latency);
        match result {
            Ok(()) => self.on_success(&slot, latency),
            Err(errno) => self.on_failure(errno),
        }
    }

    fn on_success(&mut self, slot: &Slot, latency: Nanos) {
        let bytes = self.bytes_of(slot.action);
        self.moved.0 += 1;
        self.moved.1 += bytes;
        if slot.is_measured {
            self.tally.succeeded(slot.action, bytes, latency);
        }
    }

    fn on_failure(&mut self, errno: Errno) {
        self.tally.failed(errno);
        // A device that is gone comes never back.
        if !self.spec.continue_on_failure || errno == Errno::NODEV {
            self.give_up(Status::Failed);
        }
    }

    fn check(&mut self, slot_index: u32, slot: &Slot, now: Nanos) {
        let buf = self.buffer(slot_index);
        let Some(ledger) = &mut self.ledger else {
            return;
        };
        if !ledger.can_check(index(slot.unit)) {
            return;
        }
        self.verified_blocks += self.range.blocks_per_unit;
        if let Err(mismatch) = ledger.check(index(slot.unit), buf, slot.submitted, now) {
            self.mismatch_count += 1;
            if self.mismatches.len() < NAMED_MISMATCHES {
                self.mismatches.push(mismatch);
            }
            if !self.spec.continue_on_failure {
                self.give_up(Status::Failed);
            }
        }
    }

    /// Notes in the ledger what has become of a unit, and frees it.
    fn settle(&mut self, action: Action, unit: u64, succeeded: bool, now: Nanos) {
        self.places.give_back(unit);
        let Some(ledger) = &mut self.ledger else {
            return;
        };
        match action {
            Action::Write => ledger.end_write(index(unit), succeeded, now),
            Action::WriteZeroes => ledger.end_zeroes(index(unit), succeeded, now),
            Action::Unmap => ledger.end_unmap(index(unit)),
            Action::Read | Action::Flush => {}
        }
    }

    fn release(&mut self, slot: u32) {
        self.slots[slot as usize].is_in_flight = false;
        self.free.push(slot);
    }

    fn bytes_of(&self, action: Action) -> u64 {
        match action {
            Action::Flush => 0,
            _ => u64::from(self.spec.io_bytes),
        }
    }

    fn count_timeout(&mut self, slot: u32, latency: Nanos) {
        let slot = &mut self.slots[slot as usize];
        if self.spec.timeout.is_some_and(|limit| latency > limit) && !slot.has_timed_out {
            slot.has_timed_out = true;
            self.tally.timed_out += 1;
        }
    }

    /// I/O that never completes is to be counted too.
    fn check_timeouts(&mut self, now: Nanos) {
        if self.spec.timeout.is_none() || now < self.next_timeout_check {
            return;
        }
        self.next_timeout_check = now + TIMEOUT_CHECK_INTERVAL;
        for slot in 0..self.spec.depth {
            if self.slots[slot as usize].is_in_flight {
                let latency = now.since(self.slots[slot as usize].submitted);
                self.count_timeout(slot, latency);
            }
        }
    }

    fn buffer(&self, slot: u32) -> Span {
        let bytes = self.spec.io_bytes as usize;
        let whole = self.buffers.span();
        whole
            .slice(slot as usize * bytes, bytes)
            .expect("there is a buffer for every slot")
    }

    fn publish(&self) {
        let (ios, bytes) = self.moved;
        self.progress.ios.store(ios, Ordering::Relaxed);
        self.progress.bytes.store(bytes, Ordering::Relaxed);
    }
}

impl Poll for Job {
    fn poll(&mut self, now: Nanos) -> Progress {
        if self.phase == Phase::Done {
            return Progress::Idle;
        }
        if self.status == Status::Finished && self.progress.stop.load(Ordering::Relaxed) {
            self.give_up(Status::Terminated);
        }
        let completed = self.complete(now);
        self.check_timeouts(now);
        self.advance(now);
        let submitted = self.submit(now);
        self.publish();
        Progress::from_work(completed || submitted)
    }

    fn next_deadline(&self) -> Option<Nanos> {
        let end = match self.phase {
            Phase::Idle => Some(Nanos::ZERO),
            Phase::Running => self.running_ends(),
            _ => None,
        };
        let timeouts = self.spec.timeout.map(|_| self.next_timeout_check);
        let deadlines = [end, timeouts, self.retry_at, self.channel.next_deadline()];
        deadlines.into_iter().flatten().min()
    }

    fn prepare_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool {
        match self.phase {
            Phase::Done => true,
            Phase::Idle => false,
            _ => self.channel.prepare_sleep(fds),
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("spec", &self.spec)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// Jobs of one run have the same seed but their core, and their data must be told apart.
fn new_ledger(spec: &JobSpec, range: &Range) -> Ledger {
    let job = u64::from(spec.core.0) << 32 | u64::from(spec.share.index);
    let run = spec
        .bdev
        .bytes()
        .fold(mix(spec.seed ^ mix(job)), |run, byte| {
            mix(run ^ u64::from(byte))
        });
    Ledger::new(
        run,
        range.first_block,
        range.block_bytes as usize,
        index(range.blocks_per_unit),
        index(range.units),
    )
}

/// Units that a table was made for fit the address space.
fn index(unit: u64) -> usize {
    usize::try_from(unit).expect("the range was checked against the limits of tables")
}

/// So that no layer below can take it for zeroes or compress it.
fn fill_randomly(area: Span, rng: &mut Rng) {
    let mut page = [0; 4096];
    for offset in (0..area.len()).step_by(page.len()) {
        rng.fill(&mut page);
        let part = page.len().min(area.len() - offset);
        area.write_at(offset, &page[..part]);
    }
}

#[cfg(test)]
mod tests;
