//! From a connection request to a connection of a path.

use std::fmt;

use rnbd_base::{Errno, Full, Nanos};
use rnbd_fabric::{
    Access, Addr, ConnId, Fabric, FabricError, ListenOptions, ListenerId, PrivateData,
};
use rnbd_rtrs::srv::{Accepted, CloseCause, Refusal, Route};
use rnbd_wire::rtrs::{ConReq, ConRsp};

use super::admission::Admission;
use super::command::Reply;
use super::path_io::{Con, PathIo, PathLayout, PathMemory, qp_limits, recvs};
use super::shard::{ConEntry, TargetShard, index_of};
use super::wr_id::WrId;

/// A listening address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listener {
    pub(super) id: ListenerId,
    pub(super) addr: Addr,
    pub(super) requests: u64,
}

/// A connection request on its way to the shard that serves its session.
pub(super) struct Handover<F: Fabric> {
    incoming: F::Incoming,
    private_data: PrivateData,
    route: Route,
}

impl<F: Fabric> TargetShard<F> {
    // Listeners.

    pub(super) fn add_listener(
        &mut self,
        addr: &Addr,
        options: &ListenOptions,
        reply: Reply<Result<Addr, FabricError>>,
    ) {
        let listening = self.listen(addr, options);
        if let Ok(addr) = &listening {
            log::info!("{}: listening on {}", self.caps.trtype, addr.with_port());
        }
        reply(listening);
    }

    fn listen(&mut self, addr: &Addr, options: &ListenOptions) -> Result<Addr, FabricError> {
        let id = self.fabric.listen(addr, options)?;
        let addr = self.fabric.listen_addr(id)?;
        self.listeners.push(Listener {
            id,
            addr,
            requests: 0,
        });
        Ok(addr)
    }

    pub(super) fn remove_listener(&mut self, addr: &Addr) -> Result<(), Errno> {
        let at = self
            .listeners
            .iter()
            .position(|listener| listener.addr == *addr);
        let listener = self.listeners.remove(at.ok_or(Errno::NODEV)?);
        self.fabric.unlisten(listener.id);
        Ok(())
    }

    // Requests.

    /// A request that is none is refused here; another goes to the shard of its session.
    pub(super) fn handle_connect_request(
        &mut self,
        listener: ListenerId,
        conn: ConnId,
        private_data: PrivateData,
        (src, dst): (Addr, Addr),
        now: Nanos,
    ) {
        if let Some(listener) = self.listeners.iter_mut().find(|own| own.id == listener) {
            listener.requests += 1;
        }
        let request = match ConReq::decode(private_data.as_bytes()) {
            Ok(request) => request,
            Err(error) => {
                log::warn!("{src}: connection refused: {error}");
                return self.reject(conn, Refusal::Malformed);
            }
        };
        let route = Route {
            client: src.host(),
            server: dst.host(),
        };
        match self
            .services
            .directory
            .route(self.peers.transport, &request.paths_uuid)
        {
            Ok(shard) if shard == self.peers.shard => {
                self.decide(conn, &private_data, route, now);
            }
            Ok(shard) => self.hand_over(conn, private_data, route, shard),
            Err(refusal) => {
                log::warn!("{src}: connection refused: {refusal}");
                self.reject(conn, refusal);
            }
        }
    }

    fn hand_over(&mut self, conn: ConnId, private_data: PrivateData, route: Route, shard: usize) {
        let Ok(incoming) = self.fabric.detach(conn) else {
            return self.withdraw_request(&private_data);
        };
        let handover = Handover {
            incoming,
            private_data,
            route,
        };
        if let Err(Full(handover)) = self.peers.handovers[shard].send(handover) {
            log::error!("{}: core {shard} takes no connections", self.caps.trtype);
            self.refuse_handover(handover);
        }
    }

    fn refuse_handover(&mut self, handover: Handover<F>) {
        self.withdraw_request(&handover.private_data);
        if let Ok(conn) = self.fabric.adopt(handover.incoming) {
            self.reject(conn, Refusal::Resources);
        }
    }

    pub(super) fn handle_handover(&mut self, handover: Handover<F>, now: Nanos) {
        match self.fabric.adopt(handover.incoming) {
            Ok(conn) => self.decide(conn, &handover.private_data, handover.route, now),
            Err(error) => {
                log::warn!("{}: connection dropped: {error}", handover.route.client);
                self.forget_request(&handover.private_data);
            }
        }
    }

    fn decide(&mut self, conn: ConnId, private_data: &PrivateData, route: Route, now: Nanos) {
        let decision = self
            .sessions
            .handle_con_req(private_data.as_bytes(), route, now);
        if let Some(old) = decision.superseded {
            self.close_path(old, CloseCause::Superseded);
            self.remove_if_drained(old, now);
        }
        match decision.verdict {
            Ok(accepted) => self.accept(conn, accepted, route, now),
            Err(refusal) => {
                log::info!("{}: connection refused: {refusal}", route.client);
                self.reject(conn, refusal);
            }
        }
        self.forget_request(private_data);
    }

    /// Tells the directory that a routed request never reached the shard that decides. Whether the
    /// session exists is not known here: it is that shard's.
    fn withdraw_request(&self, private_data: &PrivateData) {
        if let Ok(request) = ConReq::decode(private_data.as_bytes()) {
            self.services.directory.withdrawn(&request.paths_uuid);
        }
    }

