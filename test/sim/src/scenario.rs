//! What one seed plays.

use bdev_rnbd::{Multipath, Options, TimeoutAction, Timeouts};
use fastrand::Rng;
use rnbd_base::Nanos;
use rnbd_fabric::sim::{Device, FaultPlan, PerMillion};
use rnbd_rtrs::HeartbeatConfig;
use rnbd_rtrs::clt::Policy;
use rnbd_rtrs::srv::{self, ExtensionConfig};
use rnbd_wire::rnbd::AccessMode;

use crate::bench::Bench;
use crate::flaw::Flaw;

/// How much is played per seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// A fraction of a second of real time.
    #[default]
    Short,
    /// Ten times as much load, under ten times as many faults.
    Long,
}

/// Most paths between two hosts.
pub const PATHS_MAX: usize = 4;

/// Kinds of faults that a scenario may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Nothing passes in one direction between a client and the target for a time.
    CutOneWay,
    /// Nothing passes in either direction for a time.
    CutBothWays,
    /// A connection goes dead and nobody is told.
    SilentDrop,
    /// A connection breaks.
    Reset,
    /// The target's process dies and is started again.
    TargetKilled,
    /// The target's power fails and comes back.
    TargetPowerLost,
    /// An initiator's process dies and is started again.
    InitiatorKilled,
    /// An initiator's power fails and comes back.
    InitiatorPowerLost,
    /// The network device of a host goes away and comes back.
    DeviceRemoved,
    /// A core, or all cores of a host, do nothing for a time.
    Stall,
    /// Much time passes at once, as on a machine that was suspended.
    ClockJump,
    /// The target's administrator disconnects a session.
    SessionDisconnected,
    /// An initiator's administrator disconnects a path, and reconnects it.
    PathCycled,
    /// An initiator's administrator removes a path, and adds it again.
    PathRemoved,
    /// An initiator's administrator has the paths share the I/O in another way.
    PolicyChanged,
    /// An initiator's administrator takes a disk away from its users, and maps it again.
    DiskCycled,
    /// An initiator's administrator detaches by force, and attaches again.
    Reattached,
    /// The target's administrator takes a disk away from a client, who asks for it again.
    DiskClosed,
    /// The target's administrator removes an export for a time.
    ExportRemoved,
    /// A disk grows.
    DiskGrown,
    /// One end of a connection posts no receives for a time.
    ReceivesWithheld,
    /// The network is slow, has little room, or refuses and loses connection requests for a time.
    BadNetwork,
    /// The disks fail some I/O, or do only a part of it.
    DiskErrors,
    /// The disks hold I/O back for a time.
    DiskHangs,
    /// A peer sends what its software never would; its connection may end for that.
    RudePeer,
    /// A client that means harm changes its messages.
    HostileClient,
    /// The target harms that client's connections the same way.
    HostileTarget,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: [Self; 27] = [
        Self::CutOneWay,
        Self::CutBothWays,
        Self::SilentDrop,
        Self::Reset,
        Self::TargetKilled,
        Self::TargetPowerLost,
        Self::InitiatorKilled,
        Self::InitiatorPowerLost,
        Self::DeviceRemoved,
        Self::Stall,
        Self::ClockJump,
        Self::SessionDisconnected,
        Self::PathCycled,
        Self::PathRemoved,
        Self::PolicyChanged,
        Self::DiskCycled,
        Self::Reattached,
        Self::DiskClosed,
        Self::ExportRemoved,
        Self::DiskGrown,
        Self::ReceivesWithheld,
        Self::BadNetwork,
        Self::DiskErrors,
        Self::DiskHangs,
        Self::RudePeer,
        Self::HostileClient,
        Self::HostileTarget,
    ];

    /// Whether I/O fails because somebody wanted that.
    pub(crate) fn excuses_errors(self) -> bool {
        matches!(
            self,
            Self::PathCycled
                | Self::DiskCycled
                | Self::Reattached
                | Self::DiskClosed
                | Self::ExportRemoved
        )
    }
}

