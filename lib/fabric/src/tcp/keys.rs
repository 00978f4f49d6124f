//! Memory keys: which memory a peer may write, checked on every write of a peer.
//!
//! A key is the index of a slot in one table, and an 8-bit variant that changes each time the slot
//! is opened, so that a key is dead as soon as it is closed and stays dead for the next 255
//! openings of its slot.

use rnbd_mem::Span;

use crate::slab::Slab;
use crate::types::{
    Access, ConnId, DomainId, FabricError, MemoryKey, MrId, PostError, WindowId, WindowKind,
};

/// The index has 24 bits; slot 0 is never used, so that a zeroed key opens nothing.
const KEYS_MAX: u32 = (1 << 24) - 1;

/// What a key opens now, by slot.
#[derive(Clone, Copy, Debug)]
struct Grant {
    /// The current key; `None` while nothing is open.
    open: Option<u32>,
    variant: u8,
    domain: u32,
    /// The only connection that may use it, if there is one.
    holder: Option<ConnId>,
    start: u64,
    span: Span,
}

impl Grant {
    const CLOSED: Self = Self {
        open: None,
        variant: 0,
        domain: 0,
        holder: None,
        start: 0,
        span: Span::EMPTY,
    };
}

#[derive(Debug)]
enum Key {
    Region {
        domain: DomainId,
        span: Span,
    },
    Window {
        domain: DomainId,
        kind: WindowKind,
        /// The region that it is bound in.
        region: Option<MrId>,
    },
}

/// All keys of a fabric.
#[derive(Debug)]
pub(super) struct Keys {
    table: Slab<Key>,
    grants: Vec<Grant>,
}

/// A key that a peer used and that does not open what it asked for.
pub(super) type Denied = &'static str;

impl Keys {
    pub(super) fn new() -> Self {
        Self {
            table: Slab::new(KEYS_MAX),
            grants: vec![Grant::CLOSED],
        }
    }

    /// Makes a region.
    pub(super) fn register(
        &mut self,
        domain: DomainId,
        span: Span,
        access: Access,
    ) -> Result<MemoryKey, FabricError> {
        let (index, generation) = self.insert(Key::Region { domain, span })?;
        let rkey = self.open(index, domain, None, span);
        if access == Access::Local {
            self.shut(index);
        }
        Ok(MemoryKey {
            mr: MrId { index, generation },
            lkey: rkey,
            rkey,
        })
    }

    /// Ends a region and closes the windows on it; returns its domain.
    pub(super) fn deregister(&mut self, mr: MrId) -> Option<DomainId> {
        let domain = match self.table.get(mr.index, mr.generation)? {
            Key::Region { domain, .. } => *domain,
            Key::Window { .. } => return None,
        };
        self.table.remove(mr.index, mr.generation);
        self.shut(mr.index);
        self.shut_windows_on(mr);
        Some(domain)
    }

    fn shut_windows_on(&mut self, mr: MrId) {
        for slot in 0..self.grants.len() - 1 {
            let index = u32::try_from(slot).expect("there are at most 2^24 keys");
            if let Some(Key::Window { region, .. }) = self.table.at_mut(index)
                && *region == Some(mr)
            {
                *region = None;
                self.shut(index);
            }
        }
    }

    /// Makes an unbound window.
    pub(super) fn alloc_window(
        &mut self,
        domain: DomainId,
        kind: WindowKind,
    ) -> Result<WindowId, FabricError> {
        let region = None;
        let (index, generation) = self.insert(Key::Window {
            domain,
            kind,
            region,
        })?;
        Ok(WindowId { index, generation })
    }

    /// Closes and frees a window; returns its domain.
    pub(super) fn free_window(&mut self, window: WindowId) -> Option<DomainId> {
        let domain = match self.table.get(window.index, window.generation)? {
            Key::Window { domain, .. } => *domain,
            Key::Region { .. } => return None,
        };
        self.table.remove(window.index, window.generation);
        self.shut(window.index);
        Some(domain)
    }

    /// The connection that a window is bound on, if it is for one connection.
    pub(super) fn holder_of(&self, window: WindowId) -> Option<ConnId> {
        self.table.get(window.index, window.generation)?;
        let grant = &self.grants[window.index as usize + 1];
        grant.open.and(grant.holder)
    }

