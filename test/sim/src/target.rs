//! The target's host: its disks outlive its process.

use std::net::IpAddr;
use std::sync::Arc;

use rnbd_base::{CoreIndex, NoWake};
use rnbd_bdev::{
    Bdev, DelayBdev, DelayOptions, ErrorBdev, ErrorOptions, ErrorType, InjectError, InjectIoType,
    MallocBdev, MallocOptions, Registry,
};
use rnbd_fabric::ListenOptions;
use rnbd_fabric::sim::{Crash, SimFabric, SimNetwork};
use rnbd_mem::Memory;
use rnbd_proto::srv::{Export, Exports, ServiceOptions};
use rnbd_proto::target::{
    CoreParts, DeviceSelector, Directory, DirectoryLimits, IgnoreNotifications, NoSearchPath,
    Selector, Services, SessionInfo, ShardStats, TargetConfig, TargetHandle, TargetShard, build,
};
use rnbd_rtrs::srv::{self, ExtensionConfig};

use crate::answer::Answer;
use crate::disk::CachedDisk;
use crate::flaw::{Flaw, FlawedDisk};
use crate::net;
use crate::scenario::{DiskSpec, PATHS_MAX, Scenario};

/// The target's machine.
#[derive(Debug)]
pub(crate) struct TargetHost {
    pub(crate) ip: IpAddr,
    cores: u16,
    rtrs: srv::Config,
    memory: Memory,
    registry: Registry,
    /// The bdev of each disk, and its error bdev if it has one.
    disks: Vec<Disk>,
    running: Option<Running>,
    /// Processes so far.
    lives: u64,
}

#[derive(Debug)]
struct Disk {
    bdev: String,
    error: Option<String>,
    cached: Option<String>,
}

/// What dies with the process.
#[derive(Debug)]
struct Running {
    handle: TargetHandle,
    exports: Exports,
    shards: Vec<TargetShard<SimFabric>>,
}

impl TargetHost {
    /// The machine with its disks, its process not started.
    pub(crate) fn new(scenario: &Scenario, memory: &Memory) -> Self {
        let registry = Registry::new(memory.clone());
        let disks = scenario.disks.iter().enumerate();
        Self {
            ip: net::target_ip(0),
            cores: scenario.target_cores,
            rtrs: scenario.rtrs,
            memory: memory.clone(),
            disks: disks
                .map(|(nth, spec)| Disk::new(&registry, memory, nth, spec, scenario.flaw))
                .collect(),
            registry,
            running: None,
            lives: 0,
        }
    }

    /// The name under which it exports a disk.
    pub(crate) fn export(disk: usize) -> String {
        format!("disk{disk}")
    }

    /// The options of this life: each names itself anew.
    fn rtrs(&self) -> srv::Config {
        let name = |extension: ExtensionConfig| ExtensionConfig {
            instance: extension.instance.wrapping_add(self.lives),
            ..extension
        };
        srv::Config {
            extension: self.rtrs.extension.map(name),
            ..self.rtrs
        }
    }

    /// Starts the process: the same exports and listener each time.
    pub(crate) fn start(&mut self, network: &SimNetwork) {
        let exports = self.exports();
        let services = Services {
            memory: self.memory.clone(),
            registry: self.registry.clone(),
            exports: exports.clone(),
            directory: Directory::new(DirectoryLimits::default()),
            opener: Arc::new(NoSearchPath),
            sink: Arc::new(IgnoreNotifications),
        };
        let part = |core| CoreParts {
            core: CoreIndex(core),
            fabric: network.fabric(self.ip),
            wake: Arc::new(NoWake),
        };
        let parts = (0..self.cores).map(part).collect();
        self.lives += 1;
        let config = TargetConfig { rtrs: self.rtrs() };
        let (handle, shards) = build(config, &services, parts).expect("scenarios are valid");
        for path in 0..PATHS_MAX {
            let (_, reply) = Answer::new();
            handle
                .add_listener(net::target(path), ListenOptions::default(), reply)
                .expect("a new mailbox has room");
        }
        self.running = Some(Running {
            handle,
            exports,
            shards,
        });
    }

