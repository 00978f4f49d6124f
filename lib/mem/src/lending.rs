//! Memory that goes to a socket without being copied.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::mapping::last_errno;
use crate::span::Span;

/// What a pipe holds of page references at most: in bytes, one page each.
const PIPE_BYTES: usize = 256 << 10;

/// A pipe through which spans are lent to one socket: the kernel sends from the pages themselves,
/// where a copy would have it find new pages first.
///
/// The pages are read when they are sent, at a peer on the same host when it receives them, and
/// that is after [`LendingPipe::send`] has returned. So what is lent has to be right to send at any
/// later time, as the content of a disk in memory is: whatever is written to it meanwhile, a reader
/// that has no answer yet may get to see. Pages given back to the system stay with the kernel as
/// long as it needs them; those of memory that is pinned for a device are not given back when their
/// buffer is freed but used again, so pinned memory is not for lending.
///
/// The kernel raises `SIGPIPE` for a socket whose peer is gone; Rust programs ignore it.
#[derive(Debug)]
pub struct LendingPipe {
    entry: OwnedFd,
    exit: OwnedFd,
    /// Bytes in the pipe: the next ones of the span that is being sent.
    held: usize,
}

impl LendingPipe {
    /// An empty pipe.
    ///
    /// # Errors
    /// The process has no descriptors left, or the user no room for pipes.
    pub fn new() -> Result<Self, Errno> {
        let (exit, entry) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let _bytes = fcntl_setpipe_size(&entry, PIPE_BYTES)?;
        Ok(Self {
            entry,
            exit,
            held: 0,
        })
    }

    /// Whether the socket has not taken all that it was lent: the rest of that span is next.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.held > 0
    }

    /// Lends the first bytes of `rest`, which is what the socket has not taken of a span; returns
    /// how many it took. `more`: other bytes follow at once.
    ///
    /// # Errors
    /// `EAGAIN` if the socket takes nothing now, which must not block; the socket's own errors; if
    /// the pipe is not holding anything, also those of lending as such: then nothing was sent, and
    /// copying may work.
    pub fn send(&mut self, socket: impl AsFd, rest: Span, more: bool) -> Result<usize, Errno> {
        if self.held == 0 {
            self.held = self.fill(rest)?;
        }
        debug_assert!(self.held <= rest.len(), "another span was begun");
        let mut flags = SpliceFlags::NONBLOCK;
        flags.set(SpliceFlags::MORE, more || self.held < rest.len());
        let taken = splice(&self.exit, None, socket, None, self.held, flags)?;
        self.held -= taken;
        Ok(taken)
    }

    fn fill(&self, span: Span) -> Result<usize, Errno> {
        let piece = libc::iovec {
            iov_base: span.as_ptr().cast(),
            iov_len: span.len(),
        };
        let entry = self.entry.as_raw_fd();
        // SAFETY: the span's memory is mapped as long as the process lives; it is only read, now
        // or, by the kernel's own references to its pages, later.
        let filled = unsafe { libc::vmsplice(entry, &raw const piece, 1, libc::SPLICE_F_NONBLOCK) };
        usize::try_from(filled).map_err(|_| last_errno())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::{Buffer, Memory, MemoryConfig, Pages};

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        sender.set_nonblocking(true).unwrap();
        (sender, listener.accept().unwrap().0)
    }

    fn buffer(bytes: &[u8]) -> Buffer {
        let memory = Memory::new(MemoryConfig::default());
        let buffer = memory.alloc("test", bytes.len(), Pages::Small).unwrap();
        buffer.span().write_at(0, bytes);
        buffer
    }

    /// Lends all of `span`, however often the socket is full, while somebody receives.
    fn lend(socket: &TcpStream, span: Span) {
        let mut pipe = LendingPipe::new().unwrap();
        let mut sent = 0;
        while sent < span.len() {
            let rest = span.slice(sent, span.len() - sent).unwrap();
            match pipe.send(socket, rest, false) {
                Ok(taken) => sent += taken,
                Err(Errno::AGAIN) => std::thread::yield_now(),
                Err(errno) => panic!("{errno}"),
            }
        }
        assert!(!pipe.is_holding());
    }

    #[test]
    fn more_than_socket_and_pipe_hold_arrives_whole() {
        let bytes: Vec<u8> = (0..40_000_000_u32).map(|at| (at % 251) as u8).collect();
        let buffer = buffer(&bytes);
        let (sender, mut receiver) = connected();
        let len = bytes.len() - 77;
        let receiving = std::thread::spawn(move || {
            let mut got = vec![0; len];
            receiver.read_exact(&mut got).unwrap();
            got
        });
        lend(&sender, buffer.span().slice(77, len).unwrap());
        assert!(receiving.join().unwrap() == bytes[77..]);
    }

    #[test]
    fn memory_given_back_is_sent_as_it_was() {
        let buffer = buffer(&[7; 8192]);
        let (sender, mut receiver) = connected();
        lend(&sender, buffer.span());
        drop(buffer);
        let mut got = [0; 8192];
        receiver.read_exact(&mut got).unwrap();
        assert_eq!(got, [7; 8192]);
    }

    #[test]
    fn a_socket_that_is_full_takes_the_rest_later() {
        let bytes = vec![9; 8 << 20];
        let buffer = buffer(&bytes);
        let (sender, receiver) = connected();
        let mut pipe = LendingPipe::new().unwrap();
        let mut sent = 0;
        let full = loop {
            let rest = buffer.span().slice(sent, bytes.len() - sent).unwrap();
            match pipe.send(&sender, rest, false) {
                Ok(taken) => sent += taken,
                Err(errno) => break errno,
            }
        };
        assert_eq!(full, Errno::AGAIN);
        assert!(pipe.is_holding());
        drop(receiver);
    }
}
