mod paths;
mod report;

use std::rc::Rc;
use std::sync::Arc;

use bdev_rnbd::{
    AttachParams, DeviceParams, InitiatorControl, Options, Reply, TimeoutAction, Timeouts,
    UnmapMode,
};
use rnbd_base::Errno;
use rnbd_rpc::{RpcError, RpcResult};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{Methods, NoParams};
use crate::access::Access;
use crate::address::TrType;
use crate::initiator::{ask, rpc_error};
use crate::system::System;

pub(super) fn register(methods: &mut Methods<'_>) {
    methods.add_sync("bdev_rnbd_set_options", set_options);
    methods.add("bdev_rnbd_attach_controller", attach_controller);
    methods.add("bdev_rnbd_detach_controller", detach_controller);
    methods.add("bdev_rnbd_get_controllers", get_controllers);
    paths::register(methods);
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
    action_on_timeout: Option<ActionOnTimeout>,
    hb_interval_ms: Option<u32>,
    hb_missed_max: Option<u32>,
    peer_hb_interval_ms: Option<u32>,
    peer_hb_missed_max: Option<u32>,
    fence: Option<bool>,
    fence_timeout_ms: Option<u32>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ActionOnTimeout {
    None,
    Reset,
    Abort,
}

impl From<ActionOnTimeout> for TimeoutAction {
    fn from(action: ActionOnTimeout) -> Self {
        match action {
            ActionOnTimeout::None => Self::None,
            ActionOnTimeout::Reset => Self::Reset,
            ActionOnTimeout::Abort => Self::Abort,
        }
    }
}

impl SetOptions {
    /// `base` with what was given.
    fn over(self, base: Options) -> Options {
        Options {
            timeouts: self.timeouts.over(base.timeouts).unwrap_or(base.timeouts),
            reconnect_jitter_sec: self
                .reconnect_jitter_sec
                .unwrap_or(base.reconnect_jitter_sec),
            bdev_retry_count: self.bdev_retry_count.unwrap_or(base.bdev_retry_count),
            io_timeout_ms: self.io_timeout_ms.unwrap_or(base.io_timeout_ms),
            action_on_timeout: self
                .action_on_timeout
                .map_or(base.action_on_timeout, TimeoutAction::from),
            hb_interval_ms: self.hb_interval_ms.unwrap_or(base.hb_interval_ms),
            hb_missed_max: self.hb_missed_max.unwrap_or(base.hb_missed_max),
            peer_hb_interval_ms: self.peer_hb_interval_ms.unwrap_or(base.peer_hb_interval_ms),
            peer_hb_missed_max: self.peer_hb_missed_max.unwrap_or(base.peer_hb_missed_max),
            fence: self.fence.unwrap_or(base.fence),
            fence_timeout_ms: self.fence_timeout_ms.unwrap_or(base.fence_timeout_ms),
        }
    }
}

fn set_options(system: &System, params: SetOptions) -> RpcResult {
    let initiator = system.initiator.get(system);
    let options = params.over(initiator.options());
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
    #[serde(flatten)]
    ends: paths::Ends,
    num_io_queues: u16,
    queue_depth: u16,
    #[serde(flatten)]
    timeouts: TimeoutParams,
    multipath: MultipathMode,
    #[serde(default)]
    multipath_opts: paths::MultipathOpts,
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum MultipathMode {
    Disable,
    Multipath,
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
    let (addr, hostaddr) = params.ends.addrs()?;
    let attach = AttachParams {
        trtype: params.trtype.name(),
        addr,
        hostaddr,
        name: params.name,
        sessname: params.sessname,
        num_io_queues: params.num_io_queues,
        queue_depth: params.queue_depth,
        timeouts: params.timeouts.over(initiator.options().timeouts),
        multipath: params.multipath_opts.over(params.multipath),
        devices: params.devices.into_iter().map(DeviceParams::from).collect(),
    };
    let names = ask(|reply| initiator.attach_controller(attach, reply)).await?;
    Ok(json!(names))
}

#[derive(Deserialize)]
struct DetachController {
    name: String,
    #[serde(flatten)]
    paths: paths::Fitting,
    force: bool,
}

async fn detach_controller(system: Rc<System>, params: DetachController) -> RpcResult {
    if paths::detach(&system, &params.name, &params.paths).await? {
        return Ok(json!(true));
    }
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
