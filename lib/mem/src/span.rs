use std::fmt;
use std::ptr::NonNull;

use crate::streaming;

const CACHE_LINE_BYTES: usize = 64;
/// How much of a span is worth fetching ahead.
const PREFETCH_BYTES: usize = 512;

/// Which mapping of the process a span lies in; fabrics keep their registrations by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MappingId(u32);

impl MappingId {
    /// Memory that did not come from a [`crate::Memory`].
    pub const FOREIGN: Self = Self(u32::MAX);

    pub(crate) fn new(index: u32) -> Self {
        Self(index)
    }

    /// The other way round from [`MappingId::index`].
    #[must_use]
    pub fn from_index(index: usize) -> Self {
        u32::try_from(index).map_or(Self::FOREIGN, Self)
    }

    /// Dense index from zero; `None` for foreign memory.
    #[must_use]
    pub fn index(self) -> Option<usize> {
        if self == Self::FOREIGN {
            None
        } else {
            usize::try_from(self.0).ok()
        }
    }
}

/// A stretch of I/O memory: an address and a length, checked on every use.
///
/// A span is a plain value. It does not own what it names and does not keep its buffer from being
/// reused; whoever submits an I/O keeps the buffer until that I/O completes. Breaking that rule
/// damages data, never memory safety.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Span {
    start: NonNull<u8>,
    len: usize,
    mapping: MappingId,
}

// SAFETY: a span is an address; the memory behind it is only accessed through raw copies that
// assume nothing about other threads, devices or peers that write there.
unsafe impl Send for Span {}
// SAFETY: as for Send; no method hands out a reference.
unsafe impl Sync for Span {}

impl Span {
    /// No bytes at all.
    pub const EMPTY: Self = Self {
        start: NonNull::dangling(),
        len: 0,
        mapping: MappingId::FOREIGN,
    };

    /// Memory that this crate did not map, for example a buffer of SPDK's or of fio's.
    ///
    /// # Safety
    /// `[start, start + len)` stays mapped, readable and writable as long as the returned value or
    /// any copy or part of it may be used, and no Rust reference to those bytes exists then.
    #[must_use]
    pub unsafe fn from_raw(start: NonNull<u8>, len: usize) -> Self {
        Self {
            start,
            len,
            mapping: MappingId::FOREIGN,
        }
    }

    /// As [`Span::from_raw`], of memory that a [`crate::Memory`] adopted.
    ///
    /// # Safety
    /// As there; and the bytes lie in that mapping.
    #[must_use]
    pub unsafe fn from_raw_in(start: NonNull<u8>, len: usize, mapping: MappingId) -> Self {
        Self {
            start,
            len,
            mapping,
        }
    }

    /// The whole of a mapping that lives as long as the process.
    pub(crate) fn of_mapping(start: NonNull<u8>, len: usize, mapping: MappingId) -> Self {
        Self {
            start,
            len,
            mapping,
        }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it names no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The mapping it lies in.
    #[must_use]
    pub fn mapping(&self) -> MappingId {
        self.mapping
    }

    /// The address, for handing to the kernel or a device.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The address as a number, as peers see it.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.start.as_ptr().expose_provenance() as u64
    }

    /// `len` bytes from `offset` on; `None` if they do not lie within.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Option<Self> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset <= self.len`, and the span lies in one mapping, so the result does too.
        let start = unsafe { self.start.add(offset) };
        Some(Self {
            start,
            len,
            mapping: self.mapping,
        })
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Panics
    /// If they do not fit: the caller's arithmetic is wrong, a peer's was checked before.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) {
        let to = self.expect_slice(offset, bytes.len());
        // SAFETY: `to` names exactly `bytes.len()` mapped bytes, and no reference to them exists,
        // so they cannot overlap `bytes`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), to.len) };
    }

    /// Copies `bytes.len()` bytes from `offset` out.
    ///
    /// # Panics
    /// If they do not lie within.
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.expect_slice(offset, bytes.len());
        // SAFETY: as in `write_at`, in the other direction.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), from.len) };
    }

    /// Copies all of `from` to the start of this span; the two may overlap.
    ///
    /// # Panics
    /// If `from` is longer.
    pub fn copy_from(&self, from: &Self) {
        let to = self.expect_slice(0, from.len);
        // SAFETY: both name `from.len` mapped bytes; `copy` allows them to overlap.
        unsafe { std::ptr::copy(from.as_ptr(), to.as_ptr(), from.len) };
    }

    /// As [`Span::copy_from`], for a place whose bytes are not needed again soon, such as a disk's:
    /// they do not go into the CPU's caches. Whoever is told of them afterwards sees them.
    ///
    /// # Panics
    /// If `from` is longer.
    pub fn store_from(&self, from: &Self) {
        let to = self.expect_slice(0, from.len);
        // SAFETY: both name `from.len` mapped bytes.
        unsafe { streaming::copy(from.as_ptr(), to.as_ptr(), from.len) };
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) {
        // SAFETY: the span names `len` mapped, writable bytes.
        unsafe { std::ptr::write_bytes(self.as_ptr(), byte, self.len) };
    }

    /// Has the CPU look up the first page and fetch the first 512 bytes into its caches, for a reader
    /// that follows soon. By then the CPU has noticed by itself that the rest is read in order; to
    /// fetch more was slower. For several spans best done in a row: a lookup that misses holds the CPU
    /// up, and several are done side by side.
    pub fn prefetch(&self) {
        for offset in (0..self.len.min(PREFETCH_BYTES)).step_by(CACHE_LINE_BYTES) {
            let line = self.start.as_ptr().wrapping_add(offset);
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a prefetch of any address is only a hint; this one lies within the span.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(line.cast());
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = line;
        }
    }

    /// Whether every byte is zero.
    #[must_use]
    pub fn is_zeroed(&self) -> bool {
        let mut block = [0_u8; 512];
        (0..self.len).step_by(block.len()).all(|offset| {
            let part = &mut block[..(self.len - offset).min(512)];
            self.read_at(offset, part);
            part.iter().all(|&byte| byte == 0)
        })
    }

    fn expect_slice(&self, offset: usize, len: usize) -> Self {
        self.slice(offset, len).unwrap_or_else(|| {
            panic!(
                "{len} bytes at {offset} do not lie within a span of {} bytes",
                self.len
            )
        })
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Span({:p}+{})", self.start, self.len)
    }
}
