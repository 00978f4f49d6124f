//! The NBD exports of this program.

use std::cell::RefCell;
use std::rc::Rc;

use rnbd_base::Errno;
use rnbd_bdev::ConfigCall;
use rnbd_nbd::{Address, EndReason, ExportOptions, NbdExport, NbdHandle};
use rnbd_reactor::PollerId;
use rnbd_rpc::RpcError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::flag::Flag;
use crate::reply::reply;
use crate::system::System;

/// Parameters of `nbd_start_export`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NbdParams {
    bdev_name: String,
    address: String,
    read_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    max_connections: u16,
    queue_depth: u16,
}

/// An export at work.
#[derive(Debug)]
pub(crate) struct Export {
    pub(crate) params: NbdParams,
    pub(crate) handle: NbdHandle,
    poller: PollerId,
    core: usize,
    ended: Flag,
}

/// All exports, in the order in which they were started.
#[derive(Debug, Default)]
pub(crate) struct NbdExports {
    exports: RefCell<Vec<Rc<Export>>>,
}

impl NbdExports {
    /// Starts an export on the core with the fewest; returns its URI.
    pub(crate) fn start(system: &Rc<System>, params: NbdParams) -> Result<String, RpcError> {
        let core = system.nbd.least_loaded(system.poll_groups.len());
        let group = &system.poll_groups[core];
        let (on_end, end) = reply::<EndReason>();
        let waker = system.reactors.waker(group.core);
        let (server, handle) = NbdExport::start(
            &system.bdevs,
            &system.memory,
            group.core,
            waker,
            params.options()?,
            on_end,
        )
        .map_err(|error| RpcError::errno(error.errno(), error.to_string()))?;
        let name = format!("nbd_{}", params.bdev_name);
        let poller = system
            .reactors
            .add_poller(group.thread, &name, None, Box::new(server));
        let uri = handle.uri();
        let export = Rc::new(Export {
            params,
            handle,
            poller,
            core,
            ended: Flag::default(),
        });
        system.nbd.exports.borrow_mut().push(Rc::clone(&export));
        let waiting = Rc::clone(system);
        system.handle.spawn(async move {
            // Either it ended by itself or by order, or its reactor has stopped.
            end.await;
            waiting.nbd.remove(&waiting, &export).await;
        });
        Ok(uri)
    }

    /// Ends the export at an address, given as it was when it was started or as it is listed.
    pub(crate) async fn stop(&self, address: &str) -> Result<(), RpcError> {
        let at_address = |export: &&Rc<Export>| {
            export.params.address == address || export.handle.address().to_string() == address
        };
        let found = self.exports.borrow().iter().find(at_address).cloned();
        let Some(export) = found else {
            let text = format!("there is no NBD export at {address}; see nbd_get_exports");
            return Err(RpcError::errno(Errno::NODEV, text));
        };
        export.handle.stop();
        export.ended.raised().await;
        Ok(())
    }

    /// All exports.
    pub(crate) fn list(&self) -> Vec<Rc<Export>> {
        self.exports.borrow().clone()
    }

    /// The calls that start them again.
    pub(crate) fn config(&self) -> Vec<ConfigCall> {
        let exports = self.exports.borrow();
        exports.iter().map(|export| export.params.call()).collect()
    }

    pub(crate) async fn shut_down(&self) {
        let exports = self.list();
        for export in &exports {
            export.handle.stop();
        }
        for export in exports {
            export.ended.raised().await;
        }
    }

    fn least_loaded(&self, cores: usize) -> usize {
        let exports = self.exports.borrow();
        let load = |core: &usize| exports.iter().filter(|export| export.core == *core).count();
        (0..cores).min_by_key(load).unwrap_or(0)
    }

    async fn remove(&self, system: &System, export: &Rc<Export>) {
        let (callback, removed) = reply();
        system.reactors.remove_poller(export.poller, callback);
        // Its memory is freed here and not on the reactor.
        drop(removed.await);
        self.exports
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, export));
        export.ended.raise();
    }
}

impl NbdParams {
    fn options(&self) -> Result<ExportOptions, RpcError> {
        let address: Address = self
            .address
            .parse()
            .map_err(|error| RpcError::errno(Errno::INVAL, format!("{error}")))?;
        Ok(ExportOptions {
            export_name: self.name.clone(),
            read_only: self.read_only,
            max_connections: self.max_connections,
            queue_depth: self.queue_depth,
            ..ExportOptions::new(&self.bdev_name, address)
        })
    }

    fn call(&self) -> ConfigCall {
        let params = match serde_json::to_value(self) {
            Ok(Value::Object(params)) => params,
            _ => unreachable!("a struct of plain fields is an object"),
        };
        ConfigCall {
            method: "nbd_start_export",
            params,
        }
    }
}
