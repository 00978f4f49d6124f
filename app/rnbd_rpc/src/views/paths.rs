use anyhow::Result;
use clap::ArgMatches;
use serde::Deserialize;

use super::stats::{PathCounters, Reconnects, add_path_stats};
use super::{Report, cell, units};
use crate::server::{Server, parse};
use crate::table::Table;

const CONTROLLERS: &str = "bdev_rnbd_get_controllers";

#[derive(Deserialize)]
struct Controller {
    name: String,
    sessname: String,
    state: String,
    queue_depth: u64,
    paths: Vec<Path>,
}

#[derive(Deserialize)]
struct Path {
    path: String,
    path_id: u64,
    state: String,
    connections: u64,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    stats: PathCounters,
}

pub(super) fn run(server: &mut Server, _: &ArgMatches) -> Result<Report> {
    let mut json = server.call(CONTROLLERS, None)?;
    let stats = server.call("bdev_rnbd_get_path_stats", None)?;
    add_path_stats(&mut json, &stats["controllers"], "name");
    let controllers: Vec<Controller> = parse(CONTROLLERS, &json)?;
    let mut table = Table::new(&[
        "NAME",
        "SESSION",
        "STATE",
        ">ID",
        "PATH",
        "PATH STATE",
        ">CONNS",
        ">DEPTH",
        ">IN FLIGHT",
        ">RECONNECTS",
        ">READ",
        ">WRITTEN",
        ">LATENCY",
        "LAST ERROR",
    ]);
    for controller in &controllers {
        for path in &controller.paths {
            table.row(row(controller, path));
        }
    }
    Ok(Report { json, table })
}

fn row(controller: &Controller, path: &Path) -> [String; 14] {
    [
        controller.name.clone(),
        controller.sessname.clone(),
        controller.state.clone(),
        path.path_id.to_string(),
        path.path.clone(),
        path.state.clone(),
        path.connections.to_string(),
        controller.queue_depth.to_string(),
        path.stats.inflights.to_string(),
        reconnects(&path.stats.reconnects),
        units::bytes(path.stats.read_total_size),
        units::bytes(path.stats.write_total_size),
        cell(path.stats.hb_latency_us.map(units::microseconds)),
        cell(path.error.as_ref()),
    ]
}

fn reconnects(reconnects: &Reconnects) -> String {
    match reconnects.failed {
        0 => reconnects.successful.to_string(),
        failed => format!("{} ({failed} failed)", reconnects.successful),
    }
}
