use std::ffi::{c_int, c_void};
use std::fmt;
use std::ptr::NonNull;

use rnbd_base::Errno;
use rnbd_mem::{MappingId, Memory, Span};
use rnbd_spdk_sys as sys;
use rnbd_spdk_sys::spdk_mem_map_notify_action as action;

use crate::errors::check;

/// Which mapping of a [`Memory`] each page of SPDK's belongs to, so that a buffer of SPDK's is
/// registered with a fabric once and not for every I/O.
///
/// SPDK tells of all memory that it has, and of what comes and goes later. Memory that goes keeps
/// its number, and fabrics their registrations of it, until their connections end; I/O on it must
/// have ended, which SPDK demands of everybody.
pub struct MemoryMap {
    raw: NonNull<sys::spdk_mem_map>,
    /// What the callbacks work on; freed after the map.
    _memory: Box<Memory>,
}

// SAFETY: translating is free of locks and may be done from any thread.
unsafe impl Send for MemoryMap {}
// SAFETY: as for Send.
unsafe impl Sync for MemoryMap {}

/// Of addresses that SPDK does not know.
const UNKNOWN: u64 = 0;

impl MemoryMap {
    /// A map of SPDK's memory from now on.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new(memory: &Memory) -> Result<Self, Errno> {
        let operations = sys::spdk_mem_map_ops {
            notify_cb: Some(notify),
            are_contiguous: Some(are_contiguous),
        };
        let memory = Box::new(memory.clone());
        let context = (&raw const *memory).cast_mut().cast();
        // SAFETY: the context outlives the map; the operations are copied.
        let raw = unsafe { sys::spdk_mem_map_alloc(UNKNOWN, &raw const operations, context) };
        let raw = NonNull::new(raw).ok_or(Errno::NOMEM)?;
        Ok(Self {
            raw,
            _memory: memory,
        })
    }

    /// A buffer of one of SPDK's users, with the mapping that it lies in.
    ///
    /// # Safety
    /// As for [`Span::from_raw`].
    #[must_use]
    pub unsafe fn span(&self, start: NonNull<u8>, len: usize) -> Span {
        let mut covered = len as u64;
        let address = start.as_ptr().addr() as u64;
        // SAFETY: the map is valid as long as `self` is.
        let number =
            unsafe { sys::spdk_mem_map_translate(self.raw.as_ptr(), address, &raw mut covered) };
        let mapping = match number.checked_sub(1).map(usize::try_from) {
            Some(Ok(index)) if covered >= len as u64 => MappingId::from_index(index),
            _ => MappingId::FOREIGN,
        };
        // SAFETY: the caller says so, and SPDK says which mapping it is in.
        unsafe { Span::from_raw_in(start, len, mapping) }
    }
}

impl Drop for MemoryMap {
    fn drop(&mut self) {
        let mut raw = self.raw.as_ptr();
        // SAFETY: nobody translates with it any more.
        unsafe { sys::spdk_mem_map_free(&raw mut raw) };
    }
}

impl fmt::Debug for MemoryMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryMap")
    }
}

/// Tells SPDK of memory of ours, which stays where it is from now on, so that its devices can reach
/// it. Where they cannot, as without hugepages or an IOMMU, I/O on SPDK's own NVMe disks fails;
/// nothing else needs it.
pub fn share(span: Span) {
    // SAFETY: the mapping stays for the life of the process, and its pages where they are.
    let status = unsafe { sys::spdk_mem_register(span.as_ptr().cast(), span.len()) };
    if let Err(errno) = check(status) {
        log::warn!(
            "SPDK's local devices cannot reach {} bytes: {errno}",
            span.len()
        );
    }
}

unsafe extern "C" fn notify(
    context: *mut c_void,
    map: *mut sys::spdk_mem_map,
    what: action::Type,
    address: *mut c_void,
    bytes: usize,
) -> c_int {
    // SAFETY: `new` gave it along, and it outlives the map.
    let memory = unsafe { &*context.cast::<Memory>() };
    let Some(start) = NonNull::new(address.cast::<u8>()) else {
        return Errno::INVAL.negative();
    };
    let from = address.addr() as u64;
    let len = bytes as u64;
    if what == action::SPDK_MEM_MAP_NOTIFY_REGISTER {
        // SAFETY: SPDK keeps the memory until it says otherwise, when all I/O on it has ended.
        let mapping = unsafe { memory.adopt(start, bytes) };
        let number = mapping.index().map_or(UNKNOWN, |index| index as u64 + 1);
        // SAFETY: the map is the one that is being told.
        unsafe { sys::spdk_mem_map_set_translation(map, from, len, number) }
    } else {
        // SAFETY: as above.
        unsafe { sys::spdk_mem_map_clear_translation(map, from, len) }
    }
}

/// Pages of one mapping are one registration.
unsafe extern "C" fn are_contiguous(one: u64, two: u64) -> c_int {
    c_int::from(one == two)
}
