use std::fmt;
use std::sync::Arc;

use rnbd_base::{Errno, Nanos, Sender};
use rnbd_fabric::{Addr, Caps, FabricError, ListenOptions};

use super::build::TargetConfig;
use super::command::{Command, DeviceSelector, Reply, Selector};
use super::gather::Gather;
use super::info::{ListenerInfo, SessionInfo, ShardStats};

/// Commands the shards of one transport; knows nothing of its fabric. Clones are handles to the
/// same shards.
///
/// Every method returns at once; the reply comes later, on a reactor. `EAGAIN` says that a
/// shard's mailbox is full: then that core hangs, and no reply may come.
#[derive(Clone)]
pub struct TargetHandle {
    shared: Arc<Shared>,
}

struct Shared {
    config: TargetConfig,
    caps: Caps,
    shards: Vec<Sender<Command>>,
}

impl TargetHandle {
    pub(super) fn new(config: TargetConfig, caps: Caps, shards: Vec<Sender<Command>>) -> Self {
        let shared = Shared {
            config,
            caps,
            shards,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// What the shards were made with.
    #[must_use]
    pub fn config(&self) -> &TargetConfig {
        &self.shared.config
    }

    /// What their fabric can do.
    #[must_use]
    pub fn caps(&self) -> Caps {
        self.shared.caps
    }

    /// Starts to listen. The reply has the address with the port that was picked, if it was 0.
    ///
    /// # Errors
    /// `EAGAIN`.
    pub fn add_listener(
        &self,
        addr: Addr,
        options: ListenOptions,
        reply: Reply<Result<Addr, FabricError>>,
    ) -> Result<(), Errno> {
        self.to_acceptor(Command::AddListener {
            addr,
            options,
            reply,
        })
    }

    /// Stops to listen; sessions stay. Replies `ENODEV` if it did not listen there.
    ///
    /// # Errors
    /// `EAGAIN`.
    pub fn remove_listener(
        &self,
        addr: Addr,
        reply: Reply<Result<(), Errno>>,
    ) -> Result<(), Errno> {
        self.to_acceptor(Command::RemoveListener { addr, reply })
    }

    /// All listeners.
    ///
    /// # Errors
    /// `EAGAIN`.
    pub fn listeners(&self, reply: Reply<Vec<ListenerInfo>>) -> Result<(), Errno> {
        self.to_acceptor(Command::Listeners(reply))
    }

    /// All sessions of all shards, with their paths, devices and counters.
    ///
    /// # Errors
    /// `EAGAIN`.
    pub fn sessions(&self, reply: Reply<Vec<SessionInfo>>) -> Result<(), Errno> {
        let flatten = |shards: Vec<Vec<SessionInfo>>| reply(shards.into_iter().flatten().collect());
        self.to_all(Box::new(flatten), Command::Sessions)
    }

    /// Counters of each shard.
    ///
    /// # Errors
    /// `EAGAIN`.
    pub fn stats(&self, reply: Reply<Vec<ShardStats>>) -> Result<(), Errno> {
        self.to_all(reply, Command::Stats)
    }

    /// Sets the counters of a session or path, and of its devices, to zero. Replies `ENOENT` if
    /// there is none.
    ///
    /// # Errors
    /// `EAGAIN`.
    pub fn reset_stats(
        &self,
        selector: &Selector,
        reply: Reply<Result<(), Errno>>,
    ) -> Result<(), Errno> {
        self.to_all(first_success(reply), |reply| Command::ResetStats {
            selector: selector.clone(),
            reply,
        })
    }

    /// Disconnects a session or path. With `wait` the reply comes when it is gone with all its
    /// I/O, or as `ETIMEDOUT` after that span. Replies `ENOENT` if there is none.
    ///
    /// # Errors
    /// `EAGAIN`.
    pub fn disconnect(
        &self,
        selector: &Selector,
        wait: Option<Nanos>,
        reply: Reply<Result<(), Errno>>,
    ) -> Result<(), Errno> {
        self.to_all(first_success(reply), |reply| Command::Disconnect {
            selector: selector.clone(),
            wait,
            reply,
        })
    }

    /// Takes a device away from a client: its I/O fails with `ENOTCONN` until the client opens
    /// it again. Replies `ENOENT` if there is none.
    ///
    /// # Errors
    /// `EAGAIN`.
    pub fn close_device(
        &self,
        sessname: &str,
        device: &DeviceSelector,
        reply: Reply<Result<(), Errno>>,
    ) -> Result<(), Errno> {
        self.to_all(first_success(reply), |reply| Command::CloseDevice {
            sessname: sessname.to_owned(),
            device: device.clone(),
            reply,
        })
    }

    /// Takes the devices of this name away from all clients. The reply is how many had it open.
    ///
    /// # Errors
    /// `EAGAIN`.
    pub fn close_export(&self, name: &str, reply: Reply<usize>) -> Result<(), Errno> {
        let sum = |shards: Vec<usize>| reply(shards.into_iter().sum());
        self.to_all(Box::new(sum), |reply| Command::CloseExport {
            name: name.to_owned(),
            reply,
        })
    }

    /// Ends all listeners and sessions; replies when all are gone.
    ///
    /// # Errors
    /// `EAGAIN`.
    pub fn shutdown(&self, reply: Reply<()>) -> Result<(), Errno> {
        self.to_all(Box::new(|_: Vec<()>| reply(())), Command::Shutdown)
    }

    fn to_acceptor(&self, command: Command) -> Result<(), Errno> {
        self.send(0, command)
    }

    fn to_all<T: Send + 'static>(
        &self,
        reply: Reply<Vec<T>>,
        command: impl Fn(Reply<T>) -> Command,
    ) -> Result<(), Errno> {
        let gather = Gather::new(self.shared.shards.len(), reply);
        (0..self.shared.shards.len()).try_for_each(|shard| self.send(shard, command(gather.part())))
    }

    fn send(&self, shard: usize, command: Command) -> Result<(), Errno> {
        let sent = self.shared.shards[shard].send(command);
        sent.map_err(|_| Errno::AGAIN)
    }
}

/// The shard that knows the session decides; the others say `ENOENT`.
fn first_success(reply: Reply<Result<(), Errno>>) -> Reply<Vec<Result<(), Errno>>> {
    Box::new(|results| {
        let known = results
            .into_iter()
            .find(|result| *result != Err(Errno::NOENT));
        reply(known.unwrap_or(Err(Errno::NOENT)));
    })
}

impl fmt::Debug for TargetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetHandle")
            .field("config", &self.shared.config)
            .field("caps", &self.shared.caps)
            .field("shards", &self.shared.shards.len())
            .finish()
    }
}
