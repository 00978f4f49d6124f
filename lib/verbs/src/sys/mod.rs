//! rdma-core behind safe types: the only unsafe code of this crate.
//!
//! Every object owns what it stands for and keeps what it needs alive: a queue pair its domain
//! and completion queue, those their device, a connection identifier its event channel. So
//! objects may be let go in any order. Nothing here waits, except where a function says so.

mod chain;
mod channel;
mod cm;
mod completion;
mod device;
mod memory;
mod queue_pair;

pub(crate) use chain::{Chain, ChainScratch, RecvChain, RemoteOp};
pub(crate) use channel::{CmChannel, CmEvent, CmEventKind};
pub(crate) use cm::{CmId, DeviceKey};
pub(crate) use completion::{CompChannel, Cq, WcBatch, WcKind, WcStatus, WorkCompletion};
pub(crate) use device::{AsyncEvent, Device, DeviceLimits, Port};
pub(crate) use memory::{Mr, MrAccess, Mw, MwType, Pd};
pub(crate) use queue_pair::{Qp, QpAttr, QpSizes, QpState};

use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// What the last call of the C library that failed in this thread said.
fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The result of a function that returns -1 and sets `errno`.
fn check(returned: libc::c_int) -> Result<(), Errno> {
    if returned == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

/// The result of a function that returns the error's number.
fn check_code(code: libc::c_int) -> Result<(), Errno> {
    if code == 0 {
        Ok(())
    } else {
        Err(Errno::from_raw_os_error(code.abs()))
    }
}

/// The result of a function that returns NULL and sets `errno`.
fn check_pointer<T>(pointer: *mut T) -> Result<NonNull<T>, Errno> {
    NonNull::new(pointer).ok_or_else(last_errno)
}

/// Has librdmacm let go of devices that are gone, which it otherwise does when it next meets an
/// unknown one: until then the kernel's removal of the device may have to wait.
pub(crate) fn forget_gone_devices() {
    // SAFETY: a null pointer says that the number is not wanted.
    let list = unsafe { rdma_sys::rdma_get_devices(std::ptr::null_mut()) };
    if !list.is_null() {
        // SAFETY: the list was got above.
        unsafe { rdma_sys::rdma_free_devices(list) };
    }
}

/// Makes reads of a descriptor that rdma-core opened return at once.
fn set_nonblocking(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: the caller owns the object that has the descriptor, so it is open during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = fcntl_getfl(fd)?;
    fcntl_setfl(fd, flags | OFlags::NONBLOCK)
}
