mod report;

use std::rc::Rc;
use std::sync::Arc;

use bdev_rnbd::{AttachParams, DeviceParams, InitiatorControl, Reply, Timeouts, UnmapMode};
use rnbd_base::Errno;
use rnbd_rpc::{RpcError, RpcResult};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{Methods, NoParams};
use crate::access::Access;
use crate::address::{AdrFam, TrType, literal, resolve};
use crate::initiator::{ask, rpc_error};
use crate::system::System;

pub(super) fn register(methods: &mut Methods<'_>) {
    methods.add_sync("bdev_rnbd_set_options", set_options);
    methods.add("bdev_rnbd_attach_controller", attach_controller);
    methods.add("bdev_rnbd_detach_controller", detach_controller);
    methods.add("bdev_rnbd_get_controllers", get_controllers);
    methods.add("bdev_rnbd_set_reconnect", set_reconnect);
    methods.add("bdev_rnbd_disconnect_path", |system, params: OnePath| {
        done(system, move |initiator, reply| {
            initiator.disconnect_path(&params.name, params.path_id, reply);
        })
    });
    methods.add("bdev_rnbd_reconnect_path", |system, params: OnePath| {
        done(system, move |initiator, reply| {
            initiator.reconnect_path(&params.name, params.path_id, reply);
        })
    });
    register_devices(methods);
    register_stats(methods);
}

fn register_devices(methods: &mut Methods<'_>) {
    methods.add("bdev_rnbd_map_device", map_device);
    methods.add("bdev_rnbd_unmap_device", unmap_device);
    methods.add("bdev_rnbd_remap_device", |system, params: Name| {
        done(system, move |initiator, reply| {
            initiator.remap_device(&params.name, reply);
        })
    });
    methods.add("bdev_rnbd_rescan_device", |system, params: Name| {
        done(system, move |initiator, reply| {
            initiator.rescan_device(&params.name, reply);
        })
    });
    methods.add("bdev_rnbd_resize_device", |system, params: Resize| {
        done(system, move |initiator, reply| {
            initiator.resize_device(&params.name, params.num_blocks, reply);
        })
    });
}

fn register_stats(methods: &mut Methods<'_>) {
    methods.add("bdev_rnbd_get_io_paths", |system, NoParams {}| {
        get_io_paths(system)
    });
    methods.add("bdev_rnbd_get_path_stats", get_path_stats);
    methods.add("bdev_rnbd_reset_path_stats", |system, params: Name| {
        done(system, move |initiator, reply| {
            initiator.reset_path_stats(&params.name, reply);
        })
    });
    methods.add(
        "bdev_rnbd_get_transport_statistics",
        |system, NoParams {}| get_transport_statistics(system),
    );
}

