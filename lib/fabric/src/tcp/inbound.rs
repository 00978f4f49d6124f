//! What one connection receives: a stream of frames, put in place and delivered.
//!
//! ```text
//!             header without CHAINED
//!  Headers ──────────────────────────> Payloads ──┐
//!     ^                                   |  ^    | payload in place, frame delivered,
//!     └───────────────────────────────────┘  └────┘ next frame of the chain
//!          last frame of the chain delivered
//! ```
//!
//! One syscall takes the payloads that are known to come straight to where they belong, and what
//! follows them into the fabric's staging area, which is parsed and copied from. A frame that
//! cannot be delivered yet, for want of a posted receive or of room for its completion, stops the
//! connection; what was read behind it is kept as a leftover.

use std::os::fd::AsFd;

use rnbd_mem::Span;
use rustix::io::Errno;

use crate::tcp::frame::{CHAIN_MAX, FrameKind, HEADER_BYTES, Header};
use crate::tcp::keys::{Denied, Keys};
use crate::tcp::receives::Receives;
use crate::tcp::sys::Incoming;
use crate::types::{CloseReason, Completion, CompletionKind, ConnId, DomainId};

/// Bytes of a fabric's staging area.
pub(super) const STAGING_BYTES: usize = 16 << 10;

/// How much a receive took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Taken {
    /// Nothing was there.
    Nothing,
    /// All that was there.
    Some,
    /// All that was asked for: there may be more.
    All,
}

impl Taken {
    pub(super) fn some_if(any: bool) -> Self {
        if any { Self::Some } else { Self::Nothing }
    }
}

/// Where the frames of a connection go.
#[derive(Debug)]
pub(super) struct Delivery<'a> {
    pub(super) conn: ConnId,
    pub(super) domain: DomainId,
    pub(super) keys: &'a mut Keys,
    pub(super) completions: &'a mut Vec<Completion>,
}

impl Delivery<'_> {
    fn room(&self) -> usize {
        self.completions.capacity() - self.completions.len()
    }
}

/// Payload bytes on hand.
enum Source<'a> {
    /// Still to be copied to where they belong.
    Staged(&'a [u8]),
    /// That many are where they belong.
    Placed(usize),
}

impl Source<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Staged(bytes) => bytes.len(),
            Self::Placed(bytes) => *bytes,
        }
    }
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) receives: Receives,
    chain: Box<[Header]>,
    /// Headers in `chain`.
    frames: usize,
    /// Whether `chain` has its last header: payloads come next.
    is_chain_complete: bool,
    /// The frame of `chain` whose turn it is.
    next: usize,
    /// Payload bytes of that frame that are in place.
    placed: u32,
    leftover: Box<[u8]>,
    leftover_bytes: usize,
}

impl Inbound {
    /// A connection that may receive nothing yet.
    pub(super) fn new(receives: Receives) -> Self {
        Self {
            receives,
            chain: Box::default(),
            frames: 0,
            is_chain_complete: false,
            next: 0,
            placed: 0,
            leftover: Box::default(),
            leftover_bytes: 0,
        }
    }

    /// Takes the memory that frames need.
    pub(super) fn open(&mut self) {
        self.chain = vec![Header::default(); CHAIN_MAX].into();
        self.leftover = vec![0; STAGING_BYTES].into();
    }

    /// Takes what has arrived, with one syscall.
    pub(super) fn receive(
        &mut self,
        socket: impl AsFd,
        staging: &mut [u8; STAGING_BYTES],
        delivery: &mut Delivery<'_>,
    ) -> Result<Taken, Broken> {
        let mut staged = self.resume(staging, delivery)?;
        let resumed = Taken::some_if(staged.resumed);
        if self.is_stopped(delivery) {
            self.keep(&staging[..staged.bytes]);
            return Ok(resumed);
        }
        let received = self.read(socket, &mut staging[..], &mut staged, delivery)?;
        let consumed = self.consume(&staging[..staged.bytes], delivery)?;
        self.keep(&staging[consumed..staged.bytes]);
        Ok(received.max(resumed))
    }

    /// Whether frames wait for a receive to be posted.
    pub(super) fn is_starved(&self) -> bool {
        self.current()
            .is_some_and(|frame| frame.kind.consumes_receive() && self.receives.len() == 0)
    }

    /// Whether something can be delivered without anything further arriving.
    pub(super) fn has_backlog(&self) -> bool {
        !self.is_starved()
            && self
                .current()
                .is_some_and(|frame| self.leftover_bytes > 0 || self.placed == frame.length)
    }

