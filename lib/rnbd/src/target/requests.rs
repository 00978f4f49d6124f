//! The way in: from an immediate to an I/O on a bdev, and its end.

use rnbd_base::{Errno, Nanos};
use rnbd_bdev::{BdevIo, IoDone, IoOp};
use rnbd_fabric::{Fabric, PostError, WindowId, WorkRequest, WrOp};
use rnbd_mem::Span;
use rnbd_rtrs::srv::{
    CloseCause, Direction, Inbound, Path, PathKey, Request, SessionKey, Violation,
};
use rnbd_wire::Imm;
use rnbd_wire::rnbd::Open;
use rnbd_wire::rtrs::ReadMsg;

use super::device_io::{DeviceIo, Service};
use super::path_io::{PathIo, RequestIo, Source};
use super::shard::{ConEntry, TargetShard};
use super::wr_id::WrId;
use crate::srv::{Command, Plan};

/// Bits of an I/O's tag that are the chunk; the rest is the path's index.
const TAG_CHUNK_BITS: u32 = 16;

/// A request whose header is good, or what to answer.
type Judged = Result<Request, Errno>;

impl<F: Fabric> TargetShard<F> {
    pub(super) fn handle_imm(&mut self, con: ConEntry, imm: u32, now: Nanos) {
        // A connection that is down reports its end by itself.
        let _ = self.fabric.post_empty_recvs(con.conn, 1);
        let Some(path) = self.sessions.path_mut(con.path) else {
            return;
        };
        match path.handle_imm(con.cid, imm, now) {
            Ok(Inbound::Request { msg_id, offset }) => {
                self.handle_request(con.path, msg_id, offset, now);
            }
            Ok(Inbound::Revoke { msg_id, offset }) => {
                self.revoke_chunk(con, (msg_id, offset), now);
            }
            Ok(Inbound::AckHeartbeat) => self.signal(con.path, Imm::HEARTBEAT_ACK, now),
            Ok(Inbound::Fence(token)) => self.handle_fence(con.path, token, now),
            Ok(Inbound::Ignored { first }) => self.report_ignored(con.path, imm, first),
            Ok(Inbound::Nothing) => (),
            Err(violation) => self.violate(con.path, violation, now),
        }
    }

    /// `NEW_RKEY` mode: closes the chunk to the client before it is looked at. Where that is work
    /// for the device, READs and small WRITEs do not wait for it ([`Path::handle_open_header`]).
    fn revoke_chunk(&mut self, con: ConEntry, (msg_id, offset): (u16, u32), now: Nanos) {
        let Some((_, io, fabric)) = self.path_parts(con.path) else {
            return;
        };
        let window = io.windows.get(usize::from(msg_id)).copied();
        if window.is_some_and(|window| fabric.invalidate_now(window)) {
            return self.handle_revoked(con, msg_id, now);
        }
        if self.handle_open_request(con.path, (msg_id, offset), now) {
            return;
        }
        if let Err(error @ (PostError::OverLimit | PostError::NoWindow)) =
            self.post_revocation(con, msg_id, window)
        {
            log::error!("a chunk could not be closed to the client: {error}");
            self.close_path(con.path, CloseCause::Local("a chunk could not be closed"));
            self.remove_if_drained(con.path, now);
        }
    }

    fn post_revocation(
        &mut self,
        con: ConEntry,
        msg_id: u16,
        window: Option<WindowId>,
    ) -> Result<(), PostError> {
        let window = window.ok_or(PostError::NoWindow)?;
        let wr_id = WrId::Revoked { msg_id }.encode();
        let invalidate = WorkRequest::new(WrOp::Invalidate(window)).signaled(wr_id);
        self.fabric.post(con.conn, &invalidate)
    }

    pub(super) fn handle_revoked(&mut self, con: ConEntry, msg_id: u16, now: Nanos) {
        let path = self.sessions.path_mut(con.path);
        if let Some(offset) = path.and_then(|path| path.handle_revoked(msg_id)) {
            self.handle_request(con.path, msg_id, offset, now);
        }
    }

