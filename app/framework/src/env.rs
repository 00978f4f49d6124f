use std::rc::Rc;

use rnbd_base::CoreIndex;
use rnbd_bdev::Registry;
use rnbd_mem::Memory;
use rnbd_reactor::{Clock, Reactors};
use rnbd_rpc::{Handle, Notifications, Rpc};

use crate::system::System;

/// What a program's own future works with. Clones are handles to the same things; all live on the
/// control thread.
#[derive(Clone, Debug)]
pub struct Env {
    system: Rc<System>,
    rpc: Rpc,
}

impl Env {
    pub(crate) fn new(system: Rc<System>, rpc: Rpc) -> Self {
        Self { system, rpc }
    }

    /// I/O memory, within the budget of `-s`.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.system.memory
    }

    /// All block devices of the process.
    #[must_use]
    pub fn bdevs(&self) -> &Registry {
        &self.system.bdevs
    }

    /// The threads that poll.
    #[must_use]
    pub fn reactors(&self) -> &Reactors {
        &self.system.reactors
    }

    /// The clock of the reactors.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.system.reactors.clock()
    }

    /// The reactors' indices.
    pub fn cores(&self) -> impl Iterator<Item = CoreIndex> + use<> {
        self.system.reactors.cores()
    }

    /// Tasks and timers on the control thread.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.system.handle
    }

    /// Every RPC method, to be called without a socket.
    #[must_use]
    pub fn rpc(&self) -> &Rpc {
        &self.rpc
    }

    /// What `notify_get_notifications` tells.
    #[must_use]
    pub fn notifications(&self) -> &Notifications {
        &self.system.notifications
    }

    /// Returns when the program is to end: after the first SIGINT or SIGTERM.
    pub async fn stopped(&self) {
        self.system.stop.raised().await;
    }
}
