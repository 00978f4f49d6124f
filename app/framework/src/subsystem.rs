use rnbd_bdev::ConfigCall;
use serde_json::{Map, Value, json};

use crate::system::System;

/// A part of the configuration that `save_config` asks for by name.
pub(crate) struct Subsystem {
    pub(crate) name: &'static str,
    /// Those that must be configured before this one; each stands before it in [`SUBSYSTEMS`].
    pub(crate) depends_on: &'static [&'static str],
    calls: fn(&System) -> Vec<ConfigCall>,
}

/// All, in the order of initialization.
pub(crate) const SUBSYSTEMS: &[Subsystem] = &[Subsystem {
    name: "bdev",
    depends_on: &[],
    calls: bdev_calls,
}];

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

fn call_json(call: ConfigCall) -> Value {
    if call.params.is_empty() {
        return json!({ "method": call.method });
    }
    json!({ "method": call.method, "params": call.params })
}

fn bdev_calls(system: &System) -> Vec<ConfigCall> {
    let options = system.bdev_options.borrow().clone();
    let mut calls: Vec<_> = options.into_iter().map(bdev_options_call).collect();
    let bdevs = system.bdevs.list();
    calls.extend(bdevs.iter().flat_map(|info| info.bdev.config()));
    calls.push(ConfigCall {
        method: "bdev_wait_for_examine",
        params: Map::new(),
    });
    calls
}

fn bdev_options_call(params: Map<String, Value>) -> ConfigCall {
    ConfigCall {
        method: "bdev_set_options",
        params,
    }
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
