//! An initiator and a target on a simulated network, in one thread, on virtual time.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use bdev_rnbd::{
    AttachParams, ControlError, ControllerInfo, DeviceParams, InitiatorConfig, InitiatorControl,
    InitiatorShard, Multipath, Notification, Options, PathStats, Reply,
};
use rnbd_base::{CoreIndex, Errno, Nanos, NoWake, Poll, Progress};
use rnbd_bdev::{BdevIo, Channel, Desc, IoOp, MallocBdev, MallocOptions, Registry};
use rnbd_fabric::sim::{Crash, FaultPlan, SimFabric, SimNetwork};
use rnbd_fabric::{Addr, ListenOptions};
use rnbd_mem::{Buffer, Memory, MemoryConfig, Pages};
use rnbd_proto::srv::{Export, Exports, ServiceOptions};
use rnbd_proto::target::{
    CoreParts, Directory, DirectoryLimits, IgnoreNotifications, NoSearchPath, Services,
    TargetConfig, TargetHandle, TargetShard, build,
};
use rnbd_rtrs::HeartbeatConfig;
use rnbd_rtrs::srv::ExtensionConfig;
use rnbd_wire::rnbd::AccessMode;

pub(crate) const BLOCK: usize = 512;
/// An address of the target, on the network of a path.
pub(crate) const fn target_ip(net: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, net, 1))
}

/// An address of the initiator, on the network of a path.
pub(crate) const fn initiator_ip(net: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, net, 2))
}

const TARGET: IpAddr = target_ip(0);
const INITIATOR: IpAddr = initiator_ip(0);

const DISKS: [&str; 2] = ["disk0", "disk1"];

/// What a world is made of.
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) initiator_cores: u16,
    pub(crate) target_cores: u16,
    /// Networks between the two.
    pub(crate) nets: u8,
    pub(crate) queue_depth: u16,
    pub(crate) new_rkey: bool,
    /// How the target watches its clients.
    pub(crate) heartbeat: HeartbeatConfig,
    /// Whether the target knows more than a kernel does.
    pub(crate) extension: bool,
    pub(crate) plan: FaultPlan,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            seed: 1,
            initiator_cores: 1,
            target_cores: 1,
            nets: 1,
            queue_depth: 16,
            new_rkey: false,
            heartbeat: HeartbeatConfig::default(),
            extension: true,
            plan: FaultPlan::default(),
        }
    }
}

pub(crate) struct World {
    pub(crate) now: Nanos,
    pub(crate) network: SimNetwork,
    setup: Setup,
    pub(crate) target_registry: Registry,
    target_memory: Memory,
    targets: Vec<TargetShard<SimFabric>>,
    /// Times that the target was started.
    starts: u64,
    pub(crate) target: Option<TargetHandle>,
    shards: Vec<InitiatorShard<SimFabric>>,
    pub(crate) initiator: Arc<dyn InitiatorControl>,
    pub(crate) registry: Registry,
    pub(crate) memory: Memory,
    pub(crate) notifications: Arc<Mutex<Vec<Notification>>>,
}

impl World {
    /// A target that exports `disk0` and `disk1`, of 1024 blocks each, and an initiator.
    pub(crate) fn new(setup: Setup) -> Self {
        let network = SimNetwork::new(setup.seed, setup.plan.clone());
        for net in 1..setup.nets {
            network.add_address(TARGET, target_ip(net));
            network.add_address(INITIATOR, initiator_ip(net));
        }
        let target_memory = Memory::new(MemoryConfig::default());
        let target_registry = Registry::new(target_memory.clone());
        for name in DISKS {
            make_disk(&target_registry, &target_memory, name);
        }
        let memory = Memory::new(MemoryConfig::default());
        let registry = Registry::new(memory.clone());
        let notifications = Arc::default();
        let (initiator, shards) = initiator(&setup, &network, &memory, &registry, &notifications);
        let mut world = Self {
            now: Nanos::ZERO,
            network,
            setup,
            target_registry,
            target_memory,
            targets: Vec::new(),
            starts: 0,
            target: None,
            shards,
            initiator,
            registry,
            memory,
            notifications,
        };
        world.start_target();
        world
    }

    pub(crate) fn start_target(&mut self) {
        let mut config = TargetConfig::default();
        config.rtrs.queue_depth = self.setup.queue_depth;
        config.rtrs.chunk_bytes = 32 * 1024;
        config.rtrs.new_rkey = self.setup.new_rkey;
        config.rtrs.heartbeat = self.setup.heartbeat;
        self.starts += 1;
        config.rtrs.extension = self.setup.extension.then_some(ExtensionConfig {
            instance: self.starts,
            heartbeat: HeartbeatConfig::PEER,
        });
        let services = Services {
            memory: self.target_memory.clone(),
            registry: self.target_registry.clone(),
            exports: exports(),
            directory: Directory::new(DirectoryLimits::default()),
            opener: Arc::new(NoSearchPath),
            sink: Arc::new(IgnoreNotifications),
        };
        let part = |core| CoreParts {
            core: CoreIndex(core),
            fabric: self.network.fabric(TARGET),
            wake: Arc::new(NoWake) as _,
        };
        let parts = (0..self.setup.target_cores).map(part).collect();
        let (handle, shards) = build(config, &services, parts).unwrap();
        self.targets = shards;
        let listening = (0..self.setup.nets).map(|net| {
            let (tx, rx) = mpsc::channel();
            let reply = Box::new(move |result| tx.send(result).unwrap());
            let addr = target_addr_on(net);
            handle
                .add_listener(addr, ListenOptions::default(), reply)
                .unwrap();
            rx
        });
        let listening: Vec<_> = listening.collect();
        self.target = Some(handle);
        for rx in listening {
            self.until("the target listens", |_| rx.try_recv().is_ok());
        }
    }

