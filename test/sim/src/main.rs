//! Plays seeds, and says how to replay one that fails.

#![forbid(unsafe_code)]

use std::io::{Result, Write, stderr, stdout};
use std::panic::{set_hook, take_hook};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use rnbd_sim::{Bench, Report, Scenario, Shape, World};

/// The seed that is being played.
static SEED: AtomicU64 = AtomicU64::new(0);

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
    /// Only what makes writes of lost paths land late: several paths, slow disks.
    #[arg(long, conflicts_with = "long")]
    haunted: bool,
    /// The same, with disks that keep some I/O for longer than a path takes to come back.
    #[arg(long, conflicts_with_all = ["long", "haunted"])]
    lingering: bool,
    /// Show each seed's scenario, what target and initiators log, and the report.
    #[arg(long)]
    verbose: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let more = if arguments.long {
        " --long"
    } else if arguments.haunted {
        " --haunted"
    } else if arguments.lingering {
        " --lingering"
    } else {
        ""
    };
    tell_of_panics(more);
    if arguments.verbose {
        log::set_logger(&Printer).expect("there is no other logger");
        log::set_max_level(log::LevelFilter::Debug);
    }
    let bench = Bench::new();
    let mut total = Report::default();
    for seed in arguments.from..arguments.from + arguments.seeds {
        if arguments.verbose {
            writeln!(stdout(), "{:#?}", arguments.scenario(seed))?;
        }
        SEED.store(seed, Ordering::Relaxed);
        let report = match World::new(&bench, arguments.scenario(seed)).run() {
            Ok(report) => report,
            Err(failure) => {
                tell(seed, more, &failure.to_string());
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

impl Arguments {
    fn scenario(&self, seed: u64) -> Scenario {
        if self.haunted {
            Scenario::haunted(seed)
        } else if self.lingering {
            Scenario::lingering(seed)
        } else if self.long {
            Scenario::new(seed, Shape::Long)
        } else {
            Scenario::new(seed, Shape::Short)
        }
    }
}

/// Prints what is logged as it comes.
struct Printer;

impl log::Log for Printer {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // Nothing can be done if nobody listens.
        let _ = writeln!(
            stdout(),
            "{} {}: {}",
            record.level(),
            record.target(),
            record.args()
        );
    }

    fn flush(&self) {}
}

/// Says which seed it was when a seed panics: in a release build that is the end.
fn tell_of_panics(more: &'static str) {
    let usual = take_hook();
    set_hook(Box::new(move |info| {
        usual(info);
        tell(SEED.load(Ordering::Relaxed), more, "it panicked, see above");
    }));
}

/// Says what was found, and how to find it again.
fn tell(seed: u64, more: &str, what: &str) {
    let mut stderr = stderr();
    // Nothing can be done if nobody listens.
    let _ = writeln!(stderr, "seed {seed} of commit {} failed: {what}", commit());
    let _ = writeln!(
        stderr,
        "replay: ./scripts/test.sh{more} sim --from {seed} --seeds 1"
    );
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
