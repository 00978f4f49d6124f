//! What one connection has to send: posted operations as frames, in chains.
//!
//! ```text
//!   head            sent            chained           tail
//!    |  taken by     |  being sent   |  posted         |
//!    |  the kernel,  |  in chains    |  since the last |
//!    |  undelivered  |               |  flush          |
//! ```
//!
//! A chain is a run of frames whose headers stand together in front of their payloads. As headers
//! are kept in a ring of their own, the headers of a chain are one piece of memory for the kernel,
//! and the receiver learns all destinations before the first payload byte.

use std::os::fd::AsFd;

use rnbd_mem::{LendingPipe, Span};
use rustix::io::Errno;

use crate::tcp::frame::{CHAIN_MAX, FrameKind, HEADER_BYTES, Header};
use crate::tcp::sys::Outgoing;
use crate::types::{Completion, CompletionKind, ConnId, PostError, RemoteAddr, WorkRequest, WrOp};

/// A chain takes no further frame once its payloads have this many bytes, so that completions of
/// large transfers come one by one.
const CHAIN_PAYLOAD_BYTES: u64 = 64 << 10;

/// One syscall takes no further chain once it has this many bytes. What is left waits for the next
/// poll, so that sending and receiving alternate and the data in flight stays in the caches.
const BURST_BYTES: u64 = 512 << 10;

/// Lent memory from this size on is sent without a copy, by two more system calls.
const LEND_BYTES: usize = 32 << 10;

/// A posted operation.
#[derive(Clone, Copy, Debug)]
struct Entry {
    payload: [Span; 2],
    payload_bytes: u32,
    wr_id: u64,
    signaled: bool,
    cumulative: bool,
    lent: bool,
    what: What,
    /// Set in the first entry of a chain.
    chain: Chain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Frame(FrameKind),
    /// Done already; it only waits for its turn to complete.
    Local,
}

#[derive(Clone, Copy, Debug, Default)]
struct Chain {
    entries: u32,
    bytes: u64,
}

impl Entry {
    const EMPTY: Self = Self {
        payload: [Span::EMPTY; 2],
        payload_bytes: 0,
        wr_id: 0,
        signaled: false,
        cumulative: false,
        lent: false,
        what: What::Local,
        chain: Chain {
            entries: 0,
            bytes: 0,
        },
    };
}

/// The send queue of a connection. The four positions count up and wrap.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    headers: Box<[u8]>,
    entries: Box<[Entry]>,
    limit: u32,
    head: u32,
    sent: u32,
    chained: u32,
    tail: u32,
    /// Bytes of the chain at `sent` that the kernel took.
    chain_sent: u64,
    lending: Lending,
}

/// How lent memory is sent.
#[derive(Debug, Default)]
enum Lending {
    /// None was sent yet.
    #[default]
    Untried,
    Through(LendingPipe),
    /// Like any other: there is no pipe to be had.
    Impossible,
}

/// What goes next, in one system call.
enum Next {
    /// Pieces to copy; `lent_follows` them.
    Copied { lent_follows: bool },
    /// A stretch of lent memory, and whether other chains wait behind it.
    Lent(Span, bool),
}

impl Outbound {
    /// A queue of at most `limit` operations.
    pub(super) fn new(limit: u32) -> Self {
        let slots = limit.next_power_of_two() as usize;
        Self {
            headers: vec![0; slots * HEADER_BYTES].into(),
            entries: vec![Entry::EMPTY; slots].into(),
            limit,
            ..Self::default()
        }
    }

    /// Queues an operation; the caller has done what it does locally.
    pub(super) fn post(&mut self, wr: &WorkRequest) -> Result<(), PostError> {
        if self.is_full() {
            return Err(PostError::OverLimit);
        }
        let payload_bytes = u32::try_from(wr.bytes()).map_err(|_| PostError::OverLimit)?;
        let slot = self.slot(self.tail);
        let what = match header_of(wr.op, payload_bytes) {
            Some(header) => {
                let at = slot * HEADER_BYTES;
                self.headers[at..at + HEADER_BYTES].copy_from_slice(&header.encode());
                What::Frame(header.kind)
            }
            None => What::Local,
        };
        self.entries[slot] = Entry {
            payload: [wr.sges[0].span, wr.sges[1].span],
            payload_bytes,
            wr_id: wr.wr_id,
            signaled: wr.signaled || what == What::Local,
            cumulative: wr.cumulative,
            lent: wr.lent,
            what,
            chain: Chain::default(),
        };
        self.tail = self.tail.wrapping_add(1);
        Ok(())
    }

