//! One request: what its user asks, what is posted for it, and when it is done.
//!
//! ```text
//!             begin                     all that it awaits has come
//!   Free ──────────────> Outstanding ────────────────────────────────> Free (Done)
//!                             │
//!                             │ its path is gone, no answer came
//!                             └──────────────────────────────────────> Free (outcome unknown)
//! ```
//!
//! What it awaits (protocol.md 5.7): the answer, always; that its own write was sent, if the write
//! read the user's buffer; that the window on its buffer is invalid, if there is one.

use rnbd_base::{Errno, Nanos};

use super::credit::is_up_to;
use super::error::Violation;
use super::messages::PathIndex;
use super::params::Chunk;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the server.
    Read,
    /// To the server.
    Write,
}

/// Who makes the buffer of a read inaccessible again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// Nobody: it is registered for good.
    None,
    /// We do, as soon as the answer is there.
    Local,
    /// The server does with a send before its answer; we do if it did not.
    Remote,
}

/// The buffer that a server writes the data of a read to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// Its address, as the server is to name it.
    pub addr: u64,
    /// The key that opens it.
    pub rkey: u32,
    /// What ends the access.
    pub invalidation: Invalidation,
}

/// A request as its user has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which way the data goes; requests without data have a direction too.
    pub direction: Direction,
    /// Bytes of the user message.
    pub user_bytes: u16,
    /// Bytes of data, zero for none.
    pub data_bytes: u32,
    /// For reads with data: where to.
    pub exposure: Option<Exposure>,
}

impl Request {
    /// Whether the operation that sends it reads its user's buffer.
    pub(super) fn reads_buffer(&self) -> bool {
        self.direction == Direction::Write && self.data_bytes > 0
    }
}

/// One write with immediate that carries a request.
///
/// The caller posts, as one operation, the data of a write, the user message, and
/// `header[..header_bytes]`, one after the other, to `chunk` plus `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Post {
    /// The permit of the request, which names it until it is done.
    pub msg_id: u16,
    /// The chunk it goes to.
    pub chunk: Chunk,
    /// Where in the chunk the write starts.
    pub offset: u32,
    /// The immediate.
    pub imm: u32,
    /// The RTRS message.
    pub header: [u8; 24],
    /// How much of `header` is used.
    pub header_bytes: u8,
    /// Whether to ask for a completion.
    pub signaled: bool,
    /// The serial number of the operation on its connection.
    pub serial: u32,
}

/// A request is over, and nothing touches its buffer any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Its permit, free again.
    pub msg_id: u16,
    /// What the server answered.
    pub result: Result<(), Errno>,
}

/// What an outstanding request still awaits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outstanding {
    pub(super) path: PathIndex,
    pub(super) posted_at: Nanos,
    pub(super) answer: Option<Result<(), Errno>>,
    /// The operation that reads its buffer.
    reader: Option<u32>,
    window: Window,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Window {
    /// There is none, or it is invalid.
    Closed,
    /// The server may write through it.
    Open { rkey: u32, remote: bool },
    /// Its invalidation was posted.
    Closing,
}

/// What an answer means for its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    Invalidate,
    Done(Result<(), Errno>),
}

impl Outstanding {
    pub(super) fn new(request: &Request, path: PathIndex, now: Nanos, serial: u32) -> Self {
        let open = |exposure: Exposure| match exposure.invalidation {
            Invalidation::None => Window::Closed,
            by => Window::Open {
                rkey: exposure.rkey,
                remote: by == Invalidation::Remote,
            },
        };
        Self {
            path,
            posted_at: now,
            answer: None,
            reader: request.reads_buffer().then_some(serial),
            window: request.exposure.map_or(Window::Closed, open),
        }
    }

    /// The answer came; `invalidated` is the key that the server says it invalidated before, if
    /// the answer is of the kind that follows an invalidation. `executed` is the last operation that
    /// is known to be.
    pub(super) fn on_answer(
        &mut self,
        answer: Result<(), Errno>,
        invalidated: Option<u32>,
        executed: u32,
    ) -> Result<Next, Violation> {
        if let Some(rkey) = invalidated {
            if self.window != (Window::Open { rkey, remote: true }) {
                return Err(Violation::Invalidation);
            }
            self.window = Window::Closed;
        }
        self.answer = Some(answer);
        if matches!(self.window, Window::Open { .. }) {
            self.window = Window::Closing;
            return Ok(Next::Invalidate);
        }
        Ok(self.next(executed))
    }

    pub(super) fn asked_for_invalidation(&self) -> bool {
        matches!(self.window, Window::Open { remote: true, .. })
    }

    pub(super) fn on_invalidated(&mut self, executed: u32) -> Next {
        self.window = Window::Closed;
        self.next(executed)
    }

    /// Whether nothing reads its buffer any more.
    pub(super) fn is_sent(&self, executed: u32) -> bool {
        self.reader.is_none_or(|serial| is_up_to(serial, executed))
    }

    /// What is next, if `executed` is the last operation that is known to be.
    pub(super) fn next(&self, executed: u32) -> Next {
        match self.answer {
            Some(result) if self.is_sent(executed) && self.window == Window::Closed => {
                Next::Done(result)
            }
            _ => Next::Wait,
        }
    }
}
