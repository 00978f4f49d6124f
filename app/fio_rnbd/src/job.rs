//! A job at work: fio's I/Os on the channels of its bdevs.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rnbd_base::Errno;
use rnbd_bdev::{BdevIo, Channel, Desc, IoDone, IoOp};
use rnbd_mem::{Buffer, Pages, Span};

use crate::runtime::Runtime;
use crate::seat::TakenSeat;
use crate::setup::Failure;
use crate::sys::print_error;

/// Rounds without progress after which other threads of the CPU get their turn.
const ROUNDS_BEFORE_YIELD: u32 = 64;

/// How long a job that was told to end waits without seeing any I/O end. A server that is gone
/// must not keep fio from ending.
const PATIENCE: Duration = Duration::from_secs(5);

/// What an I/O does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Read,
    Write,
    Trim,
    Sync,
}

/// An I/O as fio asks for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// fio's, given back when it has ended.
    pub(crate) token: u64,
    /// Which of the job's bdevs.
    pub(crate) disk: usize,
    pub(crate) what: What,
    /// In bytes, as is the length.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    /// Address of the data.
    pub(crate) start: u64,
    /// Linux I/O priority.
    pub(crate) prio: u16,
}

/// What became of an attempt to start an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    Started,
    /// There is room again when another one has ended.
    Full,
    Failed(Errno),
}

/// An I/O that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) token: u64,
    pub(crate) result: Result<(), Errno>,
}

/// How a job works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Most I/Os outstanding.
    pub(crate) depth: u32,
    /// Writes are durable when they complete.
    pub(crate) is_sync: bool,
    /// fio may rest after an I/O, so that it has to leave at once.
    pub(crate) is_paced: bool,
    pub(crate) writes_zeroes: bool,
}

/// A bdev that the job has open.
pub(crate) struct Disk {
    // Dropped in this order.
    channel: Channel,
    _desc: Desc,
    name: String,
    block_size: u64,
}

impl Disk {
    pub(crate) fn new(name: String, desc: Desc, channel: Channel) -> Self {
        Self {
            block_size: desc.geometry().block_size.into(),
            channel,
            _desc: desc,
            name,
        }
    }
}

/// A job at work. It lives on the job's thread.
///
/// ```text
///  queue ──> slot, channel ──(a round of the reactor)──> done ──(wait)──> ended ──> fio
/// ```
///
/// What is queued leaves with the next round. While there is something in `done` no round is made:
/// fio takes that first and queues more, and all of it leaves together.
pub(crate) struct Job {
    // Dropped before the buffer.
    disks: Vec<Disk>,
    seat: TakenSeat,
    manner: Manner,
    /// fio's tokens of the I/Os that are outstanding, by tag.
    slots: Vec<Option<u64>>,
    free: Vec<u32>,
    /// What channels have completed; those before `first` have been given to fio.
    done: Vec<IoDone>,
    first: usize,
    /// What fio was told of last.
    ended: Vec<Ended>,
    buffer: Option<Buffer>,
    has_complained: bool,
    runtime: Arc<Runtime>,
}

impl Job {
    pub(crate) fn new(
        disks: Vec<Disk>,
        seat: TakenSeat,
        manner: Manner,
        runtime: Arc<Runtime>,
    ) -> Self {
        let depth = manner.depth as usize;
        Self {
            disks,
            seat,
            manner,
            slots: vec![None; depth],
            free: (0..manner.depth).rev().collect(),
            done: Vec::with_capacity(depth),
            first: 0,
            ended: Vec::with_capacity(depth),
            buffer: None,
            has_complained: false,
            runtime,
        }
    }

    /// Memory for the data of all I/Os; where it begins.
    pub(crate) fn alloc_buffer(&mut self, bytes: usize) -> Result<*mut u8, Failure> {
        let buffer = self
            .runtime
            .memory
            .alloc("fio's data", bytes, Pages::PreferHuge)
            .map_err(|error| Failure::new(Errno::NOMEM, error.to_string()))?;
        let start = buffer.span().as_ptr();
        self.buffer = Some(buffer);
        Ok(start)
    }

    /// fio needs the memory no longer.
    pub(crate) fn free_buffer(&mut self) {
        let Some(buffer) = self.buffer.take() else {
            return;
        };
        if self.outstanding() > 0 || self.disks.is_empty() {
            // The server may still write there.
            self.disks.clear();
            self.runtime.abandon(buffer);
        }
    }

    fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Starts an I/O.
    pub(crate) fn queue(&mut self, request: &Request) -> Queued {
        let io = match self.io(request) {
            Ok(io) => io,
            Err(errno) => return Queued::Failed(errno),
        };
        let Some(tag) = self.free.pop() else {
            return Queued::Full;
        };
        let io = BdevIo {
            tag: tag.into(),
            ..io
        };
        let now = self.runtime.clock.now();
        let result = self.disks[request.disk].channel.submit(&io, now);
        if let Err(errno) = result {
            self.free.push(tag);
            return match errno {
                Errno::NOMEM => Queued::Full,
                errno => Queued::Failed(errno),
            };
        }
        self.slots[tag as usize] = Some(request.token);
        Queued::Started
    }

