//! Regions and windows: what a domain's connections may reach.
//!
//! A window changes hands at three moments: its state here changes when an operation on it is
//! posted, the device executes that later, in order, and a peer's send with invalidate is seen
//! when it completes. Keys are handed out when a bind is posted: the device counts the lower byte
//! of a window's key up by one with each bind, which `probe` has checked.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use rnbd_fabric::slab::Slab;
use rnbd_fabric::{
    Access, ConnId, DomainId, FabricError, MemoryKey, MrId, PostError, WindowId, WindowKind,
};
use rnbd_mem::Span;
use rustix::io::Errno;

use crate::host::Scrap;
use crate::send_queue::Work;
use crate::sys::{Mr, MrAccess, Mw, MwType, Pd};

const KEYS_MAX: u32 = 1 << 24;

#[derive(Debug)]
struct Region {
    domain: DomainId,
    span: Span,
    /// `None` once the device is gone.
    mr: Option<Mr>,
    /// Parts of it that windows were bound to, as regions of their own by address and length: only
    /// on devices whose windows open the whole region. They stay until the region goes, because
    /// windows are bound to the same parts again and again.
    parts: HashMap<(u64, usize), Mr>,
}

#[derive(Debug)]
struct Window {
    domain: DomainId,
    kind: WindowKind,
    /// `None` once the device is gone.
    pd: Option<Arc<Pd>>,
    /// `None` after it had to be given up to close it; made again when it is bound next.
    mw: Option<Mw>,
    /// Its key when all that was posted is executed.
    rkey: u32,
    bound: Option<Bound>,
}

#[derive(Clone, Copy, Debug)]
struct Bound {
    mr: MrId,
    /// The connection on which it was bound.
    conn: ConnId,
}

/// What the device is to do for an entry of a send queue.
#[derive(Debug)]
pub(crate) enum Task<'a> {
    /// Bind a window: to nothing if the span is empty.
    Bind {
        mw: &'a Mw,
        mr: &'a Mr,
        span: Span,
        rkey: u32,
        is_type_1: bool,
    },
    /// Invalidate the window of type 2 with this key.
    Invalidate(u32),
    /// Only complete: what it was about is closed already.
    Nothing,
}

/// The regions and windows of a fabric.
#[derive(Debug)]
pub(crate) struct Keys {
    regions: Slab<Region>,
    windows: Slab<Window>,
    /// What is out of use and to be let go of by whoever asked for that.
    scraps: Vec<Scrap>,
    /// Windows for one connection by the upper 24 bits of their key, which stay the same.
    by_rkey: HashMap<u32, WindowId>,
}

impl Keys {
    pub(crate) fn new() -> Self {
        Self {
            regions: Slab::new(KEYS_MAX),
            windows: Slab::new(KEYS_MAX),
            scraps: Vec::new(),
            by_rkey: HashMap::new(),
        }
    }

    // Regions.

    pub(crate) fn register(
        &mut self,
        domain: DomainId,
        pd: &Arc<Pd>,
        span: Span,
        access: Access,
    ) -> Result<MemoryKey, FabricError> {
        let access = MrAccess {
            remote_write: access == Access::RemoteWrite,
            windows: pd.device().limits().has_windows,
        };
        let mr = Mr::new(pd, span, access).map_err(registering)?;
        let (lkey, rkey) = (mr.lkey(), mr.rkey());
        let mr = Some(mr);
        let region = Region {
            domain,
            span,
            mr,
            parts: HashMap::new(),
        };
        let taken = self.regions.insert(|_, _| region);
        let (index, generation) = taken.map_err(|_| limit("memory regions"))?;
        let mr = MrId { index, generation };
        Ok(MemoryKey { mr, lkey, rkey })
    }

    /// Ends a registration; returns its domain.
    pub(crate) fn deregister(&mut self, mr: MrId) -> Option<DomainId> {
        self.close_windows(|bound| bound.mr == mr);
        let mut region = self.regions.remove(mr.index, mr.generation)?;
        region.give_up(&mut self.scraps);
        Some(region.domain)
    }

    /// What went out of use since the last time, in the order in which it has to go.
    pub(crate) fn take_scraps(&mut self) -> Vec<Scrap> {
        std::mem::take(&mut self.scraps)
    }

    // Windows.

    pub(crate) fn alloc_window(
        &mut self,
        domain: DomainId,
        pd: &Arc<Pd>,
        kind: WindowKind,
    ) -> Result<WindowId, FabricError> {
        let mw = new_window(pd, kind).map_err(|errno| FabricError::System {
            what: "allocating a memory window",
            errno,
        })?;
        let rkey = mw.rkey();
        let window = Window {
            domain,
            kind,
            pd: Some(Arc::clone(pd)),
            mw: Some(mw),
            rkey,
            bound: None,
        };
        let taken = self.windows.insert(|_, _| window);
        let (index, generation) = taken.map_err(|_| limit("memory windows"))?;
        let window = WindowId { index, generation };
        if kind == WindowKind::Connection {
            self.by_rkey.insert(rkey >> 8, window);
        }
        Ok(window)
    }

