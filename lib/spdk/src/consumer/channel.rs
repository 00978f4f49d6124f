//! I/O on a bdev of SPDK's from one light thread.
//!
//! ```text
//!  submit ──> SPDK ──> completed ──> ended, for `poll`
//!     └─ no spdk_bdev_io is free: waits in SPDK's queue, and is submitted from there
//! ```
//!
//! A write that must be durable is followed by a flush.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::fmt;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rnbd_base::{Errno, Nanos, Progress};
use rnbd_bdev::{BdevIo, IoChannel, IoDone, IoOp};
use rnbd_mem::Span;
use rnbd_spdk_sys as sys;
use rnbd_spdk_sys::spdk_bdev_io_type as io_type;

use super::OpenDesc;
use super::status::errno_of;
use crate::errors::check;
use crate::thread::Thread;

/// One user's way to the bdev. Dropping it closes the way when the last I/O has ended.
pub(super) struct SpdkChannel {
    core: NonNull<Core>,
}

// SAFETY: what is behind it belongs to a light thread, which `submit` and `poll` check; dropping
// sends it there.
unsafe impl Send for SpdkChannel {}

/// What SPDK's callbacks work on. It stays where it is until nothing is outstanding.
struct Core {
    desc: Arc<OpenDesc>,
    channel: NonNull<sys::spdk_io_channel>,
    thread: Thread,
    slots: Box<[Slot]>,
    ended: RefCell<Vec<IoDone>>,
    outstanding: Cell<usize>,
    closing: Cell<bool>,
    flushes: bool,
}

/// An I/O, at a fixed address; found by its tag, which is below the depth.
struct Slot {
    core: Cell<*const Core>,
    io: Cell<BdevIo>,
    phase: Cell<Phase>,
    wait: RefCell<sys::spdk_bdev_io_wait_entry>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Itself,
    /// The write has ended, its flush has not.
    Flush,
}

impl Slot {
    fn new() -> Self {
        let io = BdevIo {
            tag: 0,
            op: IoOp::Flush,
            offset_blocks: 0,
            num_blocks: 0,
            buf: Span::EMPTY,
            prio: 0,
        };
        Self {
            core: Cell::new(std::ptr::null()),
            io: Cell::new(io),
            phase: Cell::new(Phase::Itself),
            // SAFETY: a plain C structure, set before SPDK sees it.
            wait: RefCell::new(unsafe { std::mem::zeroed() }),
        }
    }

    /// What SPDK's callbacks find it by.
    fn argument(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }
}

type WithData = unsafe extern "C" fn(
    *mut sys::spdk_bdev_desc,
    *mut sys::spdk_io_channel,
    *mut c_void,
    u64,
    u64,
    sys::spdk_bdev_io_completion_cb,
    *mut c_void,
) -> c_int;

type WithoutData = unsafe extern "C" fn(
    *mut sys::spdk_bdev_desc,
    *mut sys::spdk_io_channel,
    u64,
    u64,
    sys::spdk_bdev_io_completion_cb,
    *mut c_void,
) -> c_int;

impl SpdkChannel {
    pub(super) fn open(desc: &Arc<OpenDesc>, depth: u32) -> Result<Self, Errno> {
        let thread = Thread::current().ok_or(Errno::PERM)?;
        // SAFETY: the descriptor is open, and this is one of SPDK's threads.
        let channel = unsafe { sys::spdk_bdev_get_io_channel(desc.raw.as_ptr()) };
        let channel = NonNull::new(channel).ok_or(Errno::NOMEM)?;
        let depth = usize::try_from(depth).map_err(|_| Errno::INVAL)?;
        let core = Box::new(Core {
            desc: Arc::clone(desc),
            channel,
            thread,
            slots: std::iter::repeat_with(Slot::new).take(depth).collect(),
            ended: RefCell::new(Vec::with_capacity(depth)),
            outstanding: Cell::new(0),
            closing: Cell::new(false),
            flushes: desc.supports(io_type::SPDK_BDEV_IO_TYPE_FLUSH),
        });
        let core = NonNull::from(Box::leak(core));
        let this = Self { core };
        for slot in &this.core().slots {
            slot.core.set(core.as_ptr());
        }
        Ok(this)
    }