    /// The I/O for the channel, but for its tag.
    fn io(&mut self, request: &Request) -> Result<BdevIo, Errno> {
        let disk = self.disks.get(request.disk).ok_or(Errno::NODEV)?;
        let op = match request.what {
            What::Read => IoOp::Read,
            What::Write if self.manner.writes_zeroes => IoOp::WriteZeroes { no_unmap: false },
            What::Write => IoOp::Write {
                fua: self.manner.is_sync,
            },
            What::Trim => IoOp::Unmap,
            What::Sync => IoOp::Flush,
        };
        let mut io = BdevIo {
            tag: 0,
            op,
            offset_blocks: 0,
            num_blocks: 0,
            buf: Span::EMPTY,
            prio: request.prio,
        };
        if op == IoOp::Flush {
            return Ok(io);
        }
        let block_size = disk.block_size;
        let whole = |bytes: u64| bytes.is_multiple_of(block_size);
        if !whole(request.offset) || !whole(request.bytes) {
            return Err(self.complain(request));
        }
        io.offset_blocks = request.offset / block_size;
        io.num_blocks = request.bytes / block_size;
        if op.has_data() {
            io.buf = self.data(request).ok_or(Errno::FAULT)?;
        }
        Ok(io)
    }

    /// The data's place in our memory, where fio was told to have it.
    fn data(&self, request: &Request) -> Option<Span> {
        let whole = self.buffer.as_ref()?.span();
        let offset = request.start.checked_sub(whole.addr())?;
        whole.slice(
            usize::try_from(offset).ok()?,
            usize::try_from(request.bytes).ok()?,
        )
    }

    fn complain(&mut self, request: &Request) -> Errno {
        if !std::mem::replace(&mut self.has_complained, true) {
            let Disk {
                name, block_size, ..
            } = &self.disks[request.disk];
            print_error(&format!(
                "bdev {name} has blocks of {block_size} bytes: {} bytes at {} are no whole blocks",
                request.bytes, request.offset
            ));
        }
        Errno::INVAL
    }

    /// What was queued leaves now, unless fio comes back at once anyway.
    pub(crate) fn commit(&mut self) {
        if self.manner.is_paced || self.first == self.done.len() {
            self.seat.poll();
        }
    }

    /// Waits until at least `least` I/Os have ended or `limit` is over, and says how many of them,
    /// up to `most`, fio can ask [`Job::ended`] for. `is_ending`: whether the job was told to end.
    pub(crate) fn wait(
        &mut self,
        least: usize,
        most: usize,
        limit: Option<Duration>,
        is_ending: impl Fn() -> bool,
    ) -> usize {
        let least = least.min(self.outstanding());
        let mut idle = Idle::default();
        while self.done.len() - self.first < least.max(1) {
            if self.poll() {
                idle = Idle::default();
            } else if idle.is_over(limit, PATIENCE, &is_ending) {
                self.give_up(&is_ending);
                break;
            }
            if least == 0 {
                break;
            }
        }
        self.hand_out(most)
    }

    /// One round; whether an I/O has ended.
    fn poll(&mut self) -> bool {
        self.seat.poll();
        self.done.drain(..self.first);
        self.first = 0;
        let before = self.done.len();
        let now = self.runtime.clock.now();
        for disk in &mut self.disks {
            disk.channel.poll(now, &mut self.done);
        }
        self.done.len() > before
    }

    fn hand_out(&mut self, most: usize) -> usize {
        self.ended.clear();
        for done in self.done[self.first..].iter().take(most) {
            self.first += 1;
            // Tags are those of slots.
            let index = usize::try_from(done.tag).unwrap_or(usize::MAX);
            let token = self.slots.get_mut(index).and_then(Option::take);
            if let (Some(token), Ok(tag)) = (token, u32::try_from(index)) {
                self.free.push(tag);
                let result = done.result;
                self.ended.push(Ended { token, result });
            }
        }
        self.ended.len()
    }

    /// What [`Job::wait`] has found, by its order.
    pub(crate) fn ended(&self, index: usize) -> Option<Ended> {
        self.ended.get(index).copied()
    }

    /// A job that is told to end, and whose I/O does not, ends without it.
    fn give_up(&mut self, is_ending: impl Fn() -> bool) {
        if !is_ending() {
            return;
        }
        let left = self.outstanding() - (self.done.len() - self.first);
        let seconds = PATIENCE.as_secs();
        print_error(&format!(
            "{left} I/Os have not ended within {seconds} s; the job ends without them"
        ));
        self.disks.clear();
        for (tag, slot) in (0..).zip(&self.slots) {
            let has_ended = self.done[self.first..].iter().any(|done| done.tag == tag);
            if slot.is_some() && !has_ended {
                let result = Err(Errno::TIMEDOUT);
                self.done.push(IoDone { tag, result });
            }
        }
    }
}

/// A wait in which nothing happens.
#[derive(Default)]
struct Idle {
    rounds: u32,
    since: Option<Instant>,
}

impl Idle {
    /// One more round of it; whether that is enough.
    fn is_over(
        &mut self,
        limit: Option<Duration>,
        patience: Duration,
        is_ending: impl Fn() -> bool,
    ) -> bool {
        self.rounds += 1;
        if !self.rounds.is_multiple_of(ROUNDS_BEFORE_YIELD) {
            return false;
        }
        thread::yield_now();
        let elapsed = self.since.get_or_insert_with(Instant::now).elapsed();
        limit.is_some_and(|limit| elapsed >= limit) || (is_ending() && elapsed >= patience)
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.disks.iter().map(|disk| disk.name.as_str()).collect();
        write!(
            f,
            "Job({}, {} outstanding)",
            names.join(":"),
            self.outstanding()
        )
    }
}

#[cfg(test)]
mod tests;
