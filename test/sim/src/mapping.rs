//! A disk as one of an initiator's users has it.

use std::sync::Arc;

use bdev_rnbd::{ControlError, DeviceParams, Initiator, InitiatorControl, UnmapMode};
use fastrand::Rng;
use rnbd_base::{CoreIndex, Errno, Nanos};
use rnbd_bdev::{Desc, Registry};
use rnbd_mem::Memory;
use rnbd_wire::rnbd::AccessMode;

use crate::answer::Answer;
use crate::initiator::CONTROLLER;
use crate::job::{Job, JobSpec, Phase};
use crate::target::TargetHost;

/// How long to wait after something that failed.
pub(crate) const AGAIN: Nanos = Nanos::from_millis(500);

type Asked<T> = Answer<Result<T, ControlError>>;

/// What the users of a disk need to know of their process.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) initiator: &'a Initiator,
    pub(crate) registry: &'a Registry,
    pub(crate) memory: &'a Memory,
    pub(crate) cores: u16,
    pub(crate) job: JobSpec,
    pub(crate) phase: Phase,
    pub(crate) now: Nanos,
}

/// One disk of an initiator.
///
/// ```text
///              map                answered            its bdev is removed
///  Unmapped ────────> Mapping ──────────────> Mapped ─────────────────────┐
///    ^  ^                │ failed               ^ └── opened again, if    │
///    │  └────────────────┘                      └──── I/O needed it       v
///    └──────────────────────── the last I/O has ended ────────────── LettingGo
/// ```
#[derive(Debug)]
pub(crate) struct Mapping {
    disk: usize,
    access_mode: AccessMode,
    stage: Stage,
    desc: Option<Arc<Desc>>,
    jobs: Vec<Job>,
    /// What the I/O of jobs that are gone amounted to.
    pub(crate) gone: crate::job::Tally,
    reopening: Option<Asked<()>>,
    reopen_at: Option<Nanos>,
}

#[derive(Debug)]
enum Stage {
    /// Until it is time to map it, if somebody is to.
    Unmapped(Option<Nanos>),
    Mapping(Asked<String>),
    Mapped(String),
    LettingGo,
}

impl Mapping {
    pub(crate) fn new(disk: usize, access_mode: AccessMode) -> Self {
        Self {
            disk,
            access_mode,
            stage: Stage::Unmapped(None),
            desc: None,
            jobs: Vec::new(),
            gone: crate::job::Tally::default(),
            reopening: None,
            reopen_at: None,
        }
    }

    /// How it is asked for.
    pub(crate) fn params(&self) -> DeviceParams {
        DeviceParams {
            device_path: TargetHost::export(self.disk),
            access_mode: self.access_mode,
            bdev_name: None,
            uuid: None,
        }
    }

    pub(crate) fn jobs(&mut self) -> &mut [Job] {
        &mut self.jobs
    }

    /// Whether it is there, with all its jobs, and nobody is about to take it away.
    pub(crate) fn is_mapped(&self) -> bool {
        let desc = self.desc.as_ref();
        let is_open = desc.is_some_and(|desc| !desc.is_removed());
        is_open && self.reopen_at.is_none() && self.reopening.is_none()
    }

    pub(crate) fn next_action(&self) -> Option<Nanos> {
        match self.stage {
            Stage::Unmapped(at) => at,
            Stage::Mapped(_) => self.reopen_at,
            Stage::Mapping(_) | Stage::LettingGo => None,
        }
    }

    /// The controller was attached, and this is the bdev.
    pub(crate) fn attached(&mut self, bdev: &str, around: &Surroundings<'_>, rng: &mut Rng) {
        self.open(bdev, around, rng);
    }

    /// Asks for the removal of the bdev, whoever uses it.
    pub(crate) fn unmap(&self, initiator: &Initiator) {
        if let Stage::Mapped(bdev) = &self.stage {
            initiator.unmap_device(bdev, UnmapMode::Force, Box::new(|_| ()));
        }
    }

