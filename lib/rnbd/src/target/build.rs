use std::fmt;
use std::sync::Arc;

use rnbd_base::{CoreIndex, Errno, Wake, mailbox};
use rnbd_bdev::Registry;
use rnbd_fabric::Fabric;
use rnbd_mem::Memory;
use rnbd_rtrs::srv::{self, ConfigError};
use thiserror::Error;

use super::acceptor::Handover;
use super::command::Reply;
use super::directory::Directory;
use super::handle::TargetHandle;
use super::notification::Sink;
use super::shard::{Peers, ShardParts, TargetShard};
use crate::srv::{Exports, OpenPath};

/// Commands that may wait for one shard.
const COMMANDS_MAX: usize = 1024;
/// Connection requests that may wait for one shard.
const HANDOVERS_MAX: usize = 1024;

/// What all shards of all transports share. Clones are handles to the same things.
#[derive(Clone)]
pub struct Services {
    /// Where chunks come from.
    pub memory: Memory,
    /// Where devices come from.
    pub registry: Registry,
    /// What may be opened.
    pub exports: Exports,
    /// Which sessions there are, and where.
    pub directory: Directory,
    /// Opens files below the search path.
    pub opener: Arc<dyn DeviceOpener>,
    /// Hears what happens.
    pub sink: Arc<dyn Sink>,
}

/// Options of a transport.
#[derive(Clone, Copy, Debug, Default)]
pub struct TargetConfig {
    /// Of the protocol.
    pub rtrs: srv::Config,
}

/// What one shard is made from.
pub struct CoreParts<F> {
    /// Where it will be polled.
    pub core: CoreIndex,
    /// Its fabric.
    pub fabric: F,
    /// Wakes the runtime of that core.
    pub wake: Arc<dyn Wake>,
}

/// Why a target could not be made.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BuildError {
    /// An option is out of its range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `NEW_RKEY` needs memory windows.
    #[error("always_invalidate needs memory windows, which transport {0} does not have here")]
    NoWindows(&'static str),
    /// Nothing to run on.
    #[error("a target needs at least one core")]
    NoCores,
}

/// Makes devices of files. It is called on a reactor and answers from anywhere: what may block it
/// does elsewhere.
pub trait DeviceOpener: Send + Sync {
    /// Opens a file as a bdev, or finds the bdev that it is already. `reply` must be called; its
    /// value is the bdev's name.
    fn open(&self, path: OpenPath, reply: Reply<Result<String, Errno>>);

    /// Nobody has this bdev open any more.
    fn closed(&self, bdev_name: &str);
}

/// Opens nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSearchPath;

impl DeviceOpener for NoSearchPath {
    fn open(&self, _path: OpenPath, reply: Reply<Result<String, Errno>>) {
        reply(Err(Errno::NOENT));
    }

    fn closed(&self, _bdev_name: &str) {}
}

/// Makes the shards of one transport, one per core, and the handle that commands them. The first
/// core listens for all.
///
/// # Errors
/// [`BuildError`].
pub fn build<F: Fabric>(
    config: TargetConfig,
    services: &Services,
    cores: Vec<CoreParts<F>>,
) -> Result<(TargetHandle, Vec<TargetShard<F>>), BuildError> {
    config.rtrs.validate()?;
    let caps = cores.first().ok_or(BuildError::NoCores)?.fabric.caps();
    if config.rtrs.new_rkey && !caps.domain_windows {
        return Err(BuildError::NoWindows(caps.trtype));
    }
    let transport = services.directory.add_transport(cores.len());
    let (command_senders, commands) = mailboxes(COMMANDS_MAX, &cores);
    let (handover_senders, handovers) = mailboxes::<Handover<F>, F>(HANDOVERS_MAX, &cores);
    let parts = cores.into_iter().zip(commands.into_iter().zip(handovers));
    let shards = parts
        .enumerate()
        .map(|(shard, (core, (commands, handovers)))| {
            TargetShard::new(ShardParts {
                config,
                services: services.clone(),
                core,
                peers: Peers {
                    transport,
                    shard,
                    handovers: handover_senders.clone(),
                },
                commands,
                handovers,
            })
        })
        .collect();
    Ok((TargetHandle::new(config, caps, command_senders), shards))
}

type Mailboxes<T> = (Vec<rnbd_base::Sender<T>>, Vec<rnbd_base::Receiver<T>>);

fn mailboxes<T, F>(capacity: usize, cores: &[CoreParts<F>]) -> Mailboxes<T> {
    cores
        .iter()
        .map(|core| mailbox(capacity, Arc::clone(&core.wake)))
        .unzip()
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services")
            .field("memory", &self.memory)
            .field("exports", &self.exports)
            .finish_non_exhaustive()
    }
}

impl<F: fmt::Debug> fmt::Debug for CoreParts<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoreParts")
            .field("core", &self.core)
            .field("fabric", &self.fabric)
            .finish_non_exhaustive()
    }
}