    /// Closes and frees a window; returns its domain.
    pub(crate) fn free_window(&mut self, window: WindowId) -> Option<DomainId> {
        let mut entry = self.windows.remove(window.index, window.generation)?;
        entry.give_up(&mut self.scraps);
        if entry.kind == WindowKind::Connection {
            self.by_rkey.remove(&(entry.rkey >> 8));
        }
        Some(entry.domain)
    }

    /// Makes a part of a region one of its own, if it is none yet, so that a window bound to it
    /// opens nothing else.
    pub(crate) fn separate(&mut self, mr: MrId, part: Span, pd: &Arc<Pd>) -> Result<(), PostError> {
        const FOR_WINDOWS: MrAccess = MrAccess {
            remote_write: false,
            windows: true,
        };
        let region = self.regions.get_mut(mr.index, mr.generation);
        let region = region.filter(|region| !part.is_empty() && contains(region.span, part));
        let region = region.ok_or(PostError::NoWindow)?;
        if let Entry::Vacant(place) = region.parts.entry((part.addr(), part.len())) {
            let own = Mr::new(pd, part, FOR_WINDOWS).map_err(|errno| {
                log::warn!("verbs: {}", registering(errno));
                PostError::NoWindow
            })?;
            place.insert(own);
        }
        Ok(())
    }

    /// What to post in order to open `span` through the window, in order: closing it, if it is
    /// open, and the bind, with the key that it will have.
    pub(crate) fn bind(
        &mut self,
        (conn, domain): (ConnId, DomainId),
        window: WindowId,
        mr: MrId,
        span: Span,
    ) -> Result<(Option<Work>, Work, u32), PostError> {
        let region = self.regions.get(mr.index, mr.generation);
        let may_open = region.is_some_and(|region| {
            region.domain == domain && region.mr.is_some() && contains(region.span, span)
        });
        let entry = self.window_of(window, conn, domain)?;
        if !may_open || span.is_empty() {
            return Err(PostError::NoWindow);
        }
        let closing = entry
            .bound
            .filter(|_| entry.kind == WindowKind::Connection)
            .map(|bound| Work::Revoke {
                window,
                mr: Some(bound.mr),
                rkey: entry.rkey,
            });
        let old_rkey = entry.rkey;
        entry.revive().map_err(|_| PostError::NoWindow)?;
        entry.rkey = next_rkey(entry.rkey);
        entry.bound = Some(Bound { mr, conn });
        let (rkey, kind) = (entry.rkey, entry.kind);
        if kind == WindowKind::Connection && rkey >> 8 != old_rkey >> 8 {
            self.by_rkey.remove(&(old_rkey >> 8));
            self.by_rkey.insert(rkey >> 8, window);
        }
        let bind = Work::Bind {
            window,
            mr,
            span,
            rkey,
        };
        Ok((closing, bind, rkey))
    }

    /// What to post in order to close a window of ours.
    pub(crate) fn revoke(
        &mut self,
        (conn, domain): (ConnId, DomainId),
        window: WindowId,
    ) -> Result<Work, PostError> {
        let entry = self.window_of(window, conn, domain)?;
        let bound = entry.bound.take();
        if bound.is_some() && entry.kind == WindowKind::Domain {
            entry.rkey = next_rkey(entry.rkey);
        }
        Ok(Work::Revoke {
            window,
            mr: bound.map(|bound| bound.mr),
            rkey: entry.rkey,
        })
    }

    /// A peer's send closed the window with this key.
    pub(crate) fn note_invalidated(&mut self, rkey: u32) {
        let Some(window) = self.by_rkey.get(&(rkey >> 8)) else {
            return;
        };
        let entry = self.windows.get_mut(window.index, window.generation);
        if let Some(entry) = entry.filter(|entry| entry.rkey == rkey) {
            entry.bound = None;
        }
    }

    /// The window, if connections of the domain may use it, and this one in particular.
    fn window_of(
        &mut self,
        window: WindowId,
        conn: ConnId,
        domain: DomainId,
    ) -> Result<&mut Window, PostError> {
        let entry = self.windows.get_mut(window.index, window.generation);
        entry
            .filter(|entry| entry.domain == domain)
            .filter(|entry| {
                let holder = entry.bound.map(|bound| bound.conn);
                entry.kind == WindowKind::Domain || holder.is_none_or(|holder| holder == conn)
            })
            .ok_or(PostError::NoWindow)
    }

