use std::rc::Rc;

use rnbd_base::Errno;
use rnbd_reactor::{CoreMask, PollerSnapshot, ReactorSnapshot, ThreadSnapshot};
use rnbd_rpc::{RpcError, RpcResult};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Methods, NoParams, stopped};
use crate::reply::reply;
use crate::system::System;

pub(super) fn register(methods: &mut Methods<'_>) {
    methods.add("thread_get_stats", |system, NoParams {}| get_stats(system));
    methods.add("thread_get_pollers", |system, NoParams {}| {
        get_pollers(system)
    });
    methods.add("thread_get_io_channels", |system, NoParams {}| {
        get_io_channels(system)
    });
    methods.add("thread_set_cpumask", set_cpumask);
}

/// What every reactor did, in the order of their indices.
pub(super) async fn snapshots(system: &System) -> Result<Vec<ReactorSnapshot>, RpcError> {
    let mut snapshots = Vec::new();
    for core in system.reactors.cores() {
        let (callback, answer) = reply();
        system.reactors.snapshot(core, callback);
        snapshots.push(answer.await.ok_or_else(stopped)?);
    }
    Ok(snapshots)
}

/// `describe` of every light thread.
async fn threads(system: Rc<System>, describe: fn(&ThreadSnapshot) -> Value) -> RpcResult {
    let snapshots = snapshots(&system).await?;
    let threads = snapshots.iter().flat_map(|reactor| &reactor.threads);
    Ok(json!({
        "tick_rate": system.reactors.clock().tick_rate(),
        "threads": threads.map(describe).collect::<Vec<_>>(),
    }))
}

/// The shape is exactly SPDK's: its `spdk_top` takes no more and no less.
async fn get_stats(system: Rc<System>) -> RpcResult {
    let describe = |thread: &ThreadSnapshot| {
        let timed = thread
            .pollers
            .iter()
            .filter(|poller| poller.period_ticks.is_some())
            .count();
        json!({
            "name": thread.name,
            "id": thread.id,
            "cpumask": thread.cpumask,
            "busy": thread.busy,
            "idle": thread.idle,
            "active_pollers_count": thread.pollers.len() - timed,
            "timed_pollers_count": timed,
            "paused_pollers_count": 0,
        })
    };
    threads(system, describe).await
}

async fn get_pollers(system: Rc<System>) -> RpcResult {
    let describe = |thread: &ThreadSnapshot| {
        let (timed, active): (Vec<_>, Vec<_>) = thread
            .pollers
            .iter()
            .partition(|poller| poller.period_ticks.is_some());
        json!({
            "name": thread.name,
            "id": thread.id,
            "active_pollers": active.into_iter().map(poller_json).collect::<Vec<_>>(),
            "timed_pollers": timed.into_iter().map(poller_json).collect::<Vec<_>>(),
            "paused_pollers": [],
        })
    };
    threads(system, describe).await
}

fn poller_json(poller: &PollerSnapshot) -> Value {
    let mut json = json!({
        "name": poller.name,
        "id": poller.id,
        "state": "waiting",
        "run_count": poller.run_count,
        "busy_count": poller.busy_count,
    });
    if let Some(period) = poller.period_ticks {
        json["period_ticks"] = json!(period);
    }
    json
}

/// Channels belong to what a thread polls, not to the thread, so they are told by core: every
/// device with the channels that it has there.
async fn get_io_channels(system: Rc<System>) -> RpcResult {
    let snapshots = snapshots(&system).await?;
    let mut threads = Vec::new();
    for (group, reactor) in system.poll_groups.iter().zip(&snapshots) {
        for thread in &reactor.threads {
            let channels = match thread.id == group.thread.get() {
                true => channels_on(&system, group.core),
                false => Vec::new(),
            };
            threads.push(json!({
                "name": thread.name,
                "id": thread.id,
                "io_channels": channels,
            }));
        }
    }
    Ok(json!({
        "tick_rate": system.reactors.clock().tick_rate(),
        "threads": threads,
    }))
}

fn channels_on(system: &System, core: rnbd_base::CoreIndex) -> Vec<Value> {
    let mut channels = Vec::new();
    for info in system.bdevs.list() {
        let name = info.bdev.name();
        let Ok(stats) = system.bdevs.stats(name) else {
            continue;
        };
        let count = stats
            .channels
            .iter()
            .filter(|channel| channel.core == core)
            .count();
        if count > 0 {
            let entry = [("name", json!(name)), ("ref", json!(count))];
            let entry = entry.map(|(key, value)| (key.to_owned(), value));
            channels.push(Value::Object(Map::from_iter(entry)));
        }
    }
    channels
}

#[derive(Deserialize)]
struct SetCpumask {
    id: u64,
    cpumask: String,
}

/// Light threads stay where they were made, so only a mask with that core can be obeyed.
async fn set_cpumask(system: Rc<System>, params: SetCpumask) -> RpcResult {
    let mask: CoreMask = params
        .cpumask
        .parse()
        .map_err(|error| RpcError::invalid_params(format!("{error}")))?;
    for reactor in snapshots(&system).await? {
        if reactor.threads.iter().any(|thread| thread.id == params.id) {
            if mask.contains(reactor.lcore) {
                return Ok(json!(true));
            }
            let text = format!("thread {} stays on core {}", params.id, reactor.lcore);
            return Err(RpcError::errno(Errno::INVAL, text));
        }
    }
    Err(RpcError::invalid_params(format!(
        "there is no thread {}",
        params.id
    )))
}