/// A disk of the target.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// Bytes of a block.
    pub block_size: u32,
    /// Number of blocks that it has in the end.
    pub num_blocks: u64,
    /// Number of blocks that it has at first.
    pub first_blocks: u64,
    /// Whether it has a cache that is lost with the power, and can grow; else it is memory.
    pub is_cached: bool,
    /// Whether its user may only read it.
    pub is_read_only: bool,
    /// Delay of most I/O, if it is slow.
    pub delay_us: Option<u64>,
    /// How many times that the slowest I/O takes, at most.
    pub slowest: u32,
    /// Whether it can be made to fail.
    pub can_fail: bool,
}

/// An initiator.
#[derive(Clone, Debug)]
pub struct InitiatorSpec {
    /// Its cores.
    pub cores: u16,
    /// Its paths to the target.
    pub paths: u8,
    /// How they share the I/O at first.
    pub multipath: Multipath,
    /// Which disks it uses; nobody else does.
    pub disks: Vec<usize>,
    /// I/Os in flight per core and disk.
    pub depth: u32,
    /// Whether it is one that means harm: nobody looks at its data, and it may fail.
    pub is_hostile: bool,
}

/// Everything that one seed decides before the world begins.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Of everything.
    pub seed: u64,
    /// Cores of the target.
    pub target_cores: u16,
    /// The target's protocol options.
    pub rtrs: srv::Config,
    /// The disks.
    pub disks: Vec<DiskSpec>,
    /// The initiators.
    pub initiators: Vec<InitiatorSpec>,
    /// Their options.
    pub options: Options,
    /// The network as long as no fault changes it.
    pub plan: FaultPlan,
    /// How much longer than that messages take on each path.
    pub path_delays: [Nanos; PATHS_MAX],
    /// The faults that it has.
    pub faults: Vec<FaultKind>,
    /// Mean time between two faults.
    pub fault_interval: Nanos,
    /// What is wrong with every disk; only to test the checks.
    pub flaw: Option<Flaw>,
    /// How long there are load and faults.
    pub load_time: Nanos,
    /// I/Os per disk in that time, about.
    pub io_count: u64,
}

impl Scenario {
    /// What `seed` decides.
    #[must_use]
    pub fn new(seed: u64, shape: Shape) -> Self {
        let mut rng = Rng::with_seed(seed);
        let times = match shape {
            Shape::Short => 1,
            Shape::Long => 10,
        };
        let faults = pick_faults(&mut rng);
        let (disks, initiators) = hosts(&mut rng, &faults);
        let rtrs = rtrs(&mut rng);
        let mut scenario = Self {
            seed,
            target_cores: rng.u16(1..=3),
            options: options(&mut rng, rtrs.heartbeat),
            rtrs,
            disks,
            initiators,
            plan: plan(&mut rng),
            path_delays: path_delays(&mut rng),
            faults,
            fault_interval: Nanos::from_millis(rng.u64(300..3_000)),
            flaw: None,
            load_time: Nanos::from_secs(rng.u64(5..20) * times),
            io_count: io_count(&mut rng) * times,
        };
        scenario.rtrs.extension = extension(&mut rng, scenario.rtrs.heartbeat);
        scenario
    }

    /// One in which a write of a lost path is likely to land late: several paths, a slow disk with
    /// a queue, and paths that are lost again and again.
    #[must_use]
    pub fn haunted(seed: u64) -> Self {
        let mut scenario = Self::new(seed, Shape::Short);
        scenario.faults = vec![
            FaultKind::CutOneWay,
            FaultKind::Reset,
            FaultKind::DeviceRemoved,
        ];
        scenario.fault_interval = Nanos::from_millis(300);
        scenario.io_count = 2_000;
        scenario.options.bdev_retry_count = -1;
        scenario.options.fence = true;
        for disk in &mut scenario.disks {
            disk.num_blocks = 16;
            disk.first_blocks = 16;
            disk.is_cached = true;
            disk.delay_us = Some(20_000);
        }
        for initiator in &mut scenario.initiators {
            initiator.paths = 3;
        }
        scenario
    }

