//! How connections begin and end.

use rnbd_base::Nanos;

use super::conn::{Conn, State};
use super::net::{FabricId, Net, Timer};
use super::sight::Seen;
use super::wire::{Body, End, Side, Wire, WireId};
use crate::types::{
    Addr, CloseReason, ConnId, ConnectParams, DomainId, Event, FabricError, PrivateData, QpLimits,
};

const ANY: QpLimits = QpLimits {
    send_wrs: u32::MAX,
    recv_wrs: u32::MAX,
};

impl Net {
    pub(super) fn connect(
        &mut self,
        fabric: FabricId,
        params: &ConnectParams,
    ) -> Result<ConnId, FabricError> {
        for addr in [Some(params.dst), params.src].into_iter().flatten() {
            addr.socket_addr()?;
        }
        let id = WireId(self.next_id());
        let port = u16::try_from(32_768 + id.0 % 28_000).unwrap_or_default();
        let core = self
            .cores
            .get_mut(&fabric)
            .ok_or(FabricError::Stale("fabric"))?;
        let domain = params.domain.map(|domain| core.domains.join(Some(domain)));
        let conn = Conn::new(id, Side::Client, domain.transpose()?, params.limits);
        let conn = core.insert(conn);
        let host = core.host;
        let src = params.src.unwrap_or(Addr::Ip((host, port).into()));
        let wire = Wire::new(src, params.dst, End::At(fabric, conn));
        self.wires.insert(id, wire);
        let is_local = self.owner(src.ip()) == host && self.is_reachable(src.ip());
        if is_local && self.hosts.contains_key(&params.dst.ip()) {
            self.request(id, params);
        } else {
            self.close(fabric, conn, CloseReason::Unreachable);
        }
        Ok(conn)
    }

    fn request(&mut self, id: WireId, params: &ConnectParams) {
        self.after(Nanos(params.timeout_ns), Timer::ConnectTimeout(id));
        self.note(id, Seen::Requested(params.private_data));
        if self.plan.connect_loss.strikes(&mut self.rng) {
            self.drop_silently(id);
        } else if self.plan.connect_reject.strikes(&mut self.rng) {
            self.set_end(id, Side::Server, End::Gone);
            self.send(id, Side::Server, Body::Reject(PrivateData::EMPTY));
        } else {
            self.send(id, Side::Client, Body::Request(params.private_data));
        }
    }

    /// A request arrives at the host that it is for.
    pub(super) fn on_request(&mut self, id: WireId, private_data: &PrivateData) {
        let Some(wire) = self.wires.get(&id) else {
            return;
        };
        let (src, dst) = (wire.addr(Side::Client), wire.addr(Side::Server));
        let found = self
            .cores
            .iter_mut()
            .find_map(|(fabric, core)| Some((*fabric, core.listener_at(dst)?, core)));
        let Some((fabric, (listener, options), core)) = found else {
            return self.refuse(id);
        };
        if core.requests() >= options.backlog as usize {
            return self.refuse(id);
        }
        let conn = core.insert(Conn::new(id, Side::Server, None, ANY));
        core.events.push_back(Event::ConnectRequest {
            listener,
            conn,
            private_data: *private_data,
            src,
            dst,
        });
        self.set_end(id, Side::Server, End::At(fabric, conn));
        let patience = self.plan.answer_timeout;
        self.after(patience, Timer::AnswerTimeout(id));
    }

    fn refuse(&mut self, id: WireId) {
        self.set_end(id, Side::Server, End::Gone);
        self.send(id, Side::Server, Body::Refuse);
    }

    pub(super) fn accept(
        &mut self,
        fabric: FabricId,
        id: ConnId,
        domain: Option<DomainId>,
        limits: QpLimits,
        private_data: &PrivateData,
    ) -> Result<DomainId, FabricError> {
        let stale = FabricError::Stale("connection request");
        let core = self
            .cores
            .get_mut(&fabric)
            .ok_or(FabricError::Stale("fabric"))?;
        if core.conn_in(id, State::Requested).is_none() {
            return Err(stale);
        }
        let domain = core.domains.join(domain)?;
        let conn = core.conn_in(id, State::Requested).ok_or(stale)?;
        conn.state = State::Up;
        conn.domain = Some(domain);
        conn.limits = limits;
        let wire = conn.wire;
        self.send(wire, Side::Server, Body::Accept(*private_data));
        self.after(Nanos::ZERO, Timer::Deliver(wire, Side::Client));
        Ok(domain)
    }

    pub(super) fn reject(&mut self, fabric: FabricId, id: ConnId, private_data: &PrivateData) {
        let request = self
            .cores
            .get_mut(&fabric)
            .and_then(|core| core.conn_in(id, State::Requested));
        if let Some(conn) = request {
            let wire = conn.wire;
            self.send(wire, Side::Server, Body::Reject(*private_data));
            self.close(fabric, id, CloseReason::Local);
        }
    }