    fn exports(&self) -> Exports {
        let exports = Exports::new(ServiceOptions::default());
        for disk in 0..self.disks.len() {
            exports
                .create(self.export_of(disk))
                .expect("the names differ");
        }
        exports
    }

    fn export_of(&self, disk: usize) -> Export {
        Export {
            allow_any_host: true,
            ..Export::new(Self::export(disk), self.disks[disk].bdev.clone())
        }
    }

    /// Takes an export away from everybody until [`TargetHost::restore_export`].
    /// Answers when no I/O of it succeeds any more.
    pub(crate) fn remove_export(&self, disk: usize) -> Option<Answer<usize>> {
        let running = self.running.as_ref()?;
        let name = Self::export(disk);
        let (answer, reply) = Answer::new();
        // It may be gone already.
        let _ = running.exports.delete(&name, true);
        let closed = running.handle.close_export(&name, reply);
        closed.expect("a mailbox that is emptied has room");
        Some(answer)
    }

    /// Gives it back; a target that was started again has it anyhow.
    pub(crate) fn restore_export(&self, disk: usize) {
        if let Some(running) = &self.running
            && running.exports.get(&Self::export(disk)).is_none()
        {
            let created = running.exports.create(self.export_of(disk));
            created.expect("the name is free");
        }
    }

    /// Takes a disk away from a client.
    pub(crate) fn close_device(&self, sessname: &str, disk: usize) {
        if let Some(running) = &self.running {
            let device = DeviceSelector::Path(Self::export(disk));
            let handle = &running.handle;
            let closed = handle.close_device(sessname, &device, Box::new(|_| ()));
            closed.expect("a mailbox that is emptied has room");
        }
    }

    /// Blocks that a disk has now.
    pub(crate) fn num_blocks(&self, disk: usize) -> u64 {
        let info = self.registry.get(&self.disks[disk].bdev);
        info.expect("it stays registered")
            .bdev
            .geometry()
            .num_blocks
    }

    /// A disk grows, if it can.
    pub(crate) fn grow(&self, disk: usize) {
        if let Some(name) = &self.disks[disk].cached {
            let grown = self.registry.find(name, CachedDisk::grow);
            if grown.expect("it stays registered") {
                let told = self.registry.notify_resized(name);
                told.expect("it stays registered");
            }
        }
    }

