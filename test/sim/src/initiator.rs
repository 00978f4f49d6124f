//! An initiator's host: a process that attaches, maps its disks and does I/O on them.

use std::net::IpAddr;
use std::sync::Arc;

use bdev_rnbd::{
    AttachParams, ControlError, ControllerInfo, DeviceParams, Initiator, InitiatorConfig,
    InitiatorControl, InitiatorShard, Options, PathStats,
};
use rnbd_base::{CoreIndex, Nanos, NoWake, Wake};
use rnbd_bdev::Registry;
use rnbd_fabric::Addr;
use rnbd_fabric::sim::{Crash, SimFabric, SimNetwork};
use rnbd_mem::Memory;
use rnbd_wire::rnbd::AccessMode;

use crate::answer::Answer;
use crate::job::{Job, JobSpec};
use crate::model::DiskModel;
use crate::scenario::{InitiatorSpec, Scenario};
use crate::target::TargetHost;

/// The name of the one controller that each initiator has.
const CONTROLLER: &str = "ctrlr";
/// How long to wait after something that failed.
const AGAIN: Nanos = Nanos::from_millis(500);

/// An initiator's machine.
#[derive(Debug)]
pub(crate) struct InitiatorHost {
    pub(crate) ip: IpAddr,
    pub(crate) name: String,
    pub(crate) spec: InitiatorSpec,
    options: Options,
    memory: Memory,
    job_spec: JobSpec,
    running: Option<Running>,
}

type Attaching = Answer<Result<Vec<String>, ControlError>>;

/// What dies with the process.
struct Running {
    initiator: Arc<Initiator>,
    shards: Vec<InitiatorShard<SimFabric>>,
    registry: Registry,
    attaching: Option<Attaching>,
    attach_at: Option<Nanos>,
    /// Whether the path has to be reconnected, and when it is tried again.
    reconnect_at: Option<Nanos>,
    reconnecting: Option<Answer<Result<(), ControlError>>>,
    jobs: Vec<Job>,
    seed: u64,
}

impl InitiatorHost {
    pub(crate) fn new(scenario: &Scenario, nth: usize, ip: IpAddr, memory: &Memory) -> Self {
        let spec = scenario.initiators[nth].clone();
        Self {
            ip,
            name: format!("client{nth}"),
            options: scenario.options,
            memory: memory.clone(),
            job_spec: JobSpec {
                depth: spec.depth,
                think: scenario.think_time(&spec),
                is_hostile: spec.is_hostile,
            },
            spec,
            running: None,
        }
    }

    /// Starts the process, with a seed of its own.
    pub(crate) fn start(&mut self, network: &SimNetwork, seed: u64, now: Nanos) {
        let registry = Registry::new(self.memory.clone());
        let config = InitiatorConfig {
            memory: self.memory.clone(),
            registry: registry.clone(),
            seed,
            notify: Arc::new(|_| ()),
        };
        let core = |core| {
            let wake: Arc<dyn Wake> = Arc::new(NoWake);
            (CoreIndex(core), network.fabric(self.ip), wake)
        };
        let fabrics = (0..self.spec.cores).map(core).collect();
        let (initiator, shards) = bdev_rnbd::new(fabrics, config);
        initiator
            .set_options(self.options)
            .expect("scenarios are valid");
        self.running = Some(Running {
            initiator,
            shards,
            registry,
            attaching: None,
            attach_at: Some(now),
            reconnect_at: None,
            reconnecting: None,
            jobs: Vec::new(),
            seed,
        });
    }

