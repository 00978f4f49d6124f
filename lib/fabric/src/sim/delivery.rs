//! Messages and acknowledgements at the end of their way.

use super::conn::{Conn, Core, State};
use super::net::{FabricId, Net, Timer};
use super::sight::Seen;
use super::wire::{Body, End, Message, OpMessage, RemoteOp, Side, WireId};
use crate::types::{CloseReason, CompletionKind, ConnId, DomainId, Event, PrivateData};

/// What became of a message.
enum Outcome {
    Taken,
    /// It has to wait for something that this end does.
    Stalled,
    Violation(&'static str),
}

impl Net {
    /// Hands over what has arrived of what `from` sent.
    pub(super) fn deliver(&mut self, id: WireId, from: Side) {
        while let Some(wire) = self.wires.get(&id) {
            let passes = self.passes(wire, from);
            let now = self.now;
            let Some(wire) = self.wires.get_mut(&id) else {
                return;
            };
            let direction = wire.direction(from);
            if direction.queue.front().is_none_or(|m| m.arrives > now) {
                return;
            }
            if !passes {
                self.note_blocked(id, from);
                return;
            }
            direction.blocked_since = None;
            let is_starved = direction.starved;
            let Some(message) = direction.queue.pop_front() else {
                return;
            };
            let must_wait = is_starved && message.body.takes_receive();
            if (must_wait || !self.receive(id, from, &message.body))
                && !self.stall(id, from, message)
            {
                return;
            }
            self.drop_if_over(id);
        }
    }

    /// Puts back what has to wait. A peer that has closed does not wait for receives, so the
    /// operations before the news of it are lost; `true` if there is such news.
    fn stall(&mut self, id: WireId, from: Side, message: Message) -> bool {
        let now = self.now;
        let Some(wire) = self.wires.get_mut(&id) else {
            return false;
        };
        let is_assigned = matches!(wire.end(from.other()), End::At(..));
        let queue = &mut wire.direction(from).queue;
        let is_close = |m: &Message| matches!(m.body, Body::Close) && m.arrives <= now;
        match queue.iter().position(is_close) {
            Some(at) if is_assigned => {
                queue.drain(..at);
                true
            }
            _ => {
                queue.push_front(message);
                false
            }
        }
    }

    fn note_blocked(&mut self, id: WireId, from: Side) {
        let (now, patience) = (self.now, self.plan.retry_timeout);
        if let Some(wire) = self.wires.get_mut(&id) {
            let direction = wire.direction(from);
            if direction.blocked_since.is_none() {
                direction.blocked_since = Some(now);
                self.after(patience, Timer::Retry(id, from));
            }
        }
    }

    /// Takes one message; `false` if it has to wait.
    fn receive(&mut self, id: WireId, from: Side, body: &Body) -> bool {
        let to = from.other();
        let Some(wire) = self.wires.get_mut(&id) else {
            return true;
        };
        match wire.end(to) {
            End::At(fabric, conn) => self.receive_at(id, (fabric, conn), body),
            End::Unassigned => {
                if let Body::Request(data) = body {
                    self.on_request(id, data);
                }
                true
            }
            End::InTransit => false,
            End::Gone => true,
            End::Vanished => {
                wire.set_end(to, End::Gone);
                self.send(id, to, Body::Close);
                true
            }
        }
    }

    fn receive_at(&mut self, id: WireId, at: (FabricId, ConnId), body: &Body) -> bool {
        let reason = match body {
            Body::Op(op) => return self.receive_op(id, at, op),
            Body::Accept(data) => {
                self.on_accepted(at, *data);
                return true;
            }
            Body::Request(_) => return true,
            Body::Reject(data) => CloseReason::Rejected(*data),
            Body::Refuse => CloseReason::Refused,
            Body::Close => CloseReason::PeerClosed,
        };
        self.close(at.0, at.1, reason);
        true
    }

