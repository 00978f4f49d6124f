//! What the users of bdevs did. Latencies are in nanoseconds, which the tick rate says.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rnbd_base::Errno;
use rnbd_bdev::{
    BdevStats, HistogramOptions, HistogramSnapshot, IoKind, KindStats, ResetMode, StatsSnapshot,
};
use rnbd_rpc::{RpcError, RpcResult};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Methods, Name, find, no_bdev};
use crate::system::System;

const TICK_RATE: u64 = 1_000_000_000;

pub(super) fn register(methods: &mut Methods<'_>) {
    methods.add_sync("bdev_get_iostat", get_iostat);
    methods.add_sync("bdev_reset_iostat", reset_iostat);
    methods.add_sync("bdev_enable_histogram", enable_histogram);
    methods.add_sync("bdev_get_histogram", get_histogram);
    methods.add_sync("bdev_get_histogram_borders", get_histogram_borders);
}

#[derive(Deserialize)]
struct GetIostat {
    names: Option<Vec<String>>,
    per_channel: bool,
    reset_mode: Mode,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    All,
    Maxmin,
    Error,
    None,
}

impl From<Mode> for ResetMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::All => Self::All,
            Mode::Maxmin => Self::MaxMin,
            Mode::Error => Self::Error,
            Mode::None => Self::None,
        }
    }
}

fn get_iostat(system: &System, params: GetIostat) -> RpcResult {
    let mut answer = json!({
        "tick_rate": TICK_RATE,
        "ticks": system.reactors.clock().now().0,
    });
    let names = match params.names {
        Some(names) => names,
        None => all_names(system),
    };
    if params.per_channel {
        let [name] = &names[..] else {
            let text = "per_channel needs exactly one name";
            return Err(RpcError::invalid_params(text));
        };
        answer["name"] = json!(name);
        answer["channels"] = channels(system, &stats(system, name)?);
    } else {
        let described: Result<Value, RpcError> = names
            .iter()
            .map(|name| Ok(named(name, &stats(system, name)?)))
            .collect();
        answer["bdevs"] = described?;
    }
    for name in &names {
        reset(system, name, params.reset_mode)?;
    }
    Ok(answer)
}

fn all_names(system: &System) -> Vec<String> {
    let all = system.bdevs.list();
    all.iter().map(|info| info.bdev.name().to_owned()).collect()
}

fn stats(system: &System, name: &str) -> Result<BdevStats, RpcError> {
    system.bdevs.stats(name).map_err(|error| no_bdev(&error))
}

fn reset(system: &System, name: &str, mode: Mode) -> Result<(), RpcError> {
    let done = system.bdevs.reset_stats(name, mode.into());
    done.map_err(|error| no_bdev(&error))
}

fn channels(system: &System, stats: &BdevStats) -> Value {
    let describe = |channel: &rnbd_bdev::ChannelStats| {
        let group = system
            .poll_groups
            .iter()
            .find(|group| group.core == channel.core);
        let mut json = counters(&channel.stats);
        json.insert(
            "thread_id".into(),
            json!(group.map(|group| group.thread.get())),
        );
        Value::Object(json)
    };
    stats.channels.iter().map(describe).collect()
}

fn named(name: &str, stats: &BdevStats) -> Value {
    let mut json = Map::from_iter([("name".to_owned(), json!(name))]);
    json.extend(counters(&stats.total));
    if let Some(sampled) = &stats.queue_depth {
        let members = [
            ("queue_depth_polling_period", sampled.period_us),
            ("queue_depth", sampled.queue_depth),
            ("io_time", sampled.io_time_us),
            ("weighted_io_time", sampled.weighted_io_time_us),
        ];
        let members = members.map(|(key, value)| (key.to_owned(), json!(value)));
        json.extend(members);
    }
    Value::Object(json)
}

