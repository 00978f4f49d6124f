//! What the session and its channels tell each other.

use std::sync::Arc;

use rnbd_base::Nanos;
use rnbd_wire::rtrs::ConReq;

use super::error::PathError;
use super::params::{ChunkTable, PathParams};
use super::policy::PathPolicy;

/// A path of a session, by its position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathIndex(pub u16);

impl PathIndex {
    /// For tables by path.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Stands for the address of a server: two paths of a session have the same if they lead to
/// the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerId(pub u64);

/// One life of a path, from the start of a handshake to the end of its last connection. No two
/// lives of a session have the same number, whichever path they are of; what is about an older
/// life than the present one is void.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt(pub u32);

impl Attempt {
    pub(super) fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// From the session to a channel. Messages to one channel arrive in order.
#[derive(Clone, Debug)]
pub enum ToChannel {
    /// Connect your connection of this path. Answered by [`FromChannel::Connected`] or
    /// [`FromChannel::Closed`].
    Connect {
        /// Which path.
        path: PathIndex,
        /// Of which incarnation all that follows is.
        attempt: Attempt,
        /// What to send along.
        request: ConReq,
        /// What the path's first connection was told.
        params: PathParams,
    },
    /// The path is up: requests may use it.
    Up {
        /// Which path.
        path: PathIndex,
        /// Which incarnation.
        attempt: Attempt,
        /// Where the chunks are.
        chunks: Arc<ChunkTable>,
    },
    /// Begin nothing more on this path, and close your connection when nothing is outstanding on
    /// it. Answered as [`ToChannel::Close`] is, which may follow for want of patience.
    Drain {
        /// Which path.
        path: PathIndex,
        /// Which incarnation.
        attempt: Attempt,
    },
    /// Close your connection of this path. Answered by [`FromChannel::Closed`] when that is final;
    /// at once, if it is closed already.
    Close {
        /// Which path.
        path: PathIndex,
        /// Which incarnation.
        attempt: Attempt,
    },
    /// The server does nothing more for requests of that lost life of a path: what was held back
    /// because of them may go on.
    Fenced {
        /// Of which path.
        path: PathIndex,
        /// Which life.
        attempt: Attempt,
    },
    /// The last heartbeat's round trip on a path.
    Latency {
        /// Which path.
        path: PathIndex,
        /// How long it took.
        latency: Nanos,
    },
    /// How to choose among the paths.
    Policy(PathPolicy),
}

/// From a channel to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromChannel {
    /// The server accepted.
    Connected {
        /// Which path.
        path: PathIndex,
        /// Which incarnation.
        attempt: Attempt,
        /// What the server said.
        params: PathParams,
    },
    /// The connection is gone for good, or was never there.
    Closed {
        /// Which path.
        path: PathIndex,
        /// Which incarnation.
        attempt: Attempt,
        /// Why.
        error: PathError,
        /// Requests that were sent and not answered.
        unanswered: u16,
    },
    /// Something arrived from the server lately.
    Heard {
        /// Which path.
        path: PathIndex,
        /// Which incarnation.
        attempt: Attempt,
    },
}

impl FromChannel {
    /// The path that it is about.
    #[must_use]
    pub fn path(&self) -> PathIndex {
        match self {
            Self::Connected { path, .. } | Self::Closed { path, .. } | Self::Heard { path, .. } => {
                *path
            }
        }
    }
}
