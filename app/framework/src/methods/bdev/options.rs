//! What can be set of the bdev layer and of single bdevs.

use std::rc::Rc;
use std::time::Duration;

use rnbd_base::Errno;
use rnbd_bdev::{RateLimits, SamplingId};
use rnbd_rpc::{RpcError, RpcResult};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Methods, Name, no_bdev};
use crate::system::System;

/// As SPDK rounds: a limit is a multiple of this.
const IOS_STEP: u64 = 1000;

pub(super) fn register(methods: &mut Methods<'_>) {
    methods.add_sync("bdev_set_options", set_options);
    methods.add_sync("bdev_examine", examine);
    methods.add_sync("bdev_set_qos_limit", set_qos_limit);
    methods.add("bdev_set_qd_sampling_period", |system, params| async move {
        set_qd_sampling_period(&system, &params)
    });
}

/// Here channels have as many I/Os as they are deep, and buffers of their own: of SPDK's options,
/// those that size pools have nothing to size.
fn set_options(system: &System, options: Map<String, Value>) -> RpcResult {
    let number = |name: &str| options.get(name).and_then(Value::as_u64);
    let caches = number("bdev_io_cache_size").unwrap_or(256);
    let threads = system.poll_groups.len() as u64 + 1;
    if let Some(pool) = number("bdev_io_pool_size")
        && pool < caches * threads
    {
        let text = format!("bdev_io_pool_size {pool} is less than {threads} caches of {caches}");
        return Err(RpcError::invalid_params(text));
    }
    if let Some(examine) = options.get("bdev_auto_examine").and_then(Value::as_bool) {
        system.bdevs.set_auto_examine(examine);
    }
    let sizes = options.keys().filter(|name| name.ends_with("_size"));
    let sizes: Vec<&str> = sizes.map(String::as_str).collect();
    if !sizes.is_empty() {
        let sizes = sizes.join(", ");
        log::info!("bdev_set_options: {sizes}: kept, without effect: there are no such pools");
    }
    system.bdev_options.replace(Some(options));
    Ok(json!(true))
}

fn examine(system: &System, params: Name) -> RpcResult {
    if system.bdevs.auto_examines() {
        let text =
            "every bdev is examined when it comes; see bdev_auto_examine of bdev_set_options";
        return Err(RpcError::errno(Errno::INVAL, text));
    }
    let examined = system.bdevs.examine(&params.name);
    examined.map_err(|error| no_bdev(&error))?;
    Ok(json!(true))
}

#[derive(Deserialize)]
struct QosLimit {
    name: String,
    rw_ios_per_sec: Option<u64>,
    rw_mbytes_per_sec: Option<u64>,
    r_mbytes_per_sec: Option<u64>,
    w_mbytes_per_sec: Option<u64>,
}

fn set_qos_limit(system: &System, params: QosLimit) -> RpcResult {
    let given = [
        params.rw_ios_per_sec,
        params.rw_mbytes_per_sec,
        params.r_mbytes_per_sec,
        params.w_mbytes_per_sec,
    ];
    if given.iter().all(Option::is_none) {
        return Err(RpcError::errno(Errno::INVAL, "No rate limits specified"));
    }
    let name = &params.name;
    let before = system.bdevs.limits(name).map_err(|error| no_bdev(&error))?;
    let ios = params.rw_ios_per_sec.unwrap_or(before.rw_ios_per_sec);
    let limits = RateLimits {
        rw_ios_per_sec: ios.div_ceil(IOS_STEP).saturating_mul(IOS_STEP),
        rw_mbytes_per_sec: params.rw_mbytes_per_sec.unwrap_or(before.rw_mbytes_per_sec),
        r_mbytes_per_sec: params.r_mbytes_per_sec.unwrap_or(before.r_mbytes_per_sec),
        w_mbytes_per_sec: params.w_mbytes_per_sec.unwrap_or(before.w_mbytes_per_sec),
    };
    let set = system.bdevs.set_limits(name, limits);
    set.map_err(|error| no_bdev(&error))?;
    Ok(json!(true))
}

#[derive(Deserialize)]
struct SamplingPeriod {
    name: String,
    period: u64,
}

fn set_qd_sampling_period(system: &Rc<System>, params: &SamplingPeriod) -> RpcResult {
    let set = system
        .bdevs
        .set_qd_sampling_period(&params.name, params.period);
    let id = set.map_err(|error| no_bdev(&error))?;
    if params.period > 0 {
        let period = Duration::from_micros(params.period);
        let sampling = sample(Rc::clone(system), params.name.clone(), id, period);
        system.handle.spawn(sampling);
    }
    Ok(json!(true))
}

/// Until another period is set, or the bdev is gone.
async fn sample(system: Rc<System>, name: String, id: SamplingId, period: Duration) {
    loop {
        system.handle.sleep(period).await;
        if !system.bdevs.sample_queue_depth(&name, id) {
            return;
        }
    }
}
