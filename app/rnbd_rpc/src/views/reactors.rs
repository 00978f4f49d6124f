use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Arg, ArgMatches, Command};
use rnbd_console::seconds;
use serde::Deserialize;
use serde_json::{Value, json};

use super::units::percent;
use super::{Report, cell};
use crate::server::{Server, parse};
use crate::table::Table;

const REACTORS: &str = "framework_get_reactors";
/// `/proc/stat`, where the processor's times come from, counts hundredths of a second.
const JIFFIES_PER_SECOND: f64 = 100.0;

#[derive(Deserialize)]
struct Sample {
    tick_rate: f64,
    reactors: Vec<Reactor>,
}

#[derive(Deserialize)]
struct Reactor {
    lcore: u32,
    busy: f64,
    idle: f64,
    in_interrupt: bool,
    irq: f64,
    sys: f64,
    usr: f64,
    lw_threads: Vec<Thread>,
}

#[derive(Deserialize)]
struct Thread {
    name: String,
    elapsed: f64,
}

pub(super) fn arguments(command: Command) -> Command {
    command.arg(
        Arg::new("interval")
            .long("interval")
            .value_name("SECONDS")
            .default_value("1")
            .value_parser(seconds)
            .help("Over which time to measure; 0 for all since the start"),
    )
}

pub(super) fn run(server: &mut Server, arguments: &ArgMatches) -> Result<Report> {
    let interval = arguments.get_one::<Duration>("interval").copied();
    let begin = match interval.unwrap_or_default() {
        Duration::ZERO => None,
        interval => Some(Begin::take(server, interval)?),
    };
    let mut json = server.call(REACTORS, None)?;
    let last: Sample = parse(REACTORS, &json)?;
    let load = |reactor: &Reactor| match &begin {
        Some(begin) => begin.load_until(reactor),
        None => Load::of(reactor, None, reactor.age(last.tick_rate)),
    };
    let loads: Vec<Load> = last.reactors.iter().map(load).collect();
    add_loads(&mut json, &loads);
    let mut table = Table::new(&[">CORE", "MODE", ">BUSY %", ">CPU %", ">THREADS", "NAMES"]);
    for (reactor, load) in last.reactors.iter().zip(&loads) {
        table.row(row(reactor, load));
    }
    Ok(Report { json, table })
}

/// The first of two samples.
struct Begin {
    sample: Sample,
    taken: Instant,
}

impl Begin {
    /// Takes it and lets `interval` pass.
    fn take(server: &mut Server, interval: Duration) -> Result<Self> {
        let taken = Instant::now();
        let sample = server.read(REACTORS)?;
        std::thread::sleep(interval);
        Ok(Self { sample, taken })
    }

    fn load_until(&self, now: &Reactor) -> Load {
        let mut reactors = self.sample.reactors.iter();
        let before = reactors.find(|before| before.lcore == now.lcore);
        Load::of(now, before, self.taken.elapsed().as_secs_f64())
    }
}

/// How much of a time was used, in percent.
struct Load {
    /// By the reactor's work, of its rounds.
    busy: Option<f64>,
    /// By anything that ran on the processor.
    cpu: Option<f64>,
}

impl Load {
    /// From `before`, or the start, to `now`, which are `seconds` apart.
    fn of(now: &Reactor, before: Option<&Reactor>, seconds: f64) -> Self {
        let since = |count: fn(&Reactor) -> f64| count(now) - before.map_or(0.0, count);
        let busy = since(|reactor| reactor.busy);
        let jiffies = since(|reactor| reactor.irq + reactor.sys + reactor.usr);
        let cpu = percent(jiffies, seconds * JIFFIES_PER_SECOND);
        Self {
            busy: percent(busy, since(|reactor| reactor.busy + reactor.idle)),
            // A jiffy more or less at both ends.
            cpu: cpu.map(|cpu| cpu.min(100.0)),
        }
    }
}

impl Reactor {
    /// Seconds since its first thread was made.
    fn age(&self, tick_rate: f64) -> f64 {
        let elapsed = self.lw_threads.iter().map(|thread| thread.elapsed);
        elapsed.fold(0.0, f64::max) / tick_rate
    }
}

fn add_loads(json: &mut Value, loads: &[Load]) {
    let reactors = json.get_mut("reactors").and_then(Value::as_array_mut);
    for (reactor, load) in reactors.into_iter().flatten().zip(loads) {
        reactor["busy_percent"] = json!(load.busy);
        reactor["cpu_percent"] = json!(load.cpu);
    }
}

fn row(reactor: &Reactor, load: &Load) -> [String; 6] {
    let one_decimal = |percent: f64| format!("{percent:.1}");
    let threads = &reactor.lw_threads;
    let names: Vec<&str> = threads.iter().map(|thread| thread.name.as_str()).collect();
    let mode = match reactor.in_interrupt {
        true => "sleeping",
        false => "polling",
    };
    [
        reactor.lcore.to_string(),
        mode.to_owned(),
        cell(load.busy.map(one_decimal)),
        cell(load.cpu.map(one_decimal)),
        threads.len().to_string(),
        names.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reactor(busy: f64, idle: f64, usr: f64) -> Reactor {
        Reactor {
            lcore: 0,
            busy,
            idle,
            in_interrupt: false,
            irq: 0.0,
            sys: 0.0,
            usr,
            lw_threads: Vec::new(),
        }
    }

    #[test]
    fn load_is_that_between_two_samples() {
        let before = reactor(100.0, 900.0, 1000.0);
        let now = reactor(400.0, 1600.0, 1100.0);
        let load = Load::of(&now, Some(&before), 2.0);
        assert_eq!((load.busy, load.cpu), (Some(30.0), Some(50.0)));
    }

    #[test]
    fn without_a_first_sample_load_is_that_since_the_start() {
        let load = Load::of(&reactor(1.0, 3.0, 0.0), None, 10.0);
        assert_eq!((load.busy, load.cpu), (Some(25.0), Some(0.0)));
    }
}