    /// Whether a further operation would be over the limit.
    pub(super) fn is_full(&self) -> bool {
        self.tail.wrapping_sub(self.head) >= self.limit
    }

    /// Whether nothing waits to be sent or to be delivered as a completion.
    pub(super) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Whether something waits to be sent.
    pub(super) fn has_unsent(&self) -> bool {
        self.sent != self.tail
    }

    /// Whether a completion waits to be delivered.
    pub(super) fn has_unreported(&self) -> bool {
        self.head != self.sent
    }

    /// Hands a burst of what was posted to the kernel, as far as it takes it. Returns whether
    /// anything went.
    pub(super) fn transmit(&mut self, socket: impl AsFd) -> Result<bool, Errno> {
        self.form_chains();
        self.advance(0);
        let mut burst = 0;
        while self.sent != self.chained && burst < BURST_BYTES {
            let (taken, goes_on) = self.send_next(&socket, BURST_BYTES - burst)?;
            self.advance(taken);
            burst += taken;
            if !goes_on {
                break;
            }
        }
        self.retire();
        Ok(burst > 0)
    }

    /// One system call's worth of at most about `limit` bytes. Returns how much the kernel took,
    /// and whether there is more to send and room for it.
    fn send_next(&mut self, socket: impl AsFd, limit: u64) -> Result<(u64, bool), Errno> {
        let mut outgoing = Outgoing::new();
        match self.gather(&mut outgoing, limit) {
            Next::Lent(span, more) => self.lend(socket, span, more),
            Next::Copied { lent_follows } => {
                let taken = taken_of(outgoing.send(socket, lent_follows))?;
                Ok((taken as u64, lent_follows && taken == outgoing.bytes()))
            }
        }
    }

    /// As [`Self::send_next`], of lent memory.
    fn lend(&mut self, socket: impl AsFd, span: Span, more: bool) -> Result<(u64, bool), Errno> {
        let Lending::Through(pipe) = &mut self.lending else {
            self.lending = LendingPipe::new().map_or_else(lending_failed, Lending::Through);
            return Ok((0, true));
        };
        match pipe.send(socket, span, more) {
            Err(errno) if !pipe.is_holding() => {
                self.lending = lending_failed(errno);
                Ok((0, true))
            }
            sent => {
                let taken = taken_of(sent)?;
                Ok((taken as u64, taken > 0 && !pipe.is_holding()))
            }
        }
    }

    /// Appends the completions of what was sent, as far as there is room for them; of cumulative
    /// ones in a row, the last.
    pub(super) fn deliver(&mut self, conn: ConnId, completions: &mut Vec<Completion>) {
        let mut cumulative = None;
        while self.head != self.sent {
            let entry = &self.entries[self.slot(self.head)];
            if entry.signaled {
                let completion = Completion {
                    conn,
                    wr_id: entry.wr_id,
                    kind: CompletionKind::Sent,
                };
                match cumulative.filter(|_| entry.cumulative) {
                    Some(at) => completions[at] = completion,
                    None if completions.len() == completions.capacity() => return,
                    None => {
                        cumulative = entry.cumulative.then_some(completions.len());
                        completions.push(completion);
                    }
                }
            }
            self.head = self.head.wrapping_add(1);
        }
    }

    fn slot(&self, position: u32) -> usize {
        position as usize & (self.entries.len() - 1)
    }

    fn form_chains(&mut self) {
        while self.chained != self.tail {
            let chain = self.measure_chain();
            for offset in 0..chain.entries - 1 {
                let at = self.slot(self.chained.wrapping_add(offset)) * HEADER_BYTES;
                Header::set_chained(&mut self.headers[at..at + HEADER_BYTES]);
            }
            let first = self.slot(self.chained);
            self.entries[first].chain = chain;
            self.chained = self.chained.wrapping_add(chain.entries);
        }
    }

    /// The longest chain that starts at `chained`.
    fn measure_chain(&self) -> Chain {
        let mut chain = Chain::default();
        let mut payload_bytes = 0;
        let first = self.slot(self.chained);
        let posted = self.tail.wrapping_sub(self.chained) as usize;
        let until_wrap = self.entries.len() - first;
        for entry in &self.entries[first..first + posted.min(until_wrap).min(CHAIN_MAX)] {
            if entry.what == What::Local {
                chain.entries = chain.entries.max(1);
                break;
            }
            chain.entries += 1;
            chain.bytes += HEADER_BYTES as u64 + u64::from(entry.payload_bytes);
            payload_bytes += u64::from(entry.payload_bytes);
            let last = entry.what == What::Frame(FrameKind::SendInv);
            if last || payload_bytes >= CHAIN_PAYLOAD_BYTES {
                break;
            }
        }
        chain
    }