    /// A haunted one whose disks keep some I/O for seconds, longer than a path takes to come back:
    /// what its earlier life left behind meets its next one.
    #[must_use]
    pub fn lingering(seed: u64) -> Self {
        let mut scenario = Self::haunted(seed);
        scenario.options.timeouts.reconnect_delay_sec = 1;
        scenario.options.reconnect_jitter_sec = 0;
        for disk in &mut scenario.disks {
            disk.slowest = 250;
        }
        // An I/O that only takes its time is not to be given up.
        if scenario.options.io_timeout_ms > 0 {
            scenario.options.io_timeout_ms += 10_000;
        }
        scenario
    }

    /// Mean time between two I/Os of one of an initiator's jobs.
    pub(crate) fn think_time(&self, initiator: &InitiatorSpec) -> Nanos {
        Nanos(self.load_time.0 / self.io_count * u64::from(initiator.cores))
    }

    /// Whether what was not flushed is lost with the power.
    pub(crate) fn is_cached(&self, disk: usize) -> bool {
        self.disks[disk].is_cached && self.flaw.is_none()
    }

    /// How the user of a disk may use it.
    pub(crate) fn access_mode(&self, disk: usize) -> AccessMode {
        if self.disks[disk].is_read_only {
            AccessMode::ReadOnly
        } else {
            AccessMode::ReadWrite
        }
    }

    /// Whether I/O on this disk may fail, and not only be late.
    pub(crate) fn may_fail(&self, disk: usize) -> bool {
        let options = &self.options;
        self.disks[disk].can_fail
            || options.bdev_retry_count >= 0
            || self.faults.iter().any(|kind| kind.excuses_errors())
            || options.timeouts.fast_io_fail_timeout_sec > 0
            || options.timeouts.ctrlr_loss_timeout_sec > 0
            || options.io_timeout_ms > 0 && options.action_on_timeout == TimeoutAction::Abort
    }
}

/// Mostly little, so that there is time for many faults; sometimes as much as goes.
/// Most targets are of this project; the others are as a kernel's.
fn extension(rng: &mut Rng, heartbeat: HeartbeatConfig) -> Option<ExtensionConfig> {
    let instance = rng.u64(..);
    (rng.u8(..4) > 0).then_some(ExtensionConfig {
        instance,
        heartbeat,
    })
}

fn io_count(rng: &mut Rng) -> u64 {
    if rng.u8(..4) == 0 {
        rng.u64(1_000..4_000)
    } else {
        rng.u64(200..800)
    }
}

/// No faults at all for one seed in sixteen, else some.
fn pick_faults(rng: &mut Rng) -> Vec<FaultKind> {
    if rng.u8(..16) == 0 {
        return Vec::new();
    }
    let mut kinds = FaultKind::ALL;
    rng.shuffle(&mut kinds);
    let count = rng.usize(1..=5);
    kinds[..count].to_vec()
}

fn hosts(rng: &mut Rng, faults: &[FaultKind]) -> (Vec<DiskSpec>, Vec<InitiatorSpec>) {
    let can_fail =
        faults.contains(&FaultKind::DiskErrors) || faults.contains(&FaultKind::DiskHangs);
    let is_hostile =
        faults.contains(&FaultKind::HostileClient) || faults.contains(&FaultKind::HostileTarget);
    let mut disks = Vec::new();
    let mut initiators = Vec::new();
    let count = rng.usize(1..Bench::INITIATORS_MAX) + usize::from(is_hostile);
    for nth in 0..count {
        let first = disks.len();
        disks.extend((0..rng.usize(1..=3)).map(|_| disk(rng, can_fail)));
        initiators.push(InitiatorSpec {
            cores: rng.u16(1..=2),
            paths: if rng.bool() { 1 } else { rng.u8(2..=4) },
            multipath: multipath(rng),
            disks: (first..disks.len()).collect(),
            depth: rng.u32(1..=8),
            is_hostile: is_hostile && nth == 0,
        });
    }
    (disks, initiators)
}

