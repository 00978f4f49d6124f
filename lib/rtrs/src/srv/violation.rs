use thiserror::Error;

/// How a client broke the protocol. Each closes its path (protocol.md 14.1); what can be answered
/// with an errno is no violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Violation {
    /// An immediate, or a second INFO_REQ, at a time when none is due.
    #[error("a message out of turn")]
    OutOfTurn,
    /// INFO_REQ before all connections of the path existed.
    #[error("INFO_REQ before all connections of the path were there")]
    ConnectionsMissing,
    /// INFO_REQ is not one, or names no session.
    #[error("malformed INFO_REQ")]
    InfoReq,
    /// The path's name is not that of its session.
    #[error("INFO_REQ with another name than the session has")]
    NameDiffers,
    /// Another session has the name.
    #[error("the session name is in use by another session")]
    NameTaken,
    /// The immediate names no chunk.
    #[error("immediate names a chunk beyond the queue depth")]
    ChunkIndex,
    /// The immediate's offset leaves no room for a header in the chunk.
    #[error("immediate names an offset beyond the chunk")]
    ChunkOffset,
    /// The chunk's last request has not been answered.
    #[error("a request in a chunk that is in use")]
    ChunkBusy,
    /// The header in the chunk is of neither a READ nor a WRITE.
    #[error("unknown RTRS message type")]
    MessageType,
    /// More confirmations asked for at a time than a session can have paths.
    #[error("too many questions for the end of paths")]
    TooManyFences,
    /// A message on a connection that was never accepted, or a send where none is due.
    #[error("unexpected message on a connection")]
    Unexpected,
}

/// Why a path ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CloseCause {
    /// A connection was lost; its text says how.
    #[error("connection lost: {0}")]
    ConnectionLost(&'static str),
    /// The client closed a connection, on purpose or because it died.
    #[error("closed by the client")]
    ClientClosed,
    /// The client broke the protocol.
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
    /// Nothing was heard for too long.
    #[error("heartbeat timed out")]
    HeartbeatTimeout,
    /// The handshake did not go on.
    #[error("handshake timed out")]
    HandshakeTimeout,
    /// The client came again before the loss was noticed here.
    #[error("superseded by a reconnect of the client")]
    Superseded,
    /// The client knows that it is lost, and asked over another path for its end.
    #[error("the client asked for its end over another path")]
    Fenced,
    /// An administrator, or the end of the process.
    #[error("closed by the administrator")]
    Administrative,
    /// A resource of ours failed; the text says which.
    #[error("{0}")]
    Local(&'static str),
}
