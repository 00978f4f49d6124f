use rnbd_base::Nanos;
use rnbd_fabric::{Addr, CloseReason, ConnId, DomainId, ListenerId, PrivateData, QpLimits};

use crate::devices::DeviceId;
use crate::recv_queue::RecvQueue;
use crate::send_queue::SendQueue;
use crate::sys::{CmId, Qp};

/// Where a connection is in its life; the diagram is in `handshake`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The connection manager looks for the device and the way.
    Resolving,
    /// It looks for the route.
    Routing,
    /// The peer is asked.
    Asking,
    /// The application is asked.
    Requested,
    /// We said yes and the peer has not confirmed that it knows: what is posted waits, since the
    /// peer's device would drop it and ours send it again only after a long time.
    Accepted,
    /// Work flows.
    Up,
}

/// A connection in whatever state.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) state: State,
    /// Gone first: the device is told to stop before the connection manager forgets.
    pub(crate) link: Option<Link>,
    pub(crate) cm: CmId,
    pub(crate) domain: Option<DomainId>,
    pub(crate) limits: QpLimits,
    pub(crate) sends: SendQueue,
    pub(crate) recvs: RecvQueue,
    /// When it must have gone further; of no meaning once it is up.
    pub(crate) deadline: Nanos,
    /// For the listener, or from the connector.
    pub(crate) private_data: PrivateData,
    /// Where it came in.
    pub(crate) listener: Option<ListenerId>,
    /// Set when it is known to be over: it is closed as soon as the completions that came before
    /// are delivered.
    pub(crate) ending: Option<CloseReason>,
    /// Whether it is in the fabric's list of connections with something to post.
    pub(crate) is_dirty: bool,
}

/// The device's part of a connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) qp: Qp,
    pub(crate) device: DeviceId,
}

impl Connection {
    /// One that has only its identifier.
    pub(crate) fn new(cm: CmId, state: State, limits: QpLimits, deadline: Nanos) -> Self {
        Self {
            state,
            link: None,
            cm,
            domain: None,
            limits,
            sends: SendQueue::new(limits.send_wrs),
            recvs: RecvQueue::new(limits.recv_wrs),
            deadline,
            private_data: PrivateData::EMPTY,
            listener: None,
            ending: None,
            is_dirty: false,
        }
    }

    /// Whether work may be posted.
    pub(crate) fn takes_work(&self) -> bool {
        matches!(self.state, State::Accepted | State::Up) && self.ending.is_none()
    }

    /// Whether it is done with getting up.
    pub(crate) fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Whether something of it can be handed to the device.
    pub(crate) fn is_ready(&self) -> bool {
        self.link.is_some() && (self.recvs.is_ready() || (self.is_up() && self.sends.is_ready()))
    }

    /// Our address, if the connection manager knows it.
    pub(crate) fn local_addr(&self) -> Option<Addr> {
        self.cm.local_addr()
    }
}

/// What an event of the connection manager or a completion is about, as a number that comes back
/// with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Connection(ConnId),
    Listener(ListenerId),
    /// A connection that is closed here and says goodbye to its peer.
    Goodbye {
        index: u32,
        generation: u32,
    },
}

const LISTENER: u64 = 1;
const GOODBYE: u64 = 2;
const KIND_SHIFT: u32 = 62;
const INDEX_BITS: u32 = 30;

impl Token {
    pub(crate) fn to_bits(self) -> u64 {
        let (kind, index, generation) = match self {
            Self::Connection(id) => (0, id.index, id.generation),
            Self::Listener(id) => (LISTENER, id.index, id.generation),
            Self::Goodbye { index, generation } => (GOODBYE, index, generation),
        };
        kind << KIND_SHIFT | u64::from(index) << 32 | u64::from(generation)
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        let (index, generation) = parts(bits);
        match bits >> KIND_SHIFT {
            LISTENER => Self::Listener(ListenerId { index, generation }),
            GOODBYE => Self::Goodbye { index, generation },
            _ => Self::Connection(ConnId { index, generation }),
        }
    }
}

/// The number that a work request's completion brings back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkToken {
    pub(crate) conn: ConnId,
    pub(crate) is_recv: bool,
}

impl WorkToken {
    pub(crate) fn to_bits(self) -> u64 {
        let kind = u64::from(self.is_recv);
        kind << KIND_SHIFT | Token::Connection(self.conn).to_bits()
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        let (index, generation) = parts(bits);
        Self {
            conn: ConnId { index, generation },
            is_recv: bits >> KIND_SHIFT != 0,
        }
    }
}

fn parts(bits: u64) -> (u32, u32) {
    const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
    let low = |word: u64| u32::try_from(word & 0xffff_ffff).expect("masked to 32 bits");
    (low((bits >> 32) & INDEX_MASK), low(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_way() {
        let (index, generation) = (0x3fff_fffe, u32::MAX);
        let conn = ConnId { index, generation };
        for token in [
            Token::Connection(conn),
            Token::Listener(ListenerId { index, generation }),
            Token::Goodbye { index, generation },
        ] {
            assert_eq!(Token::from_bits(token.to_bits()), token);
        }
        for is_recv in [false, true] {
            let token = WorkToken { conn, is_recv };
            assert_eq!(WorkToken::from_bits(token.to_bits()), token);
        }
    }
}