    /// Serves a request whose chunk the client can still write, if it is one that may be; returns
    /// whether it has been dealt with.
    fn handle_open_request(&mut self, key: PathKey, place: (u16, u32), now: Nanos) -> bool {
        let judge = |path: &mut Path, io: &mut PathIo, msg_id, header: &[u8]| {
            let judged = path.handle_open_header(msg_id, header, io.copied_max())?;
            if let Some(Ok(request)) = &judged
                && request.direction == Direction::Write
            {
                io.copy_data(msg_id, request.data_len);
            }
            Ok(judged)
        };
        self.look(key, place, now, judge)
    }

    fn handle_request(&mut self, key: PathKey, msg_id: u16, offset: u32, now: Nanos) {
        let judge = |path: &mut Path, _: &mut PathIo, msg_id, header: &[u8]| {
            let outcome = path.handle_header(msg_id, header);
            outcome.map(Some)
        };
        self.look(key, (msg_id, offset), now, judge);
    }

    /// Copies the headers out of the chunk, each byte once: the client may write there at any
    /// time, so only the copies are judged and used (protocol.md 14.1). Returns whether the request
    /// was judged.
    fn look(
        &mut self,
        key: PathKey,
        (msg_id, offset): (u16, u32),
        now: Nanos,
        judge: impl FnOnce(&mut Path, &mut PathIo, u16, &[u8]) -> Result<Option<Judged>, Violation>,
    ) -> bool {
        let Some((path, io, _)) = self.path_parts(key) else {
            return false;
        };
        let Some(chunk) = io.chunk(msg_id) else {
            return false;
        };
        let mut header = [0; ReadMsg::BYTES_MAX];
        let header = copy_out(&chunk, offset, &mut header);
        io.requests[usize::from(msg_id)].is_copied = false;
        match judge(path, io, msg_id, header) {
            Ok(None) => return false,
            Ok(Some(Ok(request))) => self.handle_message(key, &request, &chunk, now),
            Ok(Some(Err(errno))) => self.finish(key, msg_id, Err(errno), now),
            Err(violation) => self.violate(key, violation, now),
        }
        true
    }

    fn handle_message(&mut self, key: PathKey, request: &Request, chunk: &Span, now: Nanos) {
        let mut message = [0; Open::BYTES];
        let len = usize::from(request.usr_len).min(Open::BYTES);
        let message = copy_out(chunk, request.data_len, &mut message[..len]);
        self.serve(key, request, message, now);
    }

    fn serve(&mut self, key: PathKey, request: &Request, message: &[u8], now: Nanos) {
        let Some(io) = self.path_io(key) else {
            return;
        };
        let state = &mut io.requests[usize::from(request.msg_id)];
        state.source = Source::Chunk;
        state.started = now;
        state.bytes = request.data_len.into();
        let session = io.session;
        let command = match self.client(session) {
            Some(client) => client.session.handle_message(request, message),
            None => Command::Answer(Err(Errno::NOTCONN)),
        };
        match command {
            Command::Io { device, plan, prio } => {
                self.start_io(key, request.msg_id, (device, plan, prio), now);
            }
            Command::Answer(status) => self.finish(key, request.msg_id, status, now),
            Command::BeyondEnd { device, .. } if self.take_growth(session, device) => {
                self.serve(key, request, message, now);
            }
            Command::BeyondEnd { errno, .. } => {
                self.finish(key, request.msg_id, Err(errno), now);
            }
            Command::SessInfo(rsp) => self.respond(key, request.msg_id, &rsp.to_bytes(), now),
            Command::Open(open) => self.open_device(key, request.msg_id, &open, now),
            // A READ would get the chunk's old content for an answer.
            Command::Close { .. } if request.has_descriptor => {
                self.finish(key, request.msg_id, Err(Errno::INVAL), now);
            }
            Command::Close { device_id } => {
                self.close_device(key, request.msg_id, device_id, now);
            }
        }
    }

