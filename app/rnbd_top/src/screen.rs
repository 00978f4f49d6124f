use std::fmt::Write;

use rnbd_console::table::Table;
use rnbd_console::units::microseconds;

use crate::rates::{Flow, PathRates, Rates};

/// Everything that a person is to see; parts without anything in them are left out.
pub(crate) fn text(rates: &Rates, with_pollers: bool) -> String {
    let mut text = format!("rates of {:.1} s\n", rates.seconds);
    add(&mut text, &cores(rates));
    add(&mut text, &threads(rates));
    if with_pollers {
        add(&mut text, &pollers(rates));
    }
    add(&mut text, &bdevs(rates));
    add(&mut text, &paths("SESSION", &rates.sessions));
    add(&mut text, &paths("CONTROLLER", &rates.controllers));
    text
}

fn add(text: &mut String, table: &Table) {
    if !table.is_empty() {
        write!(text, "\n{table}").expect("writing to a string does not fail");
    }
}

fn cores(rates: &Rates) -> Table {
    let mut table = Table::new(&[">CORE", "MODE", ">THREADS", ">BUSY %"]);
    for core in &rates.cores {
        let mode = if core.is_sleeping {
            "sleeping"
        } else {
            "polling"
        };
        table.row([
            core.lcore.to_string(),
            mode.to_owned(),
            core.threads.to_string(),
            one_decimal(core.busy_percent),
        ]);
    }
    table
}

fn threads(rates: &Rates) -> Table {
    let mut table = Table::new(&["THREAD", ">CORE", ">BUSY %"]);
    for thread in &rates.threads {
        let lcore = thread.lcore.map(|lcore| lcore.to_string());
        table.row([
            thread.name.clone(),
            lcore.unwrap_or_default(),
            one_decimal(thread.busy_percent),
        ]);
    }
    table
}

fn pollers(rates: &Rates) -> Table {
    let mut table = Table::new(&["POLLER", "THREAD", "KIND", ">RUNS/S", ">BUSY %"]);
    for poller in &rates.pollers {
        let kind = if poller.is_timed { "timed" } else { "active" };
        table.row([
            poller.name.clone(),
            poller.thread.clone(),
            kind.to_owned(),
            format!("{:.0}", poller.runs_per_sec),
            one_decimal(poller.busy_percent),
        ]);
    }
    table
}

fn bdevs(rates: &Rates) -> Table {
    let mut table = Table::new(&[
        "BDEV", ">READ/S", ">MIB/S", ">LATENCY", ">WRITE/S", ">MIB/S", ">LATENCY",
    ]);
    for bdev in &rates.bdevs {
        let [reads, read_mib] = flow(bdev.read);
        let [writes, write_mib] = flow(bdev.write);
        let latency = |us: Option<f64>| us.map(microseconds).unwrap_or_default();
        let (read_latency, write_latency) = (bdev.read_latency_us, bdev.write_latency_us);
        table.row([
            bdev.name.clone(),
            reads,
            read_mib,
            latency(read_latency),
            writes,
            write_mib,
            latency(write_latency),
        ]);
    }
    table
}

fn paths(owner: &'static str, paths: &[PathRates]) -> Table {
    let mut table = Table::new(&[
        owner,
        "PATH",
        ">READ/S",
        ">MIB/S",
        ">WRITE/S",
        ">MIB/S",
        ">IN FLIGHT",
    ]);
    for path in paths {
        let [reads, read_mib] = flow(path.read);
        let [writes, write_mib] = flow(path.write);
        table.row([
            path.name.clone(),
            path.path.clone(),
            reads,
            read_mib,
            writes,
            write_mib,
            path.in_flight.to_string(),
        ]);
    }
    table
}

fn flow(flow: Flow) -> [String; 2] {
    [format!("{:.0}", flow.iops), format!("{:.1}", flow.mibps)]
}

fn one_decimal(percent: Option<f64>) -> String {
    percent.map_or_else(String::new, |percent| format!("{percent:.1}"))
}
