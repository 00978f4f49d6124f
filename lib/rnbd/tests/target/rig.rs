//! A target of a few shards, its disks, and time.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use rnbd_base::{CoreIndex, Errno, Nanos, NoWake, Poll};
use rnbd_bdev::{DelayBdev, DelayOptions, MallocBdev, MallocOptions, Registry};
use rnbd_fabric::sim::{FaultPlan, SimFabric, SimNetwork};
use rnbd_fabric::tcp::{TcpConfig, TcpFabric};
use rnbd_fabric::{Addr, Fabric, ListenOptions};
use rnbd_mem::{Memory, MemoryConfig};
use rnbd_proto::srv::{Export, Exports, ServiceOptions};
use rnbd_proto::target::{
    CoreParts, DeviceOpener, Directory, DirectoryLimits, NoSearchPath, Notification, Reply,
    Services, SessionInfo, ShardStats, Sink, TargetConfig, TargetHandle, TargetShard, build,
};
use rnbd_rtrs::srv::Config;
use rnbd_wire::rnbd::{AccessMode, OpenRsp};

use crate::client::{Answer, Client, Identity};

pub(crate) const DEPTH: u16 = 8;
pub(crate) const CHUNK: u32 = 16384;
pub(crate) const BLOCK: usize = 512;
/// Blocks of each disk.
pub(crate) const BLOCKS: u64 = 8192;
/// Rounds after which what a test waits for will not come.
const ROUNDS_MAX: usize = 200_000;

/// Where fabrics and time come from.
pub(crate) trait World {
    type Fabric: Fabric;
    fn server_fabric(&mut self) -> Self::Fabric;
    fn client_fabric(&mut self, host: u8) -> Self::Fabric;
    fn listen_addr(&self) -> Addr;
    /// Time of the next round: later than `now`, at the latest at `deadline`.
    fn advance(&mut self, now: Nanos, deadline: Option<Nanos>) -> Nanos;
}

/// The simulated network.
pub(crate) struct Sim(pub(crate) SimNetwork);

impl Sim {
    pub(crate) fn new(plan: FaultPlan) -> Self {
        Self(SimNetwork::new(7, plan))
    }
}

impl World for Sim {
    type Fabric = SimFabric;

    fn server_fabric(&mut self) -> SimFabric {
        self.0.fabric(host(1))
    }

    fn client_fabric(&mut self, number: u8) -> SimFabric {
        self.0.fabric(host(number))
    }

    fn listen_addr(&self) -> Addr {
        Addr::Ip(SocketAddr::new(host(1), 1234))
    }

    fn advance(&mut self, now: Nanos, deadline: Option<Nanos>) -> Nanos {
        let step = now + Nanos::from_millis(10);
        let events = self.0.next_event().into_iter().chain(deadline);
        events.min().unwrap_or(step).clamp(now + Nanos(1), step)
    }
}

pub(crate) fn host(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, number))
}

/// TCP over loopback.
pub(crate) struct Loopback(std::time::Instant);

impl Loopback {
    pub(crate) fn new() -> Self {
        Self(std::time::Instant::now())
    }
}

impl World for Loopback {
    type Fabric = TcpFabric;

    fn server_fabric(&mut self) -> TcpFabric {
        TcpFabric::new(TcpConfig::default()).unwrap()
    }

    fn client_fabric(&mut self, _host: u8) -> TcpFabric {
        self.server_fabric()
    }

    fn listen_addr(&self) -> Addr {
        Addr::Ip(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))
    }

    fn advance(&mut self, now: Nanos, _deadline: Option<Nanos>) -> Nanos {
        std::thread::yield_now();
        Nanos::from(self.0.elapsed()).max(now)
    }
}

/// Remembers what happened.
#[derive(Default)]
pub(crate) struct Log(pub(crate) Mutex<Vec<Notification>>);

impl Sink for Log {
    fn notify(&self, notification: Notification) {
        self.0.lock().unwrap().push(notification);
    }
}

/// A target and what it stands on.
pub(crate) struct Rig<W: World> {
    pub(crate) world: W,
    pub(crate) now: Nanos,
    pub(crate) shards: Vec<TargetShard<W::Fabric>>,
    pub(crate) handle: TargetHandle,
    pub(crate) services: Services,
    pub(crate) log: Arc<Log>,
    pub(crate) addr: Addr,
}

/// What a rig is made with.
pub(crate) struct Options {
    pub(crate) cores: u16,
    pub(crate) rtrs: Config,
    pub(crate) memory_bytes: u64,
    pub(crate) limits: DirectoryLimits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cores: 1,
            rtrs: Config {
                queue_depth: DEPTH,
                chunk_bytes: CHUNK,
                ..Config::default()
            },
            memory_bytes: u64::MAX,
            limits: DirectoryLimits::default(),
        }
    }
}