    /// Goes on with what was left over; what remains is at the start of `staging`.
    fn resume(
        &mut self,
        staging: &mut [u8; STAGING_BYTES],
        delivery: &mut Delivery<'_>,
    ) -> Result<Staged, Broken> {
        if self.leftover_bytes == 0 && !self.is_chain_complete {
            return Ok(Staged::default());
        }
        let bytes = std::mem::take(&mut self.leftover_bytes);
        staging[..bytes].copy_from_slice(&self.leftover[..bytes]);
        let completed = delivery.completions.len();
        let consumed = self.consume(&staging[..bytes], delivery)?;
        staging.copy_within(consumed..bytes, 0);
        Ok(Staged {
            bytes: bytes - consumed,
            resumed: consumed > 0 || delivery.completions.len() > completed,
        })
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.leftover[..bytes.len()].copy_from_slice(bytes);
        self.leftover_bytes = bytes.len();
    }

    /// Reads once: payloads to where they belong, the rest behind what is staged.
    fn read(
        &mut self,
        socket: impl AsFd,
        staging: &mut [u8],
        staged: &mut Staged,
        delivery: &mut Delivery<'_>,
    ) -> Result<Taken, Broken> {
        let mut incoming = Incoming::new();
        let whole_chain = self.scatter(&mut incoming, delivery)?;
        let direct = incoming.bytes();
        if whole_chain {
            incoming.push_bytes(&mut staging[staged.bytes..]);
        }
        let received = match incoming.receive(socket) {
            Ok(0) => return Err(Broken::PeerClosed),
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Taken::Nothing),
            Err(errno) => return Err(Broken::Socket(errno)),
        };
        let is_all = received == incoming.bytes();
        let placed = received.min(direct);
        self.run(Source::Placed(placed), delivery)?;
        staged.bytes += received - placed;
        Ok(if is_all { Taken::All } else { Taken::Some })
    }

    /// Appends the destinations of the payloads to come, as far as they can be delivered; returns
    /// whether that is all of the chain.
    fn scatter(
        &self,
        incoming: &mut Incoming<'_>,
        delivery: &Delivery<'_>,
    ) -> Result<bool, Denied> {
        if !self.is_chain_complete {
            return Ok(true);
        }
        let deliverable = self.receives.len().min(delivery.room());
        let mut delivered = 0;
        let mut placed = self.placed;
        for frame in &self.chain[self.next..self.frames] {
            let reported = frame.kind.consumes_receive();
            if reported && delivered == deliverable || incoming.room() < 2 {
                return Ok(false);
            }
            if frame.length > placed {
                incoming.push_span(self.destination(frame, placed, delivered, delivery)?);
            }
            placed = 0;
            delivered += usize::from(reported);
        }
        Ok(true)
    }

    /// Parses as much of `bytes` as can be delivered; returns how much that was.
    fn consume(&mut self, bytes: &[u8], delivery: &mut Delivery<'_>) -> Result<usize, Broken> {
        let mut at = 0;
        loop {
            if self.is_chain_complete {
                at += self.run(Source::Staged(&bytes[at..]), delivery)?;
                if self.is_chain_complete {
                    return Ok(at);
                }
            }
            let Some(header) = bytes[at..].first_chunk::<HEADER_BYTES>() else {
                return Ok(at);
            };
            self.push_header(header)?;
            at += HEADER_BYTES;
        }
    }

    fn push_header(&mut self, bytes: &[u8; HEADER_BYTES]) -> Result<(), Denied> {
        let header = Header::decode(bytes)?;
        let slot = self.chain.get_mut(self.frames);
        *slot.ok_or("a chain of too many frames")? = header;
        self.frames += 1;
        self.is_chain_complete = !header.chained;
        Ok(())
    }

    /// Puts payload bytes in place and delivers frames, until the bytes or the chain end or a
    /// frame cannot be delivered; returns how many bytes it used.
    fn run(
        &mut self,
        mut source: Source<'_>,
        delivery: &mut Delivery<'_>,
    ) -> Result<usize, Broken> {
        let before = source.len();
        while let Some(frame) = self.current() {
            if !self.can_deliver(&frame, delivery) {
                break;
            }
            self.place(&frame, &mut source, delivery)?;
            if self.placed < frame.length {
                break;
            }
            self.deliver(&frame, delivery)?;
            self.step();
        }
        Ok(before - source.len())
    }

    fn current(&self) -> Option<Header> {
        self.is_chain_complete.then(|| self.chain[self.next])
    }

    fn step(&mut self) {
        self.placed = 0;
        self.next += 1;
        if self.next == self.frames {
            self.next = 0;
            self.frames = 0;
            self.is_chain_complete = false;
        }
    }

    fn is_stopped(&self, delivery: &Delivery<'_>) -> bool {
        self.current()
            .is_some_and(|frame| !self.can_deliver(&frame, delivery))
    }

    fn can_deliver(&self, frame: &Header, delivery: &Delivery<'_>) -> bool {
        !frame.kind.consumes_receive() || self.receives.len() > 0 && delivery.room() > 0
    }

    fn place(
        &mut self,
        frame: &Header,
        source: &mut Source<'_>,
        delivery: &Delivery<'_>,
    ) -> Result<(), Denied> {
        let rest = (frame.length - self.placed) as usize;
        let bytes = rest.min(source.len());
        if rest == 0 || bytes == 0 {
            return Ok(());
        }
        match source {
            Source::Placed(left) => *left -= bytes,
            Source::Staged(staged) => {
                let to = self.destination(frame, self.placed, 0, delivery)?;
                let (now, later) = staged.split_at(bytes);
                to.write_at(0, now);
                *staged = later;
            }
        }
        self.placed += u32::try_from(bytes).expect("at most the length of the frame");
        Ok(())
    }

    /// Where the payload of `frame` goes from byte `placed` on. `nth` receives are taken by frames
    /// before it.
    fn destination(
        &self,
        frame: &Header,
        placed: u32,
        nth: usize,
        delivery: &Delivery<'_>,
    ) -> Result<Span, Denied> {
        let Delivery { conn, domain, .. } = *delivery;
        let whole = if frame.kind.is_write() {
            let keys = &delivery.keys;
            keys.find(conn, domain, frame.rkey, frame.addr, frame.length)?
        } else {
            let receive = self.receives.peek(nth);
            receive.map_or(Span::EMPTY, |receive| receive.span)
        };
        let rest = frame.length - placed;
        whole
            .slice(placed as usize, rest as usize)
            .ok_or("a message longer than the receive")
    }

    fn deliver(&mut self, frame: &Header, delivery: &mut Delivery<'_>) -> Result<(), Denied> {
        if frame.kind == FrameKind::Write {
            return Ok(());
        }
        if frame.kind == FrameKind::SendInv {
            delivery.keys.invalidate_by_peer(delivery.conn, frame.imm)?;
        }
        let Some(receive) = self.receives.take() else {
            return Ok(());
        };
        let (imm, key) = (Some(frame.imm), Some(frame.imm));
        let recv = |imm, invalidated| CompletionKind::Recv {
            bytes: frame.length,
            imm,
            invalidated,
        };
        let kind = match frame.kind {
            FrameKind::Write | FrameKind::WriteImm => CompletionKind::WriteImm(frame.imm),
            FrameKind::Send => recv(None, None),
            FrameKind::SendImm => recv(imm, None),
            FrameKind::SendInv => recv(None, key),
        };
        delivery.completions.push(Completion {
            conn: delivery.conn,
            wr_id: receive.wr_id,
            kind,
        });
        Ok(())
    }
}