fn multipath(rng: &mut Rng) -> Multipath {
    Multipath {
        enabled: true,
        policy: rng.choice(Policy::ALL).unwrap_or_default(),
        min_io: rng.u32(1..20),
    }
}

/// Half of the paths are as fast as can be.
fn path_delays(rng: &mut Rng) -> [Nanos; PATHS_MAX] {
    std::array::from_fn(|_| {
        let slow = Nanos::from_millis(rng.u64(1..100));
        if rng.bool() { slow } else { Nanos::ZERO }
    })
}

fn disk(rng: &mut Rng, can_fail: bool) -> DiskSpec {
    let num_blocks = rng.u64(16..200);
    let is_cached = rng.bool();
    DiskSpec {
        block_size: if rng.bool() { 512 } else { 4096 },
        num_blocks,
        first_blocks: if is_cached {
            rng.u64(16..=num_blocks)
        } else {
            num_blocks
        },
        is_cached,
        is_read_only: rng.u8(..8) == 0,
        delay_us: rng.bool().then(|| rng.u64(1..20_000)),
        slowest: 20,
        can_fail,
    }
}

fn rtrs(rng: &mut Rng) -> srv::Config {
    srv::Config {
        queue_depth: rng.u16(4..=64),
        chunk_bytes: 8192 << rng.u8(0..=3),
        new_rkey: rng.bool(),
        heartbeat: HeartbeatConfig {
            interval: Nanos::from_millis(rng.u64(100..2_000)),
            missed_max: rng.u32(1..=5),
        },
        handshake_timeout: Nanos::from_secs(rng.u64(2..30)),
        ..srv::Config::default()
    }
}

fn options(rng: &mut Rng, heartbeat: HeartbeatConfig) -> Options {
    let hb_interval_ms = u32::try_from(heartbeat.interval.0 / 1_000_000).unwrap_or(u32::MAX);
    let one_in_four = |rng: &mut Rng| rng.u8(..4) == 0;
    Options {
        timeouts: Timeouts {
            reconnect_delay_sec: rng.u32(1..=4),
            fast_io_fail_timeout_sec: if one_in_four(rng) { rng.u32(4..8) } else { 0 },
            ctrlr_loss_timeout_sec: if one_in_four(rng) { rng.i32(8..20) } else { -1 },
            ..Timeouts::default()
        },
        reconnect_jitter_sec: rng.u32(0..=2),
        bdev_retry_count: if rng.bool() { -1 } else { rng.i32(0..=3) },
        io_timeout_ms: if rng.u8(..4) == 0 {
            rng.u32(500..5_000)
        } else {
            0
        },
        action_on_timeout: if rng.bool() {
            TimeoutAction::Reset
        } else {
            TimeoutAction::Abort
        },
        hb_interval_ms,
        hb_missed_max: heartbeat.missed_max,
        peer_hb_interval_ms: hb_interval_ms,
        peer_hb_missed_max: heartbeat.missed_max,
        // Without the fence, longer than anything in a scenario holds a message back.
        fence: rng.u8(..8) > 0,
        fence_timeout_ms: 60_000,
    }
}

fn plan(rng: &mut Rng) -> FaultPlan {
    let latency = rng.u64(1_000..200_000);
    FaultPlan {
        latency_ns: latency..=latency * rng.u64(1..=10),
        completion_delay_ns: 0..=rng.u64(0..100_000),
        retry_timeout: Nanos::from_secs(rng.u64(2..30)),
        loss_at_close: if rng.bool() {
            PerMillion(500_000)
        } else {
            PerMillion::NEVER
        },
        device: any_device(rng),
        ..FaultPlan::default()
    }
}

fn any_device(rng: &mut Rng) -> Device {
    let (local_keys, cheap_windows, is_software) = (rng.bool(), rng.bool(), rng.bool());
    Device {
        local_keys,
        cheap_windows,
        prefers_windows: false,
        invalidates_at_once: is_software,
        merges_completions: is_software,
    }
}
