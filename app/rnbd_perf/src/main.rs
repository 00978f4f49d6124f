//! Load generator and verifier for any bdev, in the manner of bdevperf.
//!
//! A job is one core doing I/O to one bdev with a queue that is kept full ([`job`]). What it
//! writes can be stamped ([`stamp`]) and entered in a ledger ([`ledger`]), so that a lost, stale,
//! torn or misplaced write is found when it is read back, and named.
//!
//! The program is composed of: [`cli`] and [`jobfile`] (what is wanted), [`plan`] (which jobs that
//! makes), [`runner`] (jobs on cores), [`report`] and [`live`] (what people and scripts read).

#![forbid(unsafe_code)]

mod attach;
mod cli;
mod job;
mod jobfile;
mod ledger;
mod live;
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
use rnbd_framework::Env;

use crate::cli::Cli;
use crate::job::{JobResult, Status};
use crate::live::Live;
use crate::plan::Core;
use crate::report::LatencyDetail;
use crate::spec::JobSpec;

fn main() -> ExitCode {
    let cli = Cli::from_command_line();
    let options = cli.app.clone().without_rpc_unless_asked();
    rnbd_framework::run(options, async |env: Env| perform(&env, &cli).await)
}

async fn perform(env: &Env, cli: &Cli) -> anyhow::Result<ExitCode> {
    let mut out = text_output(cli);
    for (index, attach) in cli.attach.iter().enumerate() {
        attach.run(env, index).await?;
    }
    let seed = cli.seed.unwrap_or_else(|| fastrand::u64(..));
    let specs = plan_jobs(env, cli, seed)?;
    let verifies = specs.iter().any(|spec| spec.verify);
    let jobs = runner::prepare(env, specs)?;
    announce(cli, verifies.then_some(seed), &mut out)?;
    let results = jobs.run(env, &mut live_output(cli), &mut out).await?;
    report::print(&results, LatencyDetail::from_count(cli.latency), &mut out)?;
    write_files(cli, &results)?;
    Ok(exit_code(&results))
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
    let sections = jobfile::parse(&text).with_context(named)?;
    plan::from_sections(cli, &sections, &cores, seed)
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
