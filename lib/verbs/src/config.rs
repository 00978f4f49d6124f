use rnbd_base::Nanos;

/// Limits, times and options of a [`crate::VerbsFabric`].
#[derive(Clone, Debug)]
pub struct VerbsConfig {
    /// Most connections, in whatever state.
    pub max_connections: u32,
    /// Most work requests that a connection may ask for in each direction. What is beyond the
    /// device's queues is parked in memory.
    pub max_work_requests: u32,
    /// How long the application may take for its answer to a connection request, and after that
    /// the peer to confirm that the answer arrived.
    pub request_timeout: Nanos,
    /// How long the goodbye to a peer may take before it is forgotten about.
    pub goodbye_timeout: Nanos,
    /// Entries of a completion queue, as far as the device has them.
    pub cq_entries: u32,
    /// Messages up to this many bytes travel inside the work request, where the device can.
    pub inline_bytes: u32,
    /// Type of service of outgoing connections, 0 to 255; on `RoCE` it becomes the traffic class.
    pub type_of_service: Option<u8>,
    /// After how long without an acknowledgement the device sends again: 4.096 µs · 2^n, n from
    /// 1 to 31; `None` leaves it to the connection manager. For outgoing connections.
    pub ack_timeout: Option<u8>,
    /// How often a device sends again what was not acknowledged before it gives a connection up, 0
    /// to 7. For outgoing connections.
    pub retry_count: u8,
    /// Whether a client opens each buffer by a window of its own for as long as the request takes
    /// (protocol.md 5.11), where the devices have such windows. If not, a server may write all
    /// memory that a client does I/O from, for as long as it is connected.
    pub window_per_request: bool,
}

impl Default for VerbsConfig {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_work_requests: 1 << 16,
            request_timeout: Nanos::from_secs(5),
            goodbye_timeout: Nanos::from_secs(5),
            cq_entries: 1 << 16,
            inline_bytes: 64,
            type_of_service: None,
            ack_timeout: None,
            retry_count: 7,
            window_per_request: false,
        }
    }
}