    /// As many chains as fit into one syscall, up to the next lent memory.
    fn gather<'a>(&'a self, outgoing: &mut Outgoing<'a>, limit: u64) -> Next {
        let (mut position, mut skip) = (self.sent, self.chain_sent);
        while position != self.chained {
            let first = self.slot(position);
            let chain = self.entries[first].chain;
            let pieces_max = 1 + 2 * chain.entries as usize;
            if outgoing.room() < pieces_max || outgoing.bytes() as u64 >= limit {
                break;
            }
            position = position.wrapping_add(chain.entries);
            let lent = (chain.bytes > 0)
                .then(|| self.gather_chain(outgoing, first, chain, skip))
                .flatten();
            match lent {
                Some(span) if outgoing.bytes() == 0 => {
                    return Next::Lent(span, position != self.chained);
                }
                Some(_) => return Next::Copied { lent_follows: true },
                None => skip = 0,
            }
        }
        Next::Copied {
            lent_follows: false,
        }
    }

    /// A chain without its first `skip` bytes, up to the next lent memory, which is returned.
    fn gather_chain<'a>(
        &'a self,
        outgoing: &mut Outgoing<'a>,
        first: usize,
        chain: Chain,
        skip: u64,
    ) -> Option<Span> {
        let end = first + chain.entries as usize;
        let mut skip = usize::try_from(skip).expect("less than the memory it counts");
        let headers = &self.headers[first * HEADER_BYTES..end * HEADER_BYTES];
        outgoing.push_bytes(&headers[skip.min(headers.len())..]);
        skip = skip.saturating_sub(headers.len());
        for entry in &self.entries[first..end] {
            for span in &entry.payload {
                let skipped = skip.min(span.len());
                skip -= skipped;
                let rest = span.slice(skipped, span.len() - skipped);
                let rest = rest.filter(|rest| !rest.is_empty());
                match rest {
                    Some(rest) if self.lends(entry, span) => return Some(rest),
                    Some(rest) => {
                        rest.prefetch();
                        outgoing.push_span(rest);
                    }
                    None => {}
                }
            }
        }
        None
    }

    /// Whether a piece of an operation goes without a copy.
    fn lends(&self, entry: &Entry, span: &Span) -> bool {
        entry.lent && span.len() >= LEND_BYTES && !matches!(self.lending, Lending::Impossible)
    }

    /// Counts `taken` further bytes as sent.
    fn advance(&mut self, mut taken: u64) {
        while self.sent != self.chained {
            let chain = self.entries[self.slot(self.sent)].chain;
            let rest = chain.bytes - self.chain_sent;
            if taken < rest {
                self.chain_sent += taken;
                return;
            }
            taken -= rest;
            self.chain_sent = 0;
            self.sent = self.sent.wrapping_add(chain.entries);
        }
    }

    /// Lets go of what was sent and is not to be reported.
    fn retire(&mut self) {
        while self.head != self.sent && !self.entries[self.slot(self.head)].signaled {
            self.head = self.head.wrapping_add(1);
        }
    }
}

/// What the kernel took, with nothing being no failure.
fn taken_of(sent: Result<usize, Errno>) -> Result<usize, Errno> {
    match sent {
        Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(0),
        sent => sent,
    }
}

fn lending_failed(errno: Errno) -> Lending {
    log::info!("memory is sent by copying: no pipe: {errno}");
    Lending::Impossible
}

/// The header of an operation's frame; `None` if the peer has no part in it.
fn header_of(op: WrOp, length: u32) -> Option<Header> {
    let (kind, remote, imm) = match op {
        WrOp::Write(remote) => (FrameKind::Write, remote, 0),
        WrOp::WriteImm(remote, imm) => (FrameKind::WriteImm, remote, imm),
        WrOp::Send => (FrameKind::Send, RemoteAddr::NONE, 0),
        WrOp::SendImm(imm) => (FrameKind::SendImm, RemoteAddr::NONE, imm),
        WrOp::SendInv(rkey) => (FrameKind::SendInv, RemoteAddr::NONE, rkey),
        WrOp::Invalidate(_) => return None,
    };
    Some(Header {
        kind,
        chained: false,
        length,
        imm,
        rkey: remote.rkey,
        addr: remote.addr,
    })
}
