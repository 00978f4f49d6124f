//! Protection domains, counted by what is in them.

use std::sync::Arc;

use rnbd_fabric::slab::Slab;
use rnbd_fabric::{DomainId, FabricError};

use crate::devices::DeviceId;
use crate::host::Scrap;
use crate::sys::Pd;

#[derive(Debug)]
struct Domain {
    /// `None` once the device is gone.
    pd: Option<Arc<Pd>>,
    device: DeviceId,
    /// Connections, regions and windows.
    members: u32,
    is_closed: bool,
}

/// The domains of a fabric.
#[derive(Debug)]
pub(crate) struct Domains {
    table: Slab<Domain>,
}

const DOMAINS_MAX: u32 = 1 << 20;
const STALE: FabricError = FabricError::Stale("domain");

impl Domains {
    pub(crate) fn new() -> Self {
        Self {
            table: Slab::new(DOMAINS_MAX),
        }
    }

    /// A new domain on a device, without members.
    pub(crate) fn open(&mut self, device: DeviceId, pd: Arc<Pd>) -> Result<DomainId, FabricError> {
        let domain = Domain {
            pd: Some(pd),
            device,
            members: 0,
            is_closed: false,
        };
        let taken = self.table.insert(|_, _| domain);
        let (index, generation) = taken.map_err(|_| FabricError::Limit {
            what: "domains",
            limit: u64::from(DOMAINS_MAX),
        })?;
        Ok(DomainId { index, generation })
    }

    /// Whether there is such a domain.
    pub(crate) fn check(&self, domain: DomainId) -> Result<(), FabricError> {
        self.get(domain).map(|_| ())
    }

    /// One member more; returns the device's domain.
    pub(crate) fn join(&mut self, domain: DomainId) -> Result<Arc<Pd>, FabricError> {
        let entry = self.table.get_mut(domain.index, domain.generation);
        let entry = entry.ok_or(STALE)?;
        let pd = entry.pd.clone().ok_or(STALE)?;
        entry.members += 1;
        Ok(pd)
    }

    /// The device's domain, as long as there is the device.
    pub(crate) fn pd(&self, domain: DomainId) -> Option<&Arc<Pd>> {
        self.get(domain).ok()?.pd.as_ref()
    }

    /// The device that the domain is on.
    pub(crate) fn device(&self, domain: DomainId) -> Result<DeviceId, FabricError> {
        self.get(domain).map(|entry| entry.device)
    }

    fn get(&self, domain: DomainId) -> Result<&Domain, FabricError> {
        let entry = self.table.get(domain.index, domain.generation);
        entry.ok_or(STALE)
    }

    /// One member less; the last one of a closed domain takes it along, to be let go of.
    #[must_use]
    pub(crate) fn leave(&mut self, domain: DomainId) -> Option<Scrap> {
        if let Some(entry) = self.table.get_mut(domain.index, domain.generation) {
            entry.members -= 1;
        }
        self.take_if_over(domain)
    }

    /// Lets the domain go with its last member.
    #[must_use]
    pub(crate) fn close(&mut self, domain: DomainId) -> Option<Scrap> {
        if let Some(entry) = self.table.get_mut(domain.index, domain.generation) {
            entry.is_closed = true;
        }
        self.take_if_over(domain)
    }

    fn take_if_over(&mut self, domain: DomainId) -> Option<Scrap> {
        let entry = self.get(domain).ok()?;
        if !entry.is_closed || entry.members > 0 {
            return None;
        }
        let entry = self.table.remove(domain.index, domain.generation)?;
        entry.pd.map(Scrap::Domain)
    }

    /// The device is gone: lets go of its domains, of which the handles stay.
    pub(crate) fn drop_device(&mut self, device: DeviceId) -> Vec<Scrap> {
        let entries = self.table.iter_mut().map(|(_, entry)| entry);
        let gone = entries.filter(|entry| entry.device == device);
        gone.filter_map(|entry| entry.pd.take().map(Scrap::Domain))
            .collect()
    }
}
