//! What the registry knows, behind its lock. Nothing here calls out: what is to be called or freed
//! is returned.

use std::sync::Arc;

use super::OnRemoved;
use super::error::RegistryError;
use crate::bdev::Bdev;
use crate::claim::{ClaimInfo, ClaimType, Claims};
use crate::info::BdevInfo;
use crate::node::Node;

#[derive(Default)]
pub(super) struct State {
    pub(super) entries: Vec<Entry>,
    pub(super) waiters: Vec<Waiter>,
    pub(super) last_id: u64,
}

pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) bdev: Arc<dyn Bdev>,
    pub(super) node: Arc<Node>,
    pub(super) descriptors: usize,
    pub(super) writers: usize,
    pub(super) channels: usize,
    pub(super) claims: Option<Claims>,
    pub(super) removing: bool,
    pub(super) on_removed: Option<OnRemoved>,
}

pub(super) struct Waiter {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) on_arrival: Box<dyn FnOnce() + Send>,
}

/// What a counted reference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Reader,
    Writer,
    Channel,
}

impl State {
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Returns whom to tell.
    pub(super) fn insert(
        &mut self,
        bdev: &Arc<dyn Bdev>,
    ) -> Result<Vec<Box<dyn FnOnce() + Send>>, RegistryError> {
        for name in [bdev.name().to_owned(), bdev.uuid().to_string()] {
            if self.find_mut(&name).is_ok() {
                return Err(RegistryError::Exists { name });
            }
        }
        let entry = Entry::new(self.next_id(), Arc::clone(bdev));
        let (arrived, waiting) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition(|waiter| entry.answers_to(&waiter.name));
        self.waiters = waiting;
        self.entries.push(entry);
        let arrived: Vec<Waiter> = arrived;
        Ok(arrived
            .into_iter()
            .map(|waiter| waiter.on_arrival)
            .collect())
    }

    pub(super) fn find_mut(&mut self, name: &str) -> Result<&mut Entry, RegistryError> {
        self.entries
            .iter_mut()
            .find(|entry| entry.answers_to(name))
            .ok_or_else(|| RegistryError::NotFound {
                name: name.to_owned(),
            })
    }

    pub(super) fn entry_mut(&mut self, id: u64) -> &mut Entry {
        self.entries
            .iter_mut()
            .find(|entry| entry.id == id)
            .expect("an entry stays until its last holder is gone")
    }

    /// The device and, directly or not, all that stand on it.
    pub(super) fn family_of(&self, name: &str) -> Vec<u64> {
        let mut family: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|entry| entry.answers_to(name))
            .collect();
        let mut next = 0;
        while let Some(base) = family.get(next).map(|entry| entry.bdev.name().to_owned()) {
            let stands_on_base = |entry: &&Entry| entry.bdev.base_name() == Some(base.as_str());
            family.extend(self.entries.iter().filter(stands_on_base));
            next += 1;
        }
        family.into_iter().map(|entry| entry.id).collect()
    }

    pub(super) fn names_of(&self, ids: &[u64]) -> Vec<String> {
        let listed = self.entries.iter().filter(|entry| ids.contains(&entry.id));
        listed.map(|entry| entry.bdev.name().to_owned()).collect()
    }

    /// Returns those that nobody holds.
    pub(super) fn begin_removal(&mut self, family: &[u64]) -> Vec<Entry> {
        for &id in family {
            let entry = self.entry_mut(id);
            entry.removing = true;
            entry.node.mark_removed();
        }
        family
            .iter()
            .filter_map(|&id| self.take_if_gone(id))
            .collect()
    }

    pub(super) fn take_if_gone(&mut self, id: u64) -> Option<Entry> {
        let at = self.entries.iter().position(|entry| entry.id == id)?;
        let entry = &self.entries[at];
        let gone = entry.removing && entry.descriptors == 0 && entry.channels == 0;
        gone.then(|| self.entries.remove(at))
    }
}

impl Entry {
    fn new(id: u64, bdev: Arc<dyn Bdev>) -> Self {
        Self {
            id,
            bdev,
            node: Arc::default(),
            descriptors: 0,
            writers: 0,
            channels: 0,
            claims: None,
            removing: false,
            on_removed: None,
        }
    }

    fn answers_to(&self, name: &str) -> bool {
        self.bdev.name() == name || self.bdev.uuid().to_string() == name
    }

    /// Whether it can be opened.
    pub(super) fn admit(&self, name: &str, write: bool) -> Result<(), RegistryError> {
        if self.removing {
            let name = name.to_owned();
            return Err(RegistryError::NotFound { name });
        }
        if !write {
            return Ok(());
        }
        if self.bdev.features().read_only {
            let name = name.to_owned();
            return Err(RegistryError::ReadOnly { name });
        }
        match &self.claims {
            Some(claims) => Err(self.claimed(&claims.info())),
            None => Ok(()),
        }
    }

    /// Returns what the descriptor is from now on.
    pub(super) fn claim(
        &mut self,
        desc: u64,
        holder: Holder,
        claim_type: ClaimType,
        claimer: &str,
    ) -> Result<Holder, RegistryError> {
        if let Some(claims) = &self.claims {
            if !claims.admits(claim_type) || claims.is_held_by(desc) {
                return Err(self.claimed(&claims.info()));
            }
        } else if self.writers > Self::writers_allowed(holder, claim_type) {
            let name = self.bdev.name().to_owned();
            return Err(RegistryError::Written { name });
        }
        match &mut self.claims {
            Some(claims) => claims.add(desc, claimer),
            None => self.claims = Some(Claims::new(claim_type, desc, claimer)),
        }
        if claim_type.writes() && holder == Holder::Reader {
            self.writers += 1;
            return Ok(Holder::Writer);
        }
        Ok(holder)
    }

    /// How many descriptors may be open for writing when the first claim comes: the claimer's own.
    fn writers_allowed(holder: Holder, claim_type: ClaimType) -> usize {
        usize::from(holder == Holder::Writer && claim_type.writes())
    }

    fn claimed(&self, claim: &ClaimInfo) -> RegistryError {
        RegistryError::Claimed {
            name: self.bdev.name().to_owned(),
            claimer: claim.claimers.join(", "),
            claim_type: claim.claim_type,
        }
    }

    pub(super) fn count(&mut self, holder: Holder) {
        match holder {
            Holder::Channel => self.channels += 1,
            Holder::Reader => self.descriptors += 1,
            Holder::Writer => {
                self.descriptors += 1;
                self.writers += 1;
            }
        }
    }

    pub(super) fn release(&mut self, id: u64, holder: Holder) {
        match holder {
            Holder::Channel => self.channels -= 1,
            Holder::Reader => self.descriptors -= 1,
            Holder::Writer => {
                self.descriptors -= 1;
                self.writers -= 1;
            }
        }
        if self.claims.as_mut().is_some_and(|claims| claims.remove(id)) {
            self.claims = None;
        }
    }

    pub(super) fn info(&self) -> BdevInfo {
        BdevInfo {
            bdev: Arc::clone(&self.bdev),
            descriptors: self.descriptors,
            writers: self.writers,
            channels: self.channels,
            claim: self.claims.as_ref().map(Claims::info),
            limits: self.node.limits().get(),
            removing: self.removing,
        }
    }
}
