//! Connection 0 of a path: the handshake, heartbeats and control messages on the fabric.

use rnbd_base::{Errno, Nanos};
use rnbd_fabric::{
    Access, Addr, Completion, CompletionKind, ConnId, ConnectParams, DomainId, Fabric, FabricError,
    PrivateData, QpLimits, RemoteAddr, Sge, WorkRequest, WrOp,
};
use rnbd_mem::{Pages, Span};
use rnbd_proto::clt::ControlMessage;
use rnbd_rtrs::clt::{
    Direction, Exposure, Invalidation, PathError, PathIndex, Post, QueueSizes, Request, Step,
    Violation, WrId,
};
use rnbd_wire::rtrs::{ConReq, InfoReq, ReadMsg, RkeyRsp};

use super::Home;
use crate::memory::Arena;
use crate::message::Route;
use crate::shard::{Core, Role, arrival};

/// Where things are in the memory of connection 0.
mod layout {
    use super::{ControlMessage, InfoReq, QueueSizes, ReadMsg, RkeyRsp};

    /// Zeroes, over which a server writes its answer: what it leaves out is then zero, and not
    /// what the chunk held before (protocol.md 12.3).
    pub(super) const ZEROES: usize = 0;
    pub(super) const MESSAGE: usize = ZEROES + ControlMessage::MAX_ANSWER_BYTES;
    pub(super) const ANSWER: usize = MESSAGE + ControlMessage::MAX_BYTES + ReadMsg::BYTES_MAX;
    pub(super) const INFO_REQ: usize = ANSWER + ControlMessage::MAX_ANSWER_BYTES;
    pub(super) const RECEIVES: usize = INFO_REQ + InfoReq::BYTES;
    pub(super) const BYTES: usize = RECEIVES + RkeyRsp::BYTES * QueueSizes::SERVICE.recv as usize;
}

/// Connection 0 and what belongs to it.
#[derive(Debug, Default)]
pub(super) struct Service {
    conn: Option<ConnId>,
    domain: Option<DomainId>,
    arena: Option<Arena>,
    info: Option<Arena>,
    src: Option<Addr>,
    receives_bytes: bool,
    /// How long the answer to the outstanding control message is.
    answer_bytes: usize,
}

/// Why something could not be posted.
type Posted = Result<(), &'static str>;

const GONE: &str = "the connection is gone";

impl Service {
    pub(super) fn src(&self) -> Option<Addr> {
        self.src
    }

    pub(super) fn connect<F: Fabric>(
        &mut self,
        role: Role,
        route: &Route,
        request: &ConReq,
        sizes: QueueSizes,
        timeout: Nanos,
        core: &mut Core<F>,
    ) -> Result<(), FabricError> {
        let private_data = PrivateData::new(&request.to_bytes());
        let params = ConnectParams {
            dst: route.dst,
            src: route.src,
            private_data: private_data.expect("56 bytes are below the limit"),
            domain: None,
            limits: QpLimits {
                send_wrs: sizes.send,
                recv_wrs: sizes.recv,
            },
            timeout_ns: timeout.0,
        };
        let conn = core.fabric.connect(&params, core.now)?;
        core.assign(conn, role);
        self.conn = Some(conn);
        Ok(())
    }

    pub(super) fn disconnect<F: Fabric>(&self, core: &mut Core<F>) {
        if let Some(conn) = self.conn {
            core.fabric.disconnect(conn);
        }
    }

    /// The connection is up: gets it its memory.
    pub(super) fn set_up<F: Fabric>(
        &mut self,
        domain: DomainId,
        src: Addr,
        core: &mut Core<F>,
    ) -> Result<(), FabricError> {
        self.domain = Some(domain);
        self.src = Some(src);
        self.arena = Some(Self::arena(
            domain,
            layout::BYTES,
            Access::RemoteWrite,
            core,
        )?);
        Ok(())
    }

    fn arena<F: Fabric>(
        domain: DomainId,
        bytes: usize,
        access: Access,
        core: &mut Core<F>,
    ) -> Result<Arena, FabricError> {
        let buffer = core
            .memory
            .alloc("an initiator's session", bytes, Pages::Small);
        let buffer = buffer.map_err(|error| {
            log::warn!("{error}");
            FabricError::Unsupported("a connection without memory")
        })?;
        Arena::new(&mut core.fabric, domain, buffer, access)
    }

