//! The initiator as this program has it: made when it is first needed, and a transport of it when
//! the first controller wants it, so that nothing is polled in vain.

use std::cell::{OnceCell, RefCell};
use std::future::Future;
use std::sync::Arc;

use bdev_rnbd::{ControlError, InitiatorConfig, InitiatorControl, Reply};
use rnbd_bdev::ConfigCall;
use rnbd_fabric::Fabric;
use rnbd_rpc::RpcError;
use uuid::Uuid;

use crate::address::TrType;
use crate::fabrics;
use crate::methods::stopped;
use crate::reply::reply;
use crate::system::{System, notifier};

/// The initiator, once it was needed.
#[derive(Debug, Default)]
pub(crate) struct Initiator {
    control: OnceCell<Arc<bdev_rnbd::Initiator>>,
    /// The fabrics that it has.
    trtypes: RefCell<Vec<TrType>>,
}

impl Initiator {
    /// The initiator, if it was needed so far.
    pub(crate) fn existing(&self) -> Option<Arc<dyn InitiatorControl>> {
        let control = Arc::clone(self.control.get()?);
        Some(control)
    }

    /// The initiator, made now if need be.
    pub(crate) fn get(&self, system: &System) -> Arc<dyn InitiatorControl> {
        let control = self.made(system);
        Arc::clone(control) as _
    }

    /// The initiator with this transport: with a fabric and a shard on every core.
    pub(crate) fn with_transport(
        &self,
        trtype: TrType,
        system: &System,
    ) -> Result<Arc<dyn InitiatorControl>, RpcError> {
        trtype.check_available()?;
        if !self.trtypes.borrow().contains(&trtype) {
            add_transport(self.made(system), trtype, system)?;
            self.trtypes.borrow_mut().push(trtype);
        }
        Ok(self.get(system))
    }

    fn made(&self, system: &System) -> &Arc<bdev_rnbd::Initiator> {
        let make = || Arc::new(bdev_rnbd::Initiator::new(config(system)));
        self.control.get_or_init(make)
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

fn config(system: &System) -> InitiatorConfig {
    let notify = notifier(&system.handle, &system.notifications);
    InitiatorConfig {
        memory: system.memory.clone(),
        registry: system.bdevs.clone(),
        seed: Uuid::new_v4().as_u64_pair().0,
        notify: Arc::new(move |event| notify(event.kind.as_str(), event.ctx)),
    }
}

fn add_transport(
    initiator: &bdev_rnbd::Initiator,
    trtype: TrType,
    system: &System,
) -> Result<(), RpcError> {
    match trtype {
        #[cfg(feature = "rdma")]
        TrType::Rdma => add_shards(initiator, trtype, || system.rdma.fabric(), system),
        _ => add_shards(initiator, trtype, fabrics::tcp, system),
    }
}

fn add_shards<F: Fabric>(
    initiator: &bdev_rnbd::Initiator,
    trtype: TrType,
    fabric: impl Fn() -> Result<F, RpcError>,
    system: &System,
) -> Result<(), RpcError> {
    let reactors = &system.reactors;
    let fabrics = system
        .poll_groups
        .iter()
        .map(|group| Ok((group.core, fabric()?, reactors.waker(group.core))));
    let fabrics: Result<Vec<_>, RpcError> = fabrics.collect();
    let name = format!("rnbd_initiator_{}", trtype.name().to_lowercase());
    let shards = initiator.add_fabric(fabrics?);
    for (group, shard) in system.poll_groups.iter().zip(shards) {
        reactors.add_poller(group.thread, &name, None, Box::new(shard));
    }
    Ok(())
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
