//! What the control plane asks of the initiator, and what it is answered.

use std::fmt;

use rnbd_base::{CoreIndex, Errno, Nanos};
use rnbd_bdev::ConfigCall;
use rnbd_fabric::{Addr, FabricStats};
use rnbd_rtrs::clt::{FenceCounters, PathPolicy, PathState, Policy};
use rnbd_wire::rnbd::AccessMode;
use thiserror::Error;
use uuid::Uuid;

use crate::options::{Options, Timeouts};

/// How an operation ends. Called once, on a reactor or at once in the caller; must not block.
pub type Reply<T> = Box<dyn FnOnce(Result<T, ControlError>) + Send>;

/// Why an operation failed: a number for programs and a sentence for people.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
pub struct ControlError {
    /// The number.
    pub errno: Errno,
    /// The sentence.
    pub message: String,
}

impl ControlError {
    /// An error with its own sentence.
    #[must_use]
    pub fn new(errno: Errno, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self { errno, message }
    }

    pub(crate) fn invalid(message: &str) -> Self {
        Self::new(Errno::INVAL, message)
    }
}

/// What to attach.
#[derive(Clone, Debug)]
pub struct AttachParams {
    /// Name of the controller, unique here.
    pub name: String,
    /// Name of the session, as the server sees it: printable, without `/` and `.`.
    pub sessname: String,
    /// Over which fabric, as its [`rnbd_fabric::Caps`] name it.
    pub trtype: &'static str,
    /// The server.
    pub addr: Addr,
    /// The local address to come from.
    pub hostaddr: Option<Addr>,
    /// Cores that do I/O; zero for all.
    pub num_io_queues: u16,
    /// Most permits to use; zero for what the server has.
    pub queue_depth: u16,
    /// What happens when the path is lost; the initiator's options where it is `None`.
    pub timeouts: Option<Timeouts>,
    /// Whether the controller may have further paths, and how they share its I/O.
    pub multipath: Multipath,
    /// Devices to map at once.
    pub devices: Vec<DeviceParams>,
}

/// Several paths to one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multipath {
    /// Attaching again under the same name adds a path, instead of being refused.
    pub enabled: bool,
    /// How paths share the I/O.
    pub policy: Policy,
    /// I/Os that a path gets before it is the next one's turn, at least one; only round-robin asks.
    pub min_io: u32,
}

impl Default for Multipath {
    fn default() -> Self {
        Self {
            enabled: false,
            policy: Policy::default(),
            min_io: 1,
        }
    }
}

impl Multipath {
    pub(crate) fn policy(self) -> PathPolicy {
        PathPolicy {
            policy: self.policy,
            min_io: self.min_io,
            preferred: None,
        }
    }
}

/// What to map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceParams {
    /// Name of the device on the server, at most 254 bytes.
    pub device_path: String,
    /// What it may be used for.
    pub access_mode: AccessMode,
    /// Name of the bdev; made of controller and path if `None`.
    pub bdev_name: Option<String>,
    /// Identity of the bdev; made of session, path and controller if `None`.
    pub uuid: Option<Uuid>,
}

/// What unmapping does to a device that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmapMode {
    /// It is refused.
    Normal,
    /// Its I/O fails and its users are told to let go.
    Force,
}

/// What a controller is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerState {
    /// It does I/O.
    Enabled,
    /// Its path is lost and is being reconnected.
    Reconnecting,
    /// Its path was disconnected on request.
    Disabled,
    /// Its path was given up.
    Failed,
    /// It is being detached.
    Deleting,
}

impl ControllerState {
    /// As in RPC answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Reconnecting => "reconnecting",
            Self::Disabled => "disabled",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }
}

/// Reconnecting, as configured and as it is.
#[derive(Clone, Copy, Debug)]
pub struct ReconnectInfo {
    /// Attempts since the path was up.
    pub attempts: u32,
    /// Most attempts; -1 for any number.
    pub max: i32,
}

