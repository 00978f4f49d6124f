//! The requests of one connection: from bytes received to replies sent.
//!
//! What the socket delivers is in one of three states:
//!
//! ```text
//!              a write that may go on                  all of it here: to the device
//!   Header ------------------------------> Payload -------------------------------> Header
//!     | a write that was refused
//!     +----------------------------------> Discard --> Header
//! ```
//!
//! A request goes the way below. Nothing in it allocates; a connection takes no request that it
//! has no slot or no memory for, so that a client that does not read its replies blocks itself.
//!
//! ```text
//!   received --> ready --> at the device --> in the outbox --> slot free
//!       |          ^              |              ^
//!       | refused  +--------------+ FUA of       |
//!       |            trim and zeroes: flush      |
//!       +----------------------------------------+
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use rnbd_base::Errno;
use rnbd_bdev::{BdevIo, IoOp};
use rnbd_mem::{Buffer, Span};

use crate::buffers::{BufferPool, Run};
use crate::inbox::{INBOX_BYTES, Inbox};
use crate::outbox::{Outbox, Reply};
use crate::protocol::{Command, MAX_PAYLOAD_BYTES, ReplyHeader, Request, SHUTDOWN, command_flags};
use crate::requests::{Requests, SlotId};
use crate::sys;

/// Memory that a connection needs: the largest payload, and the inbox.
pub(crate) const CONNECTION_BYTES: usize = MAX_PAYLOAD_BYTES as usize + INBOX_BYTES;

/// What was negotiated with the client, and what its device is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
    pub(crate) read_only: bool,
    pub(crate) trim: bool,
    pub(crate) structured: bool,
}

/// What taking requests from the inbox led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intake {
    /// All that can be taken was.
    Drained,
    /// The client said that it is done.
    Disconnect,
    /// The stream is not NBD.
    Garbage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    Header,
    Payload { slot: SlotId, received: usize },
    Discard { remaining: usize },
}

/// Requests, their memory and their replies.
#[derive(Debug)]
pub(crate) struct Transmission {
    terms: Terms,
    receiving: Receiving,
    inbox: Inbox,
    pool: BufferPool,
    requests: Requests,
    ready: VecDeque<SlotId>,
    outbox: Outbox,
    at_device: u32,
    /// Reads need no buffer now: the device lends its memory.
    device_lends: bool,
    shut_down: bool,
    refused_by_shutdown: bool,
    _memory: Buffer,
}

impl Transmission {
    /// With `depth` requests at most and `memory` of [`CONNECTION_BYTES`].
    pub(crate) fn new(memory: Buffer, depth: u16) -> Self {
        let part = |start, len| {
            let whole = memory.span();
            whole.slice(start, len).expect("it has CONNECTION_BYTES")
        };
        let capacity = usize::from(depth);
        Self {
            terms: Terms::default(),
            receiving: Receiving::Header,
            inbox: Inbox::new(part(0, INBOX_BYTES)),
            pool: BufferPool::new(part(INBOX_BYTES, MAX_PAYLOAD_BYTES as usize)),
            requests: Requests::new(depth),
            ready: VecDeque::with_capacity(capacity),
            outbox: Outbox::new(capacity),
            at_device: 0,
            device_lends: false,
            shut_down: false,
            refused_by_shutdown: false,
            _memory: memory,
        }
    }

    /// Begins with a new client.
    pub(crate) fn begin(&mut self, terms: Terms) {
        assert!(
            self.requests.is_empty(),
            "requests of another client are left"
        );
        self.terms = terms;
        self.receiving = Receiving::Header;
        self.shut_down = false;
        self.refused_by_shutdown = false;
    }

