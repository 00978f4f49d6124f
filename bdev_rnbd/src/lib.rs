//! The RNBD initiator: sessions to targets, each mapped device a bdev.
//!
//! An [`InitiatorShard`] is what one core has of it: the core's fabric, the sessions that are at
//! home there, and a channel of every session that does I/O on the core. The shards talk by
//! messages; no I/O crosses cores. [`Initiator`] is the handle of the control plane, through which
//! controllers (sessions) are attached and devices mapped; [`InitiatorControl`] is what it looks
//! like without the fabric's type.
//!
//! ```text
//!  consumer (target, NBD, perf)                 shard of the same core
//!  Channel ─ RnbdIoChannel ── ring of I/Os ──> port ──┐
//!                          <── ring of results ───────┤ channel of the session ── fabric ── server
//! ```
//!
//! I/O waits while a session is down, until its time limits say otherwise; see [`Options`].

#![forbid(unsafe_code)]

mod bdev;
mod channel;
mod control;
mod directory;
mod gather;
mod home;
mod initiator;
mod memory;
mod message;
mod notification;
mod options;
mod shard;
mod write_gate;

pub use bdev::RnbdBdev;
pub use control::{
    AttachParams, ControlError, ControllerInfo, ControllerState, CoreTransport, DeviceParams,
    FenceReport, InitiatorControl, IoPath, Multipath, PathReport, PathStats, ReconnectInfo, Reply,
    UnmapMode,
};
pub use initiator::{Initiator, InitiatorConfig, new};
pub use notification::{Notification, NotificationKind};
pub use options::{Options, TimeoutAction, Timeouts};
pub use shard::InitiatorShard;
