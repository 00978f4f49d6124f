//! What must hold when the faults have ended.

use rnbd_base::Nanos;

use crate::answer::Answer;
use crate::job::Phase;
use crate::world::World;

/// In which everything must have recovered.
const RECOVERY_MAX: Nanos = Nanos::from_secs(300);
/// In which an orderly end must be over.
const GOODBYE_MAX: Nanos = Nanos::from_secs(120);

impl World<'_> {
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
                return Err(format!("{what} has not come within {within:?}"));
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

    /// Everybody is back, and no I/O is left over.
    pub(crate) fn converge(&mut self) -> Result<(), String> {
        self.revive_hostile()?;
        self.until(RECOVERY_MAX, "the disks of every client", |world| {
            let mut hosts = world.initiators.iter();
            hosts
                .all(|host| host.is_mapped() || host.spec.is_hostile)
                .then_some(())
        })?;
        self.enter(Phase::Drain);
        self.until(RECOVERY_MAX, "the end of all I/O", Self::all_quiet)
    }

    /// A client that harmed itself starts afresh; the target must let it in again.
    fn revive_hostile(&mut self) -> Result<(), String> {
        for nth in 0..self.initiators.len() {
            if self.initiators[nth].spec.is_hostile {
                self.count_jobs(nth);
                let host = &mut self.initiators[nth];
                host.crash(
                    &self.network,
                    rnbd_fabric::sim::Crash::Process,
                    &mut self.disks,
                );
                let seed = self.rng.u64(..);
                host.start(&self.network, seed, self.now);
                self.until(RECOVERY_MAX, "the return of the hostile client", |world| {
                    world.initiators[nth].is_mapped().then_some(())
                })?;
            }
        }
        Ok(())
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

    fn failed_io(&mut self) -> u64 {
        for nth in 0..self.initiators.len() {
            self.count_jobs(nth);
        }
        self.report.failed
    }

    /// No permit and no chunk is in use when no I/O is.
    fn no_request_is_left(&mut self) -> Result<(), String> {
        self.until(GOODBYE_MAX, "quiet sessions", |world| {
            let deadline = world.now + Nanos::from_secs(1);
            (world.now < deadline).then_some(())
        })?;
        let sessions = self.answer("the sessions", |world| world.target.sessions())?;
        for session in sessions {
            if session.inflight != 0 {
                return Err(format!(
                    "session {} has {} requests in flight without any I/O",
                    session.sessname, session.inflight
                ));
            }
        }
        Ok(())
    }

    /// The clients leave, and nothing of them stays behind.
    pub(crate) fn leave(&mut self) -> Result<(), String> {
        for nth in 0..self.initiators.len() {
            self.count_jobs(nth);
            let detached = self.answer("the detaching", |world| world.initiators[nth].detach())?;
            detached.map_err(|error| format!("detaching failed: {error}"))?;
        }
        self.until(GOODBYE_MAX, "an empty target", Self::target_is_empty)?;
        let used = self.bench.target.usage().used_bytes;
        self.until(GOODBYE_MAX, "a target without chunks", |world| {
            let used = world.bench.target.usage().used_bytes;
            (used == world.target_bytes).then_some(())
        })
        .map_err(|what| format!("{what}: {used} bytes are in use"))?;
        for host in &mut self.initiators {
            host.stop();
            if host.used_bytes() != 0 {
                return Err(format!("{} keeps {} bytes", host.name, host.used_bytes()));
            }
        }
        Ok(())
    }

    fn target_is_empty(&mut self) -> Option<()> {
        let answer = self.target.stats()?;
        for shard in self.target.shards() {
            rnbd_base::Poll::poll(shard, self.now);
        }
        let shards = answer.take()?;
        let is_empty = |shard: &rnbd_proto::target::ShardStats| {
            shard.sessions == 0 && shard.connections == 0 && shard.pending_bdev_io == 0
        };
        shards.iter().all(is_empty).then_some(())
    }
}