pub(crate) fn new_rkey() -> Options {
    let mut options = Options::default();
    options.rtrs.new_rkey = true;
    options
}

impl Rig<Sim> {
    pub(crate) fn sim(options: Options) -> Self {
        Self::new(Sim::new(FaultPlan::default()), options)
    }

    pub(crate) fn with_opener(options: Options, opener: Arc<dyn DeviceOpener>) -> Self {
        Self::make(Sim::new(FaultPlan::default()), options, opener)
    }
}

impl<W: World> Rig<W> {
    /// A target with the exports `disk` and `slow`; the latter takes a while for each I/O.
    pub(crate) fn new(world: W, options: Options) -> Self {
        Self::make(world, options, Arc::new(NoSearchPath))
    }

    fn make(mut world: W, options: Options, opener: Arc<dyn DeviceOpener>) -> Self {
        let log = Arc::new(Log::default());
        let services = services(&options, Arc::clone(&log), opener);
        let cores = (0..options.cores)
            .map(|core| CoreParts {
                core: CoreIndex(core),
                fabric: world.server_fabric(),
                wake: Arc::new(NoWake),
            })
            .collect();
        let config = TargetConfig { rtrs: options.rtrs };
        let (handle, shards) = build(config, &services, cores).unwrap();
        let addr = world.listen_addr();
        let mut rig = Self {
            world,
            now: Nanos(1),
            shards,
            handle,
            services,
            log,
            addr,
        };
        let listening =
            rig.ask(|handle, reply| handle.add_listener(addr, ListenOptions::default(), reply));
        rig.addr = listening.unwrap();
        rig
    }

    // Time.

    /// One round of everything.
    pub(crate) fn step(&mut self, clients: &mut [&mut Client<W::Fabric>]) {
        for shard in &mut self.shards {
            shard.poll(self.now);
        }
        for client in &mut *clients {
            client.poll(self.now);
        }
        let shards = self.shards.iter().filter_map(Poll::next_deadline);
        let clients = clients
            .iter()
            .filter_map(|client| client.fabric.next_deadline());
        let deadline = shards.chain(clients).min();
        self.now = self.world.advance(self.now, deadline);
    }

    pub(crate) fn steps(&mut self, count: usize, clients: &mut [&mut Client<W::Fabric>]) {
        for _ in 0..count {
            self.step(clients);
        }
    }

    pub(crate) fn run(
        &mut self,
        client: &mut Client<W::Fabric>,
        until: impl Fn(&Client<W::Fabric>) -> bool,
    ) {
        for _ in 0..ROUNDS_MAX {
            if until(client) {
                return;
            }
            self.step(&mut [&mut *client]);
        }
        panic!("it does not come: {client:?}");
    }

    /// The same, until something is so of the target.
    pub(crate) fn run_with(
        &mut self,
        client: &mut Client<W::Fabric>,
        until: impl Fn(&mut Self) -> bool,
    ) {
        for _ in 0..ROUNDS_MAX {
            if until(self) {
                return;
            }
            self.step(&mut [&mut *client]);
        }
        panic!("it does not come: {client:?}");
    }

    pub(crate) fn run_alone(&mut self, until: impl Fn(&Self) -> bool) {
        for _ in 0..ROUNDS_MAX {
            if until(self) {
                return;
            }
            self.step(&mut []);
        }
        panic!("it does not come");
    }