/// What lies at the start of the staging area.
#[derive(Debug, Default)]
struct Staged {
    bytes: usize,
    /// Whether anything of a leftover was used.
    resumed: bool,
}

/// Why a connection cannot receive any more. Smaller than a [`CloseReason`], which matters on the
/// data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Violation(Denied),
    PeerClosed,
    Socket(Errno),
}

impl From<Denied> for Broken {
    fn from(what: Denied) -> Self {
        Self::Violation(what)
    }
}

impl From<Broken> for CloseReason {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Violation(what) => Self::Violation(what),
            Broken::PeerClosed => Self::PeerClosed,
            Broken::Socket(errno) => close_reason(errno),
        }
    }
}

/// What an error of a socket says about the connection.
pub(super) fn close_reason(errno: Errno) -> CloseReason {
    match errno {
        Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN | Errno::CONNABORTED => {
            CloseReason::PeerClosed
        }
        Errno::CONNREFUSED => CloseReason::Refused,
        Errno::TIMEDOUT => CloseReason::TimedOut,
        Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::ADDRNOTAVAIL | Errno::HOSTDOWN => {
            CloseReason::Unreachable
        }
        Errno::NOMEM | Errno::NOBUFS | Errno::MFILE | Errno::NFILE => {
            CloseReason::Failed("the system has no room for the connection")
        }
        _ => CloseReason::Failed("the socket failed"),
    }
}
