//! What RPC shows of the target's transports, listeners and sessions.

use rnbd_proto::target::{HeartbeatInfo, ListenerInfo, PathInfo, SessionInfo, ShardStats};
use rnbd_reactor::Clock;
use rnbd_rtrs::srv::PathCounters;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::address::{ListenAddress, TrType};
use crate::methods::fabric_stats;
use crate::poll_group::PollGroup;
use crate::target::Transport;

pub(super) fn transport(transport: &Transport) -> Value {
    let mut json = json!(transport.options);
    let config = transport.handle.config();
    json["always_invalidate"] = json!(config.rtrs.new_rkey);
    json["max_chunk_size"] = json!(config.rtrs.chunk_bytes);
    json["max_io_size"] = json!(config.rtrs.max_io_bytes());
    json
}

pub(super) fn listener(trtype: TrType, info: &ListenerInfo) -> Value {
    let rejected = info
        .rejected
        .iter()
        .map(|(reason, count)| (reason.as_str().to_owned(), json!(count)));
    json!({
        "listen_address": ListenAddress::of(trtype, info.addr),
        "accepted": info.requests,
        "rejected": rejected.collect::<Map<_, _>>(),
    })
}

pub(super) fn session(session: &SessionInfo, clock: Clock) -> Value {
    let paths = session.paths.iter().map(|info| path(session, info, clock));
    json!({
        "sessname": session.sessname,
        "paths_uuid": Uuid::from_bytes(session.paths_uuid),
        "state": if session.connected { "connected" } else { "disconnected" },
        "trtype": session.trtype,
        "queue_depth": session.queue_depth,
        "max_io_size": session.max_io_bytes,
        "always_invalidate": session.new_rkey,
        "inflight": session.inflight,
        "created_ticks": clock.to_ticks(session.created_at),
        "devices": session.devices.len(),
        "paths": paths.collect::<Vec<_>>(),
    })
}

fn path(session: &SessionInfo, path: &PathInfo, clock: Clock) -> Value {
    json!({
        "path": path.path,
        "path_uuid": Uuid::from_bytes(path.path_uuid),
        "state": format!("{:?}", path.state).to_lowercase(),
        "src_addr": path.src_addr,
        "dst_addr": path.dst_addr,
        "thread": PollGroup::name_of(session.core),
        "connections": path.connections,
        "inflight": path.inflight,
        "protocol_version": session.protocol_version,
        "hb": path.heartbeat.map(|heartbeat| heartbeat_json(&heartbeat, clock)),
        "fence": { "agreed": path.fence_agreed, "waiting": path.fence_askers },
    })
}

fn heartbeat_json(heartbeat: &HeartbeatInfo, clock: Clock) -> Value {
    json!({
        "interval_ms": heartbeat.interval.as_duration().as_millis(),
        "missed": heartbeat.missed,
        "last_rtt_ticks": heartbeat.last_rtt.map(|rtt| clock.to_ticks(rtt)),
    })
}

/// The counters of a session: the sums, and those of each path if they are asked for.
pub(super) fn session_stats(session: &SessionInfo, per_path: bool) -> Value {
    let total = session
        .paths
        .iter()
        .fold(PathCounters::default(), |sum, path| sum + path.counters);
    let mut json = json!({
        "sessname": session.sessname,
        "total": counters(&total, session.inflight),
    });
    if per_path {
        json["paths"] = session.paths.iter().map(path_stats).collect();
    }
    json
}

fn path_stats(path: &PathInfo) -> Value {
    let mut json = json!({ "path": path.path });
    if let (Value::Object(json), Value::Object(counters)) =
        (&mut json, counters(&path.counters, path.inflight))
    {
        json.extend(counters);
    }
    json
}

fn counters(counters: &PathCounters, inflight: u32) -> Value {
    json!({
        "read_count": counters.reads,
        "read_total_size": counters.read_bytes,
        "write_count": counters.writes,
        "write_total_size": counters.write_bytes,
        "inflights": inflight,
        "rkey_refreshes": counters.rkey_refreshes,
        "hb_sent": counters.hb_sent,
        "hb_missed": counters.hb_missed,
        "fences": counters.fences,
        "errors": { "refused": counters.refused, "ignored": counters.ignored },
    })
}

pub(super) fn shard(trtype: TrType, stats: &ShardStats) -> Value {
    json!({
        "name": PollGroup::name_of(stats.core),
        "trtype": trtype,
        "sessions": stats.sessions,
        "current_paths": stats.paths,
        "connections": stats.connections,
        "pending_bdev_io": stats.pending_bdev_io,
        "completed_io": stats.completed_io,
        "violations": stats.violations,
        "devices": [fabric_stats(trtype.name(), &stats.fabric)],
    })
}