    /// Answers with a message. What follows it up to the room that the client gave is zero: a
    /// chunk never goes back with old content.
    pub(super) fn respond(&mut self, key: PathKey, msg_id: u16, message: &[u8], now: Nanos) {
        let Some(io) = self.path_io(key) else {
            return;
        };
        let room = usize::try_from(io.requests[usize::from(msg_id)].bytes).unwrap_or(0);
        let chunk = io.chunk(msg_id);
        if let Some(room) = chunk.and_then(|chunk| chunk.slice(0, room)) {
            room.fill(0);
            room.write_at(0, message);
        }
        self.finish(key, msg_id, Ok(()), now);
    }

    // I/O.

    fn start_io(
        &mut self,
        key: PathKey,
        msg_id: u16,
        (place, plan, prio): (usize, Plan, u16),
        now: Nanos,
    ) {
        match self.try_start_io(key, msg_id, (place, plan, prio), now) {
            Ok(Started::Submitted) => (),
            Ok(Started::Done) => self.finish(key, msg_id, Ok(()), now),
            Err(errno) => self.finish(key, msg_id, Err(answer_errno(errno)), now),
        }
    }

    fn try_start_io(
        &mut self,
        key: PathKey,
        msg_id: u16,
        (place, plan, prio): (usize, Plan, u16),
        now: Nanos,
    ) -> Result<Started, Errno> {
        let Plan::Io {
            op,
            offset_blocks,
            num_blocks,
            flush_first,
        } = plan
        else {
            return Ok(Started::Done);
        };
        let (io, client) = self.path_and_client(key).ok_or(Errno::NOTCONN)?;
        let session = io.session;
        let view = client.session.device(place).map(|device| device.view);
        let device = client.device_mut(place).ok_or(Errno::NOTCONN)?;
        let area = io.data_area(msg_id);
        let request = &mut io.requests[usize::from(msg_id)];
        request.device = place;
        request.op = op;
        request.bytes = num_blocks * u64::from(view.ok_or(Errno::NOTCONN)?.block_bytes);
        if op == IoOp::Read && device.in_place && device.channel.lends_memory() {
            request.source = device.read_in_place(offset_blocks, num_blocks)?;
            io.on_sending(place);
            self.counters.completed_io += 1;
            return Ok(Started::Done);
        }
        let buf = area.and_then(|area| data_of(&area, op, request.bytes));
        let bdev_io = BdevIo {
            tag: tag_of(key, msg_id),
            op,
            offset_blocks,
            num_blocks,
            buf: buf.ok_or(Errno::INVAL)?,
            prio,
        };
        let first = if flush_first {
            flush_before(&bdev_io)
        } else {
            bdev_io
        };
        request.after_flush = flush_first.then_some(bdev_io);
        device.start(&first, now)?;
        client.session.on_io_started(place);
        self.list_active(session.index as usize, place);
        Ok(Started::Submitted)
    }

    fn path_and_client(&mut self, key: PathKey) -> Option<(&mut PathIo, &mut Service)> {
        let io = self.paths.get_mut(key.index as usize)?.as_mut()?;
        let client = self.clients.get_mut(io.session.index as usize)?.as_mut()?;
        Some((io, client))
    }

    pub(super) fn handle_io_done(&mut self, done: IoDone, now: Nanos) {
        if let Some((session, place)) = self.end_io(done, now) {
            self.start_waiting(session, place, now);
        }
    }

    fn start_waiting(&mut self, session: SessionKey, place: usize, now: Nanos) {
        while let Some(device) = self.client(session).and_then(|own| own.device_mut(place))
            && let Some(next) = device.next_waiting()
        {
            match device.channel.submit(&next, now) {
                Ok(()) => self.list_active(session.index as usize, place),
                Err(errno) => {
                    let (tag, result) = (next.tag, Err(errno));
                    self.end_io(IoDone { tag, result }, now);
                }
            }
        }
    }

