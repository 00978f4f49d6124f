//! What the control plane asks of the initiator, and what it is answered.

use std::fmt;

use rnbd_base::{CoreIndex, Errno, Nanos};
use rnbd_bdev::ConfigCall;
use rnbd_fabric::{Addr, FabricStats};
use rnbd_rtrs::clt::PathState;
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
    /// Devices to map at once.
    pub devices: Vec<DeviceParams>,
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
    /// Reconnecting.
    pub reconnect: ReconnectInfo,
    /// The core that the session lives on.
    pub home: CoreIndex,
    /// Its paths.
    pub paths: Vec<PathReport>,
    /// Names of its bdevs.
    pub bdevs: Vec<String>,
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
    /// Looks since the server was heard.
    pub hb_missed: u32,
    /// Round trip of the last answered heartbeat.
    pub hb_rtt: Option<Nanos>,
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
    /// Requests sent again after the path was lost.
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
    /// Whether the core's connection is up.
    pub connected: bool,
    /// Whether the device takes I/O.
    pub accessible: bool,
    /// Requests outstanding on the connection.
    pub inflight: u64,
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
    /// fails, nothing remains.
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

    /// Disconnects a path until it is reconnected.
    fn disconnect_path(&self, controller: &str, path_id: u16, reply: Reply<()>);

    /// Reconnects a path now; answers when it is up, or with why it is not.
    fn reconnect_path(&self, controller: &str, path_id: u16, reply: Reply<()>);

    /// Counters of the paths of all controllers, or of one.
    fn path_stats(&self, controller: Option<&str>, reply: Reply<Vec<PathStats>>);

    /// Sets a controller's counters to zero.
    fn reset_path_stats(&self, controller: &str, reply: Reply<()>);

    /// Counters of all fabrics.
    fn transport_statistics(&self, reply: Reply<Vec<CoreTransport>>);

    /// How each bdev's I/O leaves each core.
    fn io_paths(&self, reply: Reply<Vec<IoPath>>);

    /// The calls that make all of this again.
    fn config(&self) -> Vec<ConfigCall>;
}
