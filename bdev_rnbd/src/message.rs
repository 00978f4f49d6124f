//! What shards, bdevs and the control plane tell a shard.

use std::sync::Arc;

use rnbd_base::{CoreIndex, Errno, Wake};
use rnbd_bdev::{BdevIo, IoDone};
use rnbd_fabric::Addr;
use rnbd_proto::clt::{DeviceIndex, DeviceInfo};
use rnbd_rtrs::clt::{FromChannel, PathIndex, Policy, SessionConfig, ToChannel};
use rnbd_wire::Name;
use rtrb::{Consumer, Producer};

use crate::control::{
    AttachParams, ControllerInfo, CoreTransport, DeviceParams, IoPath, PathStats, Reply, UnmapMode,
};
use crate::gather::Gather;
use crate::options::{Options, Timeouts};
use crate::write_gate::WriteGate;

/// A session of this process, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionKey(pub(crate) u64);

/// What becomes of I/O that cannot be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IoMode {
    Wait,
    Fail(Errno),
}

/// A device as the cores that do its I/O know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceView {
    /// Not open now, but it will be.
    Pending,
    /// With what the server said at which opening.
    Usable(DeviceInfo, u32),
    /// It does no I/O.
    Failed(Errno),
}

/// A message to a shard.
#[derive(Debug)]
pub(crate) enum Message {
    // From a session to its channels.
    AddChannel(Box<ChannelSetup>),
    RemoveChannel(SessionKey),
    Route(SessionKey, PathIndex, Route),
    ToChannel(SessionKey, ToChannel),
    Mode(SessionKey, IoMode),
    /// Nothing but a reason to look at what waits.
    Wake,
    Device(SessionKey, DeviceIndex, DeviceView),
    // From a channel to its session.
    FromChannel(SessionKey, u16, FromChannel),
    /// An I/O for that opening of a device was answered so.
    NotConnected(SessionKey, DeviceIndex, u32),
    /// New writes need not wait any more for lost paths.
    WritesFree(SessionKey),
    // From bdevs.
    OpenPort(SessionKey, PortSetup),
    BdevGone(SessionKey, DeviceIndex),
    // From the control plane.
    Attach(Box<Attach>),
    Command(SessionKey, Command),
    Inspect(Inspect),
    ResetStats(SessionKey, Option<PathIndex>),
}

/// A new session's channel on a core.
#[derive(Clone, Debug)]
pub(crate) struct ChannelSetup {
    pub(crate) session: SessionKey,
    pub(crate) controller: Arc<str>,
    pub(crate) home: CoreIndex,
    pub(crate) index: u16,
    pub(crate) config: SessionConfig,
    pub(crate) retry_count: i32,
    /// What becomes of requests that cost their path its life by being late.
    pub(crate) late: Late,
    pub(crate) writes: WriteGate,
}

/// What becomes of a request that was not answered in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late {
    /// As of others that are lost with a path.
    Again,
    /// It fails.
    Fails,
}

/// Where a session's path leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) dst: Addr,
    pub(crate) src: Option<Addr>,
}

/// The shard's ends of the rings of one consumer.
#[derive(Debug)]
pub(crate) struct PortSetup {
    pub(crate) device: DeviceIndex,
    pub(crate) requests: Consumer<BdevIo>,
    pub(crate) done: Producer<IoDone>,
}

/// A new controller.
pub(crate) struct Attach {
    pub(crate) session: SessionKey,
    pub(crate) sessname: Name,
    pub(crate) params: AttachParams,
    pub(crate) options: Options,
    pub(crate) timeouts: Timeouts,
    /// Cores of the channels, by channel.
    pub(crate) cores: Vec<CoreIndex>,
    pub(crate) reply: Reply<Vec<String>>,
}

impl std::fmt::Debug for Attach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Attach({})", self.params.name)
    }
}

/// What an administrator wants of one session.
pub(crate) enum Command {
    Detach { force: bool, reply: Reply<()> },
    Map(Box<DeviceParams>, Reply<String>),
    Unmap(DeviceIndex, UnmapMode, Reply<()>),
    Remap(DeviceIndex, Reply<()>),
    Resize(DeviceIndex, u64, Reply<()>),
    Rescan(DeviceIndex, Reply<()>),
    SetReconnect(Option<i32>, Option<u32>, Reply<()>),
    SetPolicy(Policy, u32, Reply<()>),
    SetPreferred(PathIndex, Reply<()>),
    AddPath(Route, Reply<u16>),
    RemovePath(PathIndex, Reply<()>),
    DisconnectPath(PathIndex, Reply<()>),
    ReconnectPath(PathIndex, Reply<()>),
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command")
    }
}

/// What every shard is asked to contribute to.
#[derive(Debug)]
pub(crate) enum Inspect {
    Controllers(Option<SessionKey>, Gather<ControllerInfo>),
    PathStats(Option<SessionKey>, Gather<PathStats>),
    Transports(Gather<CoreTransport>),
    IoPaths(Gather<IoPath>),
}

/// How to reach each shard; index by position, not by core.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) core: CoreIndex,
    pub(crate) sender: rnbd_base::Sender<Message>,
    pub(crate) wake: Arc<dyn Wake>,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peer({:?})", self.core)
    }
}
