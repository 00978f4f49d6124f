//! A share of the permits and the requests that hold them: the part of a session that does I/O.

use rnbd_base::{Errno, Nanos};
use rnbd_wire::rtrs::{Descriptor, ReadFlags, ReadMsg, RkeyRsp, WriteMsg};
use rnbd_wire::{Imm, ImmLayout};
use thiserror::Error;

use super::error::Violation;
use super::messages::{Attempt, PathIndex};
use super::params::{Chunk, ChunkTable, PathParams};
use super::permits::PermitRange;
use super::request::{Direction, Done, Exposure, Invalidation, Next, Outstanding, Post, Request};

/// A receive that completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The peer's write with immediate.
    Immediate(u32),
    /// The peer's send.
    Message {
        /// Its immediate, if it had one.
        imm: Option<u32>,
        /// The key that it invalidated, if it did.
        invalidated: Option<u32>,
        /// How much it was.
        len: u32,
        /// The first bytes of it, copied once.
        bytes: [u8; RkeyRsp::BYTES],
    },
}

impl Arrival {
    /// Whether it is a heartbeat or the answer to one.
    pub(super) fn is_heartbeat(self) -> bool {
        matches!(self, Self::Immediate(Imm::HEARTBEAT | Imm::HEARTBEAT_ACK))
    }
}

/// Why a request cannot start now.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BeginError {
    /// All permits are held; one becomes free when a request is done.
    #[error("no permit is free")]
    NoPermit,
    /// The path is not up.
    #[error("the path is not up")]
    PathDown,
    /// The request does not fit a chunk.
    #[error("the request does not fit a chunk")]
    TooLong,
}

/// What is to be done after an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// The request is over.
    Done(Done),
    /// Invalidate the window of the request with this permit, and say when it is done.
    Invalidate(u16),
}

/// How a request of a lost path ended. Its permit is free, and nothing touches its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its answer had come before the path was lost.
    Answered(Result<(), Errno>),
    /// It was sent and not answered: it may have been executed, or not.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Lane {
    range: PermitRange,
    free: Vec<u16>,
    slots: Vec<Option<Slot>>,
    paths: Vec<LanePath>,
}

/// Who holds a permit.
#[derive(Clone, Copy, Debug)]
enum Slot {
    Request(Outstanding),
    /// Nobody, but the server may still use the chunk for a request of this lost life of a path.
    Ghost(Attempt),
}

/// A path as the requests of one connection see it.
#[derive(Debug, Default)]
struct LanePath {
    wire: Option<Wire>,
    chunks: Vec<Chunk>,
    in_flight: u16,
    /// The key of a send with invalidate whose answer has not come yet.
    invalidated: Option<u32>,
    unsignaled: u16,
    /// Requests that were answered before their operation was known to be executed.
    early: Vec<u16>,
}

#[derive(Clone, Copy, Debug)]
struct Wire {
    layout: ImmLayout,
    chunk_bytes: u32,
    new_rkey: bool,
}

impl Lane {
    pub(super) fn new(range: PermitRange) -> Self {
        let mut lane = Self {
            range: PermitRange::default(),
            free: Vec::new(),
            slots: Vec::new(),
            paths: Vec::new(),
        };
        lane.set_range(range);
        lane
    }

    /// Takes other permits; `false`, and nothing changed, while one of the old ones is held.
    pub(super) fn set_range(&mut self, range: PermitRange) -> bool {
        if range == self.range {
            return true;
        }
        if self.in_flight() > 0 {
            return false;
        }
        self.range = range;
        self.slots = vec![None; usize::from(range.count)];
        self.free = (range.first..range.first + range.count).rev().collect();
        true
    }

