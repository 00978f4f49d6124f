use rnbd_base::Errno;
use thiserror::Error;

/// Why a connection request is rejected. Clients see the errno (protocol.md 3.5, 14.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Refusal {
    /// The private data is no CON_REQ.
    #[error("it is no request of RTRS 2.x")]
    Malformed,
    /// The session is not there, and the request may not create it.
    #[error("its session is not there")]
    UnknownSession,
    /// Another path of the session has the same two addresses.
    #[error("the session has a path between these addresses")]
    AddressPair,
    /// The path's earlier life has connections or I/O left.
    #[error("its path's earlier life has not ended")]
    Draining,
    /// It is not the connection that its path waits for.
    #[error("it does not fit its path")]
    Conflict,
    /// The session is served over another transport.
    #[error("its session is served over another transport")]
    OtherTransport,
    /// `connections_per_path_max` is reached.
    #[error("the limit of connections of a path is reached")]
    ConnectionsOfPath,
    /// `max_paths` is reached.
    #[error("the limit of paths of a session is reached")]
    PathsOfSession,
    /// `max_sessions` is reached.
    #[error("the limit of sessions is reached")]
    Sessions,
    /// `max_paths_total` is reached.
    #[error("the limit of paths is reached")]
    Paths,
    /// `max_connecting_per_source` is reached.
    #[error("the limit of unfinished connections from one address is reached")]
    Connecting,
    /// Memory or a resource of the transport ran out.
    #[error("a resource ran out")]
    Resources,
}

impl Refusal {
    /// What the client is told.
    #[must_use]
    pub fn errno(self) -> Errno {
        match self {
            Self::UnknownSession => Errno::NXIO,
            Self::AddressPair => Errno::EXIST,
            Self::Draining => Errno::BUSY,
            Self::Malformed
            | Self::Conflict
            | Self::OtherTransport
            | Self::ConnectionsOfPath
            | Self::PathsOfSession => Errno::CONNRESET,
            Self::Sessions | Self::Paths | Self::Connecting | Self::Resources => Errno::NOMEM,
        }
    }

    /// Its name among the counters.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownSession => "unknown_session",
            Self::AddressPair => "address_pair",
            Self::Draining => "draining",
            Self::Conflict => "conflict",
            Self::OtherTransport => "other_transport",
            Self::ConnectionsOfPath => "connections_per_path_max",
            Self::PathsOfSession => "max_paths",
            Self::Sessions => "max_sessions",
            Self::Paths => "max_paths_total",
            Self::Connecting => "max_connecting_per_source",
            Self::Resources => "resources",
        }
    }
}
