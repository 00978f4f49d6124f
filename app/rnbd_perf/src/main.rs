//! Load generator and verifier for any bdev, in the manner of bdevperf.
//!
//! A job is one core doing I/O to one bdev with a queue that is kept full ([`job`]). What it
//! writes can be stamped ([`stamp`]) and entered in a ledger ([`ledger`]), so that a lost, stale,
//! torn or misplaced write is found when it is read back, and named.
//!
//! The program is composed of: [`cli`], [`jobfile`] and [`perform_tests`] (what is wanted), [`plan`]
//! (which jobs that makes), [`runner`] (jobs on cores), [`report`] and [`live`] (what people and
//! scripts read).

#![forbid(unsafe_code)]

mod attach;
mod cli;
mod job;
mod jobfile;
mod ledger;
mod live;
mod perform_tests;
mod places;
mod plan;
mod report;
mod runner;
mod size;
mod spec;
mod stamp;
mod tally;
mod workload;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use futures_channel::mpsc;
use futures_util::future::{Either, select};
use futures_util::{StreamExt, pin_mut};
use rnbd_framework::{App, Env};
use rnbd_rpc::{RpcError, RpcResult};

use crate::cli::Cli;
use crate::job::{JobResult, Status};
use crate::live::Live;
use crate::plan::Core;
use crate::report::LatencyDetail;
use crate::runner::Threads;
use crate::spec::JobSpec;

type Requests = mpsc::UnboundedReceiver<perform_tests::Request>;

fn main() -> ExitCode {
    let cli = Cli::from_command_line();
    start(&cli).unwrap_or_else(|error| {
        eprintln!("rnbd_perf: {error:#}");
        ExitCode::FAILURE
    })
}

fn start(cli: &Cli) -> anyhow::Result<ExitCode> {
    let options = match cli.wait_for_tests {
        true => cli.app.clone(),
        false => cli.app.clone().without_rpc_unless_asked(),
    };
    let (method, requests) = perform_tests::Method::new();
    let requests = cli.wait_for_tests.then_some(requests);
    let mut app = App::new(options).method("perform_tests", move |params| {
        let method = method.clone();
        method.call(params)
    });
    if let Some(path) = &cli.rpc_log {
        let file = File::options().append(true).create(true).open(path);
        app = app.rpc_log(file.with_context(|| format!("cannot open {}", path.display()))?);
    }
    Ok(app.run(async |env: Env| perform(&env, cli, requests).await))
}

async fn perform(env: &Env, cli: &Cli, requests: Option<Requests>) -> anyhow::Result<ExitCode> {
    for (index, attach) in cli.attach.iter().enumerate() {
        attach.run(env, index).await?;
    }
    match requests {
        Some(requests) => serve(env, cli.clone(), requests).await,
        None => Ok(exit_code(&run_tests(env, cli).await?)),
    }
}

/// Performs tests whenever a client asks, until a signal.
async fn serve(env: &Env, mut cli: Cli, mut requests: Requests) -> anyhow::Result<ExitCode> {
    loop {
        let stopped = env.stopped();
        pin_mut!(stopped);
        let Either::Left((Some(request), _)) = select(requests.next(), stopped).await else {
            return Ok(ExitCode::SUCCESS);
        };
        let outcome = match request.changes.apply(&cli) {
            Ok(changed) => run_changed(env, &mut cli, changed).await,
            Err(error) => Err(error),
        };
        // A client that has gone does not wait for it.
        let _ = request.reply.send(outcome);
    }
}

/// What could be started once is kept for the next call.
async fn run_changed(env: &Env, cli: &mut Cli, changed: Cli) -> RpcResult {
    let results = run_tests(env, &changed).await;
    let results = results.map_err(|error| RpcError::internal(format!("{error:#}")))?;
    *cli = changed;
    Ok(report::to_json(&results))
}

async fn run_tests(env: &Env, cli: &Cli) -> anyhow::Result<Vec<JobResult>> {
    let mut out = text_output(cli);
    let seed = cli.seed.unwrap_or_else(|| fastrand::u64(..));
    let specs = plan_jobs(env, cli, seed)?;
    let verifies = specs.iter().any(|spec| spec.verify);
    let jobs = runner::prepare(env, specs)?;
    announce(cli, verifies.then_some(seed), &mut out)?;
    let threads = match cli.thread_per_core {
        true => Threads::PerCore,
        false => Threads::PerJob,
    };
    let results = jobs
        .run(env, threads, &mut live_output(cli), &mut out)
        .await?;
    report::print(&results, LatencyDetail::from_count(cli.latency), &mut out)?;
    write_files(cli, &results)?;
    Ok(results)
}

/// Where text goes: not among JSON.
fn text_output(cli: &Cli) -> Box<dyn Write> {
    if cli.json.as_deref() == Some(Path::new("-")) {
        Box::new(io::stderr())
    } else {
        Box::new(io::stdout())
    }
}

fn plan_jobs(env: &Env, cli: &Cli, seed: u64) -> anyhow::Result<Vec<JobSpec>> {
    let core = |index| Core {
        index,
        lcore: env.reactors().lcore(index),
    };
    let cores: Vec<Core> = env.cores().map(core).collect();
    let Some(path) = &cli.job_file else {
        return plan::from_options(cli, &bdevs(env, cli), &cores, seed);
    };
    let named = || format!("job file {}", path.display());
    let text = std::fs::read_to_string(path).with_context(named)?;
    plan::from_file(cli, &text, &cores, seed).with_context(named)
}

/// The bdev that was asked for, or else all that nobody has claimed.
fn bdevs(env: &Env, cli: &Cli) -> Vec<String> {
    if let Some(bdev) = &cli.bdev {
        return vec![bdev.clone()];
    }
    let all = env.bdevs().list();
    let unclaimed = all
        .iter()
        .filter(|info| info.claim.is_none() && !info.removing);
    unclaimed.map(|info| info.bdev.name().to_owned()).collect()
}

fn announce(cli: &Cli, verified: Option<u64>, out: &mut impl Write) -> anyhow::Result<()> {
    if let Some(seed) = verified {
        writeln!(out, "Verifying data; seed {seed}")?;
    }
    writeln!(out, "Running I/O for {} seconds...", cli.seconds)?;
    Ok(out.flush()?)
}

fn live_output(cli: &Cli) -> Live {
    let period = cli.report_seconds.map(Duration::from_secs);
    Live::new(
        period,
        cli.smooth_over.unwrap_or(1),
        io::stdout().is_terminal(),
    )
}

fn write_files(cli: &Cli, results: &[JobResult]) -> anyhow::Result<()> {
    if let Some(path) = &cli.json {
        let named = || format!("cannot write {}", path.display());
        let mut file: Box<dyn Write> = match path.to_str() {
            Some("-") => Box::new(io::stdout()),
            _ => Box::new(File::create(path).with_context(named)?),
        };
        serde_json::to_writer_pretty(&mut file, &report::to_json(results)).with_context(named)?;
        writeln!(file)?;
    }
    if let Some(directory) = &cli.hgrm {
        let named = || format!("cannot write to {}", directory.display());
        report::write_hgrm(results, directory).with_context(named)?;
    }
    Ok(())
}

/// Wrong data is never forgiven; failed I/O is with `-f`, where it does not make a job fail.
fn exit_code(results: &[JobResult]) -> ExitCode {
    let is_good =
        |result: &JobResult| result.status == Status::Finished && result.mismatch_count == 0;
    if results.iter().all(is_good) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
