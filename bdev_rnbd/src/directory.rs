//! What the control plane knows without asking a shard.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rnbd_base::CoreIndex;
use rnbd_bdev::ConfigCall;
use rnbd_fabric::Addr;
use rnbd_proto::clt::DeviceIndex;
use rnbd_rtrs::clt::PathPolicy;
use rnbd_wire::rnbd::AccessMode;
use serde_json::{Map, Value, json};

use crate::control::{AttachParams, DeviceParams, Multipath};
use crate::message::{Route, SessionKey};
use crate::options::{Options, Timeouts};

/// Controllers and their bdevs by name; locked for moments, by the control plane and by shards
/// when something is attached, mapped or gone, never for I/O.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    tables: Arc<Mutex<Tables>>,
}

#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) options: Options,
    pub(crate) controllers: Vec<Controller>,
}

#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) session: SessionKey,
    pub(crate) home: CoreIndex,
    pub(crate) params: AttachParams,
    pub(crate) trtype: &'static str,
    /// Those that are up or were, by number; the first is that of the attach.
    pub(crate) paths: Vec<(u16, Route)>,
    pub(crate) devices: Vec<Device>,
}

#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) index: DeviceIndex,
    pub(crate) bdev_name: String,
    pub(crate) params: DeviceParams,
}

impl Directory {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn remove(&self, session: SessionKey) {
        let mut tables = self.lock();
        tables.controllers.retain(|entry| entry.session != session);
    }

    pub(crate) fn add_device(&self, session: SessionKey, device: Device) {
        if let Some(controller) = self.lock().by_session(session) {
            controller.devices.push(device);
        }
    }

    pub(crate) fn remove_device(&self, session: SessionKey, index: DeviceIndex) {
        if let Some(controller) = self.lock().by_session(session) {
            controller.devices.retain(|device| device.index != index);
        }
    }

    pub(crate) fn add_path(&self, session: SessionKey, path_id: u16, route: Route) {
        if let Some(controller) = self.lock().by_session(session) {
            controller.paths.push((path_id, route));
        }
    }

    pub(crate) fn remove_path(&self, session: SessionKey, path_id: u16) {
        if let Some(controller) = self.lock().by_session(session) {
            controller.paths.retain(|(id, _)| *id != path_id);
        }
    }

    pub(crate) fn set_policy(&self, session: SessionKey, policy: PathPolicy) {
        if let Some(controller) = self.lock().by_session(session) {
            let multipath = &mut controller.params.multipath;
            (multipath.policy, multipath.min_io) = (policy.policy, policy.min_io);
        }
    }

    pub(crate) fn set_timeouts(&self, session: SessionKey, timeouts: Timeouts) {
        if let Some(controller) = self.lock().by_session(session) {
            controller.params.timeouts = Some(timeouts);
        }
    }
}

impl Tables {
    pub(crate) fn by_name(&self, name: &str) -> Option<&Controller> {
        let mut all = self.controllers.iter();
        all.find(|controller| controller.params.name == name)
    }

    pub(crate) fn by_bdev(&self, name: &str) -> Option<(&Controller, &Device)> {
        self.controllers.iter().find_map(|controller| {
            let mut devices = controller.devices.iter();
            let device = devices.find(|device| device.bdev_name == name)?;
            Some((controller, device))
        })
    }

    pub(crate) fn bdev_names(&self, session: SessionKey) -> Vec<String> {
        let mut all = self.controllers.iter();
        let controller = all.find(|controller| controller.session == session);
        let devices = controller.into_iter().flat_map(|known| &known.devices);
        devices.map(|device| device.bdev_name.clone()).collect()
    }

    fn by_session(&mut self, session: SessionKey) -> Option<&mut Controller> {
        let mut all = self.controllers.iter_mut();
        all.find(|controller| controller.session == session)
    }

    /// The calls that make all of it again.
    pub(crate) fn config(&self) -> Vec<ConfigCall> {
        let mut calls = vec![set_options(&self.options)];
        for controller in &self.controllers {
            calls.push(attach(controller));
            let further = controller.paths.iter().skip(1);
            calls.extend(further.map(|(_, route)| add_path(controller, route)));
            calls.extend(
                controller
                    .devices
                    .iter()
                    .map(|device| map(controller, device)),
            );
        }
        calls
    }
}

fn call(method: &'static str, params: Value) -> ConfigCall {
    let params = match params {
        Value::Object(params) => params,
        _ => Map::new(),
    };
    ConfigCall { method, params }
}

