//! The control plane's handle.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rnbd_base::{CoreIndex, Errno, Wake, mailbox};
use rnbd_bdev::{ConfigCall, Registry};
use rnbd_fabric::{Addr, Fabric};
use rnbd_mem::Memory;
use rnbd_proto::clt::DeviceIndex;
use rnbd_rtrs::clt::{PathIndex, Policy};
use rnbd_wire::Name;

use crate::control::{
    AttachParams, ControlError, ControllerInfo, CoreTransport, DeviceParams, InitiatorControl,
    IoPath, PathStats, Reply, UnmapMode,
};
use crate::directory::{Controller, Directory};
use crate::gather::Gather;
use crate::message::{Attach, Command, Inspect, Message, Peer, Route, SessionKey};
use crate::notification::Notification;
use crate::options::{Options, Timeouts};
use crate::shard::{InitiatorShard, Notify};

/// What an initiator is made of besides fabrics.
#[derive(Clone)]
pub struct InitiatorConfig {
    /// For headers and handshakes; consumers' buffers are looked up in it.
    pub memory: Memory,
    /// Where mapped devices become bdevs.
    pub registry: Registry,
    /// Of uuids and of reconnect jitter. Must differ between processes.
    pub seed: u64,
    /// Is told what happens; called on reactors, so it must not block.
    pub notify: Arc<dyn Fn(Notification) + Send + Sync>,
}

impl fmt::Debug for InitiatorConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InitiatorConfig")
    }
}

/// The initiator over any number of kinds of fabric, as the control plane sees it.
pub struct Initiator {
    config: InitiatorConfig,
    transports: Mutex<Vec<Transport>>,
    directory: Directory,
    next_session: AtomicU64,
}

/// One kind of fabric and how to reach its shards.
#[derive(Clone)]
struct Transport {
    trtype: &'static str,
    peers: Arc<[Peer]>,
}

/// Where a controller lives: what names its session to the shard that has it.
#[derive(Clone, Copy)]
struct Place {
    trtype: &'static str,
    home: CoreIndex,
    session: SessionKey,
}

/// An initiator over one kind of fabric; as [`Initiator::new`] and [`Initiator::add_fabric`].
pub fn new<F: Fabric>(
    fabrics: Vec<(CoreIndex, F, Arc<dyn Wake>)>,
    config: InitiatorConfig,
) -> (Arc<Initiator>, Vec<InitiatorShard<F>>) {
    let initiator = Initiator::new(config);
    let shards = initiator.add_fabric(fabrics);
    (Arc::new(initiator), shards)
}

impl Initiator {
    /// An initiator that cannot reach anything yet.
    #[must_use]
    pub fn new(config: InitiatorConfig) -> Self {
        Self {
            config,
            transports: Mutex::default(),
            directory: Directory::default(),
            next_session: AtomicU64::new(1),
        }
    }

    /// Makes it reach servers over one more kind of fabric, on the cores that these belong to:
    /// returns a shard for each core, to be polled there. Each fabric comes with what ends its
    /// core's sleep.
    ///
    /// # Panics
    /// If there is no fabric.
    pub fn add_fabric<F: Fabric>(
        &self,
        fabrics: Vec<(CoreIndex, F, Arc<dyn Wake>)>,
    ) -> Vec<InitiatorShard<F>> {
        const MAILBOX: usize = 4096;
        let first = fabrics.first().expect("an initiator has a core");
        let trtype = first.1.caps().trtype;
        let (mut peers, mut parts) = (Vec::new(), Vec::new());
        for (core, fabric, wake) in fabrics {
            let (sender, inbox) = mailbox(MAILBOX, Arc::clone(&wake));
            peers.push(Peer { core, sender, wake });
            parts.push((core, fabric, inbox));
        }
        let shards = parts.into_iter().map(|(core, fabric, inbox)| {
            let seed = self.config.seed.wrapping_add(core.0.into());
            InitiatorShard::new(core, fabric, inbox, peers.clone(), self.shared(), seed)
        });
        let shards = shards.collect();
        let peers = peers.into();
        self.lock_transports().push(Transport { trtype, peers });
        shards
    }

    /// What all shards have in common.
    fn shared(&self) -> (Memory, Registry, Directory, Notify) {
        (
            self.config.memory.clone(),
            self.config.registry.clone(),
            self.directory.clone(),
            Arc::clone(&self.config.notify),
        )
    }

    fn lock_transports(&self) -> MutexGuard<'_, Vec<Transport>> {
        self.transports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn transport(&self, trtype: &str) -> Option<Transport> {
        let transports = self.lock_transports();
        let mut all = transports.iter();
        all.find(|transport| transport.trtype == trtype).cloned()
    }

