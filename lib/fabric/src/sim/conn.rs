//! What one core of a host has: connections, domains, keys, listeners.

use std::collections::VecDeque;
use std::net::IpAddr;

use rnbd_base::Nanos;
use rnbd_mem::Span;

use super::keys::Keys;
use super::wire::{Side, WireId};
use crate::domains::Domains;
use crate::slab::Slab;
use crate::types::{
    Addr, Completion, CompletionKind, ConnId, DomainId, Event, FabricStats, ListenerId, QpLimits,
    WorkRequest,
};

/// ```text
///  connect ──> Connecting ── accepted ──> Up ──┐
///  request arrives ──> Requested ── accept ──> Up
///  any ── disconnect, peer, timeout, violation ──> Closed ── its event taken ──> (slot free)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Connecting,
    Requested,
    Up,
    /// Nothing but its completions and its last event is left.
    Closed,
}

/// A posted operation, and the key that an invalidation closes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Posted {
    pub(super) wr: WorkRequest,
    pub(super) shuts: Option<u32>,
}

/// An operation that was handed to the network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) seq: u64,
    pub(super) wr_id: u64,
    pub(super) signaled: bool,
    pub(super) cumulative: bool,
    /// Executed here, not at the peer.
    pub(super) local: bool,
    pub(super) bytes: usize,
    pub(super) done: bool,
}

/// A completion that waits for its time and for a poll.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) ready_at: Nanos,
    pub(super) completion: Completion,
    /// How many send slots are free again once it was polled.
    pub(super) releases: u32,
    /// A later one may take its place.
    pub(super) cumulative: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Receive {
    pub(super) wr_id: u64,
    pub(super) span: Span,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) wire: WireId,
    pub(super) side: Side,
    pub(super) state: State,
    pub(super) domain: Option<DomainId>,
    pub(super) limits: QpLimits,
    /// Posted and not flushed.
    pub(super) unflushed: VecDeque<Posted>,
    /// Flushed, waiting for room on the wire.
    pub(super) waiting: VecDeque<Posted>,
    pub(super) sent: VecDeque<Sent>,
    pub(super) next_seq: u64,
    pub(super) in_flight_bytes: usize,
    /// Send slots taken.
    pub(super) outstanding: u32,
    /// Executed since the last signalled one.
    unsignaled: u32,
    pub(super) receives: VecDeque<Receive>,
    pub(super) done: VecDeque<Done>,
}

impl Conn {
    pub(super) fn new(
        wire: WireId,
        side: Side,
        domain: Option<DomainId>,
        limits: QpLimits,
    ) -> Self {
        let state = match side {
            Side::Client => State::Connecting,
            Side::Server => State::Requested,
        };
        Self {
            wire,
            side,
            state,
            domain,
            limits,
            unflushed: VecDeque::new(),
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            next_seq: 0,
            in_flight_bytes: 0,
            outstanding: 0,
            unsignaled: 0,
            receives: VecDeque::new(),
            done: VecDeque::new(),
        }
    }

    /// The next operation that may go onto the wire, on which at most `bytes_max` may be.
    pub(super) fn take_sendable(&mut self, bytes_max: usize) -> Option<Posted> {
        let bytes = self.waiting.front()?.wr.bytes();
        let is_full = self.in_flight_bytes + bytes > bytes_max;
        if is_full && self.in_flight_bytes > 0 {
            return None;
        }
        self.waiting.pop_front()
    }