    /// Opens `span` of a region through a window; returns the new key.
    pub(super) fn bind(
        &mut self,
        conn: ConnId,
        conn_domain: DomainId,
        window: WindowId,
        mr: MrId,
        span: Span,
    ) -> Result<u32, PostError> {
        let Some(Key::Region {
            domain,
            span: whole,
        }) = self.table.get(mr.index, mr.generation)
        else {
            return Err(PostError::NoWindow);
        };
        if *domain != conn_domain || !contains(*whole, span) {
            return Err(PostError::NoWindow);
        }
        let Some(Key::Window {
            domain,
            kind,
            region,
        }) = self.table.get_mut(window.index, window.generation)
        else {
            return Err(PostError::NoWindow);
        };
        if *domain != conn_domain {
            return Err(PostError::NoWindow);
        }
        *region = Some(mr);
        let holder = (*kind == WindowKind::Connection).then_some(conn);
        Ok(self.open(window.index, conn_domain, holder, span))
    }

    /// Closes a window of ours.
    pub(super) fn invalidate(&mut self, window: WindowId) -> Result<(), PostError> {
        match self.table.get_mut(window.index, window.generation) {
            Some(Key::Window { region, .. }) => *region = None,
            _ => return Err(PostError::NoWindow),
        }
        self.shut(window.index);
        Ok(())
    }

    /// Closes the window that a peer names by its key.
    pub(super) fn invalidate_by_peer(&mut self, conn: ConnId, rkey: u32) -> Result<(), Denied> {
        let slot = (rkey >> 8) as usize;
        let named = self.grants.get(slot);
        let bound_here =
            named.is_some_and(|grant| grant.open == Some(rkey) && grant.holder == Some(conn));
        if !bound_here {
            return Err("an invalidation of a key that is not a window of the connection");
        }
        let index = (rkey >> 8) - 1;
        if let Some(Key::Window { region, .. }) = self.table.at_mut(index) {
            *region = None;
        }
        self.shut(index);
        Ok(())
    }

    /// The memory that a peer may write at `addr`.
    pub(super) fn find(
        &self,
        conn: ConnId,
        domain: DomainId,
        rkey: u32,
        addr: u64,
        len: u32,
    ) -> Result<Span, Denied> {
        let grant = self
            .grants
            .get((rkey >> 8) as usize)
            .filter(|grant| grant.open == Some(rkey) && grant.domain == domain.index)
            .filter(|grant| grant.holder.is_none_or(|holder| holder == conn))
            .ok_or("a write with a key that is not valid")?;
        let offset = addr.checked_sub(grant.start);
        offset
            .and_then(|offset| usize::try_from(offset).ok())
            .and_then(|offset| grant.span.slice(offset, len as usize))
            .ok_or("a write outside the range of its key")
    }

    fn insert(&mut self, key: Key) -> Result<(u32, u32), FabricError> {
        let taken = self.table.insert(|_, _| key);
        let (index, generation) = taken.map_err(|_| FabricError::Limit {
            what: "memory keys",
            limit: u64::from(KEYS_MAX),
        })?;
        let slots = index as usize + 2;
        if self.grants.len() < slots {
            self.grants.resize(slots, Grant::CLOSED);
        }
        Ok((index, generation))
    }

    fn open(&mut self, index: u32, domain: DomainId, holder: Option<ConnId>, span: Span) -> u32 {
        let slot = index + 1;
        let grant = &mut self.grants[slot as usize];
        let variant = grant.variant.wrapping_add(1);
        let rkey = slot << 8 | u32::from(variant);
        *grant = Grant {
            open: Some(rkey),
            variant,
            domain: domain.index,
            holder,
            start: span.addr(),
            span,
        };
        rkey
    }

    fn shut(&mut self, index: u32) {
        self.grants[index as usize + 1].open = None;
    }
}

fn contains(whole: Span, part: Span) -> bool {
    let offset = part.addr().checked_sub(whole.addr());
    offset
        .and_then(|offset| usize::try_from(offset).ok())
        .is_some_and(|offset| whole.slice(offset, part.len()).is_some())
}

#[cfg(test)]
mod tests;