    /// All shards, of whatever fabric.
    fn peers(&self) -> Vec<Peer> {
        let transports = self.lock_transports();
        let peers = transports.iter().flat_map(|transport| &*transport.peers);
        peers.cloned().collect()
    }

    fn send(&self, to: Place, message: Message) -> bool {
        let transport = self.transport(to.trtype);
        let peer = transport
            .as_ref()
            .and_then(|transport| transport.on(to.home));
        peer.is_some_and(|peer| send(peer, message))
    }

    fn command(&self, to: Place, command: Command) {
        self.send(to, Message::Command(to.session, command));
    }

    fn with_controller<T>(
        &self,
        name: &str,
        reply: Reply<T>,
        command: impl FnOnce(Reply<T>) -> Command,
    ) {
        let found = self.directory.lock().by_name(name).map(place);
        match found {
            Some(place) => self.command(place, command(reply)),
            None => reply(Err(no_controller(name))),
        }
    }

    fn with_bdev<T>(
        &self,
        name: &str,
        reply: Reply<T>,
        command: impl FnOnce(DeviceIndex, Reply<T>) -> Command,
    ) {
        let tables = self.directory.lock();
        let found = tables
            .by_bdev(name)
            .map(|(of, device)| (place(of), device.index));
        drop(tables);
        match found {
            Some((place, index)) => self.command(place, command(index, reply)),
            None => {
                let text = format!("there is no RNBD bdev {name}");
                reply(Err(ControlError::new(Errno::NODEV, text)));
            }
        }
    }

    /// Asks every core; `reply` has been given to the gatherer.
    fn inspect<T>(&self, reply: Reply<Vec<T>>, inspect: impl Fn(Gather<T>) -> Inspect) {
        let peers = self.peers();
        let parts = Gather::new(peers.len(), reply);
        for (peer, part) in peers.iter().zip(parts) {
            send(peer, Message::Inspect(inspect(part)));
        }
    }

    /// The session of a controller that is wanted, or of all.
    fn wanted(&self, name: Option<&str>) -> Result<Option<SessionKey>, ControlError> {
        let Some(name) = name else {
            return Ok(None);
        };
        let tables = self.directory.lock();
        let found = tables.by_name(name).ok_or_else(|| no_controller(name))?;
        Ok(Some(found.session))
    }

    /// The controller to be, if its parameters are sound.
    fn admit(
        &self,
        params: &AttachParams,
        transport: &Transport,
    ) -> Result<(Name, Timeouts, Controller), ControlError> {
        if params.name.is_empty() {
            return Err(ControlError::invalid("name must not be empty"));
        }
        let sessname = Name::new(&params.sessname).and_then(Name::for_session);
        let sessname = sessname
            .map_err(|error| ControlError::new(Errno::INVAL, format!("sessname: {error}")))?;
        let tables = self.directory.lock();
        if let Some(other) = tables.by_name(&params.name) {
            return Err(conflict(&other.params, params));
        }
        let mut others = tables.controllers.iter();
        let same = |other: &&Controller| {
            let mut paths = other.paths.iter();
            other.trtype == params.trtype
                && other.params.sessname == params.sessname
                && paths.any(|(_, route)| route.dst == params.addr)
        };
        if let Some(other) = others.find(same) {
            let text = format!(
                "session {} to {} belongs to controller {}",
                params.sessname, params.addr, other.params.name
            );
            return Err(ControlError::new(Errno::ALREADY, text));
        }
        let timeouts = params.timeouts.unwrap_or(tables.options.timeouts);
        timeouts.check()?;
        let key = self.next_session.fetch_add(1, Ordering::Relaxed);
        let controller = Controller {
            session: SessionKey(key),
            home: transport.home_of(key),
            trtype: transport.trtype,
            params: AttachParams {
                devices: Vec::new(),
                ..params.clone()
            },
            paths: vec![(0, route(params))],
            devices: Vec::new(),
        };
        Ok((sessname, timeouts, controller))
    }

    /// The controller that an attach adds a path to; `None` if the name is free.
    fn further_path_of(&self, params: &AttachParams) -> Result<Option<Place>, ControlError> {
        let tables = self.directory.lock();
        let Some(known) = tables.by_name(&params.name) else {
            return Ok(None);
        };
        let has_path = known.paths.iter().any(|(_, of)| *of == route(params));
        if !params.multipath.enabled || has_path || known.params.sessname != params.sessname {
            return Err(conflict(&known.params, params));
        }
        if known.trtype != params.trtype {
            let text = "all paths of a controller have one transport";
            return Err(ControlError::invalid(text));
        }
        if !params.devices.is_empty() {
            let text = "devices can be given only when the controller is first attached";
            return Err(ControlError::invalid(text));
        }
        Ok(Some(place(known)))
    }