    /// The connection is gone: frees what it had.
    pub(super) fn release<F: Fabric>(&mut self, core: &mut Core<F>) {
        let old = std::mem::take(self);
        for arena in [old.arena, old.info].into_iter().flatten() {
            arena.release(&mut core.fabric);
        }
        if let Some(domain) = old.domain {
            core.fabric.close_domain(domain);
        }
    }

    pub(super) fn post_info_receive<F: Fabric>(
        &mut self,
        bytes: usize,
        core: &mut Core<F>,
    ) -> Posted {
        let (conn, domain) = self.conn.zip(self.domain).ok_or(GONE)?;
        let info = Self::arena(domain, bytes, Access::Local, core);
        let info = info.map_err(|_| "there is no memory for INFO_RSP")?;
        let posted =
            core.fabric
                .post_recv(conn, WrId::InfoResponse.encode(), Some(info.sge(0, bytes)));
        self.info = Some(info);
        posted.map_err(|_| GONE)
    }

    pub(super) fn send_info<F: Fabric>(
        &mut self,
        message: &[u8; InfoReq::BYTES],
        core: &mut Core<F>,
    ) -> Posted {
        let (conn, arena) = self.conn.zip(self.arena.as_ref()).ok_or(GONE)?;
        let sge = arena.sge(layout::INFO_REQ, InfoReq::BYTES);
        sge.span.write_at(0, message);
        let wr = WorkRequest::new(WrOp::Send).with_sge(sge);
        let wr = wr.signaled(WrId::InfoRequest.encode());
        core.fabric.post(conn, &wr).map_err(|_| GONE)
    }

    pub(super) fn post_receives<F: Fabric>(
        &mut self,
        count: u32,
        bytes: u32,
        core: &mut Core<F>,
    ) -> Posted {
        self.receives_bytes = bytes > 0;
        (0..count).try_for_each(|index| self.post_receive(index, core))
    }

    fn post_receive<F: Fabric>(&self, index: u32, core: &mut Core<F>) -> Posted {
        let (conn, arena) = self.conn.zip(self.arena.as_ref()).ok_or(GONE)?;
        let posted = if self.receives_bytes {
            let sge = arena.sge(Self::receive_at(index), RkeyRsp::BYTES);
            core.fabric
                .post_recv(conn, WrId::Receive(index).encode(), Some(sge))
        } else {
            core.fabric.post_recv(conn, 0, None)
        };
        posted.map_err(|_| "a receive cannot be posted")
    }

    fn receive_at(index: u32) -> usize {
        layout::RECEIVES + index as usize * RkeyRsp::BYTES
    }

    pub(super) fn send_immediate<F: Fabric>(&self, imm: u32, core: &mut Core<F>) -> Posted {
        let conn = self.conn.ok_or(GONE)?;
        let wr = WorkRequest::new(WrOp::WriteImm(RemoteAddr::NONE, imm));
        let wr = wr.signaled(WrId::Signal.encode());
        core.fabric
            .post(conn, &wr)
            .map_err(|_| "a heartbeat cannot be posted")
    }

    /// The buffer that a server writes the answer to a control message to. It is open to the
    /// server as long as the connection lives, and holds nothing else.
    fn exposure(&self) -> Option<Exposure> {
        let arena = self.arena.as_ref()?;
        let span = arena.span(layout::ANSWER, ControlMessage::MAX_ANSWER_BYTES);
        Some(Exposure {
            addr: span.addr(),
            rkey: arena.rkey(),
            invalidation: Invalidation::None,
        })
    }

    fn post_control<F: Fabric>(
        &mut self,
        post: &Post,
        message: &ControlMessage,
        core: &mut Core<F>,
    ) -> Posted {
        let (conn, arena) = self.conn.zip(self.arena.as_ref()).ok_or(GONE)?;
        let user = message.as_bytes();
        let header_bytes = usize::from(post.header_bytes);
        let request = arena.sge(layout::MESSAGE, user.len() + header_bytes);
        request.span.write_at(0, user);
        request
            .span
            .write_at(user.len(), &post.header[..header_bytes]);
        let (zeroes, start) = match message.direction {
            Direction::Read => (arena.sge(layout::ZEROES, message.answer_bytes as usize), 0),
            Direction::Write => (Sge::EMPTY, post.offset),
        };
        let remote = RemoteAddr {
            addr: post.chunk.addr.wrapping_add(start.into()),
            rkey: post.chunk.rkey,
        };
        let wr = WorkRequest::new(WrOp::WriteImm(remote, post.imm)).with_sges(zeroes, request);
        let wr = wr.signaled(WrId::Signal.encode());
        self.answer_bytes = message.answer_bytes as usize;
        core.fabric.post(conn, &wr).map_err(|_| GONE)
    }

