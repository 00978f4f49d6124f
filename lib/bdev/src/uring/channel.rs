use std::os::fd::RawFd;

use rnbd_base::{Errno, Nanos, Progress};
use rnbd_mem::Span;

use super::ring::{Request, Ring};
use crate::channel::IoChannel;
use crate::io::{BdevIo, IoDone, IoOp};

/// A way to a file from one core.
#[derive(Debug)]
pub(super) struct UringChannel {
    ring: Ring,
    block_size: u32,
    punches_holes: bool,
    /// Set once the kernel has refused a priority, which not everybody may ask for.
    ignores_prio: bool,
    /// By tag: what the kernel has still to do of it.
    requests: Vec<Request>,
}

/// How a request goes on when the kernel has ended it.
enum Outcome {
    Ended(Result<(), Errno>),
    Again(Request),
}

impl UringChannel {
    pub(super) fn new(ring: Ring, depth: u32, block_size: u32, punches_holes: bool) -> Self {
        Self {
            ring,
            block_size,
            punches_holes,
            ignores_prio: false,
            requests: vec![Request::Sync; depth as usize],
        }
    }

    fn request_of(&self, io: &BdevIo) -> Request {
        let offset = io.offset_blocks * u64::from(self.block_size);
        let len = io.num_blocks * u64::from(self.block_size);
        let buf = io.buf;
        let prio = if self.ignores_prio { 0 } else { io.prio };
        match io.op {
            IoOp::Read => Request::Read { offset, buf, prio },
            IoOp::Write { fua } => Request::Write {
                offset,
                buf,
                prio,
                sync: fua,
            },
            IoOp::Flush => Request::Sync,
            IoOp::Unmap => Request::PunchHole { offset, len },
            IoOp::WriteZeroes { no_unmap } if self.punches_holes && !no_unmap => {
                Request::PunchHole { offset, len }
            }
            IoOp::WriteZeroes { .. } => Request::ZeroRange { offset, len },
        }
    }

    fn push(&mut self, tag: u64, request: Request) {
        let index = usize::try_from(tag).expect("tags are below the depth");
        self.requests[index] = request;
        self.ring.push(tag, request);
    }

    fn outcome(&mut self, tag: u64, result: i32) -> Outcome {
        let index = usize::try_from(tag).expect("tags are below the depth");
        let request = self.requests[index];
        match u32::try_from(result) {
            Ok(bytes) => after_success(request, bytes, self.block_size),
            Err(_) => self.after_failure(request, Errno::from_raw(result)),
        }
    }

    fn after_failure(&mut self, request: Request, errno: Errno) -> Outcome {
        if errno == Errno::AGAIN || errno == INTERRUPTED {
            return Outcome::Again(request);
        }
        let refuses_prio = errno == Errno::PERM || errno == Errno::INVAL;
        match without_prio(request) {
            Some(request) if refuses_prio => {
                self.ignores_prio = true;
                Outcome::Again(request)
            }
            _ => Outcome::Ended(Err(errno)),
        }
    }
}

/// A system call was interrupted by a signal.
const INTERRUPTED: Errno = Errno::from_raw(libc::EINTR);

/// The same request without a priority, if it has one.
fn without_prio(request: Request) -> Option<Request> {
    match request {
        Request::Read { offset, buf, prio } if prio != 0 => Some(Request::Read {
            offset,
            buf,
            prio: 0,
        }),
        Request::Write {
            offset,
            buf,
            prio,
            sync,
        } if prio != 0 => Some(Request::Write {
            offset,
            buf,
            prio: 0,
            sync,
        }),
        _ => None,
    }
}

/// A transfer may stop short, at a signal or at the end of a file that was cut short.
fn after_success(request: Request, bytes: u32, block_size: u32) -> Outcome {
    let rest = |buf: Span| match advance(buf, bytes, block_size) {
        Ok(rest) if rest.is_empty() => Err(Ok(())),
        Ok(rest) => Ok(rest),
        Err(errno) => Err(Err(errno)),
    };
    let outcome = match request {
        Request::Read { offset, buf, prio } => rest(buf).map(|buf| Request::Read {
            offset: offset + u64::from(bytes),
            buf,
            prio,
        }),
        Request::Write {
            offset,
            buf,
            prio,
            sync,
        } => rest(buf).map(|buf| Request::Write {
            offset: offset + u64::from(bytes),
            buf,
            prio,
            sync,
        }),
        Request::Sync | Request::PunchHole { .. } | Request::ZeroRange { .. } => Err(Ok(())),
    };
    match outcome {
        Ok(request) => Outcome::Again(request),
        Err(result) => Outcome::Ended(result),
    }
}

/// What is left of `buf` after `bytes`. Stopping within a block or before the first byte means
/// that the file ends there.
fn advance(buf: Span, bytes: u32, block_size: u32) -> Result<Span, Errno> {
    let done = bytes as usize;
    if done == 0 || (done < buf.len() && !bytes.is_multiple_of(block_size)) {
        return Err(Errno::IO);
    }
    let left = buf.len().checked_sub(done).ok_or(Errno::IO)?;
    buf.slice(done, left).ok_or(Errno::IO)
}

impl IoChannel for UringChannel {
    fn submit(&mut self, io: &BdevIo, _now: Nanos) {
        let request = self.request_of(io);
        self.push(io.tag, request);
    }

    fn poll(&mut self, _now: Nanos, done: &mut Vec<IoDone>) -> Progress {
        let mut worked = self.ring.submit();
        while done.len() < done.capacity()
            && let Some((tag, result)) = self.ring.pop()
        {
            worked = true;
            match self.outcome(tag, result) {
                Outcome::Ended(result) => done.push(IoDone { tag, result }),
                Outcome::Again(request) => self.push(tag, request),
            }
        }
        Progress::from_work(worked)
    }

    fn prepare_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool {
        self.ring.submit();
        fds.push(self.ring.fd());
        self.ring.is_quiet()
    }
}
