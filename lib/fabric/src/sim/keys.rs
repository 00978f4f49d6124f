//! Memory keys: what a peer, or the owner, may reach through which number.

use std::collections::BTreeMap;

use fastrand::Rng;
use rnbd_mem::Span;

use super::conn::{put, table};
use crate::slab::Slab;
use crate::types::{
    Access, ConnId, DomainId, MemoryKey, MrId, PostError, RemoteAddr, Sge, WindowId, WindowKind,
};

#[derive(Debug)]
struct Region {
    domain: DomainId,
    span: Span,
    lkey: u32,
    rkey: u32,
}

#[derive(Debug)]
struct Window {
    domain: DomainId,
    kind: WindowKind,
    rkey: Option<u32>,
}

/// What an open rkey gives access to.
#[derive(Clone, Copy, Debug)]
struct Grant {
    domain: DomainId,
    /// The only connection that may use it, if there is one.
    holder: Option<ConnId>,
    span: Span,
    region: MrId,
    window: Option<WindowId>,
}

/// All keys of one fabric.
#[derive(Debug)]
pub(super) struct Keys {
    regions: Slab<Region>,
    windows: Slab<Window>,
    /// By rkey.
    grants: BTreeMap<u32, Grant>,
    /// By lkey.
    local: BTreeMap<u32, MrId>,
}

impl Keys {
    pub(super) fn new() -> Self {
        Self {
            regions: table(),
            windows: table(),
            grants: BTreeMap::new(),
            local: BTreeMap::new(),
        }
    }

    pub(super) fn register(
        &mut self,
        rng: &mut Rng,
        domain: DomainId,
        span: Span,
        access: Access,
    ) -> MemoryKey {
        let (lkey, rkey) = (self.fresh(rng), self.fresh(rng));
        let (index, generation) = put(
            &mut self.regions,
            Region {
                domain,
                span,
                lkey,
                rkey,
            },
        );
        let mr = MrId { index, generation };
        self.local.insert(lkey, mr);
        if access == Access::RemoteWrite {
            let grant = Grant {
                domain,
                holder: None,
                span,
                region: mr,
                window: None,
            };
            self.grants.insert(rkey, grant);
        }
        MemoryKey { mr, lkey, rkey }
    }

    /// Ends a region and what stands on it; returns its domain.
    pub(super) fn deregister(&mut self, mr: MrId) -> Option<DomainId> {
        let region = self.regions.remove(mr.index, mr.generation)?;
        self.local.remove(&region.lkey);
        self.grants.remove(&region.rkey);
        self.shut_where(|grant| grant.region == mr);
        Some(region.domain)
    }

    pub(super) fn alloc_window(&mut self, domain: DomainId, kind: WindowKind) -> WindowId {
        let rkey = None;
        let (index, generation) = put(&mut self.windows, Window { domain, kind, rkey });
        WindowId { index, generation }
    }

    /// Closes and frees a window; returns its domain.
    pub(super) fn free_window(&mut self, window: WindowId) -> Option<DomainId> {
        let freed = self.windows.remove(window.index, window.generation)?;
        if let Some(rkey) = freed.rkey {
            self.grants.remove(&rkey);
        }
        Some(freed.domain)
    }

    /// Opens `span` of a region through a window; returns the new key.
    pub(super) fn bind(
        &mut self,
        rng: &mut Rng,
        (conn, domain): (ConnId, DomainId),
        id: WindowId,
        mr: MrId,
        span: Span,
    ) -> Result<u32, PostError> {
        let region = self.regions.get(mr.index, mr.generation);
        let region = region.filter(|region| region.domain == domain);
        if !region.is_some_and(|region| contains(region.span, span)) {
            return Err(PostError::NoWindow);
        }
        let holder = self.holder_of_bind(id, conn, domain)?;
        self.close_window(id);
        let rkey = self.fresh(rng);
        let grant = Grant {
            domain,
            holder,
            span,
            region: mr,
            window: Some(id),
        };
        self.grants.insert(rkey, grant);
        if let Some(window) = self.windows.get_mut(id.index, id.generation) {
            window.rkey = Some(rkey);
        }
        Ok(rkey)
    }