    /// Tells the directory that a routed request is decided.
    fn forget_request(&self, private_data: &PrivateData) {
        let Ok(request) = ConReq::decode(private_data.as_bytes()) else {
            return;
        };
        let ours = |uuid: [u8; 16]| uuid == request.paths_uuid;
        let live = self
            .sessions
            .iter()
            .any(|(_, session)| ours(session.paths_uuid()));
        self.services.directory.decided(&request.paths_uuid, live);
    }

    pub(super) fn reject(&mut self, conn: ConnId, refusal: Refusal) {
        let directory = &self.services.directory;
        directory.count_refusal(self.peers.transport, refusal);
        let rsp = private_data_of(ConRsp::Reject(refusal.errno()));
        self.fabric.reject(conn, &rsp);
    }

    // Accepting.

    fn accept(&mut self, conn: ConnId, accepted: Accepted, route: Route, now: Nanos) {
        let set_up = self
            .prepare_path(accepted, route)
            .and_then(|()| self.accept_con(conn, accepted));
        match set_up {
            Ok(()) => {
                self.timer_at = self
                    .timer_at
                    .min(self.sessions.next_deadline().unwrap_or(now));
            }
            Err(refusal) => self.fail_accept(conn, accepted, refusal, now),
        }
    }

    fn prepare_path(&mut self, accepted: Accepted, route: Route) -> Result<(), Refusal> {
        if !accepted.new_path {
            return Ok(());
        }
        let path = self.sessions.path(accepted.path).ok_or(Refusal::Conflict)?;
        let (session, cid_num) = (path.session(), path.cid_num());
        let name = path_name(route);
        let services = &self.services;
        let admission = Admission::of_path(&services.directory, route.client)?;
        let layout = PathLayout::new(&self.config.rtrs, &self.caps);
        let memory = PathMemory::new(&services.memory, &name, &layout).map_err(|error| {
            log::error!("connection refused: {error}");
            Refusal::Resources
        })?;
        let io = PathIo::new(accepted.path, session, name, cid_num, memory, admission);
        put(&mut self.paths, accepted.path.index as usize, io);
        Ok(())
    }

    /// The connection is up when the fabric has accepted it, and its first message may be in the
    /// next poll: so its receives are posted here.
    fn accept_con(&mut self, conn: ConnId, accepted: Accepted) -> Result<(), Refusal> {
        let io = self.path_io(accepted.path).ok_or(Refusal::Conflict)?;
        io.admission.add_connection()?;
        let limits = qp_limits(&self.config.rtrs);
        let path = self.sessions.path(accepted.path).ok_or(Refusal::Conflict)?;
        let rsp = private_data_of(ConRsp::Accept(path.parameters()));
        let domain = self.path_io(accepted.path).ok_or(Refusal::Conflict)?.domain;
        let domain = self
            .fabric
            .accept(conn, domain, limits, &rsp)
            .map_err(refused)?;
        let con = Con::new(conn, &self.config.rtrs);
        let entry = ConEntry {
            conn,
            path: accepted.path,
            cid: accepted.cid,
        };
        put(&mut self.cons, index_of(conn), entry);
        let io = self.path_io(accepted.path).ok_or(Refusal::Conflict)?;
        io.domain = Some(domain);
        io.add_con(accepted.cid, con);
        if accepted.cid == 0 {
            self.post_info_recv(conn, accepted)?;
        }
        self.fabric
            .post_empty_recvs(conn, recvs(&self.config.rtrs))
            .map_err(|_| Refusal::Conflict)
    }

    fn post_info_recv(&mut self, conn: ConnId, accepted: Accepted) -> Result<(), Refusal> {
        let io = self.path_io(accepted.path).ok_or(Refusal::Conflict)?;
        let (domain, messages) = (io.domain.ok_or(Refusal::Conflict)?, io.messages());
        let key = self
            .fabric
            .register(domain, messages, Access::Local)
            .map_err(refused)?;
        let io = self.path_io(accepted.path).ok_or(Refusal::Conflict)?;
        io.message_key = Some(key);
        let sge = io.info_req_sge();
        self.fabric
            .post_recv(conn, WrId::InfoReq.encode(), sge)
            .map_err(|_| Refusal::Conflict)
    }

    /// What was not accepted yet is rejected; what was goes down with its path.
    fn fail_accept(&mut self, conn: ConnId, accepted: Accepted, refusal: Refusal, now: Nanos) {
        if self.con_entry(conn).is_none() {
            log::warn!("connection refused: {refusal}");
            self.reject(conn, refusal);
            if let Some(path) = self.sessions.path_mut(accepted.path) {
                path.handle_con_closed(accepted.cid);
            }
        }
        self.close_path(
            accepted.path,
            CloseCause::Local("a connection could not be accepted"),
        );
        self.remove_if_drained(accepted.path, now);
    }
}

fn refused(error: FabricError) -> Refusal {
    log::error!("connection refused: {error}");
    Refusal::Resources
}

fn private_data_of(rsp: ConRsp) -> PrivateData {
    PrivateData::new(&rsp.to_bytes()).expect("56 bytes are fewer than 196")
}

/// As the kernel names a path.
pub(super) fn path_name(route: Route) -> String {
    format!("{}@{}", route.client.in_path(), route.server.in_path())
}

/// Puts a value where its index says.
pub(super) fn put<T>(table: &mut Vec<Option<T>>, index: usize, value: T) {
    if table.len() <= index {
        table.resize_with(index + 1, || None);
    }
    table[index] = Some(value);
}

impl<F: Fabric> fmt::Debug for Handover<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover")
            .field("incoming", &self.incoming)
            .finish_non_exhaustive()
    }
}
