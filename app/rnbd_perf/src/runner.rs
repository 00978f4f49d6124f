//! Puts jobs on their cores and waits for them.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, anyhow};
use futures_util::future::{Either, join_all, pending, select};
use futures_util::pin_mut;
use rnbd_base::CoreIndex;
use rnbd_framework::Env;
use rnbd_mem::Pages;
use rnbd_reactor::ThreadId;

use crate::job::{Job, JobProgress, JobResult, OnDone};
use crate::live::Live;
use crate::spec::JobSpec;

/// Jobs that wait for their cores.
pub(crate) struct Jobs<R> {
    jobs: Vec<Job>,
    progress: Vec<Arc<JobProgress>>,
    results: Vec<R>,
}

/// Opens the devices and makes the jobs.
///
/// # Errors
/// What keeps one of them from starting.
pub(crate) fn prepare(
    env: &Env,
    specs: Vec<JobSpec>,
) -> anyhow::Result<Jobs<impl Future<Output = Option<JobResult>> + use<>>> {
    let (mut jobs, mut progress, mut results) = (Vec::new(), Vec::new(), Vec::new());
    for spec in specs {
        let (on_done, result) = rnbd_framework::reply();
        let job_progress = Arc::new(JobProgress::default());
        jobs.push(make_job(env, spec, Arc::clone(&job_progress), on_done)?);
        progress.push(job_progress);
        results.push(result);
    }
    Ok(Jobs {
        jobs,
        progress,
        results,
    })
}

fn make_job(
    env: &Env,
    spec: JobSpec,
    progress: Arc<JobProgress>,
    on_done: OnDone,
) -> anyhow::Result<Job> {
    let desc = env.bdevs().open(&spec.bdev, spec.writes())?;
    let geometry = desc.geometry();
    let range = spec
        .range(geometry.block_size, geometry.num_blocks)
        .map_err(|reason| anyhow!(reason))?;
    let channel = desc
        .open_channel(spec.core, spec.depth)
        .with_context(|| format!("bdev {} gives no channel", spec.bdev))?;
    let bytes = spec.depth as usize * spec.io_bytes as usize;
    let owner = format!("job {}", spec.bdev);
    let pages = match spec.small_pages {
        true => Pages::Small,
        false => Pages::PreferHuge,
    };
    let buffers = env.memory().alloc(&owner, bytes, pages)?;
    Ok(Job::new(
        spec, range, desc, channel, buffers, progress, on_done,
    ))
}

impl<R: Future<Output = Option<JobResult>>> Jobs<R> {
    /// Runs all of them, together, to their end. A signal ends them early.
    ///
    /// # Errors
    /// A line could not be printed, or a core has gone.
    pub(crate) async fn run(
        self,
        env: &Env,
        threads: Threads,
        live: &mut Live,
        out: &mut impl Write,
    ) -> anyhow::Result<Vec<JobResult>> {
        let threads = threads.start(env, self.jobs);
        let results = watch(env, join_all(self.results), &self.progress, live, out).await?;
        end(env, threads).await;
        let results: Option<Vec<JobResult>> = results.into_iter().collect();
        results.context("a reactor has stopped under its job")
    }
}

/// Which jobs have a light thread in common: the accounting tells threads apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    /// None have.
    PerJob,
    /// Those of a core have.
    PerCore,
}

impl Threads {
    fn start(self, env: &Env, jobs: Vec<Job>) -> Vec<ThreadId> {
        let mut started: Vec<(CoreIndex, ThreadId)> = Vec::new();
        for job in jobs {
            let core = job.core();
            let on_core = started.iter().find(|(other, _)| *other == core);
            let thread = match (self, on_core) {
                (Self::PerCore, Some((_, thread))) => *thread,
                _ => {
                    let name = format!("perf_{}", started.len());
                    let thread = env.reactors().create_thread(core, &name);
                    started.push((core, thread));
                    thread
                }
            };
            let bdev = job.bdev().to_owned();
            env.reactors()
                .add_poller(thread, &bdev, None, Box::new(job));
        }
        started.into_iter().map(|(_, thread)| thread).collect()
    }
}

/// What comes back from the cores, the jobs with their buffers, is freed here and not there.
async fn end(env: &Env, threads: Vec<ThreadId>) {
    for thread in threads {
        let (on_destroyed, destroyed) = rnbd_framework::reply();
        env.reactors().destroy_thread(thread, on_destroyed);
        drop(destroyed.await);
    }
}

/// Prints lines until `work` is done; the first signal tells the jobs to stop.
async fn watch<F: Future>(
    env: &Env,
    work: F,
    jobs: &[Arc<JobProgress>],
    live: &mut Live,
    out: &mut impl Write,
) -> anyhow::Result<F::Output> {
    let stop_on_signal = async {
        env.stopped().await;
        for job in jobs {
            job.stop.store(true, Ordering::Relaxed);
        }
        pending::<Infallible>().await
    };
    let lines = print_lines(env, jobs, live, out);
    pin_mut!(work, stop_on_signal, lines);
    match select(work, select(stop_on_signal, lines)).await {
        Either::Left((results, _)) => Ok(results),
        Either::Right((Either::Left((never, _)), _)) => match never {},
        Either::Right((Either::Right((error, _)), _)) => Err(error.into()),
    }
}

/// Goes on until a line cannot be printed.
async fn print_lines(
    env: &Env,
    jobs: &[Arc<JobProgress>],
    live: &mut Live,
    out: &mut impl Write,
) -> io::Error {
    loop {
        let since = Instant::now();
        env.handle().sleep(live.period).await;
        if let Err(error) = live.tick(jobs, since.elapsed(), out) {
            return error;
        }
    }
}
