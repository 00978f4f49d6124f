//! Everything of one seed, and the clock.

use std::fmt;

use fastrand::Rng;
use rnbd_base::{Nanos, Poll, Progress};
use rnbd_fabric::sim::SimNetwork;

use crate::answer::Answer;
use crate::bench::Bench;
use crate::faults::{Actor, Repair};
use crate::initiator::InitiatorHost;
use crate::job::{Phase, Terms};
use crate::ledger::Ledger;
use crate::model::DiskModel;
use crate::net;
use crate::scenario::Scenario;
use crate::target::TargetHost;

/// Rounds in a row with something to do after which that has no end.
const ROUNDS_MAX: u32 = 100_000;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When, in the world's time.
    pub at: Nanos,
    /// What.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:?}: {}", self.at, self.what)
    }
}

/// What a seed played. The same seed gives the same report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// I/Os that ended.
    pub completed: u64,
    /// Of those, with an error.
    pub failed: u64,
    /// Faults that happened.
    pub faults: u64,
    /// Times that a path came back, of the controllers that were there at the end.
    pub reconnects: u64,
    /// Requests that were sent again after their path was lost, of the same.
    pub retries: u64,
    /// The time at the end.
    pub time: Nanos,
    /// Rounds of polls.
    pub rounds: u64,
}

impl Report {
    /// Adds what another seed played.
    pub fn add(&mut self, other: &Self) {
        self.completed += other.completed;
        self.failed += other.failed;
        self.faults += other.faults;
        self.reconnects += other.reconnects;
        self.retries += other.retries;
        self.time += other.time;
        self.rounds += other.rounds;
    }
}

/// Hosts, network, disks and time of one seed.
#[derive(Debug)]
pub struct World<'a> {
    pub(crate) scenario: Scenario,
    pub(crate) rng: Rng,
    pub(crate) now: Nanos,
    pub(crate) network: SimNetwork,
    pub(crate) target: TargetHost,
    pub(crate) initiators: Vec<InitiatorHost>,
    pub(crate) disks: Vec<DiskModel>,
    /// What is put right when.
    pub(crate) repairs: Vec<(Nanos, Repair)>,
    /// Exports that are being closed, by disk.
    pub(crate) closing: Vec<Option<Answer<usize>>>,
    /// Since when a disk is not exported.
    pub(crate) closed_since: Vec<Option<Nanos>>,
    /// What is not polled at the moment.
    pub(crate) stalled: Vec<Actor>,
    pub(crate) bench: &'a Bench,
    /// What the target has taken before anybody came.
    pub(crate) target_bytes: u64,
    pub(crate) report: Report,
    ledger: Ledger,
    next_fault: Nanos,
    /// Rounds since the clock last had nothing to wait for.
    restless_rounds: u32,
}

impl<'a> World<'a> {
    /// The world of a scenario, before its first moment.
    #[must_use]
    pub fn new(bench: &'a Bench, scenario: Scenario) -> Self {
        let mut rng = Rng::with_seed(scenario.seed ^ 0x5EED);
        let network = SimNetwork::new(rng.u64(..), scenario.plan.clone());
        network.watch(true);
        net::lay(&network, &scenario);
        let target = TargetHost::new(&scenario, &bench.target);
        let initiators = (0..scenario.initiators.len())
            .map(|nth| InitiatorHost::new(&scenario, nth, &bench.initiators[nth]))
            .collect();
        Self {
            disks: models(&scenario),
            target_bytes: bench.target.usage().used_bytes,
            rng,
            now: Nanos(1),
            network,
            target,
            initiators,
            repairs: Vec::new(),
            closing: scenario.disks.iter().map(|_| None).collect(),
            closed_since: vec![None; scenario.disks.len()],
            stalled: Vec::new(),
            bench,
            report: Report::default(),
            ledger: Ledger::new(scenario.rtrs.queue_depth),
            next_fault: Nanos::ZERO,
            restless_rounds: 0,
            scenario,
        }
    }

    /// Plays the scenario to its end.
    ///
    /// # Errors
    /// What was found.
    pub fn run(mut self) -> Result<Report, Failure> {
        let result = self.play();
        self.report.time = self.now;
        result
            .map(|()| self.report)
            .map_err(|what| Failure { at: self.now, what })
    }

    fn play(&mut self) -> Result<(), String> {
        self.target.start(&self.network);
        for nth in 0..self.initiators.len() {
            let seed = self.rng.u64(..);
            self.initiators[nth].start(&self.network, seed, self.now);
        }
        self.load()?;
        self.end_faults();
        self.converge()?;
        self.verify()?;
        self.stay_up()?;
        self.leave()
    }

    /// Load and faults, for as long as the scenario says.
    fn load(&mut self) -> Result<(), String> {
        let end = self.now + self.scenario.load_time;
        self.next_fault = self.now + self.scenario.fault_interval;
        while self.now < end {
            self.step()?;
            if self.now >= self.next_fault {
                self.next_fault = self.now + self.fault_wait();
                if let Some(kind) = self.rng.choice(self.scenario.faults.clone()) {
                    self.report.faults += 1;
                    log::info!("at {:?}: {kind:?}", self.now);
                    self.strike(kind);
                }
            }
        }
        self.next_fault = Nanos::MAX;
        Ok(())
    }