    fn core(&self) -> &Core {
        // SAFETY: it is freed only after this value was dropped.
        unsafe { self.core.as_ref() }
    }
}

impl Core {
    fn begin(&self, slot: &Slot) {
        match self.submit(slot) {
            Ok(()) => {}
            Err(Errno::NOMEM) => self.wait(slot),
            Err(errno) => self.end(slot, Err(errno)),
        }
    }

    fn submit(&self, slot: &Slot) -> Result<(), Errno> {
        let op = match slot.phase.get() {
            Phase::Itself => slot.io.get().op,
            Phase::Flush => IoOp::Flush,
        };
        check(match op {
            IoOp::Read => self.call_with_data(sys::spdk_bdev_read_blocks, slot),
            IoOp::Write { .. } => self.call_with_data(sys::spdk_bdev_write_blocks, slot),
            IoOp::Unmap => self.call(sys::spdk_bdev_unmap_blocks, slot),
            IoOp::WriteZeroes { .. } => self.call(sys::spdk_bdev_write_zeroes_blocks, slot),
            IoOp::Flush => self.call(sys::spdk_bdev_flush_blocks, slot),
        })
    }

    fn call_with_data(&self, function: WithData, slot: &Slot) -> c_int {
        let io = slot.io.get();
        // SAFETY: descriptor and channel are open and this is their thread; the buffer stays until
        // the I/O has ended, as the slot does, which `completed` finds again.
        unsafe {
            function(
                self.desc.raw.as_ptr(),
                self.channel.as_ptr(),
                io.buf.as_ptr().cast(),
                io.offset_blocks,
                io.num_blocks,
                Some(completed),
                slot.argument(),
            )
        }
    }

    /// A flush is of the whole disk.
    fn call(&self, function: WithoutData, slot: &Slot) -> c_int {
        let io = slot.io.get();
        let (offset, count) = match io.op {
            IoOp::Unmap | IoOp::WriteZeroes { .. } => (io.offset_blocks, io.num_blocks),
            _ => (0, self.desc.geometry().num_blocks),
        };
        // SAFETY: as for those with data.
        unsafe {
            function(
                self.desc.raw.as_ptr(),
                self.channel.as_ptr(),
                offset,
                count,
                Some(completed),
                slot.argument(),
            )
        }
    }

    /// Until SPDK has an `spdk_bdev_io` for it.
    fn wait(&self, slot: &Slot) {
        let bdev = self.desc.bdev();
        let entry = {
            let mut entry = slot.wait.borrow_mut();
            entry.bdev = bdev;
            entry.cb_fn = Some(resubmit);
            entry.cb_arg = slot.argument();
            &raw mut *entry
        };
        // SAFETY: the entry stays where it is until `resubmit` is called with it.
        let status = unsafe { sys::spdk_bdev_queue_io_wait(bdev, self.channel.as_ptr(), entry) };
        if status != 0 {
            // There is one after all.
            match self.submit(slot) {
                Ok(()) => {}
                Err(errno) => self.end(slot, Err(errno)),
            }
        }
    }

    fn on_completed(&self, slot: &Slot, result: Result<(), Errno>) {
        let durable = slot.io.get().op == IoOp::Write { fua: true };
        if durable && result.is_ok() && self.flushes && slot.phase.get() == Phase::Itself {
            slot.phase.set(Phase::Flush);
            self.begin(slot);
        } else {
            self.end(slot, result);
        }
    }

    fn end(&self, slot: &Slot, result: Result<(), Errno>) {
        let tag = slot.io.get().tag;
        self.ended.borrow_mut().push(IoDone { tag, result });
        self.outstanding.set(self.outstanding.get() - 1);
    }

