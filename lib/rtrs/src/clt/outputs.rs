//! What a session asks its owner to do, and tells it.

use std::collections::VecDeque;

use rnbd_base::Nanos;
use rnbd_wire::rtrs::ConReq;

use super::error::PathError;
use super::fence::FencedBy;
use super::messages::{Attempt, PathIndex, ToChannel};
use super::params::PathParams;
use super::path_state::PathState;

/// How long a connection's queues must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSizes {
    /// Operations posted and not known to be executed.
    pub send: u32,
    /// Receives posted and not consumed.
    pub recv: u32,
}

impl QueueSizes {
    /// Connection 0: `INFO_REQ`, heartbeats, and one control request at a time.
    pub const SERVICE: Self = Self {
        send: 128,
        recv: 64,
    };

    /// A connection of a channel with this many permits: each request may take a bind, a write and
    /// an invalidation, and up to half of the writes may not be known to be executed; each answer
    /// may take two receives (protocol.md 3.9).
    #[must_use]
    pub fn for_requests(permits: u16) -> Self {
        let permits = u32::from(permits);
        Self {
            send: 4 * permits + 1,
            recv: 2 * permits + 1,
        }
    }

    pub(super) fn recv_bytes(self, params: &PathParams) -> u32 {
        if params.new_rkey { 8 } else { 0 }
    }
}

/// What the owner of a session is to do, in this order.
#[derive(Clone, Debug)]
pub enum SessionAction {
    /// Make connection 0 of the path; tell the outcome by [`super::Session::handle_connected`] or
    /// [`super::Session::handle_closed`].
    Connect {
        /// Which path.
        path: PathIndex,
        /// What to send along.
        request: ConReq,
        /// How long the queues must be.
        sizes: QueueSizes,
        /// How long it may take.
        timeout: Nanos,
    },
    /// Post a receive of this many bytes on connection 0, for [`super::Session::handle_info_rsp`].
    PostInfoReceive {
        /// Which path.
        path: PathIndex,
        /// How many bytes.
        bytes: usize,
    },
    /// Send [`super::Session::info_req`] on connection 0.
    SendInfo {
        /// Which path.
        path: PathIndex,
    },
    /// Post receives on connection 0; each is to be posted again when it completed.
    PostReceives {
        /// Which path.
        path: PathIndex,
        /// How many.
        count: u32,
        /// Of how many bytes: 8, or 0 for empty ones.
        bytes: u32,
    },
    /// Post a write of nothing with this immediate on connection 0.
    SendImmediate {
        /// Which path.
        path: PathIndex,
        /// The immediate.
        imm: u32,
    },
    /// Close connection 0; [`super::Session::handle_closed`] is to follow when that is final.
    Disconnect {
        /// Which path.
        path: PathIndex,
    },
    /// Deliver to a channel.
    ToChannel {
        /// Which.
        channel: u16,
        /// What.
        message: ToChannel,
    },
}

/// What the owner of a session may want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// A path changed its state.
    Path {
        /// Which path.
        path: PathIndex,
        /// What it is now.
        state: PathState,
        /// Why it was last down; of no meaning while it is up.
        error: PathError,
    },
    /// An attempt to bring a lost path back failed.
    ReconnectFailed {
        /// Which path.
        path: PathIndex,
        /// Why.
        error: PathError,
    },
    /// The server does nothing more for a path that was lost.
    Fenced {
        /// Which path.
        path: PathIndex,
        /// How that is known.
        by: FencedBy,
    },
    /// The first path is up: control requests can be made.
    Up(PathParams),
    /// The last path was lost.
    Down(PathError),
    /// The session has been down for so long that I/O is to fail instead of waiting.
    FastIoFail,
    /// No path is up and none will come up by itself.
    Lost(PathError),
}

/// What is asked about a path.
#[derive(Clone, Copy, Debug)]
pub struct PathInfo {
    /// Its state.
    pub state: PathState,
    /// Its identity on the wire.
    pub uuid: [u8; 16],
    /// Why it was last down.
    pub error: PathError,
    /// Attempts since it was last up.
    pub attempts: u32,
    /// Which life it is in.
    pub attempt: Attempt,
    /// What was agreed in it, once the server accepted.
    pub params: Option<PathParams>,
    /// Whether the server may still be doing something for an earlier life.
    pub is_unfenced: bool,
    /// Times it came back.
    pub reconnects_ok: u64,
    /// Attempts that failed.
    pub reconnects_failed: u64,
    /// Looks at the server since it was last heard.
    pub missed_heartbeats: u32,
    /// Round trip of the last answered heartbeat.
    pub heartbeat_rtt: Option<Nanos>,
}

#[derive(Debug)]
pub(super) struct Outputs {
    pub(super) actions: VecDeque<SessionAction>,
    pub(super) events: VecDeque<SessionEvent>,
}

impl Outputs {
    pub(super) fn act(&mut self, action: SessionAction) {
        self.actions.push_back(action);
    }

    pub(super) fn tell(&mut self, event: SessionEvent) {
        self.events.push_back(event);
    }
}
