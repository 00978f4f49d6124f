use rnbd_base::Errno;
use rnbd_spdk_sys as sys;

/// NVMe's generic status codes that say more than that something failed.
const GENERIC: i32 = 0;
const ABORTED: [i32; 2] = [0x07, 0x08];
const WRITE_PROTECTED: i32 = 0x20;
const OUT_OF_RANGE: i32 = 0x80;
const CAPACITY_EXCEEDED: i32 = 0x81;

/// Why an I/O failed: the errno of the bdev below if there is one, else the closest to its status.
///
/// # Safety
/// `io` has failed and was not freed.
pub(super) unsafe fn errno_of(io: *const sys::spdk_bdev_io) -> Errno {
    let mut errno = 0;
    // SAFETY: the caller says so.
    unsafe { sys::spdk_bdev_io_get_aio_status(io, &raw mut errno) };
    if errno != 0 && Errno::from_raw(errno) != Errno::IO {
        return Errno::from_raw(errno);
    }
    let (mut cdw0, mut kind, mut code) = (0, 0, 0);
    // SAFETY: as above.
    unsafe { sys::spdk_bdev_io_get_nvme_status(io, &raw mut cdw0, &raw mut kind, &raw mut code) };
    match code {
        _ if kind != GENERIC => Errno::IO,
        code if ABORTED.contains(&code) => Errno::CANCELED,
        WRITE_PROTECTED => Errno::ROFS,
        OUT_OF_RANGE => Errno::INVAL,
        CAPACITY_EXCEEDED => Errno::NOSPC,
        _ => Errno::IO,
    }
}