fn set_options(options: &Options) -> ConfigCall {
    let mut params = json!({
        "bdev_retry_count": options.bdev_retry_count,
        "io_timeout_ms": options.io_timeout_ms,
        "action_on_timeout": options.action_on_timeout.as_str(),
        "hb_interval_ms": options.hb_interval_ms,
        "hb_missed_max": options.hb_missed_max,
        "peer_hb_interval_ms": options.peer_hb_interval_ms,
        "peer_hb_missed_max": options.peer_hb_missed_max,
        "fence": options.fence,
        "fence_timeout_ms": options.fence_timeout_ms,
        "reconnect_jitter_sec": options.reconnect_jitter_sec,
    });
    add_timeouts(&mut params, &options.timeouts);
    call("bdev_rnbd_set_options", params)
}

fn attach(controller: &Controller) -> ConfigCall {
    let of = &controller.params;
    let mut params = json!({
        "name": of.name,
        "sessname": of.sessname,
        "trtype": controller.trtype,
    });
    let given = Route {
        dst: of.addr,
        src: of.hostaddr,
    };
    let first = controller.paths.first().map(|(_, route)| route);
    add_route(&mut params, first.unwrap_or(&given));
    if of.num_io_queues != 0 {
        params["num_io_queues"] = json!(of.num_io_queues);
    }
    if of.queue_depth != 0 {
        params["queue_depth"] = json!(of.queue_depth);
    }
    add_multipath(&mut params, &of.multipath);
    if let Some(timeouts) = &of.timeouts {
        add_timeouts(&mut params, timeouts);
    }
    call("bdev_rnbd_attach_controller", params)
}

fn add_path(controller: &Controller, route: &Route) -> ConfigCall {
    let mut params = json!({ "name": controller.params.name });
    add_route(&mut params, route);
    call("bdev_rnbd_add_path", params)
}

fn add_route(params: &mut Value, route: &Route) {
    params["adrfam"] = json!(adrfam(&route.dst));
    params["traddr"] = json!(route.dst.host().to_string());
    params["trsvcid"] = json!(route.dst.port().to_string());
    if let Some(host) = &route.src {
        params["hostaddr"] = json!(host.host().to_string());
    }
}

fn add_multipath(params: &mut Value, multipath: &Multipath) {
    if multipath.enabled {
        params["multipath"] = json!("multipath");
    }
    let default = Multipath::default();
    if (multipath.policy, multipath.min_io) != (default.policy, default.min_io) {
        params["multipath_opts"] = json!({
            "policy": multipath.policy.as_str(),
            "min_io": multipath.min_io,
        });
    }
}

fn adrfam(addr: &Addr) -> &'static str {
    match addr {
        Addr::Ip(SocketAddr::V4(_)) => "ipv4",
        Addr::Ip(SocketAddr::V6(_)) => "ipv6",
        Addr::Gid { .. } => "ib",
    }
}

fn add_timeouts(params: &mut Value, timeouts: &Timeouts) {
    params["max_reconnect_attempts"] = json!(timeouts.max_reconnect_attempts);
    params["reconnect_delay_sec"] = json!(timeouts.reconnect_delay_sec);
    params["ctrlr_loss_timeout_sec"] = json!(timeouts.ctrlr_loss_timeout_sec);
    params["fast_io_fail_timeout_sec"] = json!(timeouts.fast_io_fail_timeout_sec);
}

fn map(controller: &Controller, device: &Device) -> ConfigCall {
    let mut params = json!({
        "ctrlr_name": controller.params.name,
        "device_path": device.params.device_path,
        "access_mode": AccessMode::as_str(device.params.access_mode),
        "bdev_name": device.bdev_name,
    });
    if let Some(uuid) = device.params.uuid {
        params["uuid"] = json!(uuid.to_string());
    }
    call("bdev_rnbd_map_device", params)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(dst: &str, src: &str) -> Value {
        let mut params = json!({});
        let route = Route {
            dst: Addr::new(dst.parse().unwrap(), 1234),
            src: Some(Addr::new(src.parse().unwrap(), 0)),
        };
        add_route(&mut params, &route);
        params
    }

    #[test]
    fn a_route_is_saved_with_its_family() {
        let gids = json!({
            "adrfam": "ib",
            "traddr": "gid:fe80:0000:0000:0000:0000:0000:0000:0001",
            "trsvcid": "1234",
            "hostaddr": "gid:fe80:0000:0000:0000:0000:0000:0000:0002",
        });
        assert_eq!(saved("gid:fe80::1", "gid:fe80::2"), gids);
        let ip = json!({
            "adrfam": "ipv6", "traddr": "2001:db8::1", "trsvcid": "1234",
            "hostaddr": "2001:db8::2",
        });
        assert_eq!(saved("2001:db8::1", "2001:db8::2"), ip);
    }
}