    /// Sends a command and waits for its reply.
    pub(crate) fn ask<T: Send + 'static>(
        &mut self,
        command: impl FnOnce(&TargetHandle, Reply<T>) -> Result<(), Errno>,
    ) -> T {
        let answer = self.ask_later(command);
        self.run_alone(|_| answer.lock().unwrap().is_some());
        answer.lock().unwrap().take().unwrap()
    }

    pub(crate) fn ask_later<T: Send + 'static>(
        &mut self,
        command: impl FnOnce(&TargetHandle, Reply<T>) -> Result<(), Errno>,
    ) -> Arc<Mutex<Option<T>>> {
        let answer = Arc::new(Mutex::new(None));
        let place = Arc::clone(&answer);
        let reply = move |value| *place.lock().unwrap() = Some(value);
        command(&self.handle, Box::new(reply)).unwrap();
        answer
    }

    // Clients.

    pub(crate) fn client(&mut self, id: Identity) -> Client<W::Fabric> {
        self.client_on(2, id)
    }

    pub(crate) fn client_on(&mut self, host: u8, id: Identity) -> Client<W::Fabric> {
        let fabric = self.world.client_fabric(host);
        let rtrs = self.handle.config().rtrs;
        let memory = Memory::new(MemoryConfig::default());
        let (depth, chunk) = (rtrs.queue_depth.into(), rtrs.chunk_bytes as usize);
        Client::new(fabric, &memory, id, depth, chunk)
    }

    /// Connects all connections, one after the other.
    pub(crate) fn connect(&mut self, client: &mut Client<W::Fabric>) {
        for count in 1..=usize::from(client.id.cid_num) {
            client.connect(self.addr, self.now);
            self.run(client, |client| client.connected == count);
        }
    }

    /// A client with a session that serves.
    pub(crate) fn up(&mut self, id: Identity) -> Client<W::Fabric> {
        let mut client = self.client(id);
        self.bring_up(&mut client);
        client
    }

    pub(crate) fn bring_up(&mut self, client: &mut Client<W::Fabric>) {
        self.connect(client);
        client.send_info_req();
        self.run(client, |client| !client.chunks.is_empty());
        client.sess_info(0);
        self.expect(client, Ok(()));
    }

    /// Waits for one answer.
    pub(crate) fn answer(&mut self, client: &mut Client<W::Fabric>) -> Answer {
        self.run(client, |client| !client.answers.is_empty());
        client.answers.remove(0)
    }

    pub(crate) fn expect(&mut self, client: &mut Client<W::Fabric>, status: Result<(), Errno>) {
        assert_eq!(self.answer(client).status, status);
    }

    pub(crate) fn open(
        &mut self,
        client: &mut Client<W::Fabric>,
        name: &str,
        mode: AccessMode,
    ) -> Result<OpenRsp, Errno> {
        client.open(1, name, mode);
        self.answer(client).status?;
        Ok(client.open_rsp(1))
    }

    /// Opens for writing; returns the device's id.
    pub(crate) fn open_rw(&mut self, client: &mut Client<W::Fabric>, export: &str) -> u32 {
        let opened = self.open(client, export, AccessMode::ReadWrite);
        opened.unwrap().device_id
    }

    /// A client of session `clt1` with this export open for writing, and the device's id.
    pub(crate) fn up_with(&mut self, export: &str) -> (Client<W::Fabric>, u32) {
        let mut client = self.up(Identity::new("clt1", 1));
        let id = self.open_rw(&mut client, export);
        (client, id)
    }

    /// Another path of session `clt1`, from this host.
    pub(crate) fn added_path(&mut self, host: u8) -> Client<W::Fabric> {
        let mut client = self.client_on(host, Identity::added(host));
        self.bring_up(&mut client);
        client
    }

    // Looks.

    pub(crate) fn sessions(&mut self) -> Vec<SessionInfo> {
        self.ask(TargetHandle::sessions)
    }

    pub(crate) fn stats(&mut self) -> Vec<ShardStats> {
        self.ask(TargetHandle::stats)
    }

    pub(crate) fn chunk_memory(&self) -> u64 {
        self.services.memory.usage().used_bytes
    }
}

fn services(options: &Options, log: Arc<Log>, opener: Arc<dyn DeviceOpener>) -> Services {
    let disks = Memory::new(MemoryConfig::default());
    let registry = Registry::new(disks.clone());
    for name in ["Malloc0", "Malloc1"] {
        let malloc = MallocOptions {
            name: Some(name.to_owned()),
            num_blocks: BLOCKS,
            block_size: 512,
            ..MallocOptions::default()
        };
        MallocBdev::create(&registry, &disks, malloc).unwrap();
    }
    let delay = DelayOptions {
        name: "Delay0".to_owned(),
        base_bdev_name: "Malloc1".to_owned(),
        uuid: None,
        avg_read_latency: 500_000,
        p99_read_latency: 500_000,
        avg_write_latency: 500_000,
        p99_write_latency: 500_000,
    };
    DelayBdev::create(&registry, delay).unwrap();
    let exports = Exports::new(ServiceOptions::default());
    for (name, bdev_name) in [("disk", "Malloc0"), ("slow", "Delay0")] {
        let export = Export {
            allow_any_host: true,
            ..Export::new(name, bdev_name)
        };
        exports.create(export).unwrap();
    }
    Services {
        memory: Memory::new(MemoryConfig {
            limit_bytes: options.memory_bytes,
            ..MemoryConfig::default()
        }),
        registry,
        exports,
        directory: Directory::new(options.limits),
        opener,
        sink: log,
    }
}
