//! What lies between the two ends of a connection.

use std::collections::VecDeque;
use std::net::IpAddr;

use fastrand::Rng;
use rnbd_base::Nanos;
use rnbd_mem::Span;

use super::net::FabricId;
use crate::types::{Addr, ConnId, PrivateData, RemoteAddr};

/// A connection as the network knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WireId(pub(super) u64);

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that connected.
    Client,
    /// The one that accepted.
    Server,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Server => 1,
        }
    }
}

/// Where an end of a wire is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The request has not arrived.
    Unassigned,
    /// In a fabric.
    At(FabricId, ConnId),
    /// Between two fabrics of one host.
    InTransit,
    /// It closed, and said so.
    Gone,
    /// It vanished without a word.
    Vanished,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) addrs: [Addr; 2],
    pub(super) ends: [End; 2],
    pub(super) directions: [Direction; 2],
    /// Nothing passes any more, and nobody is told.
    pub(super) dead: bool,
    pub(super) up: bool,
}

impl Wire {
    pub(super) fn new(src: Addr, dst: Addr, client: End) -> Self {
        Self {
            addrs: [src, dst],
            ends: [client, End::Unassigned],
            directions: [Direction::default(), Direction::default()],
            dead: false,
            up: false,
        }
    }

    pub(super) fn host(&self, side: Side) -> IpAddr {
        self.addr(side).ip()
    }

    pub(super) fn addr(&self, side: Side) -> Addr {
        self.addrs[side.index()]
    }

    pub(super) fn end(&self, side: Side) -> End {
        self.ends[side.index()]
    }

    pub(super) fn set_end(&mut self, side: Side, end: End) {
        self.ends[side.index()] = end;
    }

    /// What `from` sends.
    pub(super) fn direction(&mut self, from: Side) -> &mut Direction {
        &mut self.directions[from.index()]
    }

    /// Whether nobody will ever look at it again.
    pub(super) fn is_over(&self) -> bool {
        let left = |end: End| matches!(end, End::Gone | End::Vanished);
        let unborn =
            self.ends[1] == End::Unassigned && (self.dead || self.directions[0].queue.is_empty());
        left(self.ends[0]) && (left(self.ends[1]) || unborn)
    }
}

/// What one side of a connection has sent and the other has not taken.
#[derive(Debug, Default)]
pub(super) struct Direction {
    pub(super) queue: VecDeque<Message>,
    /// When the last message arrives; the next one cannot be earlier.
    pub(super) last_arrival: Nanos,
    /// Acknowledgements on their way back: when they arrive, and up to which operation.
    pub(super) acks: VecDeque<(Nanos, u64)>,
    /// Since when nothing gets through.
    pub(super) blocked_since: Option<Nanos>,
    /// How many of the next messages with bytes are changed on their way.
    pub(super) corrupted: u32,
    /// The receiver has no receives for what arrives.
    pub(super) starved: bool,
}

impl Direction {
    /// Copies the bytes of everything on its way: their owner may reuse them from now on.
    pub(super) fn capture(&mut self) {
        for message in &mut self.queue {
            if let Body::Op(op) = &mut message.body {
                op.payload.capture();
            }
        }
    }
}

/// Something on its way.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) arrives: Nanos,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Request(PrivateData),
    Accept(PrivateData),
    Reject(PrivateData),
    Refuse,
    Close,
    Op(OpMessage),
}

impl Body {
    pub(super) fn takes_receive(&self) -> bool {
        matches!(self, Self::Op(op) if op.op.takes_receive())
    }
}

/// An operation as the peer executes it.
#[derive(Debug)]
pub(super) struct OpMessage {
    /// Its number among the sender's; `None` if the sender did not send it.
    pub(super) seq: Option<u64>,
    pub(super) op: RemoteOp,
    pub(super) payload: Payload,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum RemoteOp {
    Write(RemoteAddr),
    WriteImm(RemoteAddr, u32),
    Send {
        imm: Option<u32>,
        invalidate: Option<u32>,
    },
}

impl RemoteOp {
    /// Where its bytes go, if not into a receive.
    pub(super) fn target(self) -> Option<RemoteAddr> {
        match self {
            Self::Write(remote) | Self::WriteImm(remote, _) => Some(remote),
            Self::Send { .. } => None,
        }
    }

    pub(super) fn takes_receive(self) -> bool {
        !matches!(self, Self::Write(_))
    }

    /// The immediate that comes with it.
    pub(super) fn imm(self) -> Option<u32> {
        match self {
            Self::Write(_) => None,
            Self::WriteImm(_, imm) => Some(imm),
            Self::Send { imm, .. } => imm,
        }
    }
}

/// Bytes on their way.
#[derive(Debug)]
pub(super) enum Payload {
    /// Still in the sender's memory.
    InPlace([Span; 2]),
    Copied(Vec<u8>),
}

impl Payload {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::InPlace(spans) => spans.iter().map(Span::len).sum(),
            Self::Copied(bytes) => bytes.len(),
        }
    }

    pub(super) fn capture(&mut self) {
        if let Self::InPlace(spans) = self {
            let bytes = spans.iter().flat_map(copy_of).collect();
            *self = Self::Copied(bytes);
        }
    }

    /// Changes a few bytes, mostly near the end, where headers are.
    pub(super) fn corrupt(&mut self, rng: &mut Rng) {
        const HEADER: usize = 64;
        self.capture();
        let Self::Copied(bytes) = self else {
            return;
        };
        let tail = bytes.len().saturating_sub(HEADER);
        let from = if rng.u8(..4) == 0 { 0 } else { tail };
        for _ in 0..rng.u8(1..=4) {
            let at = rng.usize(from..bytes.len());
            bytes[at] = rng.u8(..);
        }
    }

    /// Puts the bytes at the start of `to`, which has room for them.
    pub(super) fn copy_to(&self, to: Span) {
        match self {
            Self::InPlace([first, second]) => {
                to.copy_from(first);
                let rest = to.slice(first.len(), second.len());
                rest.expect("the room was checked").copy_from(second);
            }
            Self::Copied(bytes) => to.write_at(0, bytes),
        }
    }
}

fn copy_of(span: &Span) -> Vec<u8> {
    let mut bytes = vec![0; span.len()];
    span.read_at(0, &mut bytes);
    bytes
}
