//! Protection domains, regions and windows.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{
    ibv_access_flags, ibv_alloc_mw, ibv_alloc_pd, ibv_dealloc_mw, ibv_dealloc_pd, ibv_dereg_mr,
    ibv_mr, ibv_mw, ibv_mw_type, ibv_pd, ibv_reg_mr,
};
use rnbd_mem::Span;
use rustix::io::Errno;

use super::{Device, check_pointer, last_errno};

/// A protection domain.
pub(crate) struct Pd {
    raw: NonNull<ibv_pd>,
    device: Arc<Device>,
}

/// A registered memory region.
pub(crate) struct Mr {
    raw: NonNull<ibv_mr>,
    /// Kept so that the domain goes after the region.
    _pd: Arc<Pd>,
}

/// A memory window.
pub(crate) struct Mw {
    raw: NonNull<ibv_mw>,
    /// Kept so that the domain goes after the window.
    _pd: Arc<Pd>,
}

// SAFETY: libibverbs may be called from any thread, and each object has one owner.
unsafe impl Send for Pd {}
// SAFETY: no method changes the object; libibverbs locks what its calls share.
unsafe impl Sync for Pd {}
// SAFETY: as for Pd.
unsafe impl Send for Mr {}
// SAFETY: as for Pd, and the window's key, the one thing that changes, is only touched by the
// fabric that owns it.
unsafe impl Send for Mw {}

/// Who may do what with a region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MrAccess {
    /// The peer may write it with the region's own key.
    pub(crate) remote_write: bool,
    /// Windows may be bound to it.
    pub(crate) windows: bool,
}

/// The kinds of window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MwType {
    /// For all queue pairs of the domain.
    Type1,
    /// For the queue pair on which it is bound.
    Type2,
}

impl Pd {
    pub(crate) fn new(device: &Arc<Device>) -> Result<Arc<Self>, Errno> {
        // SAFETY: the device is open.
        let raw = check_pointer(unsafe { ibv_alloc_pd(device.raw()) })?;
        let device = Arc::clone(device);
        Ok(Arc::new(Self { raw, device }))
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(super) fn raw(&self) -> *mut ibv_pd {
        self.raw.as_ptr()
    }
}

impl Mr {
    /// Registers `span`. Pins its pages, which takes milliseconds for large ones.
    pub(crate) fn new(pd: &Arc<Pd>, span: Span, access: MrAccess) -> Result<Self, Errno> {
        let mut flags = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0;
        if access.remote_write {
            flags |= ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
        }
        if access.windows {
            flags |= ibv_access_flags::IBV_ACCESS_MW_BIND.0;
        }
        let flags = flags.cast_signed();
        let start = span.as_ptr().cast();
        // SAFETY: the memory of a span stays mapped, and nothing refers to it as Rust's own
        // (`rnbd_mem`), so a device may read and write it.
        let raw = unsafe { ibv_reg_mr(pd.raw(), start, span.len(), flags) };
        Ok(Self {
            raw: check_pointer(raw)?,
            _pd: Arc::clone(pd),
        })
    }

    pub(crate) fn lkey(&self) -> u32 {
        // SAFETY: the region is alive.
        unsafe { (*self.raw.as_ptr()).lkey }
    }

    pub(crate) fn rkey(&self) -> u32 {
        // SAFETY: the region is alive.
        unsafe { (*self.raw.as_ptr()).rkey }
    }

    pub(super) fn raw(&self) -> *mut ibv_mr {
        self.raw.as_ptr()
    }
}

impl Mw {
    pub(crate) fn new(pd: &Arc<Pd>, kind: MwType) -> Result<Self, Errno> {
        let kind = match kind {
            MwType::Type1 => ibv_mw_type::IBV_MW_TYPE_1,
            MwType::Type2 => ibv_mw_type::IBV_MW_TYPE_2,
        };
        // SAFETY: the domain is alive; the function checks whether the device has the operation.
        let raw = unsafe { ibv_alloc_mw(pd.raw(), kind) };
        Ok(Self {
            raw: check_pointer(raw.unwrap_or(std::ptr::null_mut()))?,
            _pd: Arc::clone(pd),
        })
    }

    /// The key of the last bind that was posted.
    pub(crate) fn rkey(&self) -> u32 {
        // SAFETY: the window is alive.
        unsafe { (*self.raw.as_ptr()).rkey }
    }

    pub(super) fn raw(&self) -> *mut ibv_mw {
        self.raw.as_ptr()
    }
}

impl Drop for Pd {
    fn drop(&mut self) {
        // SAFETY: what is in the domain keeps it alive, so nothing is.
        report("domain", unsafe { ibv_dealloc_pd(self.raw.as_ptr()) });
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        // SAFETY: this is the only owner. That no window is bound to it is the fabric's duty; the
        // device refuses otherwise, and the region stays.
        report("region", unsafe { ibv_dereg_mr(self.raw.as_ptr()) });
    }
}

impl Drop for Mw {
    fn drop(&mut self) {
        // SAFETY: this is the only owner; a bound window is closed by the device.
        report("window", unsafe { ibv_dealloc_mw(self.raw.as_ptr()) });
    }
}

fn report(what: &str, code: libc::c_int) {
    if code != 0 {
        log::warn!("verbs: letting a {what} go: {}", last_errno());
    }
}

impl fmt::Debug for Pd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pd({})", self.device.name())
    }
}

impl fmt::Debug for Mr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mr({:#x})", self.lkey())
    }
}

impl fmt::Debug for Mw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mw({:#x})", self.rkey())
    }
}
