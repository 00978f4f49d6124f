//! An initiator's host: a process that attaches, maps its disks and does I/O on them.

use std::net::IpAddr;
use std::sync::Arc;

use bdev_rnbd::{
    AttachParams, ControlError, ControllerInfo, Initiator, InitiatorConfig, InitiatorControl,
    InitiatorShard, Options, PathStats,
};
use fastrand::Rng;
use rnbd_base::{CoreIndex, Nanos, NoWake, Wake};
use rnbd_bdev::Registry;
use rnbd_fabric::sim::{Crash, SimFabric, SimNetwork};
use rnbd_mem::Memory;
use rnbd_rtrs::clt::Policy;
use rnbd_wire::rnbd::AccessMode;

use crate::answer::Answer;
use crate::job::{Job, JobSpec, Phase, Tally};
use crate::mapping::{AGAIN, Mapping, Surroundings};
use crate::model::DiskModel;
use crate::net;
use crate::routes::Routes;
use crate::scenario::{InitiatorSpec, Scenario};
use crate::states::PathStates;

/// The name of the one controller that each initiator has.
pub(crate) const CONTROLLER: &str = "ctrlr";

/// An initiator's machine.
#[derive(Debug)]
pub(crate) struct InitiatorHost {
    nth: usize,
    pub(crate) ip: IpAddr,
    pub(crate) name: String,
    pub(crate) spec: InitiatorSpec,
    /// Its disks, and how it may use them.
    disks: Vec<(usize, AccessMode)>,
    options: Options,
    memory: Memory,
    job_spec: JobSpec,
    phase: Phase,
    running: Option<Running>,
}

type Asked<T> = Answer<Result<T, ControlError>>;

/// What dies with the process.
struct Running {
    initiator: Arc<Initiator>,
    shards: Vec<InitiatorShard<SimFabric>>,
    registry: Registry,
    stage: Stage,
    mappings: Vec<Mapping>,
    /// What the initiator says of its paths.
    paths: PathStates,
    /// What is wanted of them.
    routes: Routes,
    /// When a path that was closed is reconnected.
    reconnect_at: Option<Nanos>,
    reconnecting: Option<Asked<()>>,
    rng: Rng,
}

/// What there is of the controller.
///
/// ```text
///  Detached ──> Attaching ──> Attached ──> Detaching ──> Detached
///     ^─── failure ──┘
/// ```
enum Stage {
    /// It is attached when it is time to.
    Detached(Nanos),
    Attaching(Asked<Vec<String>>),
    Attached,
    Detaching(Asked<()>),
    /// It is being detached for good.
    Leaving,
}

impl InitiatorHost {
    pub(crate) fn new(scenario: &Scenario, nth: usize, memory: &Memory) -> Self {
        let ip = net::client_ip(nth, 0);
        let spec = scenario.initiators[nth].clone();
        Self {
            nth,
            ip,
            name: format!("client{nth}"),
            options: scenario.options,
            memory: memory.clone(),
            job_spec: JobSpec {
                depth: spec.depth,
                think: scenario.think_time(&spec),
                is_hostile: spec.is_hostile,
            },
            disks: spec
                .disks
                .iter()
                .map(|&disk| (disk, scenario.access_mode(disk)))
                .collect(),
            spec,
            phase: Phase::Load,
            running: None,
        }
    }

