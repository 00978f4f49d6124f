use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rnbd_base::{CoreIndex, Errno, Sender, Wake, mailbox};
use rnbd_bdev::{Registry, RegistryError};
use rnbd_mem::Memory;
use thiserror::Error;

use crate::listener::{Address, Listener};
use crate::protocol::MAX_STRING_BYTES;
use crate::server::{NbdServer, OnEnd, ServerCommand, ServerParts, ServerSettings, ServerStats};

/// I/Os at the device for all clients of an export together; what is more waits its turn.
const DEVICE_DEPTH: u32 = 256;
const MOST_CONNECTIONS: u16 = 1024;
const DEEPEST_QUEUE: u16 = 1024;

/// What to export, where, and how.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// The device.
    pub bdev_name: String,
    /// Where to listen.
    pub address: Address,
    /// The name that clients ask for, which is the device's by default. Clients that ask for no
    /// name get this export too.
    pub export_name: Option<String>,
    /// For people; may be empty.
    pub description: String,
    /// Clients may not change the device.
    pub read_only: bool,
    /// Clients at a time, 1 to 1024. Each costs 32 MiB of the memory budget, of which only what
    /// its requests fill becomes resident.
    pub max_connections: u16,
    /// Requests at a time of one client, 1 to 1024.
    pub queue_depth: u16,
}

impl ExportOptions {
    /// `bdev_name` at `address`, for reading and writing.
    #[must_use]
    pub fn new(bdev_name: &str, address: Address) -> Self {
        Self {
            bdev_name: bdev_name.to_owned(),
            address,
            export_name: None,
            description: String::new(),
            read_only: false,
            max_connections: 16,
            queue_depth: 128,
        }
    }

    fn check(&self) -> Result<(), NbdError> {
        let name = self.export_name.as_deref().unwrap_or_default();
        let invalid = |reason| Err(NbdError::InvalidOption { reason });
        if name.len() > MAX_STRING_BYTES || self.description.len() > MAX_STRING_BYTES {
            return invalid("a name or description has more than 4096 bytes");
        }
        if !(1..=MOST_CONNECTIONS).contains(&self.max_connections) {
            return invalid("max_connections is not 1 to 1024");
        }
        if !(1..=DEEPEST_QUEUE).contains(&self.queue_depth) {
            return invalid("queue_depth is not 1 to 1024");
        }
        Ok(())
    }
}

/// Why an export could not be started.
#[derive(Debug, Error)]
pub enum NbdError {
    /// The device cannot be opened.
    #[error(transparent)]
    Bdev(#[from] RegistryError),
    /// No channel to the device.
    #[error("bdev {bdev_name} gives no channel: {errno}")]
    Channel {
        /// The device.
        bdev_name: String,
        /// What it said.
        errno: Errno,
    },
    /// Somebody listens there.
    #[error("{address} is in use by another server")]
    InUse {
        /// Where.
        address: Address,
    },
    /// The system does not let us listen there.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// An option makes no sense.
    #[error("{reason}")]
    InvalidOption {
        /// Which, and what would.
        reason: &'static str,
    },
}

impl NbdError {
    /// As an RPC reports it.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Bdev(error) => error.errno(),
            Self::Channel { errno, .. } => *errno,
            Self::InUse { .. } => Errno::ADDRINUSE,
            Self::Listen { source, .. } => Errno::from(source),
            Self::InvalidOption { .. } => Errno::INVAL,
        }
    }
}

/// The way to make an export.
#[derive(Debug)]
pub struct NbdExport;

impl NbdExport {
    /// Opens the device and listens. The server is to be polled on `core`, whose mailboxes wake
    /// it by `wake`; the handle stays with who made it. `on_end` is called once, by the server,
    /// when the export has ended and the server may be dropped.
    ///
    /// Opens files and sockets, so it is not for reactors.
    ///
    /// # Errors
    /// [`NbdError`]; nothing is left behind.
    pub fn start(
        bdevs: &Registry,
        memory: &Memory,
        core: CoreIndex,
        wake: Arc<dyn Wake>,
        options: ExportOptions,
        on_end: OnEnd,
    ) -> Result<(NbdServer, NbdHandle), NbdError> {
        options.check()?;
        let is_read_only = |info: rnbd_bdev::BdevInfo| info.bdev.features().read_only;
        let read_only =
            options.read_only || bdevs.get(&options.bdev_name).is_some_and(is_read_only);
        let desc = bdevs.open(&options.bdev_name, !read_only)?;
        let channel = desc
            .open_channel(core, DEVICE_DEPTH)
            .map_err(|errno| NbdError::Channel {
                bdev_name: options.bdev_name.clone(),
                errno,
            })?;
        let listener = listen(&options.address)?;
        let export_name = options
            .export_name
            .unwrap_or_else(|| options.bdev_name.clone());
        let (tx, rx) = mailbox(4, wake);
        let stats = Arc::new(ServerStats::default());
        let handle = NbdHandle {
            bdev_name: options.bdev_name,
            export_name: export_name.clone(),
            address: listener.address().clone(),
            read_only,
            commands: tx,
            stats: Arc::clone(&stats),
        };
        let server = NbdServer::new(ServerParts {
            channel,
            desc,
            listener,
            commands: rx,
            stats,
            on_end,
            settings: ServerSettings {
                export_name,
                description: options.description,
                read_only,
                max_connections: options.max_connections,
                queue_depth: options.queue_depth,
                memory: memory.clone(),
            },
        });
        let source_of = |source| NbdError::Listen {
            address: options.address,
            source,
        };
        Ok((server.map_err(source_of)?, handle))
    }
}

fn listen(address: &Address) -> Result<Listener, NbdError> {
    Listener::bind(address).map_err(|source| {
        let address = address.clone();
        if source.kind() == io::ErrorKind::AddrInUse {
            NbdError::InUse { address }
        } else {
            NbdError::Listen { address, source }
        }
    })
}

/// Control of an export, for the thread that made it. Dropping it changes nothing.
#[derive(Debug)]
pub struct NbdHandle {
    bdev_name: String,
    export_name: String,
    address: Address,
    read_only: bool,
    commands: Sender<ServerCommand>,
    stats: Arc<ServerStats>,
}

impl NbdHandle {
    /// Ends the export: nobody is accepted any more, requests that were received are answered,
    /// then `on_end` is called with [`crate::EndReason::Stopped`]. Clients that do not read their
    /// replies are dropped after two seconds.
    pub fn stop(&self) {
        // A mailbox that is full holds this very command already.
        let _ = self.commands.send(ServerCommand::Stop);
    }

    /// The device.
    #[must_use]
    pub fn bdev_name(&self) -> &str {
        &self.bdev_name
    }

    /// What clients ask for.
    #[must_use]
    pub fn export_name(&self) -> &str {
        &self.export_name
    }

    /// Where it listens, with the port that was chosen.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether clients may only read.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Clients that are connected.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.stats.connections.load(Ordering::Relaxed)
    }

    /// What clients such as qemu, nbdcopy and fio call it.
    #[must_use]
    pub fn uri(&self) -> String {
        let name = percent_encode(&self.export_name);
        match &self.address {
            Address::Unix(path) => format!("nbd+unix:///{name}?socket={}", encode_path(path)),
            Address::Tcp(address) => format!("nbd://{address}/{name}"),
        }
    }
}

fn encode_path(path: &Path) -> String {
    percent_encode(&path.display().to_string())
}

/// Keeps what RFC 3986 leaves unreserved, and slashes.
fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("strings take everything");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_for_uris() {
        assert_eq!(percent_encode("a disk/1?%"), "a%20disk/1%3F%25");
    }
}
