//! RDMA devices as this program has them: opened when the first transport or controller wants
//! them, and shared by target and initiator.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bdev_rnbd::PathReport;
use futures_channel::mpsc;
use futures_util::StreamExt;
use rnbd_base::Errno;
use rnbd_bdev::ConfigCall;
use rnbd_rpc::RpcError;
use rnbd_rtrs::clt::PathState;
use rnbd_verbs::{
    DeviceInfo, DeviceState, HostNews, PortInfo, VerbsConfig, VerbsFabric, VerbsHost,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::address::TrType;
use crate::initiator::ask;
use crate::system::System;
use crate::target::fabric_error;

/// What a device being in another state is notified as.
const DEVICE_STATE: &str = "rdma_device_state";

/// Parameters of `rdma_set_options`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RdmaOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    tos: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ack_timeout: Option<u8>,
    retry_count: u8,
    window_per_request: bool,
    inline_bytes: u32,
    cq_entries: u32,
}

/// The devices, once they were needed.
#[derive(Debug, Default)]
pub(crate) struct Rdma {
    options: RefCell<Option<RdmaOptions>>,
    host: RefCell<Option<VerbsHost>>,
    /// Fabrics were made of it, with the options that were set then.
    in_use: Cell<bool>,
    news: News,
}

/// What the host's thread tells, on its way to the control thread.
#[derive(Debug)]
struct News {
    sender: mpsc::UnboundedSender<HostNews>,
    receiver: RefCell<Option<mpsc::UnboundedReceiver<HostNews>>>,
}

impl Default for News {
    fn default() -> Self {
        let (sender, receiver) = mpsc::unbounded();
        let receiver = RefCell::new(Some(receiver));
        Self { sender, receiver }
    }
}

impl Rdma {
    /// Takes the parameters of `rdma_set_options`.
    pub(crate) fn set_options(&self, params: Value) -> Result<(), RpcError> {
        let options = serde_json::from_value(params);
        let options = options.map_err(|error| RpcError::invalid_params(error.to_string()))?;
        if self.in_use.get() {
            let text = "RDMA devices are in use; set their options before the first transport";
            return Err(RpcError::errno(Errno::PERM, text));
        }
        self.options.replace(Some(options));
        self.host.take();
        Ok(())
    }

    /// A fabric for one core. Takes milliseconds for each device of the host.
    pub(crate) fn fabric(&self) -> Result<VerbsFabric, RpcError> {
        let fabric = self.host()?.fabric();
        let fabric = fabric.map_err(|error| fabric_error(&error))?;
        self.in_use.set(true);
        Ok(fabric)
    }

    /// The answer of `rdma_get_devices`.
    pub(crate) fn devices(&self) -> Result<Value, RpcError> {
        Ok(self.host()?.devices().iter().map(report).collect())
    }

    /// Starts to reset a device.
    pub(crate) fn reset(&self, name: &str) -> Result<(), RpcError> {
        let reset = self.host()?.reset(name);
        reset.map_err(|error| {
            let mut error = fabric_error(&error);
            error.message = format!("{name}: {}", error.message);
            error
        })
    }

    /// The calls that make its options again.
    pub(crate) fn config(&self) -> Option<ConfigCall> {
        let options = self.options.borrow();
        let Value::Object(params) = json!(options.as_ref()?) else {
            return None;
        };
        let method = "rdma_set_options";
        Some(ConfigCall { method, params })
    }

    fn host(&self) -> Result<VerbsHost, RpcError> {
        if let Some(host) = &*self.host.borrow() {
            return Ok(host.clone());
        }
        let config = self.options.borrow().as_ref().map(RdmaOptions::config);
        let sender = self.news.sender.clone();
        let host = VerbsHost::start(config.unwrap_or_default(), move |news| {
            // When the control thread has ended, nobody is left to be told.
            let _ = sender.unbounded_send(news);
        });
        let host = host.map_err(|error| fabric_error(&error))?;
        self.host.replace(Some(host.clone()));
        Ok(host)
    }
}

/// To be called before the first thread starts.
pub(crate) fn prepare_process() {
    VerbsHost::prepare_process();
}

/// Has watchers told of devices, and paths reconnected at once that may have become possible.
pub(crate) fn listen(system: &Rc<System>) {
    system.notifications.register_type(DEVICE_STATE);
    let Some(mut news) = system.rdma.news.receiver.take() else {
        return;
    };
    let system = Rc::clone(system);
    system.handle.clone().spawn(async move {
        while let Some(news) = news.next().await {
            on_news(&system, news).await;
        }
    });
}