    /// Which connection alone may use the window once bound, if one.
    fn holder_of_bind(
        &self,
        id: WindowId,
        conn: ConnId,
        domain: DomainId,
    ) -> Result<Option<ConnId>, PostError> {
        let window = self.windows.get(id.index, id.generation);
        let window = window
            .filter(|window| window.domain == domain)
            .ok_or(PostError::NoWindow)?;
        if window.kind == WindowKind::Domain {
            return Ok(None);
        }
        let bound = window.rkey.and_then(|rkey| self.grants.get(&rkey));
        match bound.and_then(|grant| grant.holder) {
            Some(holder) if holder != conn => Err(PostError::NoWindow),
            _ => Ok(Some(conn)),
        }
    }

    /// The key that the window has now, which an invalidation will close.
    pub(super) fn key_of(&self, id: WindowId) -> Result<Option<u32>, PostError> {
        let window = self.windows.get(id.index, id.generation);
        Ok(window.ok_or(PostError::NoWindow)?.rkey)
    }

    /// Closes a window; `false` if there is none.
    pub(super) fn invalidate_now(&mut self, id: WindowId) -> bool {
        self.close_window(id);
        self.key_of(id).is_ok()
    }

    /// Closes the window that has this key, if one has.
    pub(super) fn invalidate(&mut self, rkey: u32) {
        if let Some(window) = self.grants.get(&rkey).and_then(|grant| grant.window) {
            self.close_window(window);
        }
    }

    /// Closes the window that a peer names by its key.
    pub(super) fn invalidate_by_peer(
        &mut self,
        conn: ConnId,
        rkey: u32,
    ) -> Result<(), &'static str> {
        let grant = self.grants.get(&rkey);
        if grant.and_then(|grant| grant.holder) != Some(conn) {
            return Err("an invalidation of what is no window of this connection");
        }
        self.invalidate(rkey);
        Ok(())
    }

    /// The memory that a peer may write.
    pub(super) fn find(
        &self,
        (conn, domain): (ConnId, DomainId),
        remote: RemoteAddr,
        len: usize,
    ) -> Result<Span, &'static str> {
        let grant = self.grants.get(&remote.rkey);
        let grant = grant
            .filter(|grant| grant.domain == domain)
            .filter(|grant| grant.holder.is_none_or(|holder| holder == conn))
            .ok_or("a write with a key that opens nothing")?;
        part(grant.span, remote.addr, len).ok_or("a write outside the range of its key")
    }

    /// Whether the owner may use these local bytes in a work request.
    pub(super) fn may_use(&self, domain: DomainId, sge: &Sge) -> bool {
        let mr = self.local.get(&sge.lkey);
        let region = mr.and_then(|mr| self.regions.get(mr.index, mr.generation));
        region.is_some_and(|region| region.domain == domain && contains(region.span, sge.span))
    }

    /// Closes the windows that only `conn` could use.
    pub(super) fn conn_closed(&mut self, conn: ConnId) {
        self.shut_where(|grant| grant.holder == Some(conn));
    }

    fn shut_where(&mut self, which: impl Fn(&Grant) -> bool) {
        let windows: Vec<_> = self
            .grants
            .values()
            .filter(|grant| which(grant))
            .filter_map(|grant| grant.window)
            .collect();
        for window in windows {
            self.close_window(window);
        }
    }

    fn close_window(&mut self, id: WindowId) {
        let window = self.windows.get_mut(id.index, id.generation);
        if let Some(rkey) = window.and_then(|window| window.rkey.take()) {
            self.grants.remove(&rkey);
        }
    }

    /// A number that is no key now, and is most unlikely to have been one.
    fn fresh(&self, rng: &mut Rng) -> u32 {
        loop {
            let key = rng.u32(1..);
            if !self.grants.contains_key(&key) && !self.local.contains_key(&key) {
                return key;
            }
        }
    }
}

fn contains(whole: Span, inner: Span) -> bool {
    part(whole, inner.addr(), inner.len()).is_some()
}

fn part(whole: Span, addr: u64, len: usize) -> Option<Span> {
    let offset = addr.checked_sub(whole.addr())?;
    whole.slice(usize::try_from(offset).ok()?, len)
}
