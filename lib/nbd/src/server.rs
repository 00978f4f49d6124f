use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rnbd_base::{Errno, Nanos, Poll, Progress, Receiver};
use rnbd_bdev::{BdevIo, Channel, Desc, IoDone, IoOp};
use rnbd_mem::{Memory, Pages};
use socket2::Socket;

use crate::connection::Connection;
use crate::handshake::ExportFacts;
use crate::listener::Listener;
use crate::readiness::Readiness;
use crate::requests::SlotId;
use crate::transmission::CONNECTION_BYTES;

/// The listener among the clients' numbers.
const LISTENER: usize = usize::MAX;

/// Why an export is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// [`crate::NbdHandle::stop`].
    Stopped,
    /// Its device went away.
    DeviceRemoved,
}

/// Called once, on the core of the server, when an export has ended and nothing uses its device.
pub type OnEnd = Box<dyn FnOnce(EndReason) + Send>;

/// What a handle asks its server for.
#[derive(Debug)]
pub(crate) enum ServerCommand {
    Stop,
}

/// What the server tells its handle without being asked.
#[derive(Debug, Default)]
pub(crate) struct ServerStats {
    pub(crate) connections: AtomicU32,
}

/// An export at work: a listener, its clients, and a channel to the device.
///
/// It lives on one core and is polled there. See [`crate::NbdExport::start`].
pub struct NbdServer {
    // Dropped first: until the device has let go, it may use the connections' memory.
    device: Option<Device>,
    connections: Vec<Connection>,
    listener: Option<Listener>,
    listener_ready: bool,
    readiness: Readiness,
    done: Vec<IoDone>,
    /// Whose I/O goes first in this round.
    turn: usize,
    commands: Receiver<ServerCommand>,
    stats: Arc<ServerStats>,
    ending: Option<EndReason>,
    on_end: Option<OnEnd>,
    settings: ServerSettings,
}

/// What stays the same for the life of a server.
#[derive(Debug)]
pub(crate) struct ServerSettings {
    pub(crate) export_name: String,
    pub(crate) description: String,
    pub(crate) read_only: bool,
    pub(crate) max_connections: u16,
    pub(crate) queue_depth: u16,
    pub(crate) memory: Memory,
}

/// What [`NbdServer::new`] is made from.
pub(crate) struct ServerParts {
    pub(crate) channel: Channel,
    pub(crate) desc: Desc,
    pub(crate) listener: Listener,
    pub(crate) commands: Receiver<ServerCommand>,
    pub(crate) stats: Arc<ServerStats>,
    pub(crate) on_end: OnEnd,
    pub(crate) settings: ServerSettings,
}

struct Device {
    channel: Channel,
    desc: Desc,
}

impl NbdServer {
    pub(crate) fn new(parts: ServerParts) -> io::Result<Self> {
        let readiness = Readiness::new()?;
        readiness.add(&parts.listener, LISTENER)?;
        let clients = usize::from(parts.settings.max_connections);
        Ok(Self {
            done: Vec::with_capacity(parts.channel.depth()),
            device: Some(Device {
                channel: parts.channel,
                desc: parts.desc,
            }),
            connections: Vec::with_capacity(clients),
            listener: Some(parts.listener),
            listener_ready: true,
            readiness,
            turn: 0,
            commands: parts.commands,
            stats: parts.stats,
            ending: None,
            on_end: Some(parts.on_end),
            settings: parts.settings,
        })
    }

    fn poll_control(&mut self, now: Nanos) -> bool {
        let mut did_work = false;
        while let Some(ServerCommand::Stop) = self.commands.take() {
            did_work = true;
            self.begin_ending(EndReason::Stopped, now);
        }
        let removed = |device: &Device| device.desc.is_removed();
        if self.ending.is_none() && self.device.as_ref().is_some_and(removed) {
            did_work = true;
            self.begin_ending(EndReason::DeviceRemoved, now);
        }
        if self.ending.is_some() {
            did_work |= self.poll_ending();
        }
        did_work
    }

