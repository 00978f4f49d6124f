use rnbd_base::{Errno, Nanos};
use rnbd_fabric::{Addr, FabricError, ListenOptions};

use super::info::{ListenerInfo, SessionInfo, ShardStats};

/// Takes the answer to a command, on the reactor that has it.
pub type Reply<T> = Box<dyn FnOnce(T) + Send>;

/// Names a session, or one path of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// The session's name.
    pub sessname: String,
    /// `client@server`; `None` for all paths.
    pub path: Option<String>,
}

/// Names an open device of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSelector {
    /// By its id.
    Id(u32),
    /// By the name that the client asked for.
    Path(String),
}

/// What a shard is told.
pub(super) enum Command {
    AddListener {
        addr: Addr,
        options: ListenOptions,
        reply: Reply<Result<Addr, FabricError>>,
    },
    RemoveListener {
        addr: Addr,
        reply: Reply<Result<(), Errno>>,
    },
    Listeners(Reply<Vec<ListenerInfo>>),
    Sessions(Reply<Vec<SessionInfo>>),
    Stats(Reply<ShardStats>),
    ResetStats {
        selector: Selector,
        reply: Reply<Result<(), Errno>>,
    },
    Disconnect {
        selector: Selector,
        wait: Option<Nanos>,
        reply: Reply<Result<(), Errno>>,
    },
    CloseDevice {
        sessname: String,
        device: DeviceSelector,
        reply: Reply<Result<(), Errno>>,
    },
    CloseExport {
        name: String,
        reply: Reply<usize>,
    },
    Shutdown(Reply<()>),
}