    /// Ends the process; what it had on its way may have happened or not.
    pub(crate) fn crash(&mut self, network: &SimNetwork, crash: Crash, disks: &mut [DiskModel]) {
        network.crash(self.ip, crash);
        self.running = None;
        for &disk in &self.spec.disks {
            disks[disk].abandon();
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub(crate) fn shards(&mut self) -> &mut [InitiatorShard<SimFabric>] {
        self.running
            .as_mut()
            .map_or(&mut [], |running| &mut running.shards[..])
    }

    pub(crate) fn jobs(&mut self) -> &mut [Job] {
        self.running
            .as_mut()
            .map_or(&mut [], |running| &mut running.jobs[..])
    }

    /// Whether all disks are mapped and there is a job for each and every core.
    pub(crate) fn is_mapped(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| !running.jobs.is_empty())
    }

    /// Attaches when it is time to, and starts the jobs when it is done.
    pub(crate) fn drive(&mut self, target: Addr, now: Nanos) {
        let (params, spec) = (self.attach_params(target), self.job_spec);
        let Some(running) = &mut self.running else {
            return;
        };
        if running.attach_at.is_some_and(|at| at <= now) {
            let (answer, reply) = Answer::new();
            running.attach_at = None;
            running.attaching = Some(answer);
            running.initiator.attach_controller(params, reply);
        }
        match running.attaching.as_ref().and_then(Answer::take) {
            None => (),
            Some(Ok(bdevs)) => {
                running.attaching = None;
                running.open_jobs(&bdevs, &self.spec, spec, &self.memory);
            }
            Some(Err(_)) => {
                running.attaching = None;
                running.attach_at = Some(now + AGAIN);
            }
        }
        running.drive_reconnect(now);
    }

    fn attach_params(&self, target: Addr) -> AttachParams {
        let device = |&disk: &usize| DeviceParams {
            device_path: TargetHost::export(disk),
            access_mode: AccessMode::ReadWrite,
            bdev_name: None,
            uuid: None,
        };
        AttachParams {
            name: CONTROLLER.to_owned(),
            sessname: self.name.clone(),
            trtype: "TCP",
            addr: target,
            hostaddr: None,
            num_io_queues: 0,
            queue_depth: 0,
            timeouts: None,
            devices: self.spec.disks.iter().map(device).collect(),
        }
    }

    /// Disconnects the path until [`InitiatorHost::reconnect_path`].
    pub(crate) fn disconnect_path(&mut self) {
        if let Some(running) = &mut self.running {
            running.reconnect_at = None;
            running.reconnecting = None;
            let initiator = &running.initiator;
            initiator.disconnect_path(CONTROLLER, 0, Box::new(|_| ()));
        }
    }

    /// Reconnects the path, as often as it takes: while it is closing it cannot be.
    pub(crate) fn reconnect_path(&mut self, now: Nanos) {
        if let Some(running) = &mut self.running {
            running.reconnect_at = Some(now);
        }
    }

    /// When it does something by itself.
    pub(crate) fn next_action(&self) -> Option<Nanos> {
        let running = self.running.as_ref()?;
        let times = [running.attach_at, running.reconnect_at];
        times.into_iter().flatten().min()
    }

    /// Asks for the controller.
    pub(crate) fn controllers(&self) -> Option<Answer<Result<Vec<ControllerInfo>, ControlError>>> {
        let (answer, reply) = Answer::new();
        let running = self.running.as_ref()?;
        running.initiator.get_controllers(Some(CONTROLLER), reply);
        Some(answer)
    }

    /// Asks for the counters of the path.
    pub(crate) fn path_stats(&self) -> Option<Answer<Result<Vec<PathStats>, ControlError>>> {
        let (answer, reply) = Answer::new();
        let running = self.running.as_ref()?;
        running.initiator.path_stats(Some(CONTROLLER), reply);
        Some(answer)
    }

    /// Lets go of the disks and detaches.
    pub(crate) fn detach(&mut self) -> Option<Answer<Result<(), ControlError>>> {
        let (answer, reply) = Answer::new();
        let running = self.running.as_mut()?;
        running.jobs.clear();
        running
            .initiator
            .detach_controller(CONTROLLER, false, reply);
        Some(answer)
    }

    /// What the process still holds of its memory, in bytes, once its jobs are gone.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.memory.usage().used_bytes
    }

    /// Ends the process in an orderly way.
    pub(crate) fn stop(&mut self) {
        self.running = None;
    }
}

impl Running {
    fn drive_reconnect(&mut self, now: Nanos) {
        if self.reconnect_at.is_some_and(|at| at <= now) {
            let (answer, reply) = Answer::new();
            self.reconnect_at = None;
            self.reconnecting = Some(answer);
            self.initiator.reconnect_path(CONTROLLER, 0, reply);
        }
        if let Some(result) = self.reconnecting.as_ref().and_then(Answer::take) {
            self.reconnecting = None;
            self.reconnect_at = result.err().map(|_| now + AGAIN);
        }
    }

    fn open_jobs(
        &mut self,
        bdevs: &[String],
        spec: &InitiatorSpec,
        job_spec: JobSpec,
        memory: &Memory,
    ) {
        for (bdev, &disk) in bdevs.iter().zip(&spec.disks) {
            let desc = self.registry.open(bdev, true);
            let desc = Arc::new(desc.expect("it was mapped just now"));
            for core in 0..spec.cores {
                self.seed = self.seed.wrapping_add(1);
                let rng = fastrand::Rng::with_seed(self.seed);
                let core = CoreIndex(core);
                self.jobs
                    .push(Job::open(&desc, core, disk, job_spec, memory, rng));
            }
        }
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Running({} jobs)", self.jobs.len())
    }
}