    fn on_accepted(&mut self, (fabric, id): (FabricId, ConnId), private_data: PrivateData) {
        let Some(core) = self.cores.get_mut(&fabric) else {
            return;
        };
        let Some(conn) = core.conn_in(id, State::Connecting) else {
            return;
        };
        conn.state = State::Up;
        let (wire, joined) = (conn.wire, conn.domain);
        let domain = joined.or_else(|| core.domains.join(None).ok());
        let (Some(domain), Some(wire)) = (domain, self.wires.get_mut(&wire)) else {
            return;
        };
        if let Some(conn) = core.conn_mut(id) {
            conn.domain = Some(domain);
        }
        wire.up = true;
        core.events.push_back(Event::Connected {
            conn: id,
            domain,
            private_data,
            src: wire.addr(Side::Client),
        });
    }

    fn receive_op(
        &mut self,
        wire: WireId,
        (fabric, id): (FabricId, ConnId),
        op: &OpMessage,
    ) -> bool {
        let show_at = self.now + self.completion_delay();
        let Some(core) = self.cores.get_mut(&fabric) else {
            return true;
        };
        match core.execute(id, op) {
            (Outcome::Taken, completion) => {
                let from = core.conn(id).map(|conn| conn.side.other());
                if let (Some(what), Some(conn)) = (completion, core.conn_mut(id)) {
                    let ready_at = conn.complete(id, what, show_at, 0);
                    self.at(ready_at, Timer::Show);
                }
                if let (Some(_), Some(from), Some(imm)) = (op.seq, from, op.op.imm()) {
                    self.note(wire, Seen::Taken { from, imm });
                }
                self.send_ack(wire, fabric, id, op.seq);
                true
            }
            (Outcome::Stalled, _) => false,
            (Outcome::Violation(what), _) => {
                core.stats.violations += 1;
                self.close(fabric, id, CloseReason::Violation(what));
                true
            }
        }
    }

    fn send_ack(&mut self, wire: WireId, fabric: FabricId, id: ConnId, seq: Option<u64>) {
        let side = self.conn_mut(fabric, id).map(|conn| conn.side.other());
        let arrival = self.now + self.latency_from(wire, side.map_or(Side::Client, Side::other));
        let (Some(seq), Some(to)) = (seq, side) else {
            return;
        };
        if let Some(entry) = self.wires.get_mut(&wire) {
            let acks = &mut entry.direction(to).acks;
            let arrives = acks.back().map_or(arrival, |last| last.0.max(arrival));
            acks.push_back((arrives, seq));
            self.at(arrives, Timer::Acknowledge(wire, to));
        }
    }

    /// Hands over what has arrived of the acknowledgements to `to`.
    pub(super) fn acknowledge(&mut self, id: WireId, to: Side) {
        let Some(wire) = self.wires.get(&id) else {
            return;
        };
        let passes = self.passes(wire, to.other());
        let (now, end) = (self.now, wire.end(to));
        let Some(wire) = self.wires.get_mut(&id) else {
            return;
        };
        let direction = wire.direction(to);
        if direction.acks.front().is_none_or(|ack| ack.0 > now) {
            return;
        }
        if !passes {
            self.note_blocked(id, to);
            return;
        }
        direction.blocked_since = None;
        let due = direction.acks.iter().filter(|ack| ack.0 <= now).count();
        let last = direction.acks.drain(..due).next_back();
        if let (End::At(fabric, conn), Some((_, seq))) = (end, last) {
            if let Some(conn) = self.conn_mut(fabric, conn) {
                conn.note_acked(seq);
            }
            self.complete_sent(fabric, conn);
        }
    }

    pub(super) fn on_invalidated(
        &mut self,
        fabric: FabricId,
        conn: ConnId,
        seq: u64,
        rkey: Option<u32>,
    ) {
        let Some(core) = self.cores.get_mut(&fabric) else {
            return;
        };
        if let Some(rkey) = rkey {
            core.keys.invalidate(rkey);
        }
        if let Some(conn) = core.conn_mut(conn) {
            conn.note_executed(seq);
        }
        self.complete_sent(fabric, conn);
    }

