//! SPDK's bdevs for the target's exports.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use rnbd_base::Errno;
use rnbd_bdev::{Registry, RegistryError};
use rnbd_framework::BdevSource;
use rnbd_spdk::{OpenError, SpdkBdev, SpdkEvent};

/// Opens and claims a bdev of SPDK's for as long as it is exported, once for all of its exports.
#[derive(Debug)]
pub(crate) struct SpdkSource {
    bdevs: Registry,
    /// Names of those that came from here.
    provided: RefCell<HashSet<String>>,
}

impl SpdkSource {
    pub(crate) fn new(bdevs: Registry) -> Self {
        Self {
            bdevs,
            provided: RefCell::default(),
        }
    }

    /// A writer needs a bdev that was opened for writing.
    fn check_access(&self, name: &str, write: bool) -> Result<(), (Errno, String)> {
        let info = self.bdevs.get(name);
        let read_only = info.is_some_and(|info| info.bdev.features().read_only);
        if write && read_only && self.provided.borrow().contains(name) {
            let text =
                format!("bdev {name} has an export that is read-only, and can have no other");
            return Err((Errno::BUSY, text));
        }
        Ok(())
    }

    fn open(&self, name: &str, write: bool) -> Result<(), (Errno, String)> {
        let (bdevs, of) = (self.bdevs.clone(), name.to_owned());
        let on_event = move |event| report(on_event(&bdevs, &of, event));
        match SpdkBdev::open(name, write, on_event) {
            Err(OpenError::NotFound) => Ok(()),
            Err(OpenError::Refused(errno)) => {
                let text = format!("bdev {name} cannot be opened: {errno}; is it claimed?");
                Err((errno, text))
            }
            Ok(bdev) => {
                let registered = self.bdevs.register(Arc::new(bdev));
                registered.map_err(|error| (error.errno(), error.to_string()))?;
                self.provided.borrow_mut().insert(name.to_owned());
                Ok(())
            }
        }
    }
}

impl BdevSource for SpdkSource {
    fn provide(&self, name: &str, write: bool) -> Result<(), (Errno, String)> {
        if self.bdevs.get(name).is_some() {
            return self.check_access(name, write);
        }
        self.open(name, write)
    }

    fn release(&self, name: &str) {
        if self.provided.borrow_mut().remove(name) {
            report(on_event(&self.bdevs, name, SpdkEvent::Remove));
        }
    }
}

/// Its last user closes it.
fn on_event(bdevs: &Registry, name: &str, event: SpdkEvent) -> Result<(), RegistryError> {
    match event {
        SpdkEvent::Remove => bdevs.unregister(name, Box::new(drop)),
        SpdkEvent::Resize => bdevs.notify_resized(name),
    }
}

/// What SPDK has removed before is gone.
fn report(result: Result<(), RegistryError>) {
    if let Err(error) = result {
        log::debug!("{error}");
    }
}