    /// The memory of a receive, if it has some.
    fn receive_buffer(&self, index: u32) -> Option<Span> {
        let arena = self.arena.as_ref().filter(|_| self.receives_bytes)?;
        Some(arena.span(Self::receive_at(index), RkeyRsp::BYTES))
    }

    fn answer(&self, bytes: &mut [u8; ControlMessage::MAX_ANSWER_BYTES]) -> usize {
        if let Some(arena) = &self.arena {
            let span = arena.span(layout::ANSWER, self.answer_bytes);
            span.read_at(0, &mut bytes[..self.answer_bytes]);
        }
        self.answer_bytes
    }
}

impl Home {
    pub(super) fn handle_completion<F: Fabric>(
        &mut self,
        path: PathIndex,
        completion: &Completion,
        core: &mut Core<F>,
    ) {
        match (completion.kind, WrId::decode(completion.wr_id)) {
            (CompletionKind::Sent, _) | (_, None) => {}
            (kind, Some(WrId::InfoResponse)) => self.on_info(path, kind, core),
            (kind, Some(WrId::Receive(index))) => self.on_receive(path, kind, index, core),
            (_, Some(_)) => {}
        }
    }

    fn on_info<F: Fabric>(&mut self, path: PathIndex, kind: CompletionKind, core: &mut Core<F>) {
        let service = self.service_mut(path);
        let (
            CompletionKind::Recv {
                bytes, imm: None, ..
            },
            Some(info),
        ) = (kind, service.and_then(|service| service.info.take()))
        else {
            let error = Violation::InfoResponse("something else came");
            self.machine.fail(path, error.into(), core.now);
            return;
        };
        let mut message = vec![0; bytes as usize];
        info.span(0, message.len()).read_at(0, &mut message);
        info.release(&mut core.fabric);
        self.machine.handle_info_rsp(path, &message, core.now);
    }

    fn on_receive<F: Fabric>(
        &mut self,
        path: PathIndex,
        kind: CompletionKind,
        index: u32,
        core: &mut Core<F>,
    ) {
        let Some(service) = self.service(path) else {
            return;
        };
        let Some(arrival) = arrival(kind, service.receive_buffer(index)) else {
            return;
        };
        let reposted = service.post_receive(index, core);
        let step = self.machine.handle_arrival(path, arrival, core.now);
        if let Step::Done(done) = step {
            self.on_answer(path, done.result);
        }
        if let Err(what) = reposted {
            self.machine.fail(path, PathError::Fabric(what), core.now);
        }
    }

    fn on_answer(&mut self, path: PathIndex, result: Result<(), Errno>) {
        let mut bytes = [0; ControlMessage::MAX_ANSWER_BYTES];
        let len = self.service(path).map_or(0, |of| of.answer(&mut bytes));
        self.client.handle_answer(result.map(|()| &bytes[..len]));
    }

    /// Sends a control message. Its permit is free, because only one is outstanding at a time.
    pub(super) fn send_control<F: Fabric>(&mut self, message: &ControlMessage, core: &mut Core<F>) {
        let Some(path) = self.machine.control_path() else {
            return self.client.handle_lost();
        };
        if let Err(what) = self.try_send_control(path, message, core) {
            self.client.handle_lost();
            self.machine.fail(path, PathError::Fabric(what), core.now);
        }
    }

    fn try_send_control<F: Fabric>(
        &mut self,
        path: PathIndex,
        message: &ControlMessage,
        core: &mut Core<F>,
    ) -> Posted {
        let service = &mut self.paths.get_mut(path).ok_or(GONE)?.service;
        #[expect(clippy::cast_possible_truncation, reason = "at most 264")]
        let user_bytes = message.as_bytes().len() as u16;
        let request = Request {
            direction: message.direction,
            user_bytes,
            data_bytes: message.answer_bytes,
            exposure: match message.direction {
                Direction::Read => service.exposure(),
                Direction::Write => None,
            },
        };
        let post = self.machine.begin(path, &request, core.now);
        let post = post.map_err(|_| "a control message cannot begin")?;
        let posted = service.post_control(&post, message, core);
        if posted.is_err() {
            self.machine.abort(post.msg_id);
        }
        posted
    }
}