    /// Notes that an operation is on its way; returns its number.
    pub(super) fn note_sent(&mut self, wr: &WorkRequest, local: bool) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        let bytes = wr.bytes();
        self.in_flight_bytes += bytes;
        self.sent.push_back(Sent {
            seq,
            wr_id: wr.wr_id,
            signaled: wr.signaled || local,
            cumulative: wr.cumulative,
            local,
            bytes,
            done: false,
        });
        seq
    }

    /// The peer has executed everything up to `seq`.
    pub(super) fn note_acked(&mut self, seq: u64) {
        for sent in &mut self.sent {
            sent.done |= !sent.local && sent.seq <= seq;
        }
    }

    /// A local operation has taken effect.
    pub(super) fn note_executed(&mut self, seq: u64) {
        for sent in &mut self.sent {
            sent.done |= sent.seq == seq;
        }
    }

    /// The oldest signalled operation that is done, with all before it, and the slots it frees.
    pub(super) fn take_completed(&mut self) -> Option<(Sent, u32)> {
        while self.sent.front()?.done {
            let sent = self.sent.pop_front()?;
            self.in_flight_bytes -= sent.bytes;
            self.unsignaled += 1;
            if sent.signaled {
                return Some((sent, std::mem::take(&mut self.unsignaled)));
            }
        }
        None
    }

    /// Queues a completion that shows at `ready_at`, or after those before it.
    pub(super) fn complete(
        &mut self,
        id: ConnId,
        (wr_id, kind): (u64, CompletionKind),
        ready_at: Nanos,
        releases: u32,
    ) -> Nanos {
        let after = self.done.back().map_or(Nanos::ZERO, |done| done.ready_at);
        let ready_at = ready_at.max(after);
        let completion = Completion {
            conn: id,
            wr_id,
            kind,
        };
        self.done.push_back(Done {
            ready_at,
            completion,
            releases,
            cumulative: false,
        });
        ready_at
    }

    /// As [`Conn::complete`], of an operation that was sent; with `merges` in place of a cumulative
    /// completion right before it.
    pub(super) fn complete_sent(
        &mut self,
        id: ConnId,
        sent: &Sent,
        show_at: Nanos,
        mut releases: u32,
        merges: bool,
    ) -> Nanos {
        let before = self.done.back();
        let merges = merges && sent.cumulative && before.is_some_and(|done| done.cumulative);
        if let Some(before) = merges.then(|| self.done.pop_back()).flatten() {
            releases += before.releases;
        }
        let what = (sent.wr_id, CompletionKind::Sent);
        let ready_at = self.complete(id, what, show_at, releases);
        if let Some(done) = self.done.back_mut() {
            done.cumulative = sent.cumulative;
        }
        ready_at
    }

    /// Takes the oldest completion if its time has come.
    pub(super) fn take_ready(&mut self, now: Nanos) -> Option<Completion> {
        self.done.front().filter(|done| done.ready_at <= now)?;
        let done = self.done.pop_front()?;
        self.outstanding -= done.releases;
        Some(done.completion)
    }

    /// Forgets all work.
    pub(super) fn abandon(&mut self) {
        self.state = State::Closed;
        self.unflushed.clear();
        self.waiting.clear();
        self.sent.clear();
        self.receives.clear();
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Listener {
    pub(super) addr: Addr,
    pub(super) backlog: u32,
}

/// Most of anything that a fabric has. No simulation comes near.
const LIMIT: u32 = 1 << 20;

/// Adds an entry to a table.
pub(super) fn put<T>(table: &mut Slab<T>, value: T) -> (u32, u32) {
    let put = table.insert(|_, _| value);
    put.expect("no simulation comes near the limit")
}

/// An empty table.
pub(super) fn table<T>() -> Slab<T> {
    Slab::new(LIMIT)
}

/// One fabric.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) host: IpAddr,
    pub(super) conns: Slab<Conn>,
    pub(super) domains: Domains,
    pub(super) keys: Keys,
    pub(super) listeners: Slab<Listener>,
    pub(super) events: VecDeque<Event>,
    pub(super) stats: FabricStats,
}

impl Core {
    pub(super) fn new(host: IpAddr) -> Self {
        Self {
            host,
            conns: table(),
            domains: Domains::new(LIMIT),
            keys: Keys::new(),
            listeners: table(),
            events: VecDeque::new(),
            stats: FabricStats::default(),
        }
    }

    pub(super) fn insert(&mut self, conn: Conn) -> ConnId {
        let (index, generation) = put(&mut self.conns, conn);
        ConnId { index, generation }
    }

    pub(super) fn conn(&self, id: ConnId) -> Option<&Conn> {
        self.conns.get(id.index, id.generation)
    }

    pub(super) fn conn_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(id.index, id.generation)
    }

    /// The connection, if it is in this state.
    pub(super) fn conn_in(&mut self, id: ConnId, state: State) -> Option<&mut Conn> {
        self.conn_mut(id).filter(|conn| conn.state == state)
    }

    pub(super) fn conn_ids(&self) -> Vec<ConnId> {
        self.conns().map(|(id, _)| id).collect()
    }

    pub(super) fn conns(&self) -> impl Iterator<Item = (ConnId, &Conn)> {
        let named = |((index, generation), conn)| (ConnId { index, generation }, conn);
        self.conns.iter().map(named)
    }

    pub(super) fn listener_at(&self, addr: Addr) -> Option<(ListenerId, Listener)> {
        self.listeners
            .iter()
            .find(|(_, listener)| listener.addr == addr)
            .map(|((index, generation), listener)| (ListenerId { index, generation }, *listener))
    }

    /// Requests that were neither answered nor handed over.
    pub(super) fn requests(&self) -> usize {
        let waits = |conn: &Conn| conn.state == State::Requested;
        self.conns.iter().filter(|(_, conn)| waits(conn)).count()
    }

    /// The next event. The last one of a connection waits for its completions.
    pub(super) fn take_event(&mut self) -> Option<Event> {
        if let Event::Closed { conn, .. } = *self.events.front()? {
            if self.conn(conn).is_some_and(|conn| !conn.done.is_empty()) {
                return None;
            }
            self.conns.remove(conn.index, conn.generation);
        }
        self.events.pop_front()
    }

    /// Whether a poll would find something to do now.
    pub(super) fn has_work(&self, now: Nanos) -> bool {
        let ready = |conn: &Conn| {
            !conn.unflushed.is_empty() || conn.done.front().is_some_and(|done| done.ready_at <= now)
        };
        !self.events.is_empty() || self.conns.iter().any(|(_, conn)| ready(conn))
    }
}