    fn begin_ending(&mut self, reason: EndReason, now: Nanos) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(reason);
        self.listener = None;
        for connection in &mut self.connections {
            connection.end(reason == EndReason::DeviceRemoved, now);
        }
    }

    /// The device is let go as soon as it has ended all I/O and lends nothing, even if clients
    /// still read replies.
    fn poll_ending(&mut self) -> bool {
        let Some(reason) = self.ending else {
            return false;
        };
        let vacant = self.connections.iter().all(Connection::is_vacant);
        let lends = self.connections.iter().any(Connection::borrows_from_device);
        let is_idle = |device: &Device| device.channel.outstanding() == 0 && !lends;
        let done_with_device = vacant || reason == EndReason::DeviceRemoved;
        if done_with_device && self.device.as_ref().is_some_and(is_idle) {
            self.device = None;
        }
        match self.on_end.take_if(|_| vacant && self.device.is_none()) {
            Some(on_end) => {
                on_end(reason);
                true
            }
            None => false,
        }
    }

    fn poll_sockets(&mut self) {
        let (connections, listener_ready) = (&mut self.connections, &mut self.listener_ready);
        self.readiness
            .poll(|ready| match connections.get_mut(ready.token) {
                Some(connection) => connection.on_ready(ready.readable, ready.writable),
                None => *listener_ready = true,
            });
    }

    fn poll_listener(&mut self, now: Nanos) -> bool {
        if !self.listener_ready {
            return false;
        }
        self.listener_ready = false;
        let mut accepted_any = false;
        while let Some(listener) = &self.listener {
            match listener.accept() {
                Ok(Some(socket)) => {
                    accepted_any = true;
                    self.admit(socket, now);
                }
                Ok(None) => break,
                Err(error) => {
                    log::warn!("NBD export {}: accept: {error}", self.settings.export_name);
                    break;
                }
            }
        }
        accepted_any
    }

    fn admit(&mut self, socket: Socket, now: Nanos) {
        let peer = peer_name(&socket);
        if let Err(reason) = self.try_admit(socket, &peer, now) {
            log::warn!(
                "NBD export {}: client {peer} refused: {reason}",
                self.settings.export_name
            );
        }
    }

    fn try_admit(&mut self, socket: Socket, peer: &str, now: Nanos) -> Result<(), String> {
        let export = self.facts().ok_or("the export ends")?;
        let index = self.vacant_place()?;
        let added = self.readiness.add(&socket, index);
        added.map_err(|error| error.to_string())?;
        self.connections[index].accept(socket, peer.to_owned(), export, now);
        Ok(())
    }

    /// A place whose last client is gone, or a new one within the limit.
    fn vacant_place(&mut self) -> Result<usize, String> {
        if let Some(index) = self.connections.iter().position(Connection::is_vacant) {
            return Ok(index);
        }
        let limit = usize::from(self.settings.max_connections);
        if self.connections.len() == limit {
            return Err(format!("{limit} clients are connected already"));
        }
        let owner = format!("NBD connection to {}", self.settings.export_name);
        let memory = self
            .settings
            .memory
            .alloc(&owner, CONNECTION_BYTES, Pages::Small)
            .map_err(|error| error.to_string())?;
        let depth = self.settings.queue_depth;
        self.connections.push(Connection::new(memory, depth));
        Ok(self.connections.len() - 1)
    }

    /// What a new client is told: the size is that of now.
    fn facts(&self) -> Option<ExportFacts> {
        let device = self.device.as_ref()?;
        let geometry = device.desc.geometry();
        let features = device.desc.bdev().features();
        Some(ExportFacts {
            name: self.settings.export_name.clone(),
            description: self.settings.description.clone(),
            size_bytes: geometry.bytes(),
            block_bytes: geometry.block_size,
            preferred_bytes: geometry.physical_block_size.max(4096),
            read_only: self.settings.read_only || features.read_only,
            trim: features.unmap,
        })
    }

    fn poll_input(&mut self, now: Nanos) -> bool {
        let device_lends = self
            .device
            .as_ref()
            .is_some_and(|d| d.channel.lends_memory());
        let mut did_work = false;
        for connection in &mut self.connections {
            did_work |= connection.poll_input(device_lends, now);
        }
        did_work
    }

    /// Gives the device what it takes, one I/O of each client in turn.
    fn submit(&mut self, now: Nanos) -> bool {
        let clients = self.connections.len();
        let mut did_work = false;
        let mut without_work = 0;
        while without_work < clients && self.device_has_room() {
            let index = self.turn % clients;
            self.turn = index + 1;
            match self.connections[index].next_io() {
                Some(io) => {
                    self.submit_one(index, &io, now);
                    did_work = true;
                    without_work = 0;
                }
                None => without_work += 1,
            }
        }
        did_work
    }

    fn device_has_room(&self) -> bool {
        let has_room = |device: &Device| device.channel.outstanding() < device.channel.depth();
        self.device.as_ref().is_none_or(has_room)
    }

    fn submit_one(&mut self, index: usize, io: &BdevIo, now: Nanos) {
        let slot = SlotId::from_tag(io.tag);
        let tag = (index as u64) << u16::BITS | io.tag;
        let connection = &mut self.connections[index];
        let submitted = match &mut self.device {
            Some(device) if io.op == IoOp::Read && io.buf.is_empty() => device
                .channel
                .read_in_place(io.offset_blocks, io.num_blocks)
                .map(|data| connection.complete_in_place(slot, data)),
            Some(device) => device.channel.submit(&BdevIo { tag, ..*io }, now),
            None => Err(Errno::NODEV),
        };
        if let Err(errno) = submitted {
            self.connections[index].complete(slot, Err(errno));
        }
    }

    fn poll_device(&mut self, now: Nanos) -> bool {
        let Some(device) = &mut self.device else {
            return false;
        };
        let progress = device.channel.poll(now, &mut self.done);
        for done in self.done.drain(..) {
            let index = usize::try_from(done.tag >> u16::BITS).unwrap_or(usize::MAX);
            self.connections[index].complete(SlotId::from_tag(done.tag), done.result);
        }
        progress.is_busy()
    }

    fn poll_output(&mut self) -> bool {
        let mut did_work = false;
        for connection in &mut self.connections {
            did_work |= connection.poll_output();
        }
        did_work
    }

    fn count_clients(&self) {
        let clients = self.connections.iter().filter(|c| c.has_client()).count();
        let clients = u32::try_from(clients).unwrap_or(u32::MAX);
        if self.stats.connections.load(Ordering::Relaxed) != clients {
            self.stats.connections.store(clients, Ordering::Relaxed);
        }
    }
}

