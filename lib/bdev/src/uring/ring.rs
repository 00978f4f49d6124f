//! The only place that talks to io_uring.

#![allow(unsafe_code)]

use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::types::{CancelBuilder, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rnbd_base::Errno;
use rnbd_mem::{MappingId, Pin, Span};

use super::file::DiskFile;

/// The kernel's limit on entries.
const MOST_ENTRIES: u32 = 32768;
/// The kernel's limit on the size of one registered buffer.
const MOST_REGISTERED_BYTES: usize = 1 << 30;
/// The kernel's limit on the number of registered buffers.
const MOST_REGISTERED_BUFFERS: usize = 16384;
/// How long dropping a ring waits for its I/O: so many times a tenth of a second.
const DROP_WAITS: u32 = 100;
const DROP_WAIT_NS: u32 = 100_000_000;

const IORING_ENTER_GETEVENTS: u32 = 1 << 0;
const IORING_ENTER_EXT_ARG: u32 = 1 << 3;

/// The one file of every ring, by its index in the table of registered files.
const FILE: Fixed = Fixed(0);

/// What the kernel shall do with the file. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request {
    Read {
        offset: u64,
        buf: Span,
        prio: u16,
    },
    Write {
        offset: u64,
        buf: Span,
        prio: u16,
        sync: bool,
    },
    Sync,
    PunchHole {
        offset: u64,
        len: u64,
    },
    ZeroRange {
        offset: u64,
        len: u64,
    },
}

/// A ring for one file.
///
/// Dropping it takes back what the kernel has not begun, and waits up to ten seconds for the
/// rest, because the kernel writes into the buffers of reads until they end. A device that does
/// not answer for longer is reported in the log; its reads may then still change their buffers,
/// which stay mapped, later.
pub(super) struct Ring {
    ring: IoUring,
    /// By index of a mapping: its index as a registered buffer.
    registered: Vec<Option<u16>>,
    /// Pushed and not popped.
    outstanding: usize,
    _pins: Vec<Pin>,
    _file: Arc<DiskFile>,
}

impl Ring {
    /// Whether the kernel lets us have rings at all.
    pub(super) fn check_available() -> Result<(), Errno> {
        IoUring::new(2)
            .map(drop)
            .map_err(|error| Errno::from(&error))
    }

    /// A ring for `depth` requests. Those that lie in one of `pins` go without the kernel's
    /// looking up their pages each time.
    pub(super) fn new(file: &Arc<DiskFile>, depth: u32, pins: Vec<Pin>) -> Result<Self, Errno> {
        if depth > MOST_ENTRIES {
            return Err(Errno::INVAL);
        }
        let ring = IoUring::new(depth).map_err(|error| Errno::from(&error))?;
        let submitter = ring.submitter();
        submitter
            .register_files(&[file.fd()])
            .map_err(|error| Errno::from(&error))?;
        let registered = register_buffers(&ring, &pins);
        Ok(Self {
            ring,
            registered,
            outstanding: 0,
            _pins: pins,
            _file: Arc::clone(file),
        })
    }

    /// Queues a request. At most as many as the ring is deep are outstanding, and their buffers
    /// stay with the device until they end.
    pub(super) fn push(&mut self, tag: u64, request: Request) {
        let entry = self.entry(request).user_data(tag);
        // SAFETY: a span's memory is mapped for the life of the process, so the kernel never
        // writes to memory that is something else's to Rust; the file is registered.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the ring has an entry for every I/O that may be outstanding");
        self.outstanding += 1;
    }

    /// Hands everything queued to the kernel, in one call if there is anything.
    ///
    /// Failure means that the kernel is short of something; what it has not taken stays queued.
    pub(super) fn submit(&mut self) -> bool {
        if self.ring.submission().is_empty() {
            return false;
        }
        self.ring.submit().is_ok()
    }

    /// The tag and result of a request that ended.
    pub(super) fn pop(&mut self) -> Option<(u64, i32)> {
        let entry = self.ring.completion().next()?;
        self.outstanding -= 1;
        Some((entry.user_data(), entry.result()))
    }

