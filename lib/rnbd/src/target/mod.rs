//! The target: what one core serves, on a fabric and on bdevs.
//!
//! [`build`] makes a [`TargetHandle`] and one [`TargetShard`] per core. A shard owns its fabric,
//! its sessions and their way to the bdevs, and is polled; a handle sends commands to the shards
//! and is what RPC works with. Shards share nothing but what [`Services`] holds, and touch that
//! only when sessions and devices come and go.
//!
//! ```text
//!  connection requests ──> shard 0 (listens) ──mailbox──> shard n (serves the session)
//!
//!  a request    Fabric::poll ─> rtrs::srv::Path ─> rnbd::srv::Session ─> Channel::submit
//!  its answer   Fabric::post <─ rtrs::srv::Path <────────────────────── Channel::poll
//! ```

mod acceptor;
mod admission;
mod answers;
mod build;
mod command;
mod counters;
mod device_io;
mod devices;
mod directory;
mod gather;
mod handle;
mod handshake;
mod info;
mod late_opens;
mod notification;
mod open_beneath;
mod parked;
mod path_io;
mod report;
mod requests;
mod shard;
mod signals;
mod teardown;
mod wr_id;

pub use build::{BuildError, CoreParts, DeviceOpener, NoSearchPath, Services, TargetConfig, build};
pub use command::{DeviceSelector, Reply, Selector};
pub use counters::{DeviceCounters, IoCounters};
pub use directory::{Directory, DirectoryLimits};
pub use handle::TargetHandle;
pub use info::{DeviceInfo, HeartbeatInfo, ListenerInfo, PathInfo, SessionInfo, ShardStats};
pub use notification::{IgnoreNotifications, Notification, Sink};
pub use open_beneath::open_beneath;
pub use shard::TargetShard;