async fn on_news(system: &System, news: HostNews) {
    if let HostNews::State { name, state } = &news {
        let ctx = format!("{name} {}", state.as_str());
        system.notifications.send(DEVICE_STATE, &ctx);
        if *state != DeviceState::Active {
            return;
        }
    }
    reconnect(system).await;
}

/// Reconnects paths that wait for their next attempt.
async fn reconnect(system: &System) {
    let Some(initiator) = system.initiator.existing() else {
        return;
    };
    let controllers = ask(|reply| initiator.get_controllers(None, reply)).await;
    for controller in controllers.unwrap_or_default() {
        let waits = |path: &&PathReport| {
            path.trtype == TrType::Rdma.name() && path.state == PathState::Reconnecting
        };
        for path in controller.paths.iter().filter(waits) {
            // Whether it works is told by the path's own notifications.
            let ignored = Box::new(|_| {});
            initiator.reconnect_path(&controller.name, path.path_id, ignored);
        }
    }
}

fn report(device: &DeviceInfo) -> Value {
    let counters = &device.counters;
    let mut json = json!({
        "name": device.name,
        "state": device.state.as_str(),
        "open": device.users,
        "ports": device.ports.iter().map(port).collect::<Vec<_>>(),
        "removals": counters.removals,
        "fatal_events": counters.fatal_events,
        "resets_requested": counters.resets_requested,
        "queue_errors": counters.queue_errors,
        "resets_survived": counters.resets_survived,
    });
    if let Some(abilities) = &device.abilities {
        json["always_invalidate"] = json!(abilities.domain_windows);
        json["window_per_request"] = json!(abilities.connection_windows);
        json["exact_windows"] = json!(abilities.exact_windows);
        json["max_qp_wr"] = json!(abilities.queue_wrs_max);
        json["max_cqe"] = json!(abilities.cq_entries_max);
    }
    json
}

fn port(port: &PortInfo) -> Value {
    json!({
        "port": port.number,
        "state": port.state.to_lowercase(),
        "link_layer": port.link_layer,
        "gids": port.gids,
    })
}

impl RdmaOptions {
    fn config(&self) -> VerbsConfig {
        VerbsConfig {
            type_of_service: self.tos,
            ack_timeout: self.ack_timeout,
            retry_count: self.retry_count,
            window_per_request: self.window_per_request,
            inline_bytes: self.inline_bytes,
            cq_entries: self.cq_entries,
            ..VerbsConfig::default()
        }
    }
}

/// The answer of `rdma_get_devices` for a device of which everything is known.
#[cfg(test)]
pub(crate) fn example() -> Option<Value> {
    let device = DeviceInfo {
        name: "rxe0".to_owned(),
        state: DeviceState::Active,
        users: 1,
        abilities: Some(rnbd_verbs::Abilities {
            domain_windows: true,
            connection_windows: true,
            exact_windows: false,
            queue_wrs_max: 1024,
            cq_entries_max: 32767,
        }),
        ports: vec![PortInfo {
            number: 1,
            state: "ACTIVE".to_owned(),
            link_layer: "Ethernet".to_owned(),
            gids: vec!["0000:0000:0000:0000:0000:ffff:0a09:0001".to_owned()],
        }],
        counters: rnbd_verbs::DeviceCounters::default(),
    };
    Some(json!([report(&device)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Value {
        json!({
            "tos": 32,
            "retry_count": 3,
            "window_per_request": true,
            "inline_bytes": 0,
            "cq_entries": 1024,
        })
    }

    #[test]
    fn options_may_change_until_a_fabric_is_made_and_are_saved() {
        let rdma = Rdma::default();
        assert!(rdma.config().is_none());
        rdma.devices().unwrap();
        rdma.set_options(options()).unwrap();
        let saved = rdma.config().unwrap();
        assert_eq!(Value::Object(saved.params), options());
        rdma.in_use.set(true);
        assert_eq!(rdma.set_options(options()).unwrap_err().code, -1);
    }

    #[test]
    fn a_device_that_is_not_there_is_not_reset() {
        let error = Rdma::default().reset("nonsense0").unwrap_err();
        assert_eq!(error.code, -19);
    }
}
