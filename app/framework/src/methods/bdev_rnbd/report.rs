//! What RPC shows of the initiator.

use bdev_rnbd::{ControllerInfo, CoreTransport, IoPath, PathReport, PathStats};
use rnbd_reactor::Clock;
use serde_json::{Value, json};

use crate::methods::fabric_stats;
use crate::poll_group::PollGroup;

pub(super) fn controller(info: &ControllerInfo, clock: Clock) -> Value {
    json!({
        "name": info.name,
        "sessname": info.sessname,
        "state": info.state.as_str(),
        "protocol_version": info.protocol_version,
        "queue_depth": info.queue_depth,
        "max_io_size": info.max_io_size,
        "thread": PollGroup::name_of(info.home),
        "multipath_policy": info.policy.policy.as_str(),
        "min_io": info.policy.min_io,
        "preferred_path": info.policy.preferred.map(|path| path.0),
        "reconnect": { "attempts": info.reconnect.attempts, "max": info.reconnect.max },
        "fence": {
            "waiting": info.fence.waiting,
            "held_writes": info.fence.held_writes,
            "writes_stopped": info.fence.writes_stopped,
            "sent": info.fence.counters.sent,
            "confirmed": info.fence.counters.confirmed,
            "timed_out": info.fence.counters.timed_out,
        },
        "paths": info.paths.iter().map(|report| path(report, clock)).collect::<Vec<_>>(),
        "bdevs": info.bdevs,
    })
}

fn path(report: &PathReport, clock: Clock) -> Value {
    let mut json = json!({
        "path": report.name(),
        "path_id": report.path_id,
        "path_uuid": report.uuid,
        "state": report.state.as_str(),
        "trtype": report.trtype,
        "src_addr": report.src_addr.map(|addr| addr.to_string()),
        "dst_addr": report.dst_addr.to_string(),
        "connections": report.connections,
        "hb": {
            "interval_ms": report.hb_interval_ms,
            "missed_max": report.hb_missed_max,
            "missed": report.hb_missed,
            "last_rtt_ticks": report.hb_rtt.map(|rtt| clock.to_ticks(rtt)),
        },
        "fence": { "agreed": report.fence_agreed, "waiting": report.unfenced },
    });
    if let Some(error) = &report.error {
        json["error"] = json!(error);
    }
    json
}

/// By core, as SPDK has it.
pub(super) fn io_paths(paths: &[IoPath]) -> Value {
    let mut cores: Vec<_> = paths.iter().map(|path| path.core).collect();
    cores.sort_unstable();
    cores.dedup();
    let group = |core| {
        let here = paths.iter().filter(|path| path.core == core).map(io_path);
        json!({ "thread": PollGroup::name_of(core), "io_paths": here.collect::<Vec<_>>() })
    };
    cores.into_iter().map(group).collect()
}

fn io_path(path: &IoPath) -> Value {
    json!({
        "bdev_name": path.bdev_name,
        "path_id": path.path_id,
        "current": path.current,
        "connected": path.connected,
        "accessible": path.accessible,
        "inflight": path.inflight,
        "latency_us": path.latency.map(|latency| latency.as_duration().as_micros()),
        "transport": {
            "trtype": path.trtype,
            "traddr": path.dst_addr.host().to_string(),
            "trsvcid": path.dst_addr.port().to_string(),
        },
    })
}

/// By controller; `stats` are in that order.
pub(super) fn path_stats(stats: &[PathStats]) -> Value {
    let same = |one: &PathStats, two: &PathStats| one.controller == two.controller;
    let group = |paths: &[PathStats]| {
        json!({
            "name": paths[0].controller,
            "paths": paths.iter().map(one_path_stats).collect::<Vec<_>>(),
        })
    };
    stats.chunk_by(same).map(group).collect()
}

fn one_path_stats(stats: &PathStats) -> Value {
    json!({
        "path": stats.path,
        "path_id": stats.path_id,
        "read_count": stats.reads,
        "read_total_size": stats.read_bytes,
        "write_count": stats.writes,
        "write_total_size": stats.write_bytes,
        "inflights": stats.inflight,
        "failovered": stats.failovered,
        "reconnects": {
            "successful": stats.reconnects_ok,
            "failed": stats.reconnects_failed,
        },
        "hb_latency_us": stats.hb_rtt.map(|rtt| rtt.as_duration().as_micros()),
    })
}

pub(super) fn transports(stats: &[CoreTransport]) -> Value {
    let describe = |core: &CoreTransport| {
        let transport = json!({
            "trname": core.trtype,
            "devices": [fabric_stats(core.trtype, &core.stats)],
        });
        json!({ "thread": PollGroup::name_of(core.core), "transports": [transport] })
    };
    stats.iter().map(describe).collect()
}
