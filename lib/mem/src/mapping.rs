//! Anonymous mappings: the only place where address space is asked of the kernel.

use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

use crate::span::Span;

/// What a buffer's pages should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// Hugepages where enough are free; else ordinary pages that the kernel may join to
    /// transparent hugepages. For memory that is hot or that a device reads and writes.
    #[default]
    PreferHuge,
    /// Ordinary pages, which become resident only when touched. For large areas of which little
    /// may ever be used.
    Small,
}

/// What a buffer's pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Huge2M,
    /// 1 GiB.
    Huge1G,
}

impl PageSize {
    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Small => 4 << 10,
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }
}

/// A mapping that is never unmapped.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) start: NonNull<u8>,
    pub(crate) len: usize,
    pub(crate) page_size: PageSize,
    /// Whether the kernel may join its ordinary pages to transparent hugepages.
    pub(crate) transparent: bool,
    /// How many have told a device about the pages.
    pub(crate) pins: u32,
}

// SAFETY: a mapping is an address range of the process, reachable from every thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` zeroed bytes; `len` is a multiple of the page size.
    pub(crate) fn new(len: usize, page_size: PageSize) -> Result<Self, Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | huge_flags(page_size);
        // A reserved hugepage must be there when it is touched: no overcommit for those.
        let flags = if page_size == PageSize::Small {
            flags
        } else {
            flags - MapFlags::NORESERVE
        };
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel picks the address, so no existing mapping is touched.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, flags) }?;
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self {
            start,
            len,
            page_size,
            transparent: false,
            pins: 0,
        })
    }

    /// Memory that somebody else mapped.
    pub(crate) fn adopted(start: NonNull<u8>, len: usize) -> Self {
        Self {
            start,
            len,
            page_size: PageSize::Small,
            transparent: false,
            pins: 0,
        }
    }

    /// Lets the kernel join ordinary pages to hugepages, which spares most of the TLB misses.
    pub(crate) fn make_transparent(&mut self) {
        let start = self.start.as_ptr().cast();
        // SAFETY: the advice changes neither content nor extent of our own mapping.
        let advised = unsafe { madvise(start, self.len, Advice::LinuxHugepage) };
        if let Err(errno) = advised {
            log::debug!("there are no transparent hugepages: {errno}");
        }
        // Also without them, so that the next buffer of the kind finds this mapping.
        self.transparent = true;
    }

    /// Gives the pages back to the system; the range then reads as zeroes again.
    ///
    /// # Errors
    /// The kernel's, for hugepages on kernels before 5.18: the pages then stay.
    pub(crate) fn decommit(&self) -> Result<(), Errno> {
        let start = self.start.as_ptr().cast();
        // SAFETY: the range is a private anonymous mapping of ours, whose content nobody needs any
        // more; it stays mapped.
        unsafe { madvise(start, self.len, Advice::LinuxDontNeed) }
    }

    /// Asks the kernel to take the pages from `node`; only memory not touched yet is affected.
    pub(crate) fn bind_to_node(&self, node: u32) -> Result<(), Errno> {
        const MPOL_PREFERRED: libc::c_int = 1;
        let mask: [u64; 16] = node_mask(node).ok_or(Errno::INVAL)?;
        // SAFETY: mbind(addr, len, mode, mask, bits, flags) reads `mask` and changes only the
        // policy of our own mapping.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.start.as_ptr(),
                self.len,
                MPOL_PREFERRED,
                mask.as_ptr(),
                mask.len() * 64,
                0,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(last_errno())
        }
    }
}

/// Makes all pages of a buffer resident now, so that nobody waits for them later.
///
/// # Errors
/// Out of memory; kernels before 5.14 do not know how and say so.
pub(crate) fn populate(span: &Span) -> Result<(), Errno> {
    // SAFETY: the span is a whole mapping of ours; its pages are faulted in, its content is kept.
    unsafe { madvise(span.as_ptr().cast(), span.len(), Advice::LinuxPopulateWrite) }
}

/// Why the system call before failed.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn node_mask(node: u32) -> Option<[u64; 16]> {
    let mut mask = [0; 16];
    *mask.get_mut(usize::try_from(node / 64).ok()?)? = 1 << (node % 64);
    Some(mask)
}

fn huge_flags(page_size: PageSize) -> MapFlags {
    match page_size {
        PageSize::Small => MapFlags::empty(),
        PageSize::Huge2M => MapFlags::HUGETLB | MapFlags::HUGE_2MB,
        PageSize::Huge1G => MapFlags::HUGETLB | MapFlags::HUGE_1GB,
    }
}
