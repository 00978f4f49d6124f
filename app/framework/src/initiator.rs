//! The initiator as this program has it: made when it is first needed, so that a mere target
//! does not poll it.

use std::cell::OnceCell;
use std::future::Future;
use std::sync::Arc;

use bdev_rnbd::{ControlError, InitiatorConfig, InitiatorControl, Reply};
use rnbd_bdev::ConfigCall;
use rnbd_fabric::tcp::{TcpConfig, TcpFabric};
use rnbd_rpc::RpcError;
use uuid::Uuid;

use crate::methods::stopped;
use crate::reply::reply;
use crate::system::{System, notifier};
use crate::target::fabric_error;

/// The initiator, once it was needed.
#[derive(Debug, Default)]
pub(crate) struct Initiator {
    control: OnceCell<Arc<dyn InitiatorControl>>,
}

impl Initiator {
    /// The initiator, if it was needed so far.
    pub(crate) fn existing(&self) -> Option<&Arc<dyn InitiatorControl>> {
        self.control.get()
    }

    /// The initiator, made now if need be: a fabric and a shard on every core.
    pub(crate) fn get(&self, system: &System) -> Result<Arc<dyn InitiatorControl>, RpcError> {
        if let Some(control) = self.control.get() {
            return Ok(Arc::clone(control));
        }
        let control = start(system)?;
        Ok(Arc::clone(self.control.get_or_init(|| control)))
    }

    /// The calls that make its present state again.
    pub(crate) fn config(&self) -> Vec<ConfigCall> {
        self.existing()
            .map_or_else(Vec::new, |control| control.config())
    }

    /// Closes all devices and sessions, so that servers need not wait for a timeout.
    pub(crate) async fn shut_down(&self) {
        let Some(control) = self.existing() else {
            return;
        };
        let controllers = ask(|reply| control.get_controllers(None, reply)).await;
        for controller in controllers.unwrap_or_default() {
            let detached = ask(|reply| control.detach_controller(&controller.name, true, reply));
            if let Err(error) = detached.await {
                log::warn!("controller {} was not detached: {error}", controller.name);
            }
        }
    }
}

fn start(system: &System) -> Result<Arc<dyn InitiatorControl>, RpcError> {
    let reactors = &system.reactors;
    let fabric = || TcpFabric::new(TcpConfig::default()).map_err(|error| fabric_error(&error));
    let fabrics: Result<Vec<_>, RpcError> = system
        .poll_groups
        .iter()
        .map(|group| Ok((group.core, fabric()?, reactors.waker(group.core))))
        .collect();
    let notify = notifier(&system.handle, &system.notifications);
    let config = InitiatorConfig {
        memory: system.memory.clone(),
        registry: system.bdevs.clone(),
        seed: Uuid::new_v4().as_u64_pair().0,
        notify: Arc::new(move |event| notify(event.kind.as_str(), event.ctx)),
    };
    let (control, shards) = bdev_rnbd::new(fabrics?, config);
    for (group, shard) in system.poll_groups.iter().zip(shards) {
        reactors.add_poller(group.thread, "rnbd_initiator", None, Box::new(shard));
    }
    Ok(control)
}

/// What `order` is answered.
pub(crate) fn ask<T: Send + 'static>(
    order: impl FnOnce(Reply<T>),
) -> impl Future<Output = Result<T, RpcError>> {
    let (callback, answer) = reply();
    order(callback);
    async move {
        answer
            .await
            .ok_or_else(stopped)?
            .map_err(|error| rpc_error(&error))
    }
}

pub(crate) fn rpc_error(error: &ControlError) -> RpcError {
    RpcError::errno(error.errno, error.message.clone())
}