    /// Answers with the names of a controller's bdevs when its new path is up.
    fn names_after(&self, session: SessionKey, reply: Reply<Vec<String>>) -> Reply<u16> {
        let directory = self.directory.clone();
        Box::new(move |added| reply(added.map(|_| directory.lock().bdev_names(session))))
    }
}

impl Transport {
    fn on(&self, core: CoreIndex) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.core == core)
    }

    /// Sessions are spread over the cores.
    fn home_of(&self, key: u64) -> CoreIndex {
        let index = usize::try_from(key).unwrap_or(0) % self.peers.len();
        self.peers[index].core
    }

    /// The cores of a session's channels: its home first.
    fn channel_cores(&self, home: CoreIndex, num_io_queues: u16) -> Vec<CoreIndex> {
        let count = match usize::from(num_io_queues) {
            0 => self.peers.len(),
            wanted => wanted.min(self.peers.len()),
        };
        let first = self.peers.iter().position(|peer| peer.core == home);
        let order = self.peers.iter().cycle().skip(first.unwrap_or(0));
        order.take(count).map(|peer| peer.core).collect()
    }
}

/// Whether the shard took it. One that did not drops the reply that is in it.
fn send(peer: &Peer, message: Message) -> bool {
    let sent = peer.sender.send(message).is_ok();
    if !sent {
        let core = peer.core.0;
        log::error!("core {core} is too far behind to take a command");
    }
    sent
}

fn route(params: &AttachParams) -> Route {
    Route {
        dst: params.addr,
        src: params.hostaddr,
    }
}

fn place(controller: &Controller) -> Place {
    Place {
        trtype: controller.trtype,
        home: controller.home,
        session: controller.session,
    }
}

fn no_controller(name: &str) -> ControlError {
    ControlError::new(Errno::NODEV, format!("there is no controller {name}"))
}

/// Why a name that is taken cannot be attached again.
fn conflict(known: &AttachParams, wanted: &AttachParams) -> ControlError {
    let name = &known.name;
    if known.sessname == wanted.sessname {
        let text = format!("controller {name} is attached already");
        return ControlError::new(Errno::ALREADY, text);
    }
    let text = format!(
        "controller {name} is attached with session name {}",
        known.sessname
    );
    ControlError::new(Errno::INVAL, text)
}

impl InitiatorControl for Initiator {
    fn options(&self) -> Options {
        self.directory.lock().options
    }

    fn set_options(&self, options: Options) -> Result<(), ControlError> {
        options.check()?;
        let mut tables = self.directory.lock();
        if !tables.controllers.is_empty() {
            let text = "RPC not permitted with RNBD controllers already attached";
            return Err(ControlError::new(Errno::PERM, text));
        }
        tables.options = options;
        Ok(())
    }

    fn attach_controller(&self, params: AttachParams, reply: Reply<Vec<String>>) {
        let Some(transport) = self.transport(params.trtype) else {
            let text = format!("there is no transport {}", params.trtype);
            return reply(Err(ControlError::new(Errno::OPNOTSUPP, text)));
        };
        match self.further_path_of(&params) {
            Ok(Some(place)) => {
                let reply = self.names_after(place.session, reply);
                return self.command(place, Command::AddPath(route(&params), reply));
            }
            Ok(None) => {}
            Err(error) => return reply(Err(error)),
        }
        let (sessname, timeouts, controller) = match self.admit(&params, &transport) {
            Ok(admitted) => admitted,
            Err(error) => return reply(Err(error)),
        };
        let to = place(&controller);
        let options = {
            let mut tables = self.directory.lock();
            tables.controllers.push(controller);
            tables.options
        };
        let attach = Attach {
            session: to.session,
            sessname,
            cores: transport.channel_cores(to.home, params.num_io_queues),
            params,
            options,
            timeouts,
            reply,
        };
        if !self.send(to, Message::Attach(Box::new(attach))) {
            self.directory.remove(to.session);
        }
    }

    fn detach_controller(&self, name: &str, force: bool, reply: Reply<()>) {
        self.with_controller(name, reply, |reply| Command::Detach { force, reply });
    }

    fn get_controllers(&self, name: Option<&str>, reply: Reply<Vec<ControllerInfo>>) {
        match self.wanted(name) {
            Ok(key) => self.inspect(sorted(reply), |part| Inspect::Controllers(key, part)),
            Err(error) => reply(Err(error)),
        }
    }

    fn map_device(&self, controller: &str, device: DeviceParams, reply: Reply<String>) {
        let device = Box::new(device);
        self.with_controller(controller, reply, |reply| Command::Map(device, reply));
    }