    /// Whether nothing will call back any more and nobody will poll.
    fn is_over(&self) -> bool {
        self.closing.get() && self.outstanding.get() == 0
    }
}

unsafe extern "C" fn resubmit(argument: *mut c_void) {
    // SAFETY: `wait` gave the slot along, which stays while its I/O is outstanding.
    let slot = unsafe { &*argument.cast::<Slot>() };
    let core = slot.core.get();
    // SAFETY: the channel stays while an I/O is outstanding.
    unsafe { &*core }.begin(slot);
    // SAFETY: nothing of it is borrowed here.
    unsafe { free_if_over(core) };
}

unsafe extern "C" fn completed(io: *mut sys::spdk_bdev_io, success: bool, argument: *mut c_void) {
    let result = if success {
        Ok(())
    } else {
        // SAFETY: the I/O is there until it is freed below.
        Err(unsafe { errno_of(io) })
    };
    // SAFETY: a completed I/O is given back once.
    unsafe { sys::spdk_bdev_free_io(io) };
    // SAFETY: `submit` gave the slot along, which stays while its I/O is outstanding.
    let slot = unsafe { &*argument.cast::<Slot>() };
    let core = slot.core.get();
    // SAFETY: the channel stays while an I/O is outstanding.
    unsafe { &*core }.on_completed(slot, result);
    // SAFETY: nothing of it is borrowed here.
    unsafe { free_if_over(core) };
}

/// # Safety
/// `core` is valid and nothing of it is borrowed.
unsafe fn free_if_over(core: *const Core) {
    // SAFETY: the caller says so.
    if unsafe { &*core }.is_over() {
        // SAFETY: `open` leaked it; neither a user nor an I/O refers to it any more.
        drop(unsafe { Box::from_raw(core.cast_mut()) });
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // SAFETY: it was got on this thread and nothing is outstanding on it.
        unsafe { sys::spdk_put_io_channel(self.channel.as_ptr()) };
    }
}

impl IoChannel for SpdkChannel {
    fn submit(&mut self, io: &BdevIo, _now: Nanos) {
        let core = self.core();
        debug_assert!(
            core.thread.is_current(),
            "I/O goes out on the channel's thread"
        );
        let slot = usize::try_from(io.tag)
            .ok()
            .and_then(|tag| core.slots.get(tag));
        let slot = slot.expect("tags are below the channel's depth");
        slot.io.set(*io);
        slot.phase.set(Phase::Itself);
        core.outstanding.set(core.outstanding.get() + 1);
        if io.op == IoOp::Flush && !core.flushes {
            core.end(slot, Ok(()));
        } else {
            core.begin(slot);
        }
    }

    fn poll(&mut self, _now: Nanos, done: &mut Vec<IoDone>) -> Progress {
        let mut ended = self.core().ended.borrow_mut();
        let count = ended.len().min(done.capacity() - done.len());
        done.extend(ended.drain(..count));
        Progress::from_work(count > 0)
    }

    /// SPDK's threads do not sleep.
    fn prepare_sleep(&mut self, _fds: &mut Vec<RawFd>) -> bool {
        false
    }
}

impl Drop for SpdkChannel {
    fn drop(&mut self) {
        let closing = Closing(self.core);
        let thread = self.core().thread;
        if thread.is_current() {
            closing.close();
        } else {
            thread.send(move || closing.close());
        }
    }
}

/// A channel on its way to the thread that closes it.
struct Closing(NonNull<Core>);

// SAFETY: its user is gone, so it is all that is left of the channel.
unsafe impl Send for Closing {}

impl Closing {
    fn close(self) {
        // SAFETY: it is valid until it is over.
        unsafe { self.0.as_ref() }.closing.set(true);
        // SAFETY: nothing of it is borrowed here.
        unsafe { free_if_over(self.0.as_ptr()) };
    }
}

impl fmt::Debug for SpdkChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SpdkChannel({} outstanding)",
            self.core().outstanding.get()
        )
    }
}