/// A controller.
#[derive(Clone, Debug)]
pub struct ControllerInfo {
    /// Its name.
    pub name: String,
    /// Name of its session.
    pub sessname: String,
    /// What it is up to.
    pub state: ControllerState,
    /// RNBD version agreed with the server.
    pub protocol_version: u8,
    /// Permits of the session.
    pub queue_depth: u16,
    /// Most data bytes of one request.
    pub max_io_size: u32,
    /// How its paths share the I/O.
    pub policy: PathPolicy,
    /// Reconnecting.
    pub reconnect: ReconnectInfo,
    /// What lost paths keep back.
    pub fence: FenceReport,
    /// The core that the session lives on.
    pub home: CoreIndex,
    /// Its paths.
    pub paths: Vec<PathReport>,
    /// Names of its bdevs.
    pub bdevs: Vec<String>,
}

/// What a controller keeps back because of lost paths (docs/fencing.md).
#[derive(Clone, Copy, Debug, Default)]
pub struct FenceReport {
    /// Lost paths for which the server may still be doing something.
    pub waiting: usize,
    /// Writes that wait to be sent again until it does not.
    pub held_writes: u32,
    /// New writes wait too, because one that failed may still be executed.
    pub writes_stopped: bool,
    /// Since the controller was attached.
    pub counters: FenceCounters,
}

/// A path of a controller.
#[derive(Clone, Debug)]
pub struct PathReport {
    /// Its number within the controller.
    pub path_id: u16,
    /// Its state.
    pub state: PathState,
    /// Why it is not connected, if it is not.
    pub error: Option<String>,
    /// Our address, once it is known.
    pub src_addr: Option<Addr>,
    /// The server's.
    pub dst_addr: Addr,
    /// Name of the transport.
    pub trtype: &'static str,
    /// Connections.
    pub connections: u16,
    /// Identity on the wire.
    pub uuid: Uuid,
    /// Time between two looks at the server.
    pub hb_interval_ms: u32,
    /// Looks without a word after which the server is dead.
    pub hb_missed_max: u32,
    /// Looks since the server was heard.
    pub hb_missed: u32,
    /// Round trip of the last answered heartbeat.
    pub hb_rtt: Option<Nanos>,
    /// The server confirms that a lost path is finished.
    pub fence_agreed: bool,
    /// The server may still be doing something for the path as it was before it was lost.
    pub unfenced: bool,
}

impl PathReport {
    /// As the kernel names a path: `src@dst`.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.src_addr {
            Some(src) => format!("{src}@{}", self.dst_addr),
            None => self.dst_addr.to_string(),
        }
    }
}

/// Counters of a path over all its cores (protocol.md 10.1).
#[derive(Clone, Debug, Default)]
pub struct PathStats {
    /// The controller.
    pub controller: String,
    /// The path's number.
    pub path_id: u16,
    /// As the kernel names it.
    pub path: String,
    /// Reads begun.
    pub reads: u64,
    /// Bytes of those.
    pub read_bytes: u64,
    /// Writes begun.
    pub writes: u64,
    /// Bytes of those.
    pub write_bytes: u64,
    /// Requests outstanding now.
    pub inflight: u64,
    /// Requests that had been lost on another path, or on this one before.
    pub failovered: u64,
    /// Times that the path came back.
    pub reconnects_ok: u64,
    /// Attempts that failed.
    pub reconnects_failed: u64,
    /// Round trip of the last heartbeat.
    pub hb_rtt: Option<Nanos>,
}

impl PathStats {
    /// Adds what another core has of the same path.
    pub(crate) fn add(&mut self, other: &mut Self) {
        if self.path.is_empty() {
            self.path = std::mem::take(&mut other.path);
        }
        self.reads += other.reads;
        self.read_bytes += other.read_bytes;
        self.writes += other.writes;
        self.write_bytes += other.write_bytes;
        self.inflight += other.inflight;
        self.failovered += other.failovered;
        self.reconnects_ok += other.reconnects_ok;
        self.reconnects_failed += other.reconnects_failed;
        self.hb_rtt = self.hb_rtt.or(other.hb_rtt);
    }
}

/// Counters of one core's fabric.
#[derive(Clone, Copy, Debug)]
pub struct CoreTransport {
    /// The core.
    pub core: CoreIndex,
    /// Name of the transport.
    pub trtype: &'static str,
    /// The counters.
    pub stats: FabricStats,
}

