//! Files and block devices below the search path, as bdevs for as long as a client has them open.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use futures_channel::mpsc;
use futures_util::StreamExt;
use rnbd_base::Errno;
use rnbd_bdev::{AioOptions, Registry, UringBdev};
use rnbd_mem::Memory;
use rnbd_proto::srv::OpenPath;
use rnbd_proto::target::{DeviceOpener, Reply, open_beneath};
use rnbd_rpc::Handle;

/// Names of the bdevs that were made this way; no configuration makes them again.
#[derive(Clone, Debug, Default)]
pub(crate) struct FoundBdevs {
    names: Rc<RefCell<BTreeSet<String>>>,
}

/// The end that the reactors hold.
pub(super) struct SearchPathOpener {
    orders: mpsc::UnboundedSender<Order>,
}

enum Order {
    Open(OpenPath, Reply<Result<String, Errno>>),
    Closed(String),
}

/// The end on the control thread, which may block.
struct Worker {
    memory: Memory,
    bdevs: Registry,
    found: FoundBdevs,
}

impl FoundBdevs {
    pub(crate) fn contains(&self, bdev_name: &str) -> bool {
        self.names.borrow().contains(bdev_name)
    }
}

impl SearchPathOpener {
    pub(super) fn start(
        handle: &Handle,
        memory: &Memory,
        bdevs: &Registry,
        found: &FoundBdevs,
    ) -> Arc<Self> {
        let (orders, mut arriving) = mpsc::unbounded();
        let worker = Worker {
            memory: memory.clone(),
            bdevs: bdevs.clone(),
            found: found.clone(),
        };
        handle.spawn(async move {
            while let Some(order) = arriving.next().await {
                match order {
                    Order::Open(path, reply) => reply(worker.open(&path)),
                    Order::Closed(bdev_name) => worker.close(&bdev_name),
                }
            }
        });
        Arc::new(Self { orders })
    }
}

impl DeviceOpener for SearchPathOpener {
    fn open(&self, path: OpenPath, reply: Reply<Result<String, Errno>>) {
        let sent = self.orders.unbounded_send(Order::Open(path, reply));
        // The control thread has ended.
        if let Err(Order::Open(_, reply)) = sent.map_err(mpsc::TrySendError::into_inner) {
            reply(Err(Errno::CANCELED));
        }
    }

    fn closed(&self, bdev_name: &str) {
        // When the control thread has ended, the bdev goes with the process.
        let _ = self
            .orders
            .unbounded_send(Order::Closed(bdev_name.to_owned()));
    }
}

impl Worker {
    /// The bdev of a file. One that is open for reading only is a bdev of its own beside the one
    /// for writing.
    fn open(&self, path: &OpenPath) -> Result<String, Errno> {
        let whole = path.root.join(&path.relative);
        let mode = if path.write { "rw" } else { "ro" };
        let name = format!("{} ({mode})", whole.display());
        if self.found.contains(&name) && self.bdevs.get(&name).is_some_and(|info| !info.removing) {
            return Ok(name);
        }
        let file = open_beneath(&path.root, &path.relative, path.write)?;
        // The file that was checked, whatever its path leads to by now.
        let checked = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let options = AioOptions {
            name: name.clone(),
            filename: checked,
            readonly: !path.write,
            ..AioOptions::default()
        };
        UringBdev::create_aio(&self.bdevs, &self.memory, options).map_err(|error| {
            log::warn!("{} cannot be exported: {error}", whole.display());
            error.errno()
        })?;
        self.found.names.borrow_mut().insert(name.clone());
        Ok(name)
    }

    fn close(&self, bdev_name: &str) {
        if !self.found.names.borrow_mut().remove(bdev_name) {
            return;
        }
        if let Err(error) = self.bdevs.unregister(bdev_name, Box::new(drop)) {
            log::warn!("{error}");
        }
    }
}
