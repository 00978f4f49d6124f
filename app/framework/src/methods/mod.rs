//! The RPC methods, one file per component. What a method takes and when it may be called stands
//! in the schema; parameters arrive here checked and with their defaults.

mod bdev;
mod bdev_rnbd;
mod framework;
mod log;
mod nbd;
mod rdma;
mod rnbd;
mod rtrs;
mod thread;

use std::future::Future;
use std::rc::Rc;

use rnbd_base::Errno;
use rnbd_fabric::FabricStats;
use rnbd_rpc::{Params, Registry, RpcError, RpcResult};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::system::System;

pub(crate) use self::rnbd::options_json;

/// Registers all methods.
pub(crate) fn register(registry: &mut Registry, system: &Rc<System>) {
    let mut methods = Methods { registry, system };
    framework::register(&mut methods);
    thread::register(&mut methods);
    log::register(&mut methods);
    bdev::register(&mut methods);
    rdma::register(&mut methods);
    rtrs::register(&mut methods);
    rnbd::register(&mut methods);
    bdev_rnbd::register(&mut methods);
    nbd::register(&mut methods);
    system.notifications.register(methods.registry);
}

struct Methods<'a> {
    registry: &'a mut Registry,
    system: &'a Rc<System>,
}

impl Methods<'_> {
    /// Registers a method whose parameters are a `P`.
    fn add<P, F>(&mut self, name: &str, method: impl Fn(Rc<System>, P) -> F + 'static)
    where
        P: DeserializeOwned,
        F: Future<Output = RpcResult> + 'static,
    {
        let system = Rc::clone(self.system);
        self.registry.register(name, move |params: Params| {
            let call = params
                .decode()
                .map(|decoded| method(Rc::clone(&system), decoded));
            async move { call?.await }
        });
    }

    /// Registers a method that is done at once.
    fn add_sync<P>(&mut self, name: &str, method: impl Fn(&System, P) -> RpcResult + 'static)
    where
        P: DeserializeOwned,
    {
        self.add(name, move |system: Rc<System>, params| {
            let result = method(&system, params);
            async move { result }
        });
    }
}

/// Parameters of a method that has none.
#[derive(Debug, serde::Deserialize)]
struct NoParams {}

/// The error of a reactor that has stopped while it was asked.
pub(crate) fn stopped() -> RpcError {
    RpcError::errno(Errno::CANCELED, "the program is ending")
}

/// What a transport did on a core, in SPDK's words.
fn fabric_stats(name: &str, stats: &FabricStats) -> Value {
    json!({
        "dev_name": name,
        "polls": stats.polls,
        "idle_polls": stats.idle_polls,
        "completions": stats.completions,
        "total_send_wrs": stats.send_wrs,
        "send_doorbell_updates": stats.send_doorbells,
        "total_recv_wrs": stats.recv_wrs,
        "recv_doorbell_updates": stats.recv_doorbells,
        "violations": stats.violations,
    })
}
