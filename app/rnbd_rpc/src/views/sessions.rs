use anyhow::Result;
use clap::ArgMatches;
use serde::Deserialize;
use serde_json::Value;

use super::stats::{PathCounters, add_path_stats};
use super::{Report, cell, units};
use crate::server::{Server, parse};
use crate::table::Table;

const SESSIONS: &str = "rtrs_get_sessions";

#[derive(Deserialize)]
struct Stats {
    tick_rate: u64,
    sessions: Value,
}

#[derive(Deserialize)]
struct Session {
    sessname: String,
    state: String,
    queue_depth: u64,
    #[serde(default)]
    devices: Option<u64>,
    paths: Vec<Path>,
}

#[derive(Deserialize)]
struct Path {
    path: String,
    state: String,
    thread: String,
    connections: u64,
    hb: Option<Heartbeat>,
    #[serde(default)]
    stats: PathCounters,
}

#[derive(Deserialize)]
struct Heartbeat {
    last_rtt_ticks: Option<u64>,
}

pub(super) fn run(server: &mut Server, _: &ArgMatches) -> Result<Report> {
    let mut json = server.call(SESSIONS, None)?;
    let stats: Stats = server.read("rtrs_get_stats")?;
    add_path_stats(&mut json, &stats.sessions, "sessname");
    let sessions: Vec<Session> = parse(SESSIONS, &json)?;
    let mut table = Table::new(&[
        "SESSION",
        "STATE",
        "PATH",
        "THREAD",
        ">CONNS",
        ">DEVICES",
        ">DEPTH",
        ">IN FLIGHT",
        ">READ",
        ">WRITTEN",
        ">LATENCY",
    ]);
    for session in &sessions {
        for path in &session.paths {
            table.row(path_row(session, path, stats.tick_rate));
        }
        if session.paths.is_empty() {
            table.row(lone_row(session));
        }
    }
    Ok(Report { json, table })
}

fn path_row(session: &Session, path: &Path, tick_rate: u64) -> [String; 11] {
    let ticks = path.hb.as_ref().and_then(|hb| hb.last_rtt_ticks);
    [
        session.sessname.clone(),
        path.state.clone(),
        path.path.clone(),
        path.thread.clone(),
        path.connections.to_string(),
        cell(session.devices),
        session.queue_depth.to_string(),
        path.stats.inflights.to_string(),
        units::bytes(path.stats.read_total_size),
        units::bytes(path.stats.write_total_size),
        cell(ticks.map(|ticks| latency(ticks, tick_rate))),
    ]
}

/// A session whose client is not connected now.
fn lone_row(session: &Session) -> [String; 11] {
    let mut row = <[String; 11]>::default();
    row[0] = session.sessname.clone();
    row[1] = session.state.clone();
    row[5] = cell(session.devices);
    row[6] = session.queue_depth.to_string();
    row
}

#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
fn latency(ticks: u64, tick_rate: u64) -> String {
    units::microseconds(1e6 * ticks as f64 / tick_rate.max(1) as f64)
}