    fn unmap_device(&self, bdev: &str, mode: UnmapMode, reply: Reply<()>) {
        self.with_bdev(bdev, reply, |index, reply| {
            Command::Unmap(index, mode, reply)
        });
    }

    fn remap_device(&self, bdev: &str, reply: Reply<()>) {
        self.with_bdev(bdev, reply, Command::Remap);
    }

    fn resize_device(&self, bdev: &str, num_blocks: u64, reply: Reply<()>) {
        self.with_bdev(bdev, reply, |index, reply| {
            Command::Resize(index, num_blocks, reply)
        });
    }

    fn rescan_device(&self, bdev: &str, reply: Reply<()>) {
        self.with_bdev(bdev, reply, Command::Rescan);
    }

    fn set_reconnect(
        &self,
        controller: &str,
        max_reconnect_attempts: Option<i32>,
        reconnect_delay_sec: Option<u32>,
        reply: Reply<()>,
    ) {
        self.with_controller(controller, reply, |reply| {
            Command::SetReconnect(max_reconnect_attempts, reconnect_delay_sec, reply)
        });
    }

    fn add_path(&self, controller: &str, addr: Addr, hostaddr: Option<Addr>, reply: Reply<u16>) {
        let route = Route {
            dst: addr,
            src: hostaddr,
        };
        self.with_controller(controller, reply, |reply| Command::AddPath(route, reply));
    }

    fn remove_path(&self, controller: &str, path_id: u16, reply: Reply<()>) {
        let path = PathIndex(path_id);
        self.with_controller(controller, reply, |reply| Command::RemovePath(path, reply));
    }

    fn set_policy(&self, controller: &str, policy: Policy, min_io: u32, reply: Reply<()>) {
        if min_io == 0 {
            return reply(Err(ControlError::invalid("min_io must be above 0")));
        }
        self.with_controller(controller, reply, |reply| {
            Command::SetPolicy(policy, min_io, reply)
        });
    }

    fn set_preferred_path(&self, controller: &str, path_id: u16, reply: Reply<()>) {
        let path = PathIndex(path_id);
        self.with_controller(controller, reply, |reply| {
            Command::SetPreferred(path, reply)
        });
    }

    fn disconnect_path(&self, controller: &str, path_id: u16, reply: Reply<()>) {
        let path = PathIndex(path_id);
        self.with_controller(controller, reply, |reply| {
            Command::DisconnectPath(path, reply)
        });
    }

    fn reconnect_path(&self, controller: &str, path_id: u16, reply: Reply<()>) {
        let path = PathIndex(path_id);
        self.with_controller(controller, reply, |reply| {
            Command::ReconnectPath(path, reply)
        });
    }

    fn path_stats(&self, controller: Option<&str>, reply: Reply<Vec<PathStats>>) {
        match self.wanted(controller) {
            Ok(key) => self.inspect(summed(reply), |part| Inspect::PathStats(key, part)),
            Err(error) => reply(Err(error)),
        }
    }

    fn reset_path_stats(&self, controller: &str, path_id: Option<u16>, reply: Reply<()>) {
        match self.wanted(Some(controller)) {
            Ok(Some(session)) => {
                for peer in &self.peers() {
                    send(peer, Message::ResetStats(session, path_id.map(PathIndex)));
                }
                reply(Ok(()));
            }
            Ok(None) => {}
            Err(error) => reply(Err(error)),
        }
    }

    fn transport_statistics(&self, reply: Reply<Vec<CoreTransport>>) {
        self.inspect(reply, Inspect::Transports);
    }

    fn io_paths(&self, reply: Reply<Vec<IoPath>>) {
        self.inspect(reply, Inspect::IoPaths);
    }

    fn config(&self) -> Vec<ConfigCall> {
        self.directory.lock().config()
    }
}

/// Controllers in the order of their names, whichever core was first to answer.
fn sorted(reply: Reply<Vec<ControllerInfo>>) -> Reply<Vec<ControllerInfo>> {
    Box::new(move |result| {
        reply(result.map(|mut all| {
            all.sort_by(|a, b| a.name.cmp(&b.name));
            all
        }));
    })
}

/// One entry for each path, of what its home and its channels contributed.
fn summed(reply: Reply<Vec<PathStats>>) -> Reply<Vec<PathStats>> {
    Box::new(move |result| {
        reply(result.map(|mut parts| {
            parts.sort_by(|a, b| (&a.controller, a.path_id).cmp(&(&b.controller, b.path_id)));
            parts.dedup_by(|part, sum| {
                let same = (&part.controller, part.path_id) == (&sum.controller, sum.path_id);
                if same {
                    sum.add(part);
                }
                same
            });
            parts
        }));
    })
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Initiator({} shards)", self.peers().len())
    }
}
