//! Work on its way from the caller to the wire.

use super::conn::{Posted, Receive, State};
use super::net::{FabricId, Net, Timer};
use super::sight::Seen;
use super::wire::{Body, OpMessage, Payload, RemoteOp, Side, WireId};
use crate::types::{CloseReason, ConnId, PostError, Sge, WorkRequest, WrOp};

impl Net {
    pub(super) fn post(
        &mut self,
        fabric: FabricId,
        id: ConnId,
        wr: &WorkRequest,
    ) -> Result<(), PostError> {
        let core = self.cores.get_mut(&fabric).ok_or(PostError::NotConnected)?;
        let shuts = match wr.op {
            WrOp::Invalidate(window) => core.keys.key_of(window),
            _ => Ok(None),
        };
        let conn = core.conn_in(id, State::Up).ok_or(PostError::NotConnected)?;
        if conn.outstanding >= conn.limits.send_wrs {
            return Err(PostError::OverLimit);
        }
        conn.unflushed.push_back(Posted {
            wr: *wr,
            shuts: shuts?,
        });
        conn.outstanding += 1;
        core.stats.send_wrs += 1;
        self.check_local(fabric, id, &wr.sges);
        Ok(())
    }

    pub(super) fn post_recv(
        &mut self,
        fabric: FabricId,
        id: ConnId,
        wr_id: u64,
        buf: Option<Sge>,
    ) -> Result<(), PostError> {
        let sge = buf.unwrap_or(Sge::EMPTY);
        let core = self.cores.get_mut(&fabric).ok_or(PostError::NotConnected)?;
        let conn = core
            .conn_mut(id)
            .filter(|conn| conn.state != State::Closed)
            .ok_or(PostError::NotConnected)?;
        if conn.receives.len() >= conn.limits.recv_wrs as usize {
            return Err(PostError::OverLimit);
        }
        let span = sge.span;
        conn.receives.push_back(Receive { wr_id, span });
        let (wire, peer) = (conn.wire, conn.side.other());
        core.stats.recv_wrs += 1;
        let latency = self.latency();
        self.after(latency, Timer::Deliver(wire, peer));
        self.check_local(fabric, id, &[sge]);
        Ok(())
    }

    /// Local bytes without their key break the connection, as the hardware would.
    fn check_local(&mut self, fabric: FabricId, id: ConnId, sges: &[Sge]) {
        if !self.plan.device.local_keys {
            return;
        }
        let Some(core) = self.cores.get(&fabric) else {
            return;
        };
        let domain = core.conn(id).and_then(|conn| conn.domain);
        let is_covered = |sge: &Sge| domain.is_some_and(|domain| core.keys.may_use(domain, sge));
        if sges
            .iter()
            .any(|sge| !sge.span.is_empty() && !is_covered(sge))
        {
            let reason = CloseReason::Failed("local bytes without their key");
            self.close(fabric, id, reason);
        }
    }

    /// Hands everything posted on the fabric to the network.
    pub(super) fn flush(&mut self, fabric: FabricId) {
        let Some(core) = self.cores.get_mut(&fabric) else {
            return;
        };
        for id in core.conn_ids() {
            let conn = self.conn_mut(fabric, id);
            let Some(conn) = conn.filter(|conn| !conn.unflushed.is_empty()) else {
                continue;
            };
            conn.waiting.append(&mut conn.unflushed);
            if let Some(core) = self.cores.get_mut(&fabric) {
                core.stats.send_doorbells += 1;
            }
            self.transmit(fabric, id);
        }
    }

    /// Puts onto the wire what fits.
    pub(super) fn transmit(&mut self, fabric: FabricId, id: ConnId) {
        let bytes_max = self.plan.in_flight_bytes_max;
        while let Some(conn) = self.conn_mut(fabric, id)
            && let Some(posted) = conn.take_sendable(bytes_max)
        {
            let (wire, side) = (conn.wire, conn.side);
            let Some(op) = remote_op(posted.wr.op) else {
                let seq = conn.note_sent(&posted.wr, true);
                let delay = self.completion_delay();
                self.after(delay, Timer::Invalidate(fabric, id, seq, posted.shuts));
                continue;
            };
            let mut message = OpMessage {
                seq: Some(conn.note_sent(&posted.wr, false)),
                op,
                payload: Payload::InPlace(posted.wr.sges.map(|sge| sge.span)),
            };
            if let Some(imm) = op.imm() {
                self.note(wire, Seen::Sent { from: side, imm });
            }
            self.corrupt(wire, side, &mut message.payload);
            self.send(wire, side, Body::Op(message));
            self.strike(wire);
        }
    }

    /// Changes the bytes, if that was asked for.
    fn corrupt(&mut self, wire: WireId, from: Side, payload: &mut Payload) {
        let wire = self.wires.get_mut(&wire);
        if let Some(direction) = wire.map(|wire| wire.direction(from))
            && direction.corrupted > 0
            && payload.len() > 0
        {
            direction.corrupted -= 1;
            payload.corrupt(&mut self.rng);
        }
    }

    /// Lets the faults that come with messages happen.
    fn strike(&mut self, wire: WireId) {
        if self.plan.silent_drop.strikes(&mut self.rng) {
            self.drop_silently(wire);
        }
        if self.plan.reset.strikes(&mut self.rng) {
            self.reset(wire);
        }
    }
}

/// What the peer executes; `None` for what is local.
fn remote_op(op: WrOp) -> Option<RemoteOp> {
    let send = |imm, invalidate| RemoteOp::Send { imm, invalidate };
    match op {
        WrOp::Write(remote) => Some(RemoteOp::Write(remote)),
        WrOp::WriteImm(remote, imm) => Some(RemoteOp::WriteImm(remote, imm)),
        WrOp::Send => Some(send(None, None)),
        WrOp::SendImm(imm) => Some(send(Some(imm), None)),
        WrOp::SendInv(rkey) => Some(send(None, Some(rkey))),
        WrOp::Invalidate(_) => None,
    }
}
