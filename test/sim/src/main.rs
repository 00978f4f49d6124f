//! Plays seeds, and says how to replay one that fails.

#![forbid(unsafe_code)]

use std::io::{Result, Write, stderr, stdout};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};

use clap::Parser;
use rnbd_sim::{Bench, Report, Scenario, Shape, run_seed};

/// Plays target and initiator over a simulated network, one scenario per seed.
#[derive(Debug, Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// Ten times as much of everything per seed.
    #[arg(long)]
    long: bool,
    /// Show each seed's scenario and report.
    #[arg(long)]
    verbose: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let shape = if arguments.long {
        Shape::Long
    } else {
        Shape::Short
    };
    let bench = Bench::new();
    let mut total = Report::default();
    for seed in arguments.from..arguments.from + arguments.seeds {
        if arguments.verbose {
            writeln!(stdout(), "{:#?}", Scenario::new(seed, shape))?;
        }
        let report = match play(&bench, seed, shape) {
            Ok(report) => report,
            Err(what) => {
                let replay = replay(seed, arguments.long);
                writeln!(
                    stderr(),
                    "seed {seed} of commit {} failed: {what}",
                    commit()
                )?;
                writeln!(stderr(), "replay: {replay}")?;
                return Ok(ExitCode::FAILURE);
            }
        };
        if arguments.verbose {
            writeln!(stdout(), "seed {seed}: {report:?}")?;
        }
        total.add(&report);
    }
    writeln!(
        stdout(),
        "{} seeds from {}: {} I/Os ({} failed as they may, {} sent again), {} faults, {} \
         reconnects, {:?} simulated; nothing wrong",
        arguments.seeds,
        arguments.from,
        total.completed,
        total.failed,
        total.retries,
        total.faults,
        total.reconnects,
        total.time
    )?;
    Ok(ExitCode::SUCCESS)
}

fn play(bench: &Bench, seed: u64, shape: Shape) -> std::result::Result<Report, String> {
    let played = catch_unwind(AssertUnwindSafe(|| run_seed(bench, seed, shape)));
    match played {
        Ok(played) => played.map_err(|failure| failure.to_string()),
        Err(_) => Err("it panicked, see above".to_owned()),
    }
}

fn replay(seed: u64, is_long: bool) -> String {
    let long = if is_long { " --long" } else { "" };
    format!("cargo run -p rnbd-sim -- --from {seed} --seeds 1{long} --verbose")
}

/// What is checked out, as far as git knows.
fn commit() -> String {
    let described = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output();
    match described {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}