    /// Answers what was done, or goes on with it. Returns the device.
    fn end_io(&mut self, done: IoDone, now: Nanos) -> Option<(SessionKey, usize)> {
        let (index, msg_id) = parts_of(done.tag);
        let key = self
            .paths
            .get(index)
            .and_then(Option::as_ref)
            .map(|io| io.key)?;
        let (io, client) = self.path_and_client(key)?;
        let session = io.session;
        let request = &mut io.requests[usize::from(msg_id)];
        let place = request.device;
        let device = client.device_mut(place)?;
        let result = match (request.after_flush.take(), done.result) {
            (Some(next), Ok(())) => match device.start(&next, now) {
                Ok(()) => {
                    self.list_active(session.index as usize, place);
                    return Some((session, place));
                }
                Err(errno) => Err(errno),
            },
            (_, result) => result,
        };
        let result = result.map_err(answer_errno);
        device.record(request, now, result);
        let drained = client.session.on_io_done(place);
        self.counters.completed_io += 1;
        self.finish(key, msg_id, result, now);
        if drained {
            self.end_device_if_drained(session, place, now);
        }
        Some((session, place))
    }

    fn list_active(&mut self, client: usize, place: usize) {
        let device = self.clients.get_mut(client).and_then(Option::as_mut);
        if let Some(device) = device.and_then(|client| client.device_mut(place))
            && !device.listed
        {
            device.listed = true;
            self.active.push((client, place));
        }
    }
}

enum Started {
    Submitted,
    Done,
}

impl DeviceIo {
    fn start(&mut self, io: &BdevIo, now: Nanos) -> Result<(), Errno> {
        if self.has_room() {
            return self.channel.submit(io, now);
        }
        self.waiting.push_back(*io);
        Ok(())
    }

    fn next_waiting(&mut self) -> Option<BdevIo> {
        if self.has_room() {
            return self.waiting.pop_front();
        }
        None
    }

    fn has_room(&self) -> bool {
        self.channel.outstanding() < self.channel.depth()
    }

    fn read_in_place(&mut self, offset_blocks: u64, num_blocks: u64) -> Result<Source, Errno> {
        let span = self.channel.read_in_place(offset_blocks, num_blocks)?;
        let bytes = span.len() as u64;
        self.counters.record(IoOp::Read, bytes, Nanos::ZERO, Ok(()));
        Ok(Source::InPlace(span))
    }

    fn record(&mut self, request: &RequestIo, now: Nanos, result: Result<(), Errno>) {
        let latency = now.since(request.started);
        self.counters
            .record(request.op, request.bytes, latency, result);
    }
}

/// Copies as much as `to` holds, or as there is.
fn copy_out<'a>(chunk: &Span, offset: u32, to: &'a mut [u8]) -> &'a [u8] {
    let offset = (offset as usize).min(chunk.len());
    let len = to.len().min(chunk.len() - offset);
    chunk.read_at(offset, &mut to[..len]);
    &to[..len]
}

fn data_of(area: &Span, op: IoOp, bytes: u64) -> Option<Span> {
    if !op.has_data() {
        return Some(Span::EMPTY);
    }
    area.slice(0, usize::try_from(bytes).ok()?)
}

fn flush_before(io: &BdevIo) -> BdevIo {
    BdevIo {
        op: IoOp::Flush,
        offset_blocks: 0,
        num_blocks: 0,
        buf: Span::EMPTY,
        ..*io
    }
}

/// A path with I/O in flight is not removed, so its index is enough.
fn tag_of(key: PathKey, msg_id: u16) -> u64 {
    (u64::from(key.index) << TAG_CHUNK_BITS) | u64::from(msg_id)
}

fn parts_of(tag: u64) -> (usize, u16) {
    let msg_id = u16::try_from(tag & 0xffff).unwrap_or(u16::MAX);
    (
        usize::try_from(tag >> TAG_CHUNK_BITS).unwrap_or(usize::MAX),
        msg_id,
    )
}

/// What a client may be told of a bdev's failure (protocol.md 9.11): a device that is gone needs
/// a new OPEN, and a shortage here is an error there.
fn answer_errno(errno: Errno) -> Errno {
    match errno {
        Errno::NODEV => Errno::NOTCONN,
        Errno::NOMEM | Errno::BUSY | Errno::AGAIN => Errno::IO,
        other => other,
    }
}
