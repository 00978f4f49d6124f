//! Sending from and receiving into I/O memory.
//!
//! The standard library takes slices, and nobody may hold a slice of memory that a device or a
//! peer may write; so these two calls take addresses.

#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use rnbd_mem::Span;

/// Pieces of one send: 32 replies with their data.
const MAX_PIECES: usize = 64;

/// The pieces that one system call sends.
pub(crate) struct Gather<'a> {
    pieces: [libc::iovec; MAX_PIECES],
    count: usize,
    bytes: usize,
    borrowed: PhantomData<&'a [u8]>,
}

impl<'a> Gather<'a> {
    pub(crate) fn new() -> Self {
        Self {
            pieces: [EMPTY; MAX_PIECES],
            count: 0,
            bytes: 0,
            borrowed: PhantomData,
        }
    }

    /// Whether a header and its data still fit.
    pub(crate) fn has_room(&self) -> bool {
        self.count + 2 <= MAX_PIECES
    }

    /// How many bytes were added.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds `bytes` but the first `skip`; returns what is left to skip of what follows.
    pub(crate) fn add_bytes(&mut self, bytes: &'a [u8], skip: usize) -> usize {
        let rest = bytes.get(skip..).unwrap_or_default();
        self.add(rest.as_ptr(), rest.len());
        skip.saturating_sub(bytes.len())
    }

    /// Adds `span` but the first `skip` bytes.
    pub(crate) fn add_span(&mut self, span: Span, skip: usize) {
        if let Some(rest) = span.slice(skip, span.len() - skip.min(span.len())) {
            self.add(rest.as_ptr(), rest.len());
        }
    }

    fn add(&mut self, start: *const u8, len: usize) {
        if len == 0 {
            return;
        }
        assert!(self.count < MAX_PIECES, "has_room was not asked");
        self.pieces[self.count] = libc::iovec {
            iov_base: start.cast_mut().cast(),
            iov_len: len,
        };
        self.count += 1;
        self.bytes += len;
    }

    /// Sends as much as the socket takes now.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let message = message(&mut self.pieces[..self.count]);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `message` names `count` pieces: slices borrowed for 'a, and spans, which are
        // mapped for as long as the process lives. They are only read.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// Receives what has arrived into `first`, and what is more than that into `second`.
pub(crate) fn receive(socket: BorrowedFd<'_>, first: Span, second: Span) -> io::Result<usize> {
    let mut pieces = [first, second].map(|span| libc::iovec {
        iov_base: span.as_ptr().cast(),
        iov_len: span.len(),
    });
    let mut message = message(&mut pieces);
    // SAFETY: `message` names two spans, which are mapped for as long as the process lives and
    // of which nobody holds references.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

const EMPTY: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

fn message(pieces: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all fields are integers and pointers, for which zero is a value: no address, no
    // control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len();
    message
}