/// Gives an order that is answered with nothing but its success.
async fn done(
    system: Rc<System>,
    order: impl FnOnce(&Arc<dyn InitiatorControl>, Reply<()>),
) -> RpcResult {
    let initiator = system.initiator.get(&system);
    ask(|reply| order(&initiator, reply)).await?;
    Ok(json!(true))
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
struct MaybeName {
    name: Option<String>,
}

#[derive(Deserialize)]
struct OnePath {
    name: String,
    path_id: u16,
}

#[derive(Deserialize)]
struct Resize {
    name: String,
    num_blocks: u64,
}

/// The time limits that several methods take.
#[derive(Clone, Copy, Default, Deserialize)]
struct TimeoutParams {
    max_reconnect_attempts: Option<i32>,
    reconnect_delay_sec: Option<u32>,
    ctrlr_loss_timeout_sec: Option<i32>,
    fast_io_fail_timeout_sec: Option<u32>,
}

impl TimeoutParams {
    /// `base` with what was given, or nothing if nothing was given.
    fn over(self, base: Timeouts) -> Option<Timeouts> {
        let given = self.max_reconnect_attempts.is_some()
            || self.reconnect_delay_sec.is_some()
            || self.ctrlr_loss_timeout_sec.is_some()
            || self.fast_io_fail_timeout_sec.is_some();
        given.then(|| Timeouts {
            max_reconnect_attempts: self
                .max_reconnect_attempts
                .unwrap_or(base.max_reconnect_attempts),
            reconnect_delay_sec: self.reconnect_delay_sec.unwrap_or(base.reconnect_delay_sec),
            ctrlr_loss_timeout_sec: self
                .ctrlr_loss_timeout_sec
                .unwrap_or(base.ctrlr_loss_timeout_sec),
            fast_io_fail_timeout_sec: self
                .fast_io_fail_timeout_sec
                .unwrap_or(base.fast_io_fail_timeout_sec),
        })
    }
}

#[derive(Deserialize)]
struct SetOptions {
    #[serde(flatten)]
    timeouts: TimeoutParams,
    reconnect_jitter_sec: Option<u32>,
    bdev_retry_count: Option<i32>,
    io_timeout_ms: Option<u32>,
    hb_interval_ms: Option<u32>,
    hb_missed_max: Option<u32>,
}

fn set_options(system: &System, params: SetOptions) -> RpcResult {
    let initiator = system.initiator.get(system);
    let mut options = initiator.options();
    options.timeouts = params
        .timeouts
        .over(options.timeouts)
        .unwrap_or(options.timeouts);
    if let Some(seconds) = params.reconnect_jitter_sec {
        options.reconnect_jitter_sec = seconds;
    }
    if let Some(count) = params.bdev_retry_count {
        options.bdev_retry_count = count;
    }
    if let Some(ms) = params.io_timeout_ms {
        options.io_timeout_ms = ms;
    }
    if let Some(ms) = params.hb_interval_ms {
        options.hb_interval_ms = ms;
    }
    if let Some(missed) = params.hb_missed_max {
        options.hb_missed_max = missed;
    }
    initiator
        .set_options(options)
        .map_err(|error| rpc_error(&error))?;
    Ok(json!(true))
}

#[derive(Deserialize)]
struct AttachController {
    name: String,
    sessname: String,
    trtype: TrType,
    traddr: String,
    trsvcid: String,
    adrfam: Option<AdrFam>,
    hostaddr: Option<String>,
    num_io_queues: u16,
    queue_depth: u16,
    #[serde(flatten)]
    timeouts: TimeoutParams,
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    device_path: String,
    access_mode: Access,
    bdev_name: Option<String>,
    uuid: Option<Uuid>,
}

impl From<Device> for DeviceParams {
    fn from(device: Device) -> Self {
        Self {
            device_path: device.device_path,
            access_mode: device.access_mode.into(),
            bdev_name: device.bdev_name,
            uuid: device.uuid,
        }
    }
}

async fn attach_controller(system: Rc<System>, params: AttachController) -> RpcResult {
    let initiator = system.initiator.with_transport(params.trtype, &system)?;
    let hostaddr = params
        .hostaddr
        .as_deref()
        .map(|host| literal(host, "0", None))
        .transpose()?;
    let attach = AttachParams {
        trtype: params.trtype.name(),
        addr: resolve(&params.traddr, &params.trsvcid, params.adrfam)?,
        hostaddr,
        name: params.name,
        sessname: params.sessname,
        num_io_queues: params.num_io_queues,
        queue_depth: params.queue_depth,
        timeouts: params.timeouts.over(initiator.options().timeouts),
        devices: params.devices.into_iter().map(DeviceParams::from).collect(),
    };
    let names = ask(|reply| initiator.attach_controller(attach, reply)).await?;
    Ok(json!(names))
}

#[derive(Deserialize)]
struct DetachController {
    name: String,
    force: bool,
}

async fn detach_controller(system: Rc<System>, params: DetachController) -> RpcResult {
    done(system, move |initiator, reply| {
        initiator.detach_controller(&params.name, params.force, reply);
    })
    .await
}

async fn get_controllers(system: Rc<System>, params: MaybeName) -> RpcResult {
    let Some(initiator) = system.initiator.existing() else {
        return none_attached(params.name.as_deref());
    };
    let controllers = ask(|reply| initiator.get_controllers(params.name.as_deref(), reply)).await?;
    let clock = system.reactors.clock();
    Ok(controllers
        .iter()
        .map(|info| report::controller(info, clock))
        .collect())
}

/// No controllers; an error if one was asked for by name.
fn none_attached(name: Option<&str>) -> RpcResult {
    match name {
        None => Ok(json!([])),
        Some(name) => {
            let text = format!("there is no controller {name}");
            Err(RpcError::errno(Errno::NODEV, text))
        }
    }
}

#[derive(Deserialize)]
struct SetReconnect {
    name: String,
    max_reconnect_attempts: Option<i32>,
    reconnect_delay_sec: Option<u32>,
}

async fn set_reconnect(system: Rc<System>, params: SetReconnect) -> RpcResult {
    let (attempts, delay) = (params.max_reconnect_attempts, params.reconnect_delay_sec);
    done(system, move |initiator, reply| {
        initiator.set_reconnect(&params.name, attempts, delay, reply);
    })
    .await
}

#[derive(Deserialize)]
struct MapDevice {
    ctrlr_name: String,
    #[serde(flatten)]
    device: Device,
}

async fn map_device(system: Rc<System>, params: MapDevice) -> RpcResult {
    let initiator = system.initiator.get(&system);
    let device = params.device.into();
    let name = ask(|reply| initiator.map_device(&params.ctrlr_name, device, reply)).await?;
    Ok(json!(name))
}

#[derive(Deserialize)]
struct UnmapDevice {
    name: String,
    mode: Unmap,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Unmap {
    Normal,
    Force,
}

async fn unmap_device(system: Rc<System>, params: UnmapDevice) -> RpcResult {
    let mode = match params.mode {
        Unmap::Normal => UnmapMode::Normal,
        Unmap::Force => UnmapMode::Force,
    };
    done(system, move |initiator, reply| {
        initiator.unmap_device(&params.name, mode, reply);
    })
    .await
}

async fn get_io_paths(system: Rc<System>) -> RpcResult {
    let paths = match system.initiator.existing() {
        Some(initiator) => ask(|reply| initiator.io_paths(reply)).await?,
        None => Vec::new(),
    };
    Ok(json!({ "poll_groups": report::io_paths(&paths) }))
}

async fn get_path_stats(system: Rc<System>, params: MaybeName) -> RpcResult {
    let name = params.name.as_deref();
    let stats = match system.initiator.existing() {
        Some(initiator) => ask(|reply| initiator.path_stats(name, reply)).await?,
        None => {
            none_attached(name)?;
            Vec::new()
        }
    };
    Ok(json!({
        "tick_rate": system.reactors.clock().tick_rate(),
        "controllers": report::path_stats(&stats),
    }))
}

async fn get_transport_statistics(system: Rc<System>) -> RpcResult {
    let stats = match system.initiator.existing() {
        Some(initiator) => ask(|reply| initiator.transport_statistics(reply)).await?,
        None => Vec::new(),
    };
    Ok(json!({ "poll_groups": report::transports(&stats) }))
}