    /// Ends the process. The network has to be told first: messages that are on their way still
    /// have the bytes of the memory that goes now.
    pub(crate) fn crash(&mut self, network: &SimNetwork, crash: Crash) {
        network.crash(self.ip, crash);
        self.running = None;
        if crash == Crash::Power {
            for name in self.disks.iter().filter_map(|disk| disk.cached.as_ref()) {
                let lost = self.registry.find(name, CachedDisk::lose_power);
                lost.expect("it stays registered");
            }
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// What is to be polled, if the process runs.
    pub(crate) fn shards(&mut self) -> &mut [TargetShard<SimFabric>] {
        self.running
            .as_mut()
            .map_or(&mut [], |running| &mut running.shards[..])
    }

    /// Asks for all sessions.
    pub(crate) fn sessions(&self) -> Option<Answer<Vec<SessionInfo>>> {
        let (answer, reply) = Answer::new();
        let running = self.running.as_ref()?;
        running.handle.sessions(reply).ok()?;
        Some(answer)
    }

    /// Asks for the counters of all shards.
    pub(crate) fn stats(&self) -> Option<Answer<Vec<ShardStats>>> {
        let (answer, reply) = Answer::new();
        let running = self.running.as_ref()?;
        running.handle.stats(reply).ok()?;
        Some(answer)
    }

    /// Disconnects a session, if there is one of this name.
    pub(crate) fn disconnect(&self, sessname: &str) {
        if let Some(running) = &self.running {
            let selector = Selector {
                sessname: sessname.to_owned(),
                path: None,
            };
            let disconnected = running.handle.disconnect(&selector, None, Box::new(|_| ()));
            disconnected.expect("a mailbox that is emptied has room");
        }
    }

    /// The next `num` I/Os of each kind of each disk that can fail meet this fate.
    pub(crate) fn inject(&self, error_type: ErrorType, num: u32) {
        self.on_error_bdevs(|bdev| {
            let error = InjectError {
                io_type: InjectIoType::All,
                error_type,
                num,
                queue_depth: 0,
                corrupt_offset: 0,
                corrupt_value: 0,
            };
            bdev.inject(&error).expect("nothing is corrupted");
        });
    }

    /// The next `num` I/Os of each disk with a cache are done in part, and fail.
    pub(crate) fn cut_short(&self, num: u32) {
        for name in self.disks.iter().filter_map(|disk| disk.cached.as_ref()) {
            let cut = self
                .registry
                .find(name, |disk: &CachedDisk| disk.cut_short(num));
            cut.expect("it stays registered");
        }
    }

    /// I/O that is held back goes on.
    pub(crate) fn resume(&self) {
        self.on_error_bdevs(ErrorBdev::resume_pending);
    }

    /// No I/O fails any more.
    pub(crate) fn mend(&self) {
        self.resume();
        self.inject(ErrorType::Failure, 0);
        self.inject(ErrorType::Pending, 0);
        self.cut_short(0);
    }

    fn on_error_bdevs(&self, act: impl Fn(&ErrorBdev)) {
        for name in self.disks.iter().filter_map(|disk| disk.error.as_ref()) {
            self.registry
                .find::<ErrorBdev, _>(name, &act)
                .expect("it stays registered");
        }
    }
}

impl Disk {
    /// Stacks the bdevs of one disk.
    fn new(
        registry: &Registry,
        memory: &Memory,
        nth: usize,
        spec: &DiskSpec,
        flaw: Option<Flaw>,
    ) -> Self {
        let mut bdev = base(registry, memory, nth, spec, flaw);
        let cached = (spec.is_cached && flaw.is_none()).then(|| bdev.clone());
        let error = spec.can_fail.then(|| {
            let options = ErrorOptions {
                base_name: bdev.clone(),
                ..ErrorOptions::default()
            };
            ErrorBdev::create(registry, options).expect("the base is there")
        });
        bdev = error.clone().unwrap_or(bdev);
        if let Some(delay_us) = spec.delay_us.filter(|_| !spec.is_cached) {
            let options = DelayOptions {
                name: format!("delay{nth}"),
                base_bdev_name: bdev,
                uuid: None,
                avg_read_latency: delay_us,
                p99_read_latency: delay_us * 20,
                avg_write_latency: delay_us,
                p99_write_latency: delay_us * 20,
            };
            bdev = DelayBdev::create(registry, options).expect("the base is there");
        }
        Self {
            bdev,
            error,
            cached,
        }
    }
}

fn register(registry: &Registry, disk: impl Bdev) -> String {
    let name = disk.name().to_owned();
    registry.register(Arc::new(disk)).expect("names differ");
    name
}

/// What really keeps the bytes.
fn base(
    registry: &Registry,
    memory: &Memory,
    nth: usize,
    spec: &DiskSpec,
    flaw: Option<Flaw>,
) -> String {
    if let Some(flaw) = flaw {
        return register(registry, FlawedDisk::new(nth, flaw, spec, memory));
    }
    if spec.is_cached {
        return register(registry, CachedDisk::new(nth, spec, memory));
    }
    let options = MallocOptions {
        name: Some(format!("malloc{nth}")),
        num_blocks: spec.num_blocks,
        block_size: spec.block_size,
        ..MallocOptions::default()
    };
    MallocBdev::create(registry, memory, options).expect("there is memory")
}