    pub(super) fn range(&self) -> PermitRange {
        self.range
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn has_permit(&self) -> bool {
        !self.free.is_empty()
    }

    /// Requests outstanding on a path.
    pub(super) fn in_flight_on(&self, path: PathIndex) -> u16 {
        self.paths
            .get(path.index())
            .map_or(0, |path| path.in_flight)
    }

    pub(super) fn path_up(&mut self, path: PathIndex, params: &PathParams, chunks: &ChunkTable) {
        let count = self.paths.len().max(path.index() + 1);
        self.paths.resize_with(count, LanePath::default);
        let target = &mut self.paths[path.index()];
        target.chunks.clear();
        let mine = chunks.range(self.range);
        target
            .chunks
            .extend_from_slice(mine.expect("the permits were split among these chunks"));
        target.invalidated = None;
        target.unsignaled = 0;
        target.early.clear();
        target.early.reserve(usize::from(self.range.count));
        target.wire = Some(Wire {
            layout: params.layout(),
            chunk_bytes: params.chunk_bytes,
            new_rkey: params.new_rkey,
        });
    }

    /// No new request uses the path. Its outstanding ones stay until [`Lane::end_path`].
    pub(super) fn path_down(&mut self, path: PathIndex) {
        if let Some(path) = self.paths.get_mut(path.index()) {
            path.wire = None;
        }
    }

    /// Starts a request, as the operation `serial` of the path's connection.
    pub(super) fn begin(
        &mut self,
        path: PathIndex,
        request: &Request,
        now: Nanos,
        serial: u32,
    ) -> Result<Post, BeginError> {
        let target = self.paths.get_mut(path.index());
        let target = target.ok_or(BeginError::PathDown)?;
        let wire = target.wire.ok_or(BeginError::PathDown)?;
        let message = Message::new(request);
        let start = request.data_bytes + u32::from(request.user_bytes);
        if start + u32::from(message.bytes) > wire.chunk_bytes {
            return Err(BeginError::TooLong);
        }
        let msg_id = self.free.pop().ok_or(BeginError::NoPermit)?;
        let position = usize::from(msg_id - self.range.first);
        let outstanding = Outstanding::new(request, path, now, serial);
        self.slots[position] = Some(Slot::Request(outstanding));
        target.in_flight += 1;
        Ok(Post {
            msg_id,
            chunk: target.chunks[position],
            offset: match request.direction {
                Direction::Read => request.data_bytes,
                Direction::Write => 0,
            },
            imm: wire.layout.request(msg_id, start),
            header: message.header,
            header_bytes: message.bytes,
            signaled: target.is_signaled(request, self.range.count),
            serial,
        })
    }

    /// The request could not be posted: gives its permit back.
    pub(super) fn abort(&mut self, msg_id: u16) {
        self.release(msg_id);
    }

    /// An answer came; `executed` is the last operation of the path's connection that is known to be.
    pub(super) fn on_answer(
        &mut self,
        path: PathIndex,
        arrival: Arrival,
        executed: u32,
    ) -> Result<Step, Violation> {
        let Some(target) = self.paths.get_mut(path.index()) else {
            return Ok(Step::Wait);
        };
        let Some(wire) = target.wire else {
            return Ok(Step::Wait);
        };
        match arrival {
            Arrival::Immediate(imm) if !wire.new_rkey => {
                self.on_response(path, wire, executed, imm, None)
            }
            Arrival::Immediate(imm) => Err(Violation::Immediate(imm)),
            Arrival::Message {
                imm: None,
                invalidated: Some(rkey),
                ..
            } => target.on_invalidate(rkey),
            Arrival::Message {
                imm: Some(imm),
                invalidated: None,
                len,
                bytes,
            } if wire.new_rkey => {
                let bytes = bytes.get(..len as usize).unwrap_or(&bytes);
                self.on_response(path, wire, executed, imm, Some(bytes))
            }
            Arrival::Message { .. } => Err(Violation::Message),
        }
    }

    fn on_response(
        &mut self,
        path: PathIndex,
        wire: Wire,
        executed: u32,
        imm: u32,
        rkey_rsp: Option<&[u8]>,
    ) -> Result<Step, Violation> {
        let Imm::Response {
            msg_id,
            status,
            invalidated,
        } = wire.layout.decode(imm)
        else {
            return Err(Violation::Immediate(imm));
        };
        let outstanding = Violation::NotOutstanding(msg_id);
        let position = self.range.position(msg_id).ok_or(outstanding)?;
        let answered = self.msg_id(position);
        let slot = request_of(&mut self.slots[position], path).ok_or(outstanding)?;
        if slot.answer.is_some() {
            return Err(outstanding);
        }
        let target = &mut self.paths[path.index()];
        let rkey = target.take_invalidated(slot, invalidated)?;
        if let Some(bytes) = rkey_rsp {
            target.chunks[position].rkey = new_rkey(bytes, msg_id)?;
        }
        let next = slot.on_answer(status, rkey, executed)?;
        if !slot.is_sent(executed) {
            target.early.push(answered);
        }
        Ok(self.follow(position, next))
    }

    /// A request that had been answered before it was known to be sent, and is known to be now.
    pub(super) fn next_sent(&mut self, path: PathIndex, executed: u32) -> Step {
        let Some(target) = self.paths.get_mut(path.index()) else {
            return Step::Wait;
        };
        for at in 0..target.early.len() {
            let msg_id = target.early[at];
            let position = usize::from(msg_id - self.range.first);
            let request = request_of(&mut self.slots[position], path);
            let next = request.map_or(Next::Wait, |request| request.next(executed));
            if next != Next::Wait {
                target.early.swap_remove(at);
                return self.follow(position, next);
            }
        }
        Step::Wait
    }

    pub(super) fn on_invalidated(&mut self, path: PathIndex, msg_id: u16, executed: u32) -> Step {
        let Some(position) = self.range.position(msg_id.into()) else {
            return Step::Wait;
        };
        match request_of(&mut self.slots[position], path) {
            Some(request) => {
                let next = request.on_invalidated(executed);
                self.follow(position, next)
            }
            None => Step::Wait,
        }
    }

    fn follow(&mut self, position: usize, next: Next) -> Step {
        let msg_id = self.msg_id(position);
        match next {
            Next::Wait => Step::Wait,
            Next::Invalidate => Step::Invalidate(msg_id),
            Next::Done(result) => {
                self.release(msg_id);
                Step::Done(Done { msg_id, result })
            }
        }
    }

    fn msg_id(&self, position: usize) -> u16 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "positions are below a u16 count"
        )]
        let offset = position as u16;
        self.range.first + offset
    }

    fn release(&mut self, msg_id: u16) {
        let position = usize::from(msg_id - self.range.first);
        if let Some(Slot::Request(request)) = self.slots[position].take() {
            self.paths[request.path.index()].in_flight -= 1;
            self.free.push(msg_id);
        }
    }

    /// Ends all requests of a path whose connection is gone, and tells of each. With `haunted`,
    /// the life of the path that is over, the permits of those without an answer stay taken until
    /// [`Lane::release_ghosts`]; without it they are free at once.
    pub(super) fn end_path(
        &mut self,
        path: PathIndex,
        haunted: Option<Attempt>,
        mut tell: impl FnMut(u16, Ended),
    ) {
        self.path_down(path);
        for position in 0..self.range.count {
            let slot = &mut self.slots[usize::from(position)];
            let Some(request) = request_of(slot, path).copied() else {
                continue;
            };
            let msg_id = self.range.first + position;
            self.release(msg_id);
            if let (None, Some(attempt)) = (request.answer, haunted) {
                self.haunt(msg_id, attempt);
            }
            let ended = request.answer.map_or(Ended::Unknown, Ended::Answered);
            tell(msg_id, ended);
        }
    }

    fn haunt(&mut self, msg_id: u16, attempt: Attempt) {
        self.free.retain(|free| *free != msg_id);
        let position = usize::from(msg_id - self.range.first);
        self.slots[position] = Some(Slot::Ghost(attempt));
    }

    /// The server does nothing more for that life of a path: its permits are free.
    pub(super) fn release_ghosts(&mut self, attempt: Attempt) {
        for (slot, msg_id) in self.slots.iter_mut().zip(self.range.first..) {
            if matches!(slot, Some(Slot::Ghost(of)) if *of == attempt) {
                *slot = None;
                self.free.push(msg_id);
            }
        }
    }

    /// When the oldest unanswered request of a path was posted.
    pub(super) fn oldest(&self, path: PathIndex) -> Option<Nanos> {
        let requests = self.slots.iter().filter_map(|slot| match slot {
            Some(Slot::Request(request)) => Some(request),
            _ => None,
        });
        requests
            .filter(|request| request.path == path && request.answer.is_none())
            .map(|request| request.posted_at)
            .min()
    }
}

