use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;

use rnbd_base::Errno;
use rnbd_spdk_sys as sys;
use rnbd_spdk_sys::spdk_bdev_io_status as status;
use rnbd_spdk_sys::spdk_bdev_io_type as io_type;

/// What an I/O does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoKind {
    /// Disk to buffers.
    Read,
    /// Buffers to disk.
    Write,
    /// Everything written becomes durable.
    Flush,
    /// The blocks' content is no longer needed.
    Unmap,
    /// The blocks read as zeroes.
    WriteZeroes,
}

impl IoKind {
    pub(crate) fn of(raw: sys::spdk_bdev_io_type::Type) -> Option<Self> {
        match raw {
            io_type::SPDK_BDEV_IO_TYPE_READ => Some(Self::Read),
            io_type::SPDK_BDEV_IO_TYPE_WRITE => Some(Self::Write),
            io_type::SPDK_BDEV_IO_TYPE_FLUSH => Some(Self::Flush),
            io_type::SPDK_BDEV_IO_TYPE_UNMAP => Some(Self::Unmap),
            io_type::SPDK_BDEV_IO_TYPE_WRITE_ZEROES => Some(Self::WriteZeroes),
            _ => None,
        }
    }
}

/// An I/O of one of SPDK's users on a disk of ours. Whoever has it owes it a completion, on the
/// thread that submitted it; one that is dropped fails with `EIO`.
pub struct Io {
    raw: NonNull<sys::spdk_bdev_io>,
}

// SAFETY: an I/O belongs to the channel that it was submitted to, which goes with its light thread.
unsafe impl Send for Io {}

impl Io {
    /// # Safety
    /// `raw` is a bdev I/O that was submitted to us and is completed by nobody else.
    pub(crate) unsafe fn new(raw: NonNull<sys::spdk_bdev_io>) -> Self {
        Self { raw }
    }

    fn raw(&self) -> &sys::spdk_bdev_io {
        // SAFETY: it is valid until it is completed, which takes this value.
        unsafe { self.raw.as_ref() }
    }

    pub(crate) fn identity(&self) -> NonNull<sys::spdk_bdev_io> {
        self.raw
    }

    pub(crate) fn bdev(&self) -> &sys::spdk_bdev {
        // SAFETY: a bdev outlives its I/O.
        unsafe { &*self.raw().bdev }
    }

    pub(crate) fn raw_kind(&self) -> sys::spdk_bdev_io_type::Type {
        self.raw().type_.into()
    }

    fn block(&self) -> &sys::spdk_bdev_io_block_params {
        // SAFETY: `kind` and what else looks here is only asked of I/O on blocks.
        unsafe { &self.raw().u.bdev }
    }

    /// What it does. A flush, if SPDK asks for something that was not offered.
    #[must_use]
    pub fn kind(&self) -> IoKind {
        IoKind::of(self.raw_kind()).unwrap_or(IoKind::Flush)
    }

    /// First block.
    #[must_use]
    pub fn offset_blocks(&self) -> u64 {
        self.block().offset_blocks
    }

    /// Number of blocks.
    #[must_use]
    pub fn num_blocks(&self) -> u64 {
        self.block().num_blocks
    }

    /// The buffers, which belong to the disk until the I/O is completed.
    #[must_use]
    pub fn buffers(&self) -> IoVecs<'_> {
        let block = self.block();
        let count = usize::try_from(block.iovcnt).unwrap_or(0);
        if block.iovs.is_null() {
            return IoVecs { rest: &[] };
        }
        // SAFETY: the array has `iovcnt` elements and stays until the I/O is completed.
        let rest = unsafe { std::slice::from_raw_parts(block.iovs, count) };
        IoVecs { rest }
    }

    /// Whether it is a read without a buffer, which SPDK is to be asked for.
    pub(crate) fn lacks_buffer(&self) -> bool {
        let first = self.buffers().rest.first();
        self.kind() == IoKind::Read && first.is_none_or(|first| first.iov_base.is_null())
    }

    /// The I/O that an abort is about.
    pub(crate) fn abort_target(&self) -> *mut sys::spdk_bdev_io {
        // SAFETY: asked only of an abort.
        unsafe { self.raw().u.abort.bio_to_abort }
    }

    /// Ends it. SPDK's user finds the errno in the AIO status, others an error of the device.
    pub fn complete(self, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.complete_status(status::SPDK_BDEV_IO_STATUS_SUCCESS),
            Err(errno) => {
                let raw = self.into_raw();
                // SAFETY: the I/O is ours and ends here.
                unsafe { sys::spdk_bdev_io_complete_aio_status(raw, errno.negative()) };
            }
        }
    }

    /// Ends it as aborted before it began.
    pub fn complete_aborted(self) {
        self.complete_status(status::SPDK_BDEV_IO_STATUS_ABORTED);
    }

    pub(crate) fn complete_failed(self) {
        self.complete_status(status::SPDK_BDEV_IO_STATUS_FAILED);
    }

    fn complete_status(self, status: sys::spdk_bdev_io_status::Type) {
        let raw = self.into_raw();
        // SAFETY: the I/O is ours and ends here.
        unsafe { sys::spdk_bdev_io_complete(raw, status) };
    }

    pub(crate) fn into_raw(self) -> *mut sys::spdk_bdev_io {
        let raw = self.raw.as_ptr();
        std::mem::forget(self);
        raw
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        // SAFETY: as in `complete`; nobody else has it.
        unsafe { sys::spdk_bdev_io_complete_aio_status(self.raw.as_ptr(), Errno::IO.negative()) };
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Io({:?})", self.raw)
    }
}

/// Stretches of memory, one after the other.
#[derive(Clone)]
pub struct IoVecs<'a> {
    rest: &'a [sys::iovec],
}

impl Iterator for IoVecs<'_> {
    type Item = (NonNull<u8>, usize);

    fn next(&mut self) -> Option<Self::Item> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        let start = NonNull::new(first.iov_base.cast::<u8>()).unwrap_or(NonNull::dangling());
        Some((start, first.iov_len))
    }
}

impl fmt::Debug for IoVecs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoVecs({})", self.rest.len())
    }
}

/// The driver's part of a channel, behind SPDK's.
pub(crate) fn channel_context(channel: *mut sys::spdk_io_channel) -> *mut c_void {
    let offset = sys::SPDK_IO_CHANNEL_STRUCT_SIZE as usize;
    channel.cast::<u8>().wrapping_add(offset).cast()
}