/// How the I/O of one bdev leaves one core.
#[derive(Clone, Debug)]
pub struct IoPath {
    /// The core.
    pub core: CoreIndex,
    /// The bdev.
    pub bdev_name: String,
    /// The path's number.
    pub path_id: u16,
    /// The server.
    pub dst_addr: Addr,
    /// Name of the transport.
    pub trtype: &'static str,
    /// Whether the last I/O went over it.
    pub current: bool,
    /// Whether the core's connection is up.
    pub connected: bool,
    /// Whether the device takes I/O.
    pub accessible: bool,
    /// Requests outstanding on the connection.
    pub inflight: u64,
    /// The last heartbeat's round trip.
    pub latency: Option<Nanos>,
}

/// The initiator without the type of its fabric. No call blocks.
pub trait InitiatorControl: Send + Sync + fmt::Debug {
    /// What holds for all controllers.
    fn options(&self) -> Options;

    /// Changes it.
    ///
    /// # Errors
    /// `EPERM` once a controller is attached, `EINVAL` for bad values.
    fn set_options(&self, options: Options) -> Result<(), ControlError>;

    /// Connects to a server and maps devices; answers with the names of their bdevs. If anything
    /// fails, nothing remains. Under the name of a controller that has the same session, adds a
    /// path to it if `params.multipath` is enabled; that answers with the names of all its bdevs.
    fn attach_controller(&self, params: AttachParams, reply: Reply<Vec<String>>);

    /// Unmaps all devices of a controller and disconnects it. `EBUSY` while a device is in use,
    /// unless `force`.
    fn detach_controller(&self, name: &str, force: bool, reply: Reply<()>);

    /// All controllers, or one; `ENODEV` if there is no such controller.
    fn get_controllers(&self, name: Option<&str>, reply: Reply<Vec<ControllerInfo>>);

    /// Maps a device; answers with the name of its bdev.
    fn map_device(&self, controller: &str, device: DeviceParams, reply: Reply<String>);

    /// Unmaps a device.
    fn unmap_device(&self, bdev: &str, mode: UnmapMode, reply: Reply<()>);

    /// Opens a device again that the server closed. `EALREADY` while it is open.
    fn remap_device(&self, bdev: &str, reply: Reply<()>);

    /// Changes the size that users of the bdev see, and nothing on the server.
    fn resize_device(&self, bdev: &str, num_blocks: u64, reply: Reply<()>);

    /// Asks the server for the size of a device.
    fn rescan_device(&self, bdev: &str, reply: Reply<()>);

    /// Changes how a controller reconnects.
    fn set_reconnect(
        &self,
        controller: &str,
        max_reconnect_attempts: Option<i32>,
        reconnect_delay_sec: Option<u32>,
        reply: Reply<()>,
    );

    /// Connects another path of a controller; answers with its number when it is up. If it does
    /// not come up, nothing remains of it.
    fn add_path(&self, controller: &str, addr: Addr, hostaddr: Option<Addr>, reply: Reply<u16>);

    /// Disconnects a path and forgets it. `EBUSY` if it is the last.
    fn remove_path(&self, controller: &str, path_id: u16, reply: Reply<()>);

    /// Changes how a controller's paths share its I/O; `min_io` is at least one.
    fn set_policy(&self, controller: &str, policy: Policy, min_io: u32, reply: Reply<()>);

    /// Names the path that the active-passive policy takes while it is up.
    fn set_preferred_path(&self, controller: &str, path_id: u16, reply: Reply<()>);

    /// Disconnects a path until it is reconnected.
    fn disconnect_path(&self, controller: &str, path_id: u16, reply: Reply<()>);

    /// Reconnects a path now; answers when it is up, or with why it is not.
    fn reconnect_path(&self, controller: &str, path_id: u16, reply: Reply<()>);

    /// Counters of the paths of all controllers, or of one.
    fn path_stats(&self, controller: Option<&str>, reply: Reply<Vec<PathStats>>);

    /// Sets the counters of a controller's paths, or of one of them, to zero.
    fn reset_path_stats(&self, controller: &str, path_id: Option<u16>, reply: Reply<()>);

    /// Counters of all fabrics.
    fn transport_statistics(&self, reply: Reply<Vec<CoreTransport>>);

    /// How each bdev's I/O leaves each core.
    fn io_paths(&self, reply: Reply<Vec<IoPath>>);

    /// The calls that make all of this again.
    fn config(&self) -> Vec<ConfigCall>;
}