    /// The target's process ends at once, and its memory with it.
    pub(crate) fn crash_target(&mut self) {
        self.network.crash(TARGET, Crash::Process);
        self.targets.clear();
        self.target = None;
    }

    /// Lets everything run until `done`, for at most an hour of virtual time.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now + Nanos::from_secs(3600);
        while !done(self) {
            assert!(self.now < end, "in vain: {what}");
            self.step();
        }
    }

    /// Lets everything run for a while.
    pub(crate) fn run_for(&mut self, span: Nanos) {
        let end = self.now + span;
        self.until("time passes", |world| world.now >= end);
    }

    pub(crate) fn step(&mut self) {
        let now = self.now;
        let mut progress = Progress::Idle;
        for shard in &mut self.targets {
            progress = progress.or(shard.poll(now));
        }
        for shard in &mut self.shards {
            progress = progress.or(shard.poll(now));
        }
        if progress.is_busy() {
            self.now += Nanos(100);
            return;
        }
        let targets = self.targets.iter().filter_map(Poll::next_deadline);
        let shards = self.shards.iter().filter_map(Poll::next_deadline);
        let next = targets.chain(shards).chain(self.network.next_event()).min();
        let latest = now + Nanos::from_secs(1);
        self.now = next.unwrap_or(latest).clamp(now + Nanos(100), latest);
    }

    /// Calls the control plane and waits for the answer.
    pub(crate) fn call<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&dyn InitiatorControl, Reply<T>),
    ) -> Result<T, ControlError> {
        let rx = self.begin(call);
        let mut answer = None;
        self.until("an answer to a call", |_| {
            answer = rx.try_recv().ok();
            answer.is_some()
        });
        answer.unwrap()
    }

    /// Calls the control plane; the answer comes out of the receiver, some time.
    pub(crate) fn begin<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&dyn InitiatorControl, Reply<T>),
    ) -> mpsc::Receiver<Result<T, ControlError>> {
        let (tx, rx) = mpsc::channel();
        let reply = Box::new(move |result| tx.send(result).unwrap());
        call(&*self.initiator, reply);
        rx
    }

    pub(crate) fn attach(&mut self, devices: &[&str]) -> Result<Vec<String>, ControlError> {
        let params = attach_params(devices);
        self.call(|control, reply| control.attach_controller(params, reply))
    }

    /// Adds a path on a network; returns its number.
    pub(crate) fn add_path(&mut self, net: u8) -> Result<u16, ControlError> {
        let host = Some(initiator_addr_on(net));
        self.call(|control, reply| {
            control.add_path("r0", target_addr_on(net), host, reply);
        })
    }

    /// A session with a path on each network, and `disk0` mapped.
    pub(crate) fn with_all_paths(setup: Setup, options: Options) -> Self {
        let nets = setup.nets;
        let mut world = Self::new(setup);
        world.initiator.set_options(options).unwrap();
        world.attach(&["disk0"]).unwrap();
        for net in 1..nets {
            assert_eq!(world.add_path(net).unwrap(), u16::from(net));
        }
        world
    }

    /// Nothing passes on a network any more in either direction, and nobody is told.
    pub(crate) fn cut(&self, net: u8) {
        self.network.cut(initiator_ip(net), target_ip(net));
        self.network.cut(target_ip(net), initiator_ip(net));
    }

    pub(crate) fn heal(&self, net: u8) {
        self.network.heal(initiator_ip(net), target_ip(net));
        self.network.heal(target_ip(net), initiator_ip(net));
    }

    pub(crate) fn controller(&mut self) -> ControllerInfo {
        let found = self.call(|control, reply| control.get_controllers(Some("r0"), reply));
        found.unwrap().pop().unwrap()
    }

    pub(crate) fn stats(&mut self) -> Vec<PathStats> {
        self.call(|control, reply| control.path_stats(Some("r0"), reply))
            .unwrap()
    }

    pub(crate) fn open(&self, bdev: &str, core: u16) -> User {
        let desc = self.registry.open(bdev, true).unwrap();
        let channel = desc.open_channel(CoreIndex(core), User::DEPTH).unwrap();
        let bytes = 64 * 1024;
        let buffer = self.memory.alloc("test", bytes, Pages::Small).unwrap();
        User {
            channel,
            desc,
            buffer,
        }
    }

    /// One I/O, to its end.
    pub(crate) fn io(
        &mut self,
        user: &mut User,
        op: IoOp,
        block: u64,
        blocks: u64,
    ) -> Result<(), Errno> {
        user.submit(1, op, block, blocks, self.now)?;
        let mut done = Vec::with_capacity(1);
        self.until("an I/O completes", |world| {
            user.channel.poll(world.now, &mut done);
            !done.is_empty()
        });
        assert_eq!(done[0].tag, 1);
        done[0].result
    }

    pub(crate) fn write(&mut self, user: &mut User, block: u64, data: &[u8]) -> Result<(), Errno> {
        user.buffer.span().write_at(0, data);
        let blocks = (data.len() / BLOCK) as u64;
        self.io(user, IoOp::Write { fua: false }, block, blocks)
    }

    pub(crate) fn read(
        &mut self,
        user: &mut User,
        block: u64,
        blocks: u64,
    ) -> Result<Vec<u8>, Errno> {
        user.buffer.span().fill(0xee);
        self.io(user, IoOp::Read, block, blocks)?;
        let mut data = vec![0; usize::try_from(blocks).unwrap() * BLOCK];
        user.buffer.span().read_at(0, &mut data);
        Ok(data)
    }
}