/// The members that SPDK has. There is no copy offload, so nothing is ever counted for it.
fn counters(stats: &StatsSnapshot) -> Map<String, Value> {
    let kinds = [
        ("read", stats.kind(IoKind::Read)),
        ("write", stats.kind(IoKind::Write)),
        ("unmap", stats.kind(IoKind::Unmap)),
        ("copy", KindStats::default()),
    ];
    let bytes_names = [
        "bytes_read",
        "bytes_written",
        "bytes_unmapped",
        "bytes_copied",
    ];
    let mut json = Map::new();
    for ((kind, counted), bytes) in kinds.iter().zip(bytes_names) {
        json.insert(bytes.to_owned(), json!(counted.bytes));
        json.insert(format!("num_{kind}_ops"), json!(counted.ops));
    }
    for (kind, counted) in kinds {
        json.insert(format!("{kind}_latency_ticks"), json!(counted.latency_ns));
        json.insert(
            format!("max_{kind}_latency_ticks"),
            json!(counted.max_latency_ns),
        );
        json.insert(
            format!("min_{kind}_latency_ticks"),
            json!(counted.min_latency_ns),
        );
    }
    json.insert("io_error".to_owned(), errors(stats));
    json
}

fn errors(stats: &StatsSnapshot) -> Value {
    let named = stats.errors().map(|(errno, count)| {
        let name = errno
            .symbol()
            .map_or_else(|| errno.to_string(), str::to_lowercase);
        (name, json!(count))
    });
    Value::Object(named.collect())
}

#[derive(Deserialize)]
struct ResetIostat {
    name: Option<String>,
    mode: Mode,
}

fn reset_iostat(system: &System, params: ResetIostat) -> RpcResult {
    let names = match params.name {
        Some(name) => vec![name],
        None => all_names(system),
    };
    for name in names {
        reset(system, &name, params.mode)?;
    }
    Ok(json!(true))
}

#[derive(Deserialize)]
struct EnableHistogram {
    name: String,
    enable: bool,
    opc: Option<Opc>,
    granularity: u8,
    min_nsec: u64,
    max_nsec: u64,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Opc {
    Read,
    Write,
    Unmap,
    Flush,
    WriteZeroes,
}

impl From<Opc> for IoKind {
    fn from(opc: Opc) -> Self {
        match opc {
            Opc::Read => Self::Read,
            Opc::Write => Self::Write,
            Opc::Unmap => Self::Unmap,
            Opc::Flush => Self::Flush,
            Opc::WriteZeroes => Self::WriteZeroes,
        }
    }
}

fn enable_histogram(system: &System, params: EnableHistogram) -> RpcResult {
    let options = HistogramOptions {
        kind: params.opc.map(IoKind::from),
        granularity: params.granularity,
        min_ns: params.min_nsec,
        max_ns: params.max_nsec,
    };
    if !options.is_valid() {
        return Err(RpcError::invalid_params(
            "min_nsec must be less than max_nsec",
        ));
    }
    let done = system
        .bdevs
        .set_histogram(&params.name, params.enable.then_some(options));
    done.map_err(|error| no_bdev(&error))?;
    Ok(json!(true))
}

fn histogram(system: &System, name: &str) -> Result<HistogramSnapshot, RpcError> {
    find(system, name)?;
    let histogram = system
        .bdevs
        .histogram(name)
        .map_err(|error| no_bdev(&error))?;
    histogram.ok_or_else(|| {
        let text = format!("bdev {name} has no histogram; call bdev_enable_histogram first");
        RpcError::errno(Errno::FAULT, text)
    })
}

fn get_histogram(system: &System, params: Name) -> RpcResult {
    let histogram = histogram(system, &params.name)?;
    let bytes: Vec<u8> = histogram
        .buckets
        .iter()
        .flat_map(|count| count.to_le_bytes())
        .collect();
    Ok(json!({
        "histogram": STANDARD.encode(bytes),
        "granularity": histogram.options.granularity,
        "min_range": histogram.min_range,
        "max_range": histogram.max_range,
        "tsc_rate": TICK_RATE,
    }))
}

#[derive(Deserialize)]
struct GetBorders {
    name: String,
    borders: Vec<u32>,
}

fn get_histogram_borders(system: &System, params: GetBorders) -> RpcResult {
    if !params.borders.is_sorted() {
        return Err(RpcError::invalid_params("borders must be ascending"));
    }
    let histogram = histogram(system, &params.name)?;
    let below = |border: &u32| histogram.count_below(u64::from(*border) * 1000);
    let mut counts: Vec<u64> = params.borders.iter().map(below).collect();
    counts.push(histogram.buckets.iter().sum());
    Ok(json!({ "borders_count": counts }))
}
