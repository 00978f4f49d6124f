//! rdma-core behind safe types: the only unsafe code of this crate.
//!
//! Every object owns what it stands for and keeps what it needs alive: a queue pair its domain
//! and completion queue, those their device, a connection identifier its event channel. So
//! objects may be let go in any order. Nothing here waits, except where a function says so.

mod address;
mod chain;
mod channel;
mod cm;
mod completion;
mod device;
mod library;
mod memory;
mod queue_pair;

pub(crate) use chain::{Chain, ChainScratch, RecvChain, RemoteOp};
pub(crate) use channel::{CmChannel, CmEvent, CmEventKind};
pub(crate) use cm::{CmId, DeviceKey};
pub(crate) use completion::{CompChannel, Cq, WcBatch, WcKind, WcStatus, WorkCompletion};
pub(crate) use device::{AsyncEvent, Device, DeviceLimits, Port};
pub(crate) use library::LibraryContext;
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

/// Keeps librdmacm's list of devices in order, for which it has to be called before threads start.
///
/// Before version 52 it sorts the list by the lower 32 bits of distances between addresses. Where
/// threads have heaps of their own, devices that different threads found lie further apart, the
/// order is wrong, and when devices come or go it loses others: they cannot be used any more, or it
/// waits for itself for ever. With one heap for all threads they lie close together. What is
/// allocated per I/O does not come from there.
pub(crate) fn keep_devices_together() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call has no obligation.
    let is_set = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 1;
    #[cfg(target_env = "gnu")]
    if !is_set {
        log::warn!("verbs: threads cannot share one heap, so librdmacm may lose devices");
    }
}

/// Makes reads of a descriptor that rdma-core opened return at once.
fn set_nonblocking(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: the caller owns the object that has the descriptor, so it is open during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = fcntl_getfl(fd)?;
    fcntl_setfl(fd, flags | OFlags::NONBLOCK)
}

/// Whether one of the descriptors has something to read, in one system call. `room` is kept between
/// calls, to save allocating it.
pub(crate) fn is_any_readable(
    fds: impl Iterator<Item = RawFd>,
    room: &mut Vec<libc::pollfd>,
) -> bool {
    room.clear();
    room.extend(fds.map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }));
    let count = libc::nfds_t::try_from(room.len()).unwrap_or(libc::nfds_t::MAX);
    // SAFETY: the vector holds that many entries, and the call does not wait.
    let ready = unsafe { libc::poll(room.as_mut_ptr(), count, 0) };
    // Whoever cannot ask looks.
    ready != 0
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn one_of_several_descriptors_is_noticed() {
        let pipes = [(); 3].map(|()| rustix::pipe::pipe().unwrap());
        let mut room = Vec::new();
        let mut look = || {
            let fds = pipes.iter().map(|(reader, _)| reader.as_raw_fd());
            is_any_readable(fds, &mut room)
        };
        assert!(!look());
        rustix::io::write(&pipes[2].1, b"event").unwrap();
        assert!(look());
        assert!(look(), "until it is read");
    }
}
