//! What RPC shows of a target.

use rnbd_base::{CoreIndex, Nanos};
use rnbd_fabric::{Addr, FabricStats};
use rnbd_rtrs::srv::{PathCounters, PathState, Refusal};
use rnbd_wire::rnbd::AccessMode;

use super::counters::DeviceCounters;

/// A listening address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerInfo {
    /// Where, with the real port.
    pub addr: Addr,
    /// Connection requests that were passed on to be decided.
    pub requests: u64,
    /// Of all requests to this transport: those that were refused, by reason.
    pub rejected: Vec<(Refusal, u64)>,
}

/// A session and all that belongs to it.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Its name; empty before a path's handshake is complete.
    pub sessname: String,
    /// Its identity.
    pub paths_uuid: [u8; 16],
    /// A path is up.
    pub connected: bool,
    /// Where it is served.
    pub core: CoreIndex,
    /// Transport name as in RPC.
    pub trtype: &'static str,
    /// Chunks of each path.
    pub queue_depth: u16,
    /// Largest transfer in bytes.
    pub max_io_bytes: u32,
    /// Each answer brings a new rkey.
    pub new_rkey: bool,
    /// Requests in flight on all paths.
    pub inflight: u32,
    /// RNBD version in use; 0 before the client said its own.
    pub protocol_version: u8,
    /// When its first connection came.
    pub created_at: Nanos,
    /// Its paths.
    pub paths: Vec<PathInfo>,
    /// Its devices.
    pub devices: Vec<DeviceInfo>,
}

/// A path.
#[derive(Clone, Debug)]
pub struct PathInfo {
    /// `client@server`, as the kernel names it.
    pub path: String,
    /// Its identity.
    pub path_uuid: [u8; 16],
    /// Where it is in its life.
    pub state: PathState,
    /// The client's address.
    pub src_addr: String,
    /// The server's address.
    pub dst_addr: String,
    /// Connections that are up.
    pub connections: usize,
    /// Requests in flight.
    pub inflight: u32,
    /// What it counted.
    pub counters: PathCounters,
    /// Its heartbeat; `None` before the handshake is complete.
    pub heartbeat: Option<HeartbeatInfo>,
    /// The client may ask for its end over another path, and the other way round.
    pub fence_agreed: bool,
    /// Paths over which the client waits for the end of this one.
    pub fence_askers: usize,
}

/// How a path's heart beats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatInfo {
    /// Time between two looks.
    pub interval: Nanos,
    /// Looks since the client was last heard.
    pub missed: u32,
    /// Round trip of the last answered message.
    pub last_rtt: Option<Nanos>,
}

/// A device that a client has open.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Its id in the session.
    pub device_id: u32,
    /// The name that the client asked for.
    pub device_path: String,
    /// The bdev behind it; empty once it was taken away.
    pub bdev_name: String,
    /// As the client asked.
    pub access_mode: AccessMode,
    /// Changes are refused.
    pub read_only: bool,
    /// It was taken away from the client.
    pub force_closed: bool,
    /// I/O in flight.
    pub inflight: u32,
    /// What was done.
    pub counters: DeviceCounters,
}

/// Counters of one shard.
#[derive(Clone, Debug)]
pub struct ShardStats {
    /// Where it is polled.
    pub core: CoreIndex,
    /// Sessions now.
    pub sessions: usize,
    /// Paths now.
    pub paths: usize,
    /// Connections now.
    pub connections: usize,
    /// Bdev I/O in flight now.
    pub pending_bdev_io: usize,
    /// Bdev I/O done since the start.
    pub completed_io: u64,
    /// Paths closed because their client broke the protocol.
    pub violations: u64,
    /// Of its fabric.
    pub fabric: FabricStats,
}