    /// Bytes that arrived; the handshake reads from here too.
    pub(crate) fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }

    /// From now on every request is refused with `ESHUTDOWN`.
    pub(crate) fn shut_down(&mut self) {
        self.shut_down = true;
    }

    /// Whether a request was refused because of the shutdown, and none is half received.
    pub(crate) fn has_told_shutdown(&self) -> bool {
        self.refused_by_shutdown && self.receiving == Receiving::Header
    }

    /// Whether every request received as a whole was answered.
    pub(crate) fn is_answered(&self) -> bool {
        self.at_device == 0 && self.ready.is_empty() && self.outbox.is_empty()
    }

    /// Whether replies are to be sent from the memory of the device.
    pub(crate) fn borrows_from_device(&self) -> bool {
        self.requests.borrow_memory()
    }

    /// Whether nothing uses its memory.
    pub(crate) fn is_vacant(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether there are replies to send.
    pub(crate) fn has_output(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Receives once: the rest of a payload straight to its place, and what follows it. Returns
    /// how many bytes arrived and whether that was all; `None` if there is no place for any.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` if nothing has arrived.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<Option<(usize, bool)>> {
        let payload = self.missing_payload();
        let room = self.inbox.room();
        let wanted = payload.len() + room.len();
        if wanted == 0 {
            return Ok(None);
        }
        let got = sys::receive(socket, payload, room)?;
        let of_payload = got.min(payload.len());
        self.inbox.received(got - of_payload);
        self.count_payload(of_payload);
        Ok(Some((got, got < wanted)))
    }

    /// Takes requests from the inbox as far as slots and memory go; reads need none if the
    /// device lends its own. Returns whether it took any.
    pub(crate) fn take_requests(&mut self, device_lends: bool) -> (bool, Intake) {
        self.device_lends = device_lends;
        let mut took_any = false;
        loop {
            let step = match self.receiving {
                Receiving::Header => self.take_header(),
                Receiving::Payload { .. } => self.take_payload(),
                Receiving::Discard { remaining } => self.take_discarded(remaining),
            };
            match step {
                Some(Intake::Drained) => took_any = true,
                Some(end) => return (true, end),
                None => return (took_any, Intake::Drained),
            }
        }
    }

    /// The next I/O for the device; its tag is the slot.
    pub(crate) fn next_io(&mut self) -> Option<BdevIo> {
        let id = self.ready.pop_front()?;
        self.at_device += 1;
        Some(self.io_of(id))
    }

    /// The device lends `data` as the answer to the read of slot `id`.
    pub(crate) fn complete_in_place(&mut self, id: SlotId, data: Span) {
        self.at_device -= 1;
        self.requests.lend(id, data);
        self.answer(id, Ok(()));
    }

    /// The device refused or ended the I/O of slot `id`.
    pub(crate) fn complete(&mut self, id: SlotId, result: Result<(), Errno>) {
        self.at_device -= 1;
        let slot = self.requests.get_mut(id);
        let is_blocks = matches!(slot.request.command, Command::Trim | Command::WriteZeroes);
        let wants_flush = is_blocks && slot.request.has(command_flags::FUA) && !slot.flushing;
        if result.is_ok() && wants_flush {
            slot.flushing = true;
            self.ready.push_back(id);
        } else {
            self.answer(id, result);
        }
    }

    /// Sends replies; returns whether the socket took all that one call could offer.
    ///
    /// # Errors
    /// As [`Outbox::send`].
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let (requests, pool) = (&mut self.requests, &mut self.pool);
        self.outbox
            .send(socket, |slot| pool.give_back(requests.remove(slot)))
    }

    /// The client is gone: forgets all but what is at the device.
    pub(crate) fn abandon(&mut self) {
        while let Some(id) = self.ready.pop_front() {
            self.release(id);
        }
        self.discard_output();
        if let Receiving::Payload { slot, .. } = self.receiving {
            self.release(slot);
        }
        self.receiving = Receiving::Header;
        self.inbox.clear();
    }

    /// Drops the replies to a client that is gone.
    pub(crate) fn discard_output(&mut self) {
        while let Some(reply) = self.outbox.discard_first() {
            self.release(reply.slot);
        }
    }

    fn take_header(&mut self) -> Option<Intake> {
        let bytes = self.inbox.peek::<{ Request::BYTES }>()?;
        let Some(request) = Request::decode(&bytes) else {
            return Some(Intake::Garbage);
        };
        if request.command == Command::Disconnect {
            return Some(Intake::Disconnect);
        }
        if !self.requests.has_room() {
            return None;
        }
        let checked = self.check(&request);
        let run = match checked {
            Ok(()) => self.pool.take(self.buffer_bytes(&request))?,
            Err(_) => Run::NONE,
        };
        self.inbox.consume(Request::BYTES);
        self.inbox.expect_payload(request.payload_bytes() as usize);
        self.start(request, checked, run);
        Some(Intake::Drained)
    }

    fn start(&mut self, request: Request, checked: Result<(), Errno>, run: Run) {
        let slot = self.requests.insert(request, run);
        let payload_bytes = request.payload_bytes() as usize;
        match checked {
            Ok(()) if payload_bytes > 0 => {
                self.receiving = Receiving::Payload { slot, received: 0 };
            }
            Ok(()) => self.ready.push_back(slot),
            Err(errno) => {
                self.answer(slot, Err(errno));
                self.receiving = discard(payload_bytes);
            }
        }
    }

    fn take_payload(&mut self) -> Option<Intake> {
        let pending = self.inbox.pending();
        let missing = self.missing_payload();
        let bytes = pending.len().min(missing.len());
        if bytes == 0 && !missing.is_empty() {
            return None;
        }
        let arrived = pending.slice(0, bytes).expect("no more than is pending");
        missing.copy_from(&arrived);
        self.inbox.consume(bytes);
        self.count_payload(bytes);
        Some(Intake::Drained)
    }

    fn take_discarded(&mut self, remaining: usize) -> Option<Intake> {
        let bytes = self.inbox.pending().len().min(remaining);
        self.inbox.consume(bytes);
        self.receiving = discard(remaining - bytes);
        (bytes > 0).then_some(Intake::Drained)
    }

    /// Where the rest of the payload that is being received belongs.
    fn missing_payload(&self) -> Span {
        let Receiving::Payload { slot, received } = self.receiving else {
            return Span::EMPTY;
        };
        let whole = self.data_of(slot);
        let missing = whole.slice(received, whole.len() - received);
        missing.expect("no more than the payload is received as payload")
    }

    fn count_payload(&mut self, bytes: usize) {
        let Receiving::Payload { slot, received } = self.receiving else {
            return;
        };
        let received = received + bytes;
        if received == self.data_of(slot).len() {
            self.receiving = Receiving::Header;
            self.ready.push_back(slot);
        } else {
            self.receiving = Receiving::Payload { slot, received };
        }
    }

    /// Whether `request` makes sense to this export.
    fn check(&mut self, request: &Request) -> Result<(), Errno> {
        if self.shut_down {
            self.refused_by_shutdown = true;
            return Err(SHUTDOWN);
        }
        self.check_command(request)?;
        if request.command == Command::Flush {
            return Ok(());
        }
        self.check_range(request)
    }

    fn check_command(&self, request: &Request) -> Result<(), Errno> {
        use command_flags as flag;
        let terms = &self.terms;
        let flags = match request.command {
            Command::Read if terms.structured => flag::FUA | flag::DF,
            Command::WriteZeroes => flag::FUA | flag::NO_HOLE,
            Command::Trim if !terms.trim && !terms.read_only => return Err(Errno::INVAL),
            Command::Disconnect | Command::Other(_) => return Err(Errno::INVAL),
            Command::Read | Command::Write | Command::Flush | Command::Trim => flag::FUA,
        };
        if request.flags & !flags != 0 {
            return Err(Errno::INVAL);
        }
        let modifies = !matches!(request.command, Command::Read | Command::Flush);
        if modifies && terms.read_only {
            return Err(Errno::PERM);
        }
        Ok(())
    }

    /// Requests keep to whole blocks, as clients are told; those behind the end are refused as
    /// the specification says.
    fn check_range(&self, request: &Request) -> Result<(), Errno> {
        let block = u64::from(self.terms.block_bytes);
        let length = u64::from(request.length);
        let aligned = request.offset.is_multiple_of(block) && length.is_multiple_of(block);
        let carries_data = matches!(request.command, Command::Read | Command::Write);
        if length == 0 || !aligned || (carries_data && request.length > MAX_PAYLOAD_BYTES) {
            return Err(Errno::INVAL);
        }
        let end = request.offset.checked_add(length);
        if end.is_some_and(|end| end <= self.terms.size_bytes) {
            return Ok(());
        }
        Err(match request.command {
            Command::Write | Command::WriteZeroes => Errno::NOSPC,
            _ => Errno::INVAL,
        })
    }

    fn io_of(&self, id: SlotId) -> BdevIo {
        let slot = self.requests.get(id);
        let request = &slot.request;
        let fua = request.has(command_flags::FUA);
        let op = match request.command {
            _ if slot.flushing => IoOp::Flush,
            Command::Read => IoOp::Read,
            Command::Write => IoOp::Write { fua },
            Command::Trim => IoOp::Unmap,
            Command::WriteZeroes => IoOp::WriteZeroes {
                no_unmap: request.has(command_flags::NO_HOLE),
            },
            Command::Flush | Command::Disconnect | Command::Other(_) => IoOp::Flush,
        };
        let block = u64::from(self.terms.block_bytes);
        let (offset_blocks, num_blocks) = match op {
            IoOp::Flush => (0, 0),
            _ => (request.offset / block, u64::from(request.length) / block),
        };
        BdevIo {
            tag: id.to_tag(),
            op,
            offset_blocks,
            num_blocks,
            buf: self.data_of(id),
            prio: 0,
        }
    }

    fn data_of(&self, id: SlotId) -> Span {
        let slot = self.requests.get(id);
        if !slot.lent.is_empty() {
            return slot.lent;
        }
        match slot.run {
            Run::NONE => Span::EMPTY,
            run => self.pool.span(run, slot.request.length as usize),
        }
    }

    /// Only reads are answered in chunks: one chunk each, as their data is in one piece, which
    /// is also what DF asks for.
    fn answer(&mut self, id: SlotId, result: Result<(), Errno>) {
        let Request {
            command,
            cookie,
            offset,
            length,
            ..
        } = self.requests.get(id).request;
        let is_read = command == Command::Read;
        let header = match result {
            Ok(()) if is_read && self.terms.structured => ReplyHeader::data(cookie, offset, length),
            Err(errno) if is_read && self.terms.structured => ReplyHeader::error(cookie, errno),
            _ => ReplyHeader::simple(cookie, result),
        };
        let data = if is_read && result.is_ok() {
            self.data_of(id)
        } else {
            Span::EMPTY
        };
        self.outbox.push(Reply {
            header,
            data,
            slot: id,
        });
    }

    /// The buffer that a request needs.
    fn buffer_bytes(&self, request: &Request) -> usize {
        match request.command {
            Command::Read if self.device_lends => 0,
            Command::Read | Command::Write => request.length as usize,
            _ => 0,
        }
    }

    fn release(&mut self, id: SlotId) {
        self.pool.give_back(self.requests.remove(id));
    }
}

fn discard(remaining: usize) -> Receiving {
    if remaining == 0 {
        Receiving::Header
    } else {
        Receiving::Discard { remaining }
    }
}