/// A user of a bdev, with a buffer of 64 KiB.
pub(crate) struct User {
    pub(crate) channel: Channel,
    pub(crate) desc: Desc,
    pub(crate) buffer: Buffer,
}

impl User {
    pub(crate) const DEPTH: u32 = 64;

    pub(crate) fn submit(
        &mut self,
        tag: u64,
        op: IoOp,
        block: u64,
        blocks: u64,
        now: Nanos,
    ) -> Result<(), Errno> {
        let bytes = usize::try_from(blocks).unwrap() * BLOCK;
        let data = if op.has_data() { bytes } else { 0 };
        let io = BdevIo {
            tag,
            op,
            offset_blocks: block,
            num_blocks: blocks,
            buf: self.buffer.span().slice(0, data).unwrap(),
            prio: 0,
        };
        self.channel.submit(&io, now)
    }
}

pub(crate) fn make_disk(registry: &Registry, memory: &Memory, name: &str) {
    make_disk_of(registry, memory, name, 1024);
}

pub(crate) fn make_disk_of(registry: &Registry, memory: &Memory, name: &str, num_blocks: u64) {
    let options = MallocOptions {
        name: Some(name.to_owned()),
        num_blocks,
        block_size: 512,
        ..MallocOptions::default()
    };
    MallocBdev::create(registry, memory, options).unwrap();
}

pub(crate) fn target_addr() -> Addr {
    target_addr_on(0)
}

pub(crate) fn target_addr_on(net: u8) -> Addr {
    Addr::Ip(SocketAddr::new(target_ip(net), 1234))
}

pub(crate) fn initiator_addr_on(net: u8) -> Addr {
    Addr::Ip(SocketAddr::new(initiator_ip(net), 0))
}

pub(crate) fn attach_params(devices: &[&str]) -> AttachParams {
    AttachParams {
        name: "r0".to_owned(),
        sessname: "host-a".to_owned(),
        trtype: "TCP",
        addr: target_addr(),
        hostaddr: None,
        num_io_queues: 0,
        queue_depth: 0,
        timeouts: None,
        multipath: Multipath::default(),
        devices: devices.iter().map(|path| device(path)).collect(),
    }
}

pub(crate) fn device(path: &str) -> DeviceParams {
    DeviceParams {
        device_path: path.to_owned(),
        access_mode: AccessMode::ReadWrite,
        bdev_name: None,
        uuid: None,
    }
}

/// `blocks` blocks that are different for each seed.
pub(crate) fn pattern(seed: u64, blocks: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..))
        .take(blocks * BLOCK)
        .collect()
}

fn exports() -> Exports {
    let exports = Exports::new(ServiceOptions::default());
    for name in DISKS {
        let mut export = Export::new(name, name);
        export.allow_any_host = true;
        exports.create(export).unwrap();
    }
    exports
}

fn initiator(
    setup: &Setup,
    network: &SimNetwork,
    memory: &Memory,
    registry: &Registry,
    notifications: &Arc<Mutex<Vec<Notification>>>,
) -> (Arc<dyn InitiatorControl>, Vec<InitiatorShard<SimFabric>>) {
    let core = |core| {
        let fabric = network.fabric(INITIATOR);
        (CoreIndex(core), fabric, Arc::new(NoWake) as _)
    };
    let fabrics = (0..setup.initiator_cores).map(core).collect();
    let seen = Arc::clone(notifications);
    let config = InitiatorConfig {
        memory: memory.clone(),
        registry: registry.clone(),
        seed: setup.seed,
        notify: Arc::new(move |notification| seen.lock().unwrap().push(notification)),
    };
    let (initiator, shards) = bdev_rnbd::new(fabrics, config);
    (initiator, shards)
}
