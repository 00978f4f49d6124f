//! Plays seeds, and says how to replay one that fails.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::io::{Result, Write, stderr, stdout};
use std::num::NonZero;
use std::panic::{set_hook, take_hook};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use clap::Parser;
use rnbd_sim::{Bench, Report, Scenario, Shape, World};

thread_local! {
    /// The seed that is being played.
    static SEED: Cell<u64> = const { Cell::new(0) };
}

/// Plays target and initiator over a simulated network, one scenario per seed.
#[derive(Debug, Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// How many seeds are played at a time; by default as many as there are processors.
    #[arg(long)]
    jobs: Option<NonZero<usize>>,
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
    tell_of_panics(arguments.kind());
    if arguments.verbose {
        log::set_logger(&Printer).expect("there is no other logger");
        log::set_max_level(log::LevelFilter::Debug);
    }
    let played = Played::default();
    let next = AtomicU64::new(arguments.from);
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs() {
            scope.spawn(|| arguments.play(&next, &played));
        }
    });
    let (total, failed) = played.into_inner();
    if let Some((seed, what)) = failed {
        tell(seed, arguments.kind(), &what);
        return Ok(ExitCode::FAILURE);
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

/// What all threads have played: the sum, and the lowest seed that failed with what was found.
#[derive(Debug, Default)]
struct Played(Mutex<(Report, Option<(u64, String)>)>);

impl Played {
    fn add(&self, report: &Report) {
        self.lock().0.add(report);
    }

    fn fail(&self, seed: u64, what: String) {
        let lowest = &mut self.lock().1;
        if lowest.as_ref().is_none_or(|(known, _)| seed < *known) {
            *lowest = Some((seed, what));
        }
    }

    fn has_failed(&self) -> bool {
        self.lock().1.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, (Report, Option<(u64, String)>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn into_inner(self) -> (Report, Option<(u64, String)>) {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arguments {
    /// Plays one seed after another until there are no more, or one has failed.
    fn play(&self, next: &AtomicU64, played: &Played) {
        let bench = Bench::new();
        while !played.has_failed() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.from + self.seeds {
                return;
            }
            SEED.set(seed);
            if self.verbose {
                print(format_args!("{:#?}", self.scenario(seed)));
            }
            match World::new(&bench, self.scenario(seed)).run() {
                Ok(report) => {
                    if self.verbose {
                        print(format_args!("seed {seed}: {report:?}"));
                    }
                    played.add(&report);
                }
                Err(failure) => played.fail(seed, failure.to_string()),
            }
        }
    }

    /// Seeds are played side by side, unless somebody wants to read what each does.
    fn jobs(&self) -> usize {
        if self.verbose {
            return 1;
        }
        let processors = || std::thread::available_parallelism().map_or(1, NonZero::get);
        self.jobs.map_or_else(processors, NonZero::get)
    }

    /// The option that chose the kind of scenario.
    fn kind(&self) -> &'static str {
        if self.long {
            " --long"
        } else if self.haunted {
            " --haunted"
        } else if self.lingering {
            " --lingering"
        } else {
            ""
        }
    }

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
        let (level, target) = (record.level(), record.target());
        print(format_args!("{level} {target}: {}", record.args()));
    }

    fn flush(&self) {}
}

/// A line of output. Nothing can be done if nobody listens.
fn print(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(stdout(), "{line}");
}

/// Says which seed it was when a seed panics: in a release build that is the end.
fn tell_of_panics(more: &'static str) {
    let usual = take_hook();
    set_hook(Box::new(move |info| {
        usual(info);
        tell(SEED.get(), more, "it panicked, see above");
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