/// The request that holds a permit, if it is one of this path.
fn request_of(slot: &mut Option<Slot>, path: PathIndex) -> Option<&mut Outstanding> {
    match slot {
        Some(Slot::Request(request)) if request.path == path => Some(request),
        _ => None,
    }
}

impl LanePath {
    /// Writes that read the user's buffer are signalled, because the buffer is not free before;
    /// others only as often as it takes for the send queue to be known to move.
    fn is_signaled(&mut self, request: &Request, permits: u16) -> bool {
        self.unsignaled += 1;
        let signaled = request.reads_buffer() || self.unsignaled >= permits.div_ceil(2);
        if signaled {
            self.unsignaled = 0;
        }
        signaled
    }

    fn on_invalidate(&mut self, rkey: u32) -> Result<Step, Violation> {
        match self.invalidated.replace(rkey) {
            None => Ok(Step::Wait),
            Some(_) => Err(Violation::Invalidation),
        }
    }

    /// The key whose invalidation an answer announces: that of the send before it. An announced
    /// invalidation that did not come is no lie worth a path: it is made good locally.
    fn take_invalidated(
        &mut self,
        slot: &Outstanding,
        announced: bool,
    ) -> Result<Option<u32>, Violation> {
        let rkey = self.invalidated.take();
        if announced {
            slot.asked_for_invalidation()
                .then_some(rkey)
                .ok_or(Violation::Invalidation)
        } else if rkey.is_some() {
            Err(Violation::Invalidation)
        } else {
            Ok(None)
        }
    }
}

