use rnbd_base::Nanos;

/// Limits and times of a [`crate::tcp::TcpFabric`].
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// Most connections, in whatever state.
    pub max_connections: u32,
    /// Most connections that have come in and not finished their hello. One more, and the oldest
    /// of them is dropped.
    pub max_pending_handshakes: u32,
    /// Most work requests that a connection may have posted in each direction.
    pub max_work_requests: u32,
    /// How long a peer may take for its hello, and after that the application for its answer to a
    /// connection request.
    pub handshake_timeout: Nanos,
    /// Bytes of a socket's send buffer; `None` leaves it to the kernel, which lets it grow with
    /// the connection's speed.
    pub send_buffer_bytes: Option<usize>,
    /// Bytes of a socket's receive buffer; `None` as above.
    pub recv_buffer_bytes: Option<usize>,
    /// After how many milliseconds without an acknowledgement the kernel gives a connection up:
    /// 1000 or more. The heartbeats of the layer above find a dead peer sooner.
    pub user_timeout_ms: u32,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_pending_handshakes: 256,
            max_work_requests: 1 << 16,
            handshake_timeout: Nanos::from_secs(5),
            send_buffer_bytes: None,
            recv_buffer_bytes: None,
            user_timeout_ms: 30_000,
        }
    }
}
