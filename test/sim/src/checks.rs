//! What must hold when the faults have ended.

use std::fmt::Debug;

use bdev_rnbd::{ControllerInfo, ControllerState};
use rnbd_base::Nanos;
use rnbd_fabric::sim::Crash;
use rnbd_proto::target::ShardStats;
use rnbd_rtrs::clt::PathState;

use crate::answer::Answer;
use crate::initiator::InitiatorHost;
use crate::job::{Job, Phase};
use crate::target::TargetHost;
use crate::world::World;

/// In which everything must have recovered.
const RECOVERY_MAX: Nanos = Nanos::from_secs(300);
/// In which an orderly end must be over.
const GOODBYE_MAX: Nanos = Nanos::from_secs(120);
/// How often users look before their disks must be there.
const LOOKS_MAX: u32 = 5;
/// How long to wait before the same question.
const ASK_AGAIN: Nanos = Nanos::from_millis(100);

impl World<'_> {
    /// Everybody is back, and no I/O is left over.
    pub(crate) fn converge(&mut self) -> Result<(), String> {
        self.revive_hostile();
        self.until(RECOVERY_MAX, "the disks of every client", Self::all_mapped)?;
        self.enter(Phase::Drain);
        self.until(RECOVERY_MAX, "the end of all I/O", Self::all_quiet)?;
        self.rest()?;
        (0..self.initiators.len()).try_for_each(|nth| self.is_enabled(nth))?;
        self.until(RECOVERY_MAX, "the disks of every client", Self::all_mapped)?;
        self.find_all_disks()
    }

    /// Nothing but heartbeats, for long enough to notice a connection that is dead: as long as
    /// other connections of its path are used, nobody minds.
    fn rest(&mut self) -> Result<(), String> {
        let heartbeat = self.scenario.rtrs.heartbeat;
        let looks = u64::from(heartbeat.missed_max) + 3;
        let silence = Nanos(heartbeat.interval.0 * looks);
        let end = self.now + silence.max(self.scenario.plan.retry_timeout);
        let is_over = |world: &mut Self| (world.now >= end).then_some(());
        self.until(RECOVERY_MAX, "time", is_over)
    }

    /// Users who have not tried since may find only now that a disk was taken away; they get it
    /// back. All learn its size.
    fn find_all_disks(&mut self) -> Result<(), String> {
        for _ in 0..LOOKS_MAX {
            for host in &self.initiators {
                host.rescan();
            }
            let failed = self.failed_io();
            self.enter(Phase::Verify);
            self.until(RECOVERY_MAX, "a look at all disks", Self::all_quiet)?;
            self.until(RECOVERY_MAX, "the disks found again", Self::all_mapped)?;
            if self.failed_io() == failed {
                return self.until(RECOVERY_MAX, "the sizes of all disks", Self::all_grown);
            }
        }
        Err("reads go on failing after the faults".to_owned())
    }

    /// Every user has seen its disk grow.
    fn all_grown(&mut self) -> Option<()> {
        let (disks, target) = (&self.disks, &self.target);
        let mut hosts = self.initiators.iter_mut();
        let knows = |job: &mut Job| job.num_blocks(&disks[job.disk]) == target.num_blocks(job.disk);
        hosts.all(|host| host.jobs().all(knows)).then_some(())
    }

    fn all_mapped(&mut self) -> Option<()> {
        let mut hosts = self.initiators.iter();
        hosts.all(InitiatorHost::is_mapped).then_some(())
    }

    /// A client that harmed itself starts afresh; the target must let it in again.
    fn revive_hostile(&mut self) {
        for nth in 0..self.initiators.len() {
            if self.initiators[nth].spec.is_hostile {
                self.count_jobs(nth);
                let host = &mut self.initiators[nth];
                host.crash(&self.network, Crash::Process, &mut self.disks);
                let seed = self.rng.u64(..);
                host.start(&self.network, seed, self.now);
            }
        }
    }

    /// All paths of the controller are up.
    fn is_enabled(&mut self, nth: usize) -> Result<(), String> {
        self.ask_until(
            "enabled controller",
            RECOVERY_MAX,
            |world| world.initiators[nth].controllers(),
            |world, answer| {
                let controllers = answer.as_deref().unwrap_or_default();
                let is_up = |state| state == ControllerState::Enabled;
                let paths = usize::from(world.initiators[nth].spec.paths);
                let has_all = |controller: &ControllerInfo| {
                    let mut up = controller.paths.iter();
                    controller.paths.len() == paths
                        && up.all(|path| path.state == PathState::Connected)
                };
                controllers
                    .iter()
                    .any(|controller| is_up(controller.state) && has_all(controller))
            },
        )
    }

    /// Every block of every disk has what it must have, through every core.
    pub(crate) fn verify(&mut self) -> Result<(), String> {
        self.no_request_is_left()?;
        let failed = self.failed_io();
        self.enter(Phase::Verify);
        self.until(RECOVERY_MAX, "the last look at the disks", Self::all_quiet)?;
        if self.failed_io() != failed {
            return Err("reads failed although all faults have ended".to_owned());
        }
        self.enter(Phase::Drain);
        Ok(())
    }

    /// What has recovered lasts, with nothing but heartbeats to show that it is there, and the
    /// clients have opened their disks as they were told to.
    pub(crate) fn stay_up(&mut self) -> Result<(), String> {
        let lost = |world: &Self| -> u64 {
            let hosts = world.initiators.iter();
            hosts.map(InitiatorHost::paths_lost).sum()
        };
        let (before, start) = (lost(self), self.now);
        self.rest()?;
        if lost(self) != before {
            return Err(format!("a path was lost after {start:?} for no reason"));
        }
        self.modes_are_kept()
    }

    fn modes_are_kept(&mut self) -> Result<(), String> {
        let sessions = self.answer("the sessions", |world| world.target.sessions())?;
        for device in sessions.iter().flat_map(|session| &session.devices) {
            let disks = 0..self.disks.len();
            let mut disks = disks.filter(|disk| TargetHost::export(*disk) == device.device_path);
            let wanted = disks.next().map(|disk| self.scenario.access_mode(disk));
            if wanted != Some(device.access_mode) {
                return Err(format!("{device:?} is not open as {wanted:?}"));
            }
        }
        Ok(())
    }

    /// No permit and no chunk is in use when no I/O is.
    fn no_request_is_left(&mut self) -> Result<(), String> {
        self.ask_until(
            "target without requests",
            GOODBYE_MAX,
            |world| world.target.sessions(),
            |_, sessions| sessions.iter().all(|session| session.inflight == 0),
        )
    }

    /// The clients leave, and nothing of them stays behind.
    pub(crate) fn leave(&mut self) -> Result<(), String> {
        for nth in 0..self.initiators.len() {
            self.count_jobs(nth);
            self.count_paths(nth)?;
            let detached = self.answer("the detaching", |world| world.initiators[nth].detach())?;
            detached.map_err(|error| format!("detaching failed: {error}"))?;
        }
        self.target_empties()?;
        for host in &mut self.initiators {
            host.stop();
            if host.used_bytes() != 0 {
                return Err(format!("{} keeps {} bytes", host.name, host.used_bytes()));
            }
        }
        Ok(())
    }

    /// No permit is in use, and what the path went through is added to the report.
    fn count_paths(&mut self, nth: usize) -> Result<(), String> {
        let asked = self.answer("the path", |world| world.initiators[nth].path_stats())?;
        for path in asked.map_err(|error| error.to_string())? {
            self.report.reconnects += path.reconnects_ok;
            self.report.retries += path.failovered;
            if path.inflight != 0 {
                return Err(format!("permits are in use without any I/O: {path:?}"));
            }
        }
        Ok(())
    }

    /// No session, connection, I/O or chunk is left at the target.
    fn target_empties(&mut self) -> Result<(), String> {
        let is_empty = |shard: &ShardStats| {
            shard.sessions == 0 && shard.connections == 0 && shard.pending_bdev_io == 0
        };
        self.ask_until(
            "empty target",
            GOODBYE_MAX,
            |world| world.target.stats(),
            |world, shards| {
                let used = world.bench.target.usage().used_bytes;
                shards.iter().all(is_empty) && used == world.target_bytes
            },
        )
    }

    fn failed_io(&mut self) -> u64 {
        for nth in 0..self.initiators.len() {
            self.count_jobs(nth);
        }
        self.report.failed
    }

    fn all_quiet(&mut self) -> Option<()> {
        let disks = &self.disks;
        let mut hosts = self.initiators.iter_mut();
        hosts
            .all(|host| host.jobs().all(|job| job.is_quiet(&disks[job.disk])))
            .then_some(())
    }

    /// Lets time pass until `ready` has something.
    fn until<R>(
        &mut self,
        within: Nanos,
        what: &str,
        mut ready: impl FnMut(&mut Self) -> Option<R>,
    ) -> Result<R, String> {
        let deadline = self.now + within;
        loop {
            if let Some(result) = ready(self) {
                return Ok(result);
            }
            if self.now > deadline {
                return Err(format!("{what} did not come within {within:?}"));
            }
            self.step()?;
        }
    }

    fn answer<T: Send + 'static>(
        &mut self,
        what: &str,
        ask: impl FnOnce(&mut Self) -> Option<Answer<T>>,
    ) -> Result<T, String> {
        let answer = ask(self).ok_or_else(|| format!("nobody to ask for {what}"))?;
        self.until(GOODBYE_MAX, what, |_| answer.take())
    }

    /// Asks until the answer is as it must become.
    fn ask_until<T: Debug + Send + 'static>(
        &mut self,
        what: &str,
        within: Nanos,
        mut ask: impl FnMut(&mut Self) -> Option<Answer<T>>,
        is_good: impl Fn(&Self, &T) -> bool,
    ) -> Result<(), String> {
        let deadline = self.now + within;
        loop {
            let answer = self.answer(what, &mut ask)?;
            if is_good(self, &answer) {
                return Ok(());
            }
            if self.now > deadline {
                return Err(format!("no {what} within {within:?}, but {answer:#?}"));
            }
            let again = self.now + ASK_AGAIN;
            let is_time = |world: &mut Self| (world.now >= again).then_some(());
            self.until(within, "time", is_time)?;
        }
    }
}