/// An RTRS message as it follows the user message.
struct Message {
    header: [u8; 24],
    bytes: u8,
}

impl Message {
    fn new(request: &Request) -> Self {
        let mut header = [0; ReadMsg::BYTES_MAX];
        let usr_len = request.user_bytes;
        let bytes = match request.direction {
            Direction::Read => read_msg(request).encode(&mut header),
            Direction::Write => {
                header[..WriteMsg::BYTES].copy_from_slice(&WriteMsg { usr_len }.to_bytes());
                WriteMsg::BYTES
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "at most 24")]
        let bytes = bytes as u8;
        Self { header, bytes }
    }
}

fn read_msg(request: &Request) -> ReadMsg {
    let wants_invalidation = |exposure: Exposure| exposure.invalidation == Invalidation::Remote;
    ReadMsg {
        usr_len: request.user_bytes,
        flags: if request.exposure.is_some_and(wants_invalidation) {
            ReadFlags::NEED_INVAL
        } else {
            ReadFlags::empty()
        },
        descriptor: request.exposure.map(|exposure| Descriptor {
            addr: exposure.addr,
            key: exposure.rkey,
            len: request.data_bytes,
        }),
    }
}

fn new_rkey(bytes: &[u8], msg_id: u32) -> Result<u32, Violation> {
    match RkeyRsp::decode(bytes) {
        Ok(rsp) if u32::from(rsp.buf_id) == msg_id => Ok(rsp.rkey),
        _ => Err(Violation::RkeyResponse(msg_id)),
    }
}