    /// Asks for the size.
    pub(crate) fn rescan(&self, initiator: &Initiator) {
        if let Stage::Mapped(bdev) = &self.stage {
            initiator.rescan_device(bdev, Box::new(|_| ()));
        }
    }

    /// Goes on if something happened. An unmapped disk is mapped again as long as there
    /// `is_controller`.
    pub(crate) fn drive(&mut self, is_controller: bool, around: &Surroundings<'_>, rng: &mut Rng) {
        match &self.stage {
            Stage::Unmapped(at) if !is_controller => {
                if at.is_some() {
                    self.stage = Stage::Unmapped(None);
                }
            }
            Stage::Unmapped(at) => {
                if at.is_none_or(|at| at <= around.now) {
                    self.map(around);
                }
            }
            Stage::Mapping(answer) => match answer.take() {
                None => (),
                Some(Ok(bdev)) => self.open(&bdev, around, rng),
                Some(Err(_)) => self.stage = Stage::Unmapped(Some(around.now + AGAIN)),
            },
            Stage::Mapped(_) => self.look_after(around),
            Stage::LettingGo => self.let_go(around.now),
        }
    }

    fn map(&mut self, around: &Surroundings<'_>) {
        let (answer, reply) = Answer::new();
        let device = self.params();
        around.initiator.map_device(CONTROLLER, device, reply);
        self.stage = Stage::Mapping(answer);
    }

    fn open(&mut self, bdev: &str, around: &Surroundings<'_>, rng: &mut Rng) {
        let may_write = self.access_mode != AccessMode::ReadOnly;
        let Ok(desc) = around.registry.open(bdev, may_write) else {
            // It was taken away before anybody could use it.
            self.stage = Stage::LettingGo;
            return;
        };
        let desc = Arc::new(desc);
        for core in 0..around.cores {
            let rng = Rng::with_seed(rng.u64(..));
            let core = CoreIndex(core);
            let mut job = Job::open(&desc, core, self.disk, around.job, around.memory, rng);
            job.enter(around.phase);
            self.jobs.push(job);
        }
        self.desc = Some(desc);
        self.stage = Stage::Mapped(bdev.to_owned());
    }

    fn look_after(&mut self, around: &Surroundings<'_>) {
        if self.desc.as_ref().is_none_or(|desc| desc.is_removed()) {
            self.stage = Stage::LettingGo;
            for job in &mut self.jobs {
                job.enter(Phase::Drain);
            }
            return self.let_go(around.now);
        }
        self.reopen(around);
    }

    /// I/O that fails as if the disk had been taken away asks for it again.
    fn reopen(&mut self, around: &Surroundings<'_>) {
        let Stage::Mapped(bdev) = &self.stage else {
            return;
        };
        let mut shut_out = false;
        for job in &mut self.jobs {
            shut_out |= job.take_shut_out();
        }
        if shut_out && self.reopening.is_none() && self.reopen_at.is_none() {
            self.reopen_at = Some(around.now + AGAIN);
        }
        if self.reopen_at.is_some_and(|at| at <= around.now) {
            let (answer, reply) = Answer::new();
            self.reopen_at = None;
            self.reopening = Some(answer);
            around.initiator.remap_device(bdev, reply);
        }
        if let Some(result) = self.reopening.as_ref().and_then(Answer::take) {
            self.reopening = None;
            let failed = |error: &ControlError| error.errno != Errno::ALREADY;
            let again = result.err().filter(failed);
            self.reopen_at = again.map(|_| around.now + AGAIN);
        }
    }

    fn let_go(&mut self, now: Nanos) {
        if self.jobs.iter().any(|job| job.in_flight() > 0) {
            return;
        }
        for job in self.jobs.drain(..) {
            self.gone.add(job.tally);
        }
        self.desc = None;
        (self.reopening, self.reopen_at) = (None, None);
        self.stage = Stage::Unmapped(Some(now));
    }

    /// Lets go of everything at once, the I/O being over.
    pub(crate) fn release(&mut self) {
        self.jobs.clear();
        self.desc = None;
        self.stage = Stage::Unmapped(None);
    }
}