    /// Starts the process, with a seed of its own.
    pub(crate) fn start(&mut self, network: &SimNetwork, seed: u64, now: Nanos) {
        let registry = Registry::new(self.memory.clone());
        let paths = PathStates::default();
        let watched = paths.clone();
        let config = InitiatorConfig {
            memory: self.memory.clone(),
            registry: registry.clone(),
            seed,
            notify: Arc::new(move |notification| watched.note(&notification)),
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
            stage: Stage::Detached(now),
            mappings: self.mappings_anew(),
            paths,
            routes: Routes::new(self.spec.paths),
            reconnect_at: None,
            reconnecting: None,
            rng: Rng::with_seed(seed),
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

    fn mappings(&mut self) -> &mut [Mapping] {
        self.running
            .as_mut()
            .map_or(&mut [], |running| &mut running.mappings[..])
    }

    /// All jobs: of each disk, those of its cores in their order.
    pub(crate) fn jobs(&mut self) -> impl Iterator<Item = &mut Job> {
        self.mappings().iter_mut().flat_map(Mapping::jobs)
    }

    /// The jobs of one core.
    pub(crate) fn jobs_on(&mut self, core: usize) -> impl Iterator<Item = &mut Job> {
        let mappings = self.mappings().iter_mut();
        mappings.filter_map(move |mapping| mapping.jobs().get_mut(core))
    }

    /// Takes what all jobs have done since it was last asked.
    pub(crate) fn take_tally(&mut self) -> Tally {
        let mut sum = Tally::default();
        for mapping in self.mappings() {
            sum.add(std::mem::take(&mut mapping.gone));
            for job in mapping.jobs() {
                sum.add(std::mem::take(&mut job.tally));
            }
        }
        sum
    }

    /// What all jobs do from now on, also those to come.
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        for job in self.jobs() {
            job.enter(phase);
        }
    }

    /// Whether all disks are there.
    pub(crate) fn is_mapped(&self) -> bool {
        self.running.as_ref().is_some_and(|running| {
            let is_attached = matches!(running.stage, Stage::Attached);
            is_attached
                && running.routes.all_added()
                && running.mappings.iter().all(Mapping::is_mapped)
        })
    }

    /// How often a path that was up was lost.
    pub(crate) fn paths_lost(&self) -> u64 {
        let running = self.running.as_ref();
        running.map_or(0, |running| running.paths.lost())
    }

    /// A step of a path that is not allowed, if there was one.
    pub(crate) fn illegal_step(&self) -> Option<String> {
        let illegal = self.running.as_ref()?.paths.illegal()?;
        Some(format!("{}: {illegal}", self.name))
    }

    /// Goes on with whatever was begun: attaching, mapping, reconnecting.
    pub(crate) fn drive(&mut self, now: Nanos) {
        let params = self.attach_params();
        let Some(running) = &mut self.running else {
            return;
        };
        let attached = running.drive_controller(params, self.nth, now);
        let around = Surroundings {
            initiator: &running.initiator,
            registry: &running.registry,
            memory: &self.memory,
            cores: self.spec.cores,
            job: self.job_spec,
            phase: self.phase,
            now,
        };
        let rng = &mut running.rng;
        for (mapping, bdev) in running.mappings.iter_mut().zip(&attached) {
            mapping.attached(bdev, &around, rng);
        }
        let is_controller = matches!(running.stage, Stage::Attached);
        for mapping in &mut running.mappings {
            mapping.drive(is_controller, &around, rng);
        }
        running.drive_reconnect(now);
    }

    fn mappings_anew(&self) -> Vec<Mapping> {
        let disks = self.disks.iter();
        disks
            .map(|&(disk, mode)| Mapping::new(disk, mode))
            .collect()
    }

    /// All but the route.
    fn attach_params(&self) -> AttachParams {
        let disks = self.mappings_anew();
        AttachParams {
            name: CONTROLLER.to_owned(),
            sessname: self.name.clone(),
            trtype: "TCP",
            addr: net::target(0),
            hostaddr: None,
            num_io_queues: 0,
            queue_depth: 0,
            timeouts: None,
            multipath: self.spec.multipath,
            devices: disks.iter().map(Mapping::params).collect(),
        }
    }

    /// Disconnects a path; it is reconnected some time later.
    pub(crate) fn disconnect_path(&mut self) {
        if let Some(running) = &mut self.running
            && let Some(path) = running.routes.some_path(&mut running.rng)
        {
            let initiator = &running.initiator;
            initiator.disconnect_path(CONTROLLER, path, Box::new(|_| ()));
        }
    }

    /// Removes a path, if it is not the last; it is added again some time later.
    pub(crate) fn remove_path(&mut self) {
        if let Some(running) = &mut self.running {
            running
                .routes
                .remove_some(&running.initiator, &mut running.rng);
        }
    }

    /// Has the paths share the I/O in another way.
    pub(crate) fn change_policy(&mut self) {
        if let Some(running) = &mut self.running {
            let policy = running.rng.choice(Policy::ALL).unwrap_or_default();
            let min_io = running.rng.u32(1..20);
            let initiator = &running.initiator;
            initiator.set_policy(CONTROLLER, policy, min_io, Box::new(|_| ()));
        }
    }

    /// Takes a disk away from its users; it is mapped again when they have let go.
    pub(crate) fn unmap(&mut self, nth: usize) {
        if let Some(running) = &self.running {
            running.mappings[nth].unmap(&running.initiator);
        }
    }

    /// Asks for the sizes of all disks.
    pub(crate) fn rescan(&self) {
        if let Some(running) = &self.running {
            for mapping in &running.mappings {
                mapping.rescan(&running.initiator);
            }
        }
    }

    /// Detaches, whoever uses the disks; they are attached again when it is done.
    pub(crate) fn reattach(&mut self) {
        if let Some(running) = &mut self.running
            && matches!(running.stage, Stage::Attached)
        {
            running.stage = Stage::Detaching(running.detach(true));
        }
    }

    /// When it does something by itself.
    pub(crate) fn next_action(&self) -> Option<Nanos> {
        let running = self.running.as_ref()?;
        let attach_at = match running.stage {
            Stage::Detached(at) => Some(at),
            _ => None,
        };
        let disks = running.mappings.iter().filter_map(Mapping::next_action);
        let is_attached = matches!(running.stage, Stage::Attached);
        let add_at = running.routes.next_action().filter(|_| is_attached);
        let others = [attach_at, running.reconnect_at, add_at];
        disks.chain(others.into_iter().flatten()).min()
    }

    /// Asks for the controller.
    pub(crate) fn controllers(&self) -> Option<Asked<Vec<ControllerInfo>>> {
        let (answer, reply) = Answer::new();
        let running = self.running.as_ref()?;
        running.initiator.get_controllers(Some(CONTROLLER), reply);
        Some(answer)
    }

    /// Asks for the counters of the path.
    pub(crate) fn path_stats(&self) -> Option<Asked<Vec<PathStats>>> {
        let (answer, reply) = Answer::new();
        let running = self.running.as_ref()?;
        running.initiator.path_stats(Some(CONTROLLER), reply);
        Some(answer)
    }

    /// Lets go of the disks and detaches.
    pub(crate) fn detach(&mut self) -> Option<Asked<()>> {
        let running = self.running.as_mut()?;
        running.mappings.iter_mut().for_each(Mapping::release);
        running.stage = Stage::Leaving;
        Some(running.detach(false))
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
    /// Returns the bdevs of a controller that was attached just now.
    fn drive_controller(
        &mut self,
        mut params: AttachParams,
        nth: usize,
        now: Nanos,
    ) -> Vec<String> {
        match &self.stage {
            Stage::Detached(at) if *at <= now => {
                let (answer, reply) = Answer::new();
                self.paths.clear();
                (params.addr, params.hostaddr) = self.routes.begin(nth, &mut self.rng);
                self.stage = Stage::Attaching(answer);
                self.initiator.attach_controller(params, reply);
            }
            Stage::Attaching(answer) => match answer.take() {
                None => (),
                Some(Ok(bdevs)) => {
                    self.stage = Stage::Attached;
                    self.routes.attached();
                    return bdevs;
                }
                Some(Err(_)) => self.stage = Stage::Detached(now + AGAIN),
            },
            Stage::Detaching(answer) => {
                if let Some(result) = answer.take() {
                    self.stage = match result {
                        Ok(()) => Stage::Detached(now),
                        Err(_) => Stage::Attached,
                    };
                }
            }
            Stage::Attached => self.routes.drive(&self.initiator, nth, now),
            Stage::Detached(_) | Stage::Leaving => (),
        }
        Vec::new()
    }

    fn detach(&self, force: bool) -> Asked<()> {
        let (answer, reply) = Answer::new();
        self.initiator.detach_controller(CONTROLLER, force, reply);
        answer
    }

    /// An administrator finds a path closed after a while, and reconnects it as often as it takes.
    fn drive_reconnect(&mut self, now: Nanos) {
        let closed = self.paths.closed().first().copied();
        let is_closed = matches!(self.stage, Stage::Attached) && closed.is_some();
        if is_closed && self.reconnect_at.is_none() && self.reconnecting.is_none() {
            self.reconnect_at = Some(now + Nanos::from_millis(self.rng.u64(10..5_000)));
        }
        if self.reconnect_at.is_some_and(|at| at <= now) {
            let (answer, reply) = Answer::new();
            self.reconnect_at = None;
            if let Some(path) = closed {
                self.reconnecting = Some(answer);
                self.initiator.reconnect_path(CONTROLLER, path, reply);
            }
        }
        if self.reconnecting.as_ref().and_then(Answer::take).is_some() {
            self.reconnecting = None;
        }
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Running({} disks)", self.mappings.len())
    }
}