    /// Whether nothing is left to submit or to pop until the kernel ends something.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.ring.completion().is_empty() && self.ring.submission().is_empty()
    }

    /// Readable when there are completions.
    pub(super) fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    fn entry(&self, request: Request) -> squeue::Entry {
        match request {
            Request::Read { offset, buf, prio } => self.read(offset, buf, prio),
            Request::Write {
                offset,
                buf,
                prio,
                sync,
            } => {
                let flags = if sync { libc::RWF_DSYNC } else { 0 };
                self.write(offset, buf, prio, flags)
            }
            Request::Sync => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
            Request::PunchHole { offset, len } => {
                fallocate(offset, len, libc::FALLOC_FL_PUNCH_HOLE)
            }
            Request::ZeroRange { offset, len } => {
                fallocate(offset, len, libc::FALLOC_FL_ZERO_RANGE)
            }
        }
    }

    fn read(&self, offset: u64, buf: Span, prio: u16) -> squeue::Entry {
        match self.registered_index(buf.mapping()) {
            Some(index) => opcode::ReadFixed::new(FILE, buf.as_ptr(), length(buf), index)
                .offset(offset)
                .ioprio(prio)
                .build(),
            None => opcode::Read::new(FILE, buf.as_ptr(), length(buf))
                .offset(offset)
                .ioprio(prio)
                .build(),
        }
    }

    fn write(&self, offset: u64, buf: Span, prio: u16, flags: i32) -> squeue::Entry {
        match self.registered_index(buf.mapping()) {
            Some(index) => opcode::WriteFixed::new(FILE, buf.as_ptr(), length(buf), index)
                .offset(offset)
                .ioprio(prio)
                .rw_flags(flags)
                .build(),
            None => opcode::Write::new(FILE, buf.as_ptr(), length(buf))
                .offset(offset)
                .ioprio(prio)
                .rw_flags(flags)
                .build(),
        }
    }

    fn registered_index(&self, mapping: MappingId) -> Option<u16> {
        *self.registered.get(mapping.index()?)?
    }

    /// Waits until something ends or the time is over; what is queued stays queued.
    fn wait(&self) {
        let timeout = Timespec::new().nsec(DROP_WAIT_NS);
        let args = SubmitArgs::new().timespec(&timeout);
        let flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
        // SAFETY: nothing is submitted, and `args` lives through the call.
        let _ = unsafe { self.ring.submitter().enter(0, 1, flags, Some(&args)) };
    }
}

fn length(buf: Span) -> u32 {
    u32::try_from(buf.len()).expect("the device's largest transfer fits")
}

fn fallocate(offset: u64, len: u64, mode: i32) -> squeue::Entry {
    opcode::Fallocate::new(FILE, len)
        .offset(offset)
        .mode(mode | libc::FALLOC_FL_KEEP_SIZE)
        .build()
}

/// Registers what can be, and says which mapping has which index. Without registered buffers
/// everything works too.
fn register_buffers(ring: &IoUring, pins: &[Pin]) -> Vec<Option<u16>> {
    let fits = |span: &Span| span.len() <= MOST_REGISTERED_BYTES;
    let spans = pins.iter().map(Pin::span).filter(fits);
    let spans: Vec<Span> = spans.take(MOST_REGISTERED_BUFFERS).collect();
    if spans.is_empty() {
        return Vec::new();
    }
    let vectors: Vec<libc::iovec> = spans
        .iter()
        .map(|span| libc::iovec {
            iov_base: span.as_ptr().cast(),
            iov_len: span.len(),
        })
        .collect();
    // SAFETY: the spans are whole mappings, which stay mapped for the life of the process; their
    // pins keep the pages that the kernel takes note of.
    if let Err(error) = unsafe { ring.submitter().register_buffers(&vectors) } {
        log::debug!("buffers are not registered with io_uring: {error}");
        return Vec::new();
    }
    index_by_mapping(&spans)
}

fn index_by_mapping(spans: &[Span]) -> Vec<Option<u16>> {
    let mappings = spans.iter().filter_map(|span| span.mapping().index());
    let count = mappings.clone().max().map_or(0, |last| last + 1);
    let mut table = vec![None; count];
    for (mapping, index) in mappings.zip(0..) {
        table[mapping] = Some(index);
    }
    table
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.outstanding -= self.ring.submission().len();
        if self.outstanding == 0 {
            return;
        }
        let at_once = Some(Timespec::new());
        // Not finding anything, or kernels without it (before 6.0), leaves only waiting.
        let _ = self
            .ring
            .submitter()
            .register_sync_cancel(at_once, CancelBuilder::any());
        for _ in 0..DROP_WAITS {
            while self.pop().is_some() {}
            if self.outstanding == 0 {
                return;
            }
            self.wait();
        }
        log::error!(
            "{} requests to a disk did not end within 10 s of giving it up",
            self.outstanding
        );
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} outstanding)", self.outstanding)
    }
}
