//! The way back: answers to requests.

use rnbd_base::{Errno, Nanos};
use rnbd_fabric::{ConnId, Fabric, PostError, RemoteAddr, Sge, WorkRequest, WrOp};
use rnbd_rtrs::srv::{Answer, CloseCause, PathKey, PathState};
use rnbd_wire::rtrs::RkeyRsp;

use super::path_io::{Con, PathIo, Source};
use super::shard::{ConEntry, TargetShard};
use super::wr_id::WrId;

impl<F: Fabric> TargetShard<F> {
    /// Ends a request: answers it, or lets the answer wait for work requests to be executed, or
    /// drops it if the path is closing.
    pub(super) fn finish(
        &mut self,
        key: PathKey,
        msg_id: u16,
        status: Result<(), Errno>,
        now: Nanos,
    ) {
        let Some((path, io, _)) = self.path_parts(key) else {
            return;
        };
        if path.state() != PathState::Connected {
            let _dropped = path.answer(msg_id, status);
            return self.remove_if_drained(key, now);
        }
        let cid = path.cid_of(msg_id);
        match io.con(cid) {
            Some(con) if !con.may_answer() => io.park(cid, msg_id, status),
            _ => self.post_answer(key, msg_id, status, now),
        }
    }

    fn post_answer(&mut self, key: PathKey, msg_id: u16, status: Result<(), Errno>, now: Nanos) {
        let Some((path, io, fabric)) = self.path_parts(key) else {
            return;
        };
        let Some(answer) = path.answer(msg_id, status) else {
            return;
        };
        let posted = match io.con(answer.cid).map(|con| con.conn) {
            Some(conn) => Poster { fabric, io, conn }.post(msg_id, &answer),
            None => Err(PostError::NotConnected),
        };
        // A connection that is down reports its end by itself.
        if let Err(error @ (PostError::OverLimit | PostError::NoWindow)) = posted {
            log::error!("an answer could not be posted: {error}");
            self.close_path(key, CloseCause::Local("an answer could not be posted"));
            self.remove_if_drained(key, now);
        }
    }

    /// The fabric has executed work requests: there is room for answers that wait.
    pub(super) fn handle_executed(
        &mut self,
        con: ConEntry,
        count: u32,
        device: Option<u32>,
        now: Nanos,
    ) {
        let Some((_, io, fabric)) = self.path_parts(con.path) else {
            return;
        };
        if let Some(con) = io.con_mut(con.cid) {
            con.on_executed(count);
        }
        io.post_signals(fabric);
        if let Some(device) = device.and_then(|device| usize::try_from(device).ok()) {
            io.on_sent(device);
            let session = io.session;
            self.end_device_if_drained(session, device, now);
        }
        self.post_parked(con, now);
    }

    fn post_parked(&mut self, con: ConEntry, now: Nanos) {
        while let Some((msg_id, status)) = self.next_parked(con) {
            self.post_answer(con.path, msg_id, status, now);
        }
    }

    fn next_parked(&mut self, con: ConEntry) -> Option<(u16, Result<(), Errno>)> {
        let io = self.path_io(con.path)?;
        if !io.con(con.cid)?.has_credits_for_answer() {
            return None;
        }
        io.take_parked(con.cid)
    }
}

/// Posts one answer.
struct Poster<'a, F> {
    fabric: &'a mut F,
    io: &'a mut PathIo,
    conn: ConnId,
}

impl<F: Fabric> Poster<'_, F> {
    fn post(mut self, msg_id: u16, answer: &Answer) -> Result<(), PostError> {
        let mut device = None;
        if let Some(data) = answer.data {
            let to = RemoteAddr {
                addr: data.addr,
                rkey: data.key,
            };
            let sge;
            (sge, device) = self.data(msg_id, data.len);
            let mut write = WorkRequest::new(WrOp::Write(to)).with_sge(sge);
            if device.is_some() {
                write = write.lent();
            }
            self.post_one(answer, &write)?;
        }
        let rkey_rsp = self.open_chunk(msg_id, answer)?;
        if let Some(key) = answer.invalidate {
            self.post_one(answer, &WorkRequest::new(WrOp::SendInv(key)))?;
        }
        self.post_last(answer, rkey_rsp, device)
    }

    /// Where the data is, and the device whose own memory that is.
    fn data(&self, msg_id: u16, len: u32) -> (Sge, Option<u32>) {
        let request = &self.io.requests[usize::from(msg_id)];
        let (device, source) = (request.device, request.source);
        match source {
            Source::InPlace(span) => (Sge { span, lkey: 0 }, u32::try_from(device).ok()),
            Source::Chunk => {
                let sge = self.io.chunk_sge(msg_id, len as usize);
                let sge = sge.expect("the length was checked against the chunk");
                (sge, None)
            }
        }
    }

    /// `NEW_RKEY` mode: opens the chunk to the client again, and says how.
    fn open_chunk(&mut self, msg_id: u16, answer: &Answer) -> Result<Option<Sge>, PostError> {
        let Some(&window) = self.io.windows.get(usize::from(msg_id)) else {
            return Ok(None);
        };
        let mr = self.io.chunk_key.ok_or(PostError::NoWindow)?.mr;
        let chunk = self.io.chunk(msg_id).ok_or(PostError::NoWindow)?;
        let rkey = self.fabric.bind(self.conn, window, mr, chunk)?;
        self.con(answer).charge(1);
        let rsp = RkeyRsp {
            buf_id: msg_id,
            rkey,
        };
        Ok(self.io.rkey_rsp_sge(rsp))
    }

    fn post_one(&mut self, answer: &Answer, wr: &WorkRequest) -> Result<(), PostError> {
        self.con(answer).charge(1);
        self.fabric.post(self.conn, wr)
    }

    fn post_last(
        &mut self,
        answer: &Answer,
        rkey_rsp: Option<Sge>,
        device: Option<u32>,
    ) -> Result<(), PostError> {
        let executed = self.con(answer).charge_last(device.is_some());
        let wr = match rkey_rsp {
            Some(sge) => {
                let send = WorkRequest::new(WrOp::SendImm(answer.imm)).with_sge(sge);
                signaled(send, executed, device)
            }
            None => write_imm(answer.imm, executed, device),
        };
        self.fabric.post(self.conn, &wr)
    }

    fn con(&mut self, answer: &Answer) -> &mut Con {
        let con = self.io.con_mut(answer.cid);
        con.expect("the caller found the connection")
    }
}

/// A zero-length write with an immediate.
pub(super) fn write_imm(imm: u32, executed: Option<u32>, device: Option<u32>) -> WorkRequest {
    signaled(
        WorkRequest::new(WrOp::WriteImm(RemoteAddr::NONE, imm)),
        executed,
        device,
    )
}

fn signaled(wr: WorkRequest, executed: Option<u32>, device: Option<u32>) -> WorkRequest {
    match executed {
        Some(count) => wr.signaled(WrId::Executed { count, device }.encode()),
        None => wr,
    }
}
