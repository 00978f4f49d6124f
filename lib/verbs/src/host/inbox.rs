//! What the host's threads tell a fabric.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rnbd_fabric::{CloseReason, ConnId};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::instance::Instance;
use crate::probe::WindowSupport;
use crate::sys::Device;

/// A message to a fabric.
#[derive(Debug)]
pub(crate) enum Told {
    /// The queue pair of a connection is gone, and its memory free.
    Released(ConnId, CloseReason),
    /// A device can be used; it was opened for this fabric.
    Opened(Arc<Device>, WindowSupport),
    /// What the windows of a device can do, which could not be tried out when it was opened.
    Tried(Arc<Instance>, WindowSupport),
    /// A device must not be used any more.
    Doomed(Arc<Instance>),
}

/// A fabric's mailbox, filled by the host's threads. Looking whether there is something costs one
/// read of memory that seldom changes.
#[derive(Debug)]
pub(crate) struct Inbox {
    has_mail: AtomicBool,
    mail: Mutex<Vec<Told>>,
    /// Ends the sleep of the fabric's core.
    bell: OwnedFd,
}

impl Inbox {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            has_mail: AtomicBool::new(false),
            mail: Mutex::default(),
            bell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    pub(crate) fn send(&self, told: Told) {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        mail.push(told);
        self.has_mail.store(true, Ordering::Release);
        drop(mail);
        // The counter of an eventfd is full after 2^64 - 2 of these, and readable then too.
        let _rung = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Whether [`Inbox::take`] has something.
    pub(crate) fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Acquire)
    }

    pub(crate) fn take(&self) -> Vec<Told> {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_mail.store(false, Ordering::Release);
        // It may have been silent: then there is nothing to read.
        let _silenced = rustix::io::read(&self.bell, &mut [0; 8]);
        std::mem::take(&mut *mail)
    }

    /// Readable when there is something.
    pub(crate) fn fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_is_announced_until_it_is_taken() {
        let inbox = Inbox::new().unwrap();
        assert!(!inbox.has_mail());
        let (index, generation) = (1, 2);
        let conn = ConnId { index, generation };
        inbox.send(Told::Released(conn, CloseReason::Local));
        assert!(inbox.has_mail());
        assert!(
            matches!(inbox.take()[..], [Told::Released(told, CloseReason::Local)] if told == conn)
        );
        assert!(!inbox.has_mail() && inbox.take().is_empty());
    }
}