    fn fault_wait(&mut self) -> Nanos {
        let mean = self.scenario.fault_interval.0;
        Nanos(self.rng.u64(1..=mean.saturating_mul(2)))
    }

    /// Puts right whatever is wrong.
    fn end_faults(&mut self) {
        for (_, repair) in std::mem::take(&mut self.repairs) {
            self.repair(&repair);
        }
        self.network.heal_all();
        self.network.set_plan(self.scenario.plan.clone());
        self.stalled.clear();
        self.target.mend();
    }

    /// One round: everything is polled once, in any order; then time passes.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        self.repair_due();
        self.note_closed();
        self.network.advance(self.now);
        let mut actors = self.actors();
        self.rng.shuffle(&mut actors);
        let mut busy = Vec::new();
        for actor in actors {
            if !self.stalled.contains(&actor) && self.poll(actor)?.is_busy() {
                busy.push(actor);
            }
        }
        for host in &mut self.initiators {
            host.drive(self.now);
            if let Some(illegal) = host.illegal_step() {
                return Err(illegal);
            }
        }
        self.ledger.check(&self.network.take_sights())?;
        self.report.rounds += 1;
        self.pass_time(&busy)
    }

    fn repair_due(&mut self) {
        let now = self.now;
        while let Some(at) = self.repairs.iter().position(|(at, _)| *at <= now) {
            let (_, repair) = self.repairs.remove(at);
            self.repair(&repair);
        }
    }

    fn actors(&mut self) -> Vec<Actor> {
        let mut actors: Vec<_> = (0..self.target.shards().len()).map(Actor::Target).collect();
        for (nth, host) in self.initiators.iter_mut().enumerate() {
            let cores = host.shards().len();
            actors.extend((0..cores).map(|core| Actor::Initiator(nth, core)));
        }
        actors
    }

    /// One core: its shard, then what uses it.
    fn poll(&mut self, actor: Actor) -> Result<Progress, String> {
        let now = self.now;
        match actor {
            Actor::Target(core) => Ok(self.target.shards()[core].poll(now)),
            Actor::Initiator(nth, core) => {
                let host = &mut self.initiators[nth];
                let paths = host.spec.paths;
                let mut progress = host.shards()[core].poll(now);
                for job in host.jobs_on(core) {
                    let terms = Terms {
                        may_fail: self.scenario.may_fail(job.disk),
                        lingers: paths > 1,
                        closed_since: self.closed_since[job.disk],
                    };
                    let model = &mut self.disks[job.disk];
                    progress = progress.or(job.poll(model, terms, now)?);
                }
                Ok(progress)
            }
        }
    }

    /// A little while there is work; else to the next thing that is due.
    fn pass_time(&mut self, busy: &[Actor]) -> Result<(), String> {
        let soon = self.now + Nanos(self.rng.u64(1..2_000));
        let due = self.next_due().unwrap_or(Nanos::MAX);
        if busy.is_empty() && due > self.now {
            self.restless_rounds = 0;
            self.now = due.min(self.now + Nanos::from_secs(1)).max(soon);
            return Ok(());
        }
        self.now = soon;
        self.restless_rounds += 1;
        if self.restless_rounds < ROUNDS_MAX {
            return Ok(());
        }
        let mut due = Vec::new();
        for actor in self.actors() {
            due.push((actor, self.deadline_of(actor)));
        }
        Err(format!(
            "there is always something to do: {busy:?} were busy, due is {due:?}"
        ))
    }

    /// When something happens next, of what is not stalled.
    fn next_due(&mut self) -> Option<Nanos> {
        let mut due = vec![self.next_fault];
        due.extend(self.repairs.iter().map(|(at, _)| *at));
        due.extend(self.network.next_event());
        due.extend(
            self.initiators
                .iter()
                .filter_map(InitiatorHost::next_action),
        );
        for actor in self.actors() {
            if !self.stalled.contains(&actor) {
                due.extend(self.deadline_of(actor));
            }
        }
        due.into_iter().min()
    }

    fn deadline_of(&mut self, actor: Actor) -> Option<Nanos> {
        match actor {
            Actor::Target(core) => self.target.shards()[core].next_deadline(),
            Actor::Initiator(nth, core) => {
                let host = &mut self.initiators[nth];
                let jobs = host.jobs_on(core);
                let jobs = jobs.filter_map(|job| job.next_deadline()).min();
                let shard = host.shards()[core].next_deadline();
                shard.into_iter().chain(jobs).min()
            }
        }
    }

    /// Tells all jobs what to do from now on.
    pub(crate) fn enter(&mut self, phase: Phase) {
        for host in &mut self.initiators {
            host.enter(phase);
        }
    }

    /// Adds what the jobs of an initiator did, before they go.
    pub(crate) fn count_jobs(&mut self, nth: usize) {
        let tally = self.initiators[nth].take_tally();
        self.report.completed += tally.completed;
        self.report.failed += tally.failed;
    }
}

fn models(scenario: &Scenario) -> Vec<DiskModel> {
    let disks = (0..).zip(&scenario.disks);
    disks
        .map(|(id, spec)| {
            let num_blocks = usize::try_from(spec.num_blocks).expect("simulated disks are small");
            DiskModel::new(id, spec.block_size as usize, num_blocks)
        })
        .collect()
}
