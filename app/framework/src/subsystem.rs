use rnbd_bdev::{BdevInfo, ConfigCall, RateLimits};
use rnbd_proto::srv::{Export, HostRule};
use serde_json::{Map, Value, json};

use crate::methods::options_json;
use crate::system::System;

/// A part of the configuration that `save_config` asks for by name.
pub(crate) struct Subsystem {
    pub(crate) name: &'static str,
    /// Those that must be configured before this one; each stands before it in [`SUBSYSTEMS`].
    pub(crate) depends_on: &'static [&'static str],
    calls: fn(&System) -> Vec<ConfigCall>,
}

/// All, in the order of initialization. Listeners come last within theirs, so that nobody connects
/// to a half-built target; the exports of `rnbd` stand before them for the same reason.
pub(crate) const SUBSYSTEMS: &[Subsystem] = &[
    Subsystem {
        name: "rdma",
        depends_on: &[],
        calls: |system| system.rdma.config().into_iter().collect(),
    },
    Subsystem {
        name: "bdev",
        depends_on: &["rdma"],
        calls: bdev_calls,
    },
    Subsystem {
        name: "rnbd",
        depends_on: &["bdev"],
        calls: calls_of_rnbd,
    },
    Subsystem {
        name: "rtrs",
        depends_on: &["rnbd"],
        calls: calls_of_rtrs,
    },
    Subsystem {
        name: "nbd",
        depends_on: &["bdev"],
        calls: |system| system.nbd.config(),
    },
];

impl Subsystem {
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        SUBSYSTEMS.iter().find(|subsystem| subsystem.name == name)
    }

    /// The calls that make the present state again.
    pub(crate) fn config(&self, system: &System) -> Value {
        let calls = (self.calls)(system).into_iter().map(call_json);
        Value::Array(calls.collect())
    }
}

pub(crate) fn call_json(call: ConfigCall) -> Value {
    if call.params.is_empty() {
        return json!({ "method": call.method });
    }
    json!({ "method": call.method, "params": call.params })
}

fn call(method: &'static str, params: Value) -> ConfigCall {
    let params = match params {
        Value::Object(params) => params,
        _ => Map::new(),
    };
    ConfigCall { method, params }
}

/// The initiator's bdevs come first, because others may stand on them.
fn bdev_calls(system: &System) -> Vec<ConfigCall> {
    let options = system.bdev_options.borrow().clone();
    let options = options.map(|params| call("bdev_set_options", Value::Object(params)));
    let mut calls: Vec<_> = options.into_iter().collect();
    calls.extend(system.initiator.config());
    let kept = |info: &&BdevInfo| !system.target.found.contains(info.bdev.name());
    let bdevs = system.bdevs.list();
    for info in bdevs.iter().filter(kept) {
        calls.extend(info.bdev.config());
        calls.extend(limits_call(info));
    }
    calls.extend(system.bdevs.pending_config());
    calls.push(call("bdev_wait_for_examine", Value::Null));
    calls
}

fn limits_call(info: &BdevInfo) -> Option<ConfigCall> {
    let RateLimits {
        rw_ios_per_sec,
        rw_mbytes_per_sec,
        r_mbytes_per_sec,
        w_mbytes_per_sec,
    } = info.limits;
    let limits = [
        ("rw_ios_per_sec", rw_ios_per_sec),
        ("rw_mbytes_per_sec", rw_mbytes_per_sec),
        ("r_mbytes_per_sec", r_mbytes_per_sec),
        ("w_mbytes_per_sec", w_mbytes_per_sec),
    ];
    let mut params = json!({ "name": info.bdev.name() });
    for (name, limit) in limits.iter().filter(|(_, limit)| *limit > 0) {
        params[*name] = json!(limit);
    }
    let is_limited = !info.limits.are_off();
    is_limited.then(|| call("bdev_set_qos_limit", params))
}

fn calls_of_rnbd(system: &System) -> Vec<ConfigCall> {
    let mut calls = Vec::new();
    if system.target.rnbd_options_set.get() {
        let options = options_json(&system.target.exports.options());
        calls.push(call("rnbd_set_options", Value::Object(options)));
    }
    for info in system.target.exports.list() {
        calls.push(call("rnbd_create_export", export_params(&info.export)));
        let path = &info.export.name;
        let hosts = info.export.hosts.iter().map(|rule| host_params(path, rule));
        calls.extend(hosts.map(|params| call("rnbd_export_add_host", params)));
    }
    calls
}

fn export_params(export: &Export) -> Value {
    let write_cache = match export.write_cache {
        None => "auto",
        Some(true) => "on",
        Some(false) => "off",
    };
    let mut params = json!({
        "device_path": export.name,
        "bdev_name": export.bdev_name,
        "read_only": export.read_only,
        "max_writers": export.max_writers,
        "allow_any_host": export.allow_any_host,
        "write_cache": write_cache,
        "rotational": export.rotational,
    });
    if let Some(bytes) = export.max_io_bytes {
        params["max_io_size"] = json!(bytes);
    }
    if let Some(discard) = export.discard {
        params["discard"] = json!(discard);
    }
    if let Some(write_zeroes) = export.write_zeroes {
        params["write_zeroes"] = json!(write_zeroes);
    }
    params
}

fn host_params(device_path: &str, rule: &HostRule) -> Value {
    let mut params = json!({
        "device_path": device_path,
        "host": rule.sessname,
        "access_mode_max": rule.max_access.as_str(),
    });
    if let Some(source) = &rule.source {
        params["traddr"] = json!(source.to_string());
    }
    params
}

fn calls_of_rtrs(system: &System) -> Vec<ConfigCall> {
    let options = system.target.options.borrow().clone();
    let options = options.map(|options| call("rtrs_set_options", json!(options)));
    let transports = system.target.transports();
    let made = transports
        .iter()
        .map(|transport| call("rtrs_create_transport", json!(transport.options)));
    let listeners = transports.iter().flat_map(|transport| &transport.listeners);
    let listening =
        listeners.map(|address| call("rtrs_add_listener", json!({ "listen_address": address })));
    options.into_iter().chain(made).chain(listening).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subsystem_stands_after_those_it_depends_on() {
        for (index, subsystem) in SUBSYSTEMS.iter().enumerate() {
            for dependency in subsystem.depends_on {
                let before = SUBSYSTEMS[..index]
                    .iter()
                    .any(|other| other.name == *dependency);
                assert!(before, "{} needs {dependency}", subsystem.name);
            }
        }
    }
}
