//! What must hold when the faults have ended.

use std::fmt::Debug;

use bdev_rnbd::ControllerState;
use rnbd_base::Nanos;
use rnbd_fabric::sim::Crash;
use rnbd_proto::target::ShardStats;

use crate::answer::Answer;
use crate::job::Phase;
use crate::world::World;

/// In which everything must have recovered.
const RECOVERY_MAX: Nanos = Nanos::from_secs(300);
/// In which an orderly end must be over.
const GOODBYE_MAX: Nanos = Nanos::from_secs(120);
/// How long to wait before the same question.
const ASK_AGAIN: Nanos = Nanos::from_millis(100);

impl World<'_> {
    /// Everybody is back, and no I/O is left over.
    pub(crate) fn converge(&mut self) -> Result<(), String> {
        self.revive_hostile();
        self.until(RECOVERY_MAX, "the disks of every client", |world| {
            let mut hosts = world.initiators.iter();
            hosts.all(|host| host.is_mapped()).then_some(())
        })?;
        self.enter(Phase::Drain);
        self.until(RECOVERY_MAX, "the end of all I/O", Self::all_quiet)?;
        (0..self.initiators.len()).try_for_each(|nth| self.is_enabled(nth))
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

    /// The controller's path is up.
    fn is_enabled(&mut self, nth: usize) -> Result<(), String> {
        self.ask_until(
            "enabled controller",
            RECOVERY_MAX,
            |world| world.initiators[nth].controllers(),
            |_, answer| {
                let controllers = answer.as_deref().unwrap_or_default();
                let is_up = |state| state == ControllerState::Enabled;
                controllers.iter().any(|controller| is_up(controller.state))
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
            .all(|host| {
                let mut jobs = host.jobs().iter();
                jobs.all(|job| job.is_quiet(&disks[job.disk]))
            })
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