    /// Completes what is done, and uses the room for what waits.
    fn complete_sent(&mut self, fabric: FabricId, id: ConnId) {
        let show_at = self.now + self.completion_delay();
        let merges = self.plan.device.merges_completions;
        let Some(conn) = self.conn_mut(fabric, id) else {
            return;
        };
        let mut latest = None;
        while let Some((sent, releases)) = conn.take_completed() {
            latest = Some(conn.complete_sent(id, &sent, show_at, releases, merges));
        }
        if let Some(ready_at) = latest {
            self.at(ready_at, Timer::Show);
        }
        self.transmit(fabric, id);
    }

    pub(super) fn on_retry_timeout(&mut self, id: WireId, from: Side) {
        let (now, patience) = (self.now, self.plan.retry_timeout);
        let Some(wire) = self.wires.get_mut(&id) else {
            return;
        };
        let end = wire.end(from);
        match (wire.direction(from).blocked_since, end) {
            (Some(since), End::At(fabric, conn)) if since + patience <= now => {
                self.close(fabric, conn, CloseReason::Failed("no acknowledgement"));
            }
            _ => (),
        }
    }

    pub(super) fn drop_if_over(&mut self, id: WireId) {
        if self.wires.get(&id).is_some_and(super::wire::Wire::is_over) {
            self.wires.remove(&id);
        }
    }
}

type What = (u64, CompletionKind);

impl Core {
    /// Executes an operation of the peer; says what completes here.
    fn execute(&mut self, id: ConnId, op: &OpMessage) -> (Outcome, Option<What>) {
        let Some((domain, room)) = self.ready_for(id, op) else {
            return (Outcome::Stalled, None);
        };
        if let Err(what) = self.place(id, domain, room, op) {
            return (Outcome::Violation(what), None);
        }
        let completion = self.conn_mut(id).and_then(|conn| conn.completion_of(op));
        (Outcome::Taken, completion)
    }

    /// The domain of the connection and the receive that the operation will take, if it can be
    /// executed now.
    fn ready_for(
        &mut self,
        id: ConnId,
        op: &OpMessage,
    ) -> Option<(DomainId, Option<rnbd_mem::Span>)> {
        let conn = self.conn_in(id, State::Up)?;
        let room = conn.receives.front().map(|receive| receive.span);
        if op.op.takes_receive() && room.is_none() {
            return None;
        }
        Some((conn.domain?, room))
    }

    fn place(
        &mut self,
        id: ConnId,
        domain: DomainId,
        room: Option<rnbd_mem::Span>,
        op: &OpMessage,
    ) -> Result<(), &'static str> {
        let len = op.payload.len();
        let to = match op.op.target() {
            _ if len == 0 => None,
            Some(remote) => Some(self.keys.find((id, domain), remote, len)?),
            None => Some(
                room.filter(|span| span.len() >= len)
                    .ok_or("a send longer than the receive")?,
            ),
        };
        if let Some(to) = to {
            op.payload.copy_to(to);
        }
        if let RemoteOp::Send {
            invalidate: Some(rkey),
            ..
        } = op.op
        {
            self.keys.invalidate_by_peer(id, rkey)?;
        }
        Ok(())
    }
}

impl Conn {
    /// Takes the receive that the operation needs, and makes its completion.
    fn completion_of(&mut self, op: &OpMessage) -> Option<What> {
        if !op.op.takes_receive() {
            return None;
        }
        let receive = self.receives.pop_front()?;
        let kind = match op.op {
            RemoteOp::Write(_) => return None,
            RemoteOp::WriteImm(_, imm) => CompletionKind::WriteImm(imm),
            RemoteOp::Send { imm, invalidate } => CompletionKind::Recv {
                bytes: u32::try_from(op.payload.len()).unwrap_or(u32::MAX),
                imm,
                invalidated: invalidate,
            },
        };
        Some((receive.wr_id, kind))
    }
}
