//! What librdmacm has open for itself.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use rdma_sys::{ibv_context, rdma_free_devices, rdma_get_devices};
use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::io::Errno;

/// A context that librdmacm opened on a device, by its descriptors.
#[derive(Debug)]
pub(crate) struct LibraryContext {
    commands: RawFd,
    events: RawFd,
    /// What the first of them was open on.
    file: FileId,
}

/// Device and inode of a file.
type FileId = (u64, u64);

impl LibraryContext {
    /// All that librdmacm has, one for each device that there is; it opens those that it lacks. It
    /// also lets go of devices that are gone, which it otherwise does when it next meets an unknown
    /// one, and for which the kernel's removal of a device may have to wait. It does neither, and
    /// this is empty, where there is no device at all.
    pub(crate) fn all() -> Vec<Self> {
        // SAFETY: a null pointer says that the number is not wanted.
        let list = unsafe { rdma_get_devices(std::ptr::null_mut()) };
        if list.is_null() {
            return Vec::new();
        }
        let mut all = Vec::new();
        loop {
            // SAFETY: the list was got above and ends with a null pointer, and `all` is shorter.
            let entry = unsafe { list.add(all.len()) };
            // SAFETY: as above.
            let context = unsafe { entry.read() };
            // SAFETY: what is in the list stays open until the list is freed.
            let Some(context) = (unsafe { context.as_ref() }) else {
                break;
            };
            all.push(Self::of(context));
        }
        // SAFETY: the list was got above.
        unsafe { rdma_free_devices(list) };
        all
    }

    fn of(context: &ibv_context) -> Self {
        let (commands, events) = (context.cmd_fd, context.async_fd);
        let file = file_of(commands).unwrap_or_default();
        Self {
            commands,
            events,
            file,
        }
    }

    /// Closes the device under the library's feet, for when it is the last one of the host: the
    /// library keeps it open then, and the kernel waits for that with its removal. What the library
    /// does with the context later fails.
    pub(crate) fn abandon(self) {
        if file_of(self.commands) != Ok(self.file) {
            return;
        }
        let nothing = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let outcome = nothing.and_then(|nothing| {
            put_in_place(nothing.as_fd(), self.commands)?;
            put_in_place(nothing.as_fd(), self.events)
        });
        if let Err(errno) = outcome {
            log::warn!("verbs: having librdmacm let go of a device: {errno}");
        }
    }
}

fn file_of(fd: RawFd) -> Result<FileId, Errno> {
    // SAFETY: if the descriptor is not open, the call says so.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

fn put_in_place(nothing: BorrowedFd<'_>, place: RawFd) -> Result<(), Errno> {
    // SAFETY: the place is librdmacm's, was just seen to be open on the device, and is closed by
    // the library only when it finds another device.
    let code = unsafe { libc::dup3(nothing.as_raw_fd(), place, libc::O_CLOEXEC) };
    if code < 0 {
        return Err(super::last_errno());
    }
    Ok(())
}
