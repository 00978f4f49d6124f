//! The syscalls of the data path, which take memory by address. The only unsafe of this fabric.

use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use rnbd_mem::Span;
use rustix::io::Errno;

/// Most pieces that one syscall takes; the kernel's own limit is 1024.
pub(super) const PIECES_MAX: usize = 512;

/// A list of memory pieces for one syscall: spans, and bytes borrowed for `'a`.
pub(super) struct Pieces<'a> {
    vecs: [MaybeUninit<libc::iovec>; PIECES_MAX],
    len: usize,
    bytes: usize,
    borrowed: PhantomData<&'a mut [u8]>,
}

/// What the pieces are for: bytes to send may be shared, room to receive into must not be.
pub(super) struct Outgoing<'a>(Pieces<'a>);

/// Room to receive into, filled from the first piece on.
pub(super) struct Incoming<'a>(Pieces<'a>);

impl Pieces<'_> {
    fn new() -> Self {
        Self {
            vecs: [const { MaybeUninit::uninit() }; PIECES_MAX],
            len: 0,
            bytes: 0,
            borrowed: PhantomData,
        }
    }

    fn push(&mut self, start: *mut u8, len: usize) {
        if len == 0 {
            return;
        }
        self.vecs[self.len].write(libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        });
        self.len += 1;
        self.bytes += len;
    }

    /// The piece, if there is just one.
    fn only(&self) -> Option<libc::iovec> {
        // SAFETY: the first `len` pieces are initialised.
        (self.len == 1).then(|| unsafe { self.vecs[0].assume_init() })
    }

    fn message(&self) -> libc::msghdr {
        libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: self.vecs.as_ptr().cast_mut().cast(),
            msg_iovlen: self.len,
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        }
    }
}

impl<'a> Outgoing<'a> {
    pub(super) fn new() -> Self {
        Self(Pieces::new())
    }

    /// Appends `bytes`.
    pub(super) fn push_bytes(&mut self, bytes: &'a [u8]) {
        self.0.push(bytes.as_ptr().cast_mut(), bytes.len());
    }

    /// Appends the bytes of `span`.
    pub(super) fn push_span(&mut self, span: Span) {
        self.0.push(span.as_ptr(), span.len());
    }

    /// How many pieces fit.
    pub(super) fn room(&self) -> usize {
        PIECES_MAX - self.0.len
    }

    /// Bytes of all pieces.
    pub(super) fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Hands the pieces to the kernel without blocking; returns how many bytes it took. `more`:
    /// other bytes follow at once, so that the last packet may wait for them.
    pub(super) fn send(&self, socket: impl AsFd, more: bool) -> Result<usize, Errno> {
        let message = self.0.message();
        let fd = socket.as_fd().as_raw_fd();
        let more = if more { libc::MSG_MORE } else { 0 };
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | more;
        // SAFETY: `message` names initialised pieces, each mapped and readable: borrowed bytes
        // outlive `self`, and memory named by a span stays mapped (`rnbd_mem`).
        result(unsafe { libc::sendmsg(fd, &raw const message, flags) })
    }
}

impl<'a> Incoming<'a> {
    pub(super) fn new() -> Self {
        Self(Pieces::new())
    }

    /// Appends `bytes` as room.
    pub(super) fn push_bytes(&mut self, bytes: &'a mut [u8]) {
        self.0.push(bytes.as_mut_ptr(), bytes.len());
    }

    /// Appends `span` as room.
    pub(super) fn push_span(&mut self, span: Span) {
        self.0.push(span.as_ptr(), span.len());
    }

    /// How many pieces fit.
    pub(super) fn room(&self) -> usize {
        PIECES_MAX - self.0.len
    }

    /// Bytes of all pieces.
    pub(super) fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Takes what has arrived without blocking; zero means that the peer sent its last byte.
    pub(super) fn receive(&self, socket: impl AsFd) -> Result<usize, Errno> {
        let fd = socket.as_fd().as_raw_fd();
        let flags = libc::MSG_DONTWAIT;
        // The kernel is quicker with one piece than with a list of one; most looks that find
        // nothing are of this kind.
        if let Some(piece) = self.0.only() {
            // SAFETY: as below, of the one piece.
            return result(unsafe { libc::recv(fd, piece.iov_base, piece.iov_len, flags) });
        }
        let mut message = self.0.message();
        // SAFETY: `message` names initialised pieces, each mapped and writable: bytes are borrowed
        // mutably for longer than `self` lives, and memory named by a span stays mapped and is
        // never behind a reference (`rnbd_mem`).
        result(unsafe { libc::recvmsg(fd, &raw mut message, flags) })
    }
}

fn result(returned: libc::ssize_t) -> Result<usize, Errno> {
    usize::try_from(returned)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

impl fmt::Debug for Pieces<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pieces({} of {} bytes)", self.len, self.bytes)
    }
}