    pub(super) fn detach(&mut self, fabric: FabricId, id: ConnId) -> Result<WireId, FabricError> {
        let stale = FabricError::Stale("connection request");
        let Some(core) = self.cores.get_mut(&fabric) else {
            return Err(stale);
        };
        let wire = core.conn_in(id, State::Requested).ok_or(stale)?.wire;
        core.conns.remove(id.index, id.generation);
        self.set_end(wire, Side::Server, End::InTransit);
        Ok(wire)
    }

    pub(super) fn adopt(&mut self, fabric: FabricId, id: WireId) -> Result<ConnId, FabricError> {
        let stale = FabricError::Stale("connection request");
        let to = self.wires.get(&id).map(|wire| wire.host(Side::Server));
        let to = to.map(|ip| self.owner(ip));
        let (Some(core), Some(wire)) = (self.cores.get_mut(&fabric), self.wires.get_mut(&id))
        else {
            return Err(stale);
        };
        let is_here = to == Some(core.host);
        if wire.end(Side::Server) != End::InTransit || !is_here {
            return Err(stale);
        }
        let conn = core.insert(Conn::new(id, Side::Server, None, ANY));
        wire.set_end(Side::Server, End::At(fabric, conn));
        self.after(Nanos::ZERO, Timer::Deliver(id, Side::Client));
        Ok(conn)
    }

    /// A request that was taken out of a fabric is dropped before it came into another.
    pub(super) fn abandon(&mut self, id: WireId) {
        let wire = self.wires.get(&id);
        if wire.is_some_and(|wire| wire.end(Side::Server) == End::InTransit) {
            self.set_end(id, Side::Server, End::Gone);
            self.send(id, Side::Server, Body::Close);
        }
    }

    pub(super) fn on_connect_timeout(&mut self, id: WireId) {
        let wire = self.wires.get(&id);
        if let Some(End::At(fabric, conn)) = wire.map(|wire| wire.end(Side::Client))
            && let Some(entry) = self.conn_mut(fabric, conn)
            && entry.state == State::Connecting
        {
            self.close(fabric, conn, CloseReason::TimedOut);
        }
    }

    pub(super) fn on_answer_timeout(&mut self, id: WireId) {
        self.abandon(id);
        let wire = self.wires.get(&id);
        if let Some(End::At(fabric, conn)) = wire.map(|wire| wire.end(Side::Server))
            && let Some(entry) = self.conn_mut(fabric, conn)
            && entry.state == State::Requested
        {
            self.close(fabric, conn, CloseReason::TimedOut);
        }
    }

    /// Ends a connection on this side and tells the other.
    pub(super) fn close(&mut self, fabric: FabricId, id: ConnId, reason: CloseReason) {
        let Some(core) = self.cores.get_mut(&fabric) else {
            return;
        };
        let Some(conn) = core.conn_mut(id).filter(|conn| conn.state != State::Closed) else {
            return;
        };
        conn.abandon();
        if reason == CloseReason::Local {
            conn.done.clear();
        }
        let (wire, side, domain) = (conn.wire, conn.side, conn.domain);
        core.keys.conn_closed(id);
        if let Some(domain) = domain {
            core.domains.leave(domain);
        }
        core.events.push_back(Event::Closed { conn: id, reason });
        self.note(wire, Seen::Closed(side));
        self.capture(wire, side);
        self.set_end(wire, side, End::Gone);
        self.send(wire, side, Body::Close);
        self.drop_if_over(wire);
    }

    /// What `from` sent lives on without its sender; some of it dies.
    pub(super) fn capture(&mut self, id: WireId, from: Side) {
        let Some(wire) = self.wires.get_mut(&id) else {
            return;
        };
        let direction = wire.direction(from);
        direction.capture();
        if self.plan.loss_at_close.strikes(&mut self.rng) {
            let kept = self.rng.usize(..=direction.queue.len());
            direction.queue.truncate(kept);
        }
    }

    pub(super) fn set_end(&mut self, id: WireId, side: Side, end: End) {
        if let Some(wire) = self.wires.get_mut(&id) {
            wire.set_end(side, end);
        }
    }

    /// Nothing passes on the wire any more, and nobody is told.
    pub(super) fn drop_silently(&mut self, id: WireId) {
        if let Some(wire) = self.wires.get_mut(&id) {
            wire.dead = true;
        }
    }

    /// Both ends learn that the connection broke.
    pub(super) fn reset(&mut self, id: WireId) {
        for side in [Side::Client, Side::Server] {
            let end = self.wires.get(&id).map(|wire| wire.end(side));
            if let Some(End::At(fabric, conn)) = end {
                self.close(fabric, conn, CloseReason::Failed("reset by the network"));
            }
        }
    }
}
