//! Protection domains, counted by what is in them.

use crate::slab::Slab;
use crate::types::{DomainId, FabricError};

#[derive(Debug, Default)]
struct Domain {
    /// Connections, regions and windows.
    members: u32,
    closed: bool,
}

/// The domains of a fabric.
#[derive(Debug)]
pub(crate) struct Domains {
    table: Slab<Domain>,
    limit: u32,
}

impl Domains {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            table: Slab::new(limit),
            limit,
        }
    }

    /// `existing`, or a new domain, with one more member.
    pub(crate) fn join(&mut self, existing: Option<DomainId>) -> Result<DomainId, FabricError> {
        let domain = match existing {
            Some(domain) => domain,
            None => self.open()?,
        };
        let entry = self.table.get_mut(domain.index, domain.generation);
        entry.ok_or(FabricError::Stale("domain"))?.members += 1;
        Ok(domain)
    }

    fn open(&mut self) -> Result<DomainId, FabricError> {
        let taken = self.table.insert(|_, _| Domain::default());
        let (index, generation) = taken.map_err(|_| FabricError::Limit {
            what: "domains",
            limit: u64::from(self.limit),
        })?;
        Ok(DomainId { index, generation })
    }

    /// One member less; the last one of a closed domain takes it along.
    pub(crate) fn leave(&mut self, domain: DomainId) {
        if let Some(entry) = self.table.get_mut(domain.index, domain.generation) {
            entry.members -= 1;
        }
        self.drop_if_over(domain);
    }

    /// Lets the domain go with its last member.
    pub(crate) fn close(&mut self, domain: DomainId) {
        if let Some(entry) = self.table.get_mut(domain.index, domain.generation) {
            entry.closed = true;
        }
        self.drop_if_over(domain);
    }

    fn drop_if_over(&mut self, domain: DomainId) {
        let entry = self.table.get(domain.index, domain.generation);
        if entry.is_some_and(|entry| entry.closed && entry.members == 0) {
            self.table.remove(domain.index, domain.generation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_domain_goes_with_its_last_member() {
        let mut domains = Domains::new(1);
        let domain = domains.join(None).unwrap();
        domains.join(Some(domain)).unwrap();
        domains.close(domain);
        domains.leave(domain);
        domains.join(Some(domain)).unwrap();
        domains.leave(domain);
        domains.leave(domain);
        assert_eq!(
            domains.join(Some(domain)),
            Err(FabricError::Stale("domain"))
        );
        domains.join(None).unwrap();
    }
}
