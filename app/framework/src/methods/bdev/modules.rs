//! Making, changing and removing the disks of each module.

use std::rc::Rc;

use rnbd_bdev::{
    AioOptions, Bdev, CreateError, DelayBdev, DelayOptions, ErrorBdev, ErrorOptions, InjectError,
    LatencyType, MallocBdev, MallocOptions, NullBdev, NullOptions, UringBdev, UringOptions,
};
use rnbd_rpc::{RpcError, RpcResult};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Methods, Name, no_bdev, not_created};
use crate::methods::stopped;
use crate::reply::reply;
use crate::system::System;

pub(super) fn register(methods: &mut Methods<'_>) {
    register_creation(methods);
    register_changes(methods);
    methods.add("bdev_malloc_delete", delete::<MallocBdev>);
    methods.add("bdev_null_delete", delete::<NullBdev>);
    methods.add("bdev_uring_delete", delete::<UringBdev>);
    methods.add("bdev_aio_delete", delete::<UringBdev>);
    methods.add("bdev_error_delete", |system, params| {
        delete_planned::<ErrorBdev>(system, params, "bdev_error_create")
    });
    methods.add("bdev_delay_delete", |system, params| {
        delete_planned::<DelayBdev>(system, params, "bdev_delay_create")
    });
}

fn register_creation(methods: &mut Methods<'_>) {
    methods.add_sync("bdev_malloc_create", |system, options: MallocOptions| {
        created(MallocBdev::create(&system.bdevs, &system.memory, options))
    });
    methods.add_sync("bdev_null_create", |system, options: NullOptions| {
        created(NullBdev::create(&system.bdevs, options))
    });
    methods.add_sync("bdev_uring_create", |system, options: UringOptions| {
        created(UringBdev::create(&system.bdevs, &system.memory, options))
    });
    methods.add_sync("bdev_aio_create", |system, options: AioOptions| {
        created(UringBdev::create_aio(
            &system.bdevs,
            &system.memory,
            options,
        ))
    });
    methods.add_sync("bdev_delay_create", |system, options: DelayOptions| {
        created(DelayBdev::create(&system.bdevs, options))
    });
    // SPDK answers true and not the name here.
    methods.add_sync("bdev_error_create", |system, options: ErrorOptions| {
        created(ErrorBdev::create(&system.bdevs, options)).map(|_| json!(true))
    });
}

fn register_changes(methods: &mut Methods<'_>) {
    methods.add_sync("bdev_null_resize", resize_null);
    methods.add_sync("bdev_uring_rescan", rescan);
    methods.add_sync("bdev_aio_rescan", rescan);
    methods.add_sync("bdev_error_inject_error", inject_error);
    methods.add_sync("bdev_error_resume_pending", |system, params: Name| {
        with::<ErrorBdev, _>(system, &params.name, ErrorBdev::resume_pending)?;
        Ok(json!(true))
    });
    methods.add_sync(
        "bdev_delay_update_latency",
        |system, params: UpdateLatency| {
            with(system, &params.delay_bdev_name, |bdev: &DelayBdev| {
                bdev.update_latency(params.latency_type, params.latency_us);
            })?;
            Ok(json!(true))
        },
    );
}

fn created(result: Result<String, CreateError>) -> RpcResult {
    result.map(Value::from).map_err(|error| not_created(&error))
}

/// `change` of the module's disk of that name.
fn with<B: Bdev, R>(
    system: &System,
    name: &str,
    change: impl FnOnce(&B) -> R,
) -> Result<R, RpcError> {
    system
        .bdevs
        .find(name, change)
        .map_err(|error| no_bdev(&error))
}

async fn delete<B: Bdev>(system: Rc<System>, params: Name) -> RpcResult {
    with(&system, &params.name, |_: &B| ())?;
    let (callback, removed) = reply();
    let begun = system.bdevs.unregister(&params.name, callback);
    begun.map_err(|error| no_bdev(&error))?;
    // The last user may have been on a reactor; what takes long to free is freed here.
    drop(removed.await.ok_or_else(stopped)?);
    Ok(json!(true))
}

/// Deletes a disk that `method` makes whenever its base is there, or the wish for one.
async fn delete_planned<B: Bdev>(
    system: Rc<System>,
    params: Name,
    method: &'static str,
) -> RpcResult {
    let was_planned = system.bdevs.forget_plan(&params.name, method);
    if was_planned && system.bdevs.get(&params.name).is_none() {
        return Ok(json!(true));
    }
    delete::<B>(system, params).await
}

#[derive(Deserialize)]
struct ResizeNull {
    name: String,
    new_size: u64,
}

fn resize_null(system: &System, params: ResizeNull) -> RpcResult {
    let resized = with(system, &params.name, |bdev: &NullBdev| {
        bdev.resize(params.new_size)
    })?;
    resized.map_err(|error| not_created(&error))?;
    notify_resized(system, &params.name)
}

fn rescan(system: &System, params: Name) -> RpcResult {
    let rescanned = with(system, &params.name, UringBdev::rescan)?;
    match rescanned.map_err(|error| not_created(&error))? {
        true => notify_resized(system, &params.name),
        false => Ok(json!(true)),
    }
}

fn notify_resized(system: &System, name: &str) -> RpcResult {
    system
        .bdevs
        .notify_resized(name)
        .map_err(|error| no_bdev(&error))?;
    Ok(json!(true))
}

/// Parameters of `bdev_error_inject_error`: the disk's name, and the rest is the module's.
fn inject_error(system: &System, mut params: Map<String, Value>) -> RpcResult {
    let name = params.remove("name");
    let name = name.as_ref().and_then(Value::as_str).unwrap_or_default();
    let error: InjectError = serde_json::from_value(Value::Object(params))
        .map_err(|error| RpcError::invalid_params(error.to_string()))?;
    let injected = with(system, name, |bdev: &ErrorBdev| bdev.inject(&error))?;
    injected.map_err(|error| not_created(&error))?;
    Ok(json!(true))
}

#[derive(Deserialize)]
struct UpdateLatency {
    delay_bdev_name: String,
    latency_type: LatencyType,
    latency_us: u64,
}