    /// What the device is to do for an entry.
    pub(crate) fn task(&self, work: &Work) -> Task<'_> {
        match *work {
            Work::Remote(_) => Task::Nothing,
            Work::Bind {
                window,
                mr,
                span,
                rkey,
            } => self.bind_task(window, mr, span, rkey),
            Work::Revoke { mr: None, .. } => Task::Nothing,
            Work::Revoke {
                window,
                mr: Some(mr),
                rkey,
            } => match self.kind(window) {
                Some(WindowKind::Domain) => self.bind_task(window, mr, Span::EMPTY, rkey),
                Some(WindowKind::Connection) => Task::Invalidate(rkey),
                None => Task::Nothing,
            },
        }
    }

    fn kind(&self, window: WindowId) -> Option<WindowKind> {
        let entry = self.windows.get(window.index, window.generation)?;
        entry.mw.as_ref().map(|_| entry.kind)
    }

    fn bind_task(&self, window: WindowId, mr: MrId, span: Span, rkey: u32) -> Task<'_> {
        let entry = self.windows.get(window.index, window.generation);
        let region = self.regions.get(mr.index, mr.generation);
        let mw = entry.and_then(|entry| entry.mw.as_ref());
        let mr = region.and_then(|region| region.mr_of(span));
        match (entry, mw, mr) {
            (Some(entry), Some(mw), Some(mr)) if mw.rkey() >> 8 == rkey >> 8 => Task::Bind {
                mw,
                mr,
                span,
                rkey,
                is_type_1: entry.kind == WindowKind::Domain,
            },
            _ => Task::Nothing,
        }
    }

    // Going.

    /// Closes the windows of one connection, which is about to go.
    pub(crate) fn close_windows_of(&mut self, conn: ConnId) {
        for (_, entry) in self.windows.iter_mut() {
            let is_its = entry.bound.is_some_and(|bound| bound.conn == conn);
            if is_its && entry.kind == WindowKind::Connection {
                entry.give_up(&mut self.scraps);
            }
        }
    }

    fn close_windows(&mut self, is_meant: impl Fn(&Bound) -> bool) {
        for (_, entry) in self.windows.iter_mut() {
            if entry.bound.as_ref().is_some_and(&is_meant) {
                entry.give_up(&mut self.scraps);
            }
        }
    }

    /// The device is gone: lets go of what was on it; the handles stay.
    pub(crate) fn drop_domains(&mut self, is_gone: impl Fn(DomainId) -> bool) {
        for (_, entry) in self.windows.iter_mut() {
            if is_gone(entry.domain) {
                entry.give_up(&mut self.scraps);
                entry.pd = None;
            }
        }
        for (_, region) in self.regions.iter_mut() {
            if is_gone(region.domain) {
                region.give_up(&mut self.scraps);
            }
        }
    }
}

impl Region {
    fn give_up(&mut self, scraps: &mut Vec<Scrap>) {
        scraps.extend(self.parts.drain().map(|(_, part)| Scrap::Region(part)));
        scraps.extend(self.mr.take().map(Scrap::Region));
    }

    /// The region to bind a window for `part` to.
    fn mr_of(&self, part: Span) -> Option<&Mr> {
        let own = self.parts.get(&(part.addr(), part.len()));
        own.or(self.mr.as_ref())
    }
}

impl Window {
    /// Closes it from this side alone, at the price of making it anew later.
    fn give_up(&mut self, scraps: &mut Vec<Scrap>) {
        scraps.extend(self.mw.take().map(Scrap::Window));
        self.bound = None;
    }

    fn revive(&mut self) -> Result<(), Errno> {
        if self.mw.is_none() {
            let pd = self.pd.as_ref().ok_or(Errno::NODEV)?;
            let mw = new_window(pd, self.kind)?;
            self.rkey = mw.rkey();
            self.mw = Some(mw);
        }
        Ok(())
    }
}

fn new_window(pd: &Arc<Pd>, kind: WindowKind) -> Result<Mw, Errno> {
    let kind = match kind {
        WindowKind::Domain => MwType::Type1,
        WindowKind::Connection => MwType::Type2,
    };
    Mw::new(pd, kind)
}

/// A window's key after its next bind.
pub(crate) fn next_rkey(rkey: u32) -> u32 {
    (rkey & !0xff) | (rkey.wrapping_add(1) & 0xff)
}

fn contains(whole: Span, part: Span) -> bool {
    let offset = part.addr().checked_sub(whole.addr());
    offset
        .and_then(|offset| usize::try_from(offset).ok())
        .is_some_and(|offset| whole.slice(offset, part.len()).is_some())
}

fn registering(errno: Errno) -> FabricError {
    let what = match errno {
        Errno::NOMEM | Errno::AGAIN => {
            "registering memory (the limit of locked memory, ulimit -l, may be too low)"
        }
        _ => "registering memory",
    };
    FabricError::System { what, errno }
}

fn limit(what: &'static str) -> FabricError {
    FabricError::Limit {
        what,
        limit: u64::from(KEYS_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_wraps_within_its_lower_byte() {
        assert_eq!(next_rkey(0x0001_0203), 0x0001_0204);
        assert_eq!(next_rkey(0x0001_02ff), 0x0001_0200);
        assert_eq!(next_rkey(u32::MAX), 0xffff_ff00);
    }
}