impl Poll for NbdServer {
    fn poll(&mut self, now: Nanos) -> Progress {
        if self.on_end.is_none() {
            return Progress::Idle;
        }
        let mut did_work = self.poll_control(now);
        self.poll_sockets();
        did_work |= self.poll_listener(now);
        did_work |= self.poll_input(now);
        did_work |= self.submit(now);
        did_work |= self.poll_device(now);
        did_work |= self.poll_output();
        self.count_clients();
        Progress::from_work(did_work)
    }

    fn next_deadline(&self) -> Option<Nanos> {
        let device = self.device.as_ref().and_then(|d| d.channel.next_deadline());
        let clients = self.connections.iter().filter_map(Connection::deadline);
        clients.chain(device).min()
    }

    /// One descriptor stands for the listener and all clients. What they reported before is no
    /// reason to stay awake: the last poll did with it what could be done.
    fn prepare_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool {
        fds.push(self.readiness.fd());
        match &mut self.device {
            Some(device) => !device.desc.is_removed() && device.channel.prepare_sleep(fds),
            None => true,
        }
    }
}

impl fmt::Debug for NbdServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdServer")
            .field("settings", &self.settings)
            .field("ending", &self.ending)
            .finish_non_exhaustive()
    }
}

fn peer_name(socket: &Socket) -> String {
    let address = socket.peer_addr().ok().and_then(|peer| peer.as_socket());
    address.map_or_else(|| "on the socket".to_owned(), |address| address.to_string())
}
