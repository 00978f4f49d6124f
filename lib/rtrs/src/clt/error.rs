use rnbd_base::Errno;
use thiserror::Error;

/// How a server broke the protocol. Closes the path, never more.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Violation {
    /// The accept data does not hold what it must (protocol.md 14.2).
    #[error("bad connection response: {0}")]
    ConnectionResponse(&'static str),
    /// The chunk descriptors do not cover the chunks (protocol.md 3.8).
    #[error("bad info response: {0}")]
    InfoResponse(&'static str),
    /// The immediate has a type that a server must not send here.
    #[error("unexpected immediate {0:#010x}")]
    Immediate(u32),
    /// An answer to something that was not asked on this connection.
    #[error("answer to request {0}, which is not outstanding on this connection")]
    NotOutstanding(u32),
    /// A message that belongs to no answer.
    #[error("unexpected message")]
    Message,
    /// The new key of a chunk came malformed or for another chunk (protocol.md 5.6).
    #[error("bad rkey response to request {0}")]
    RkeyResponse(u32),
    /// Something else than the request's buffer was invalidated, or not announced (protocol.md 5.5).
    #[error("wrong invalidation")]
    Invalidation,
}

/// Why a path is down.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PathError {
    /// The server said no.
    #[error("the server rejected the connection: {0}{cause}", cause = cause_of(*.0))]
    Rejected(Errno),
    /// Nobody listens at the address.
    #[error("connection refused")]
    Refused,
    /// There is no way to the address.
    #[error("no route to the server")]
    Unreachable,
    /// The server did not answer in time.
    #[error("the server did not answer in time")]
    TimedOut,
    /// The server closed the connection. During a handshake this is also how a Linux server says
    /// that the session name is bad or taken (protocol.md 12.3).
    #[error("the server closed the connection")]
    PeerClosed,
    /// We closed it on purpose.
    #[error("closed on request")]
    Requested,
    /// The server broke the rules of RTRS.
    #[error("the server broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// The peer broke the rules of the fabric, or the host's network failed.
    #[error("the connection failed: {0}")]
    Fabric(&'static str),
    /// The transport cannot connect in this way, now or later.
    #[error("{0} is not supported by this transport")]
    Unsupported(&'static str),
    /// Nothing was heard of the server for too long.
    #[error("heartbeat lost")]
    HeartbeatLost,
    /// A request was not answered within the time set for requests.
    #[error("a request was not answered in time")]
    RequestTimedOut,
    /// The server speaks another major version.
    #[error("the server speaks version {0:#06x} of RTRS, not 0x0200")]
    Version(u16),
    /// The server came back with another queue depth.
    #[error("the server's queue depth changed from {was} to {is}; detach and attach again")]
    QueueDepthChanged {
        /// When the session was made.
        was: u16,
        /// Now.
        is: u16,
    },
    /// A path's server carries less in one request than that of the session's other paths.
    #[error("the server of this path carries {is} bytes in one request, that of the others {was}")]
    MaxIoDiffers {
        /// On the other paths.
        was: u32,
        /// Here.
        is: u32,
    },
    /// Another process answered at the address of another path of the server's, so this one's
    /// server is gone.
    #[error("the server was restarted")]
    ServerRestarted,
    /// The server said over another path that it does not know the session.
    #[error("the server does not know the session any more")]
    SessionUnknown,
    /// The queue is too short for the session's I/O queues.
    #[error(transparent)]
    QueueTooShallow(#[from] super::QueueTooShallow),
}

/// What a server means by the errno of a reject, where that is one thing only (protocol.md 3.5).
fn cause_of(errno: Errno) -> &'static str {
    match errno {
        Errno::NXIO => ", as it does not know the session",
        Errno::EXIST => ", as the session has a path between these addresses",
        Errno::BUSY => ", as it has connections or I/O left of the path's earlier life",
        Errno::NOMEM => ", as a limit is reached or something ran out",
        _ => "",
    }
}

impl PathError {
    /// The errno that a management call reports.
    #[must_use]
    pub fn errno(self) -> Errno {
        match self {
            Self::Rejected(errno) => errno,
            Self::Refused => Errno::CONNREFUSED,
            Self::Unreachable => Errno::HOSTUNREACH,
            Self::TimedOut | Self::HeartbeatLost | Self::RequestTimedOut => Errno::TIMEDOUT,
            Self::PeerClosed | Self::Fabric(_) | Self::ServerRestarted | Self::SessionUnknown => {
                Errno::CONNRESET
            }
            Self::Requested => Errno::CANCELED,
            Self::Unsupported(_) => Errno::OPNOTSUPP,
            Self::Violation(_) | Self::Version(_) => Errno::PROTO,
            Self::QueueDepthChanged { .. }
            | Self::MaxIoDiffers { .. }
            | Self::QueueTooShallow(_) => Errno::INVAL,
        }
    }

    /// Whether trying again can help without anybody changing something first.
    #[must_use]
    pub fn is_worth_retrying(self) -> bool {
        !matches!(
            self,
            Self::QueueDepthChanged { .. } | Self::QueueTooShallow(_) | Self::Unsupported(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reject_says_what_it_means_where_that_is_known() {
        let text = |errno| PathError::Rejected(errno).to_string();
        assert!(text(Errno::BUSY).ends_with("left of the path's earlier life"));
        assert!(text(Errno::NXIO).ends_with(", as it does not know the session"));
        assert!(text(Errno::CONNRESET).ends_with("(ECONNRESET)"));
    }
}
