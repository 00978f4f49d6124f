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

use rnbd_mem::Span;
use rustix::io::Errno;

use crate::tcp::frame::{CHAIN_MAX, FrameKind, HEADER_BYTES, Header};
use crate::tcp::sys::Outgoing;
use crate::types::{Completion, CompletionKind, ConnId, PostError, RemoteAddr, WorkRequest, WrOp};

/// A chain takes no further frame once its payloads have this many bytes, so that completions of
/// large transfers come one by one.
const CHAIN_PAYLOAD_BYTES: u64 = 64 << 10;

/// One syscall takes no further chain once it has this many bytes. What is left waits for the next
/// poll, so that sending and receiving alternate and the data in flight stays in the caches.
const BURST_BYTES: usize = 512 << 10;

/// A posted operation.
#[derive(Clone, Copy, Debug)]
struct Entry {
    payload: [Span; 2],
    payload_bytes: u32,
    wr_id: u64,
    signaled: bool,
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
        let mut taken = 0;
        if self.sent != self.chained {
            taken = self.send_burst(socket)?;
            self.advance(taken);
        }
        self.retire();
        Ok(taken > 0)
    }

    fn send_burst(&self, socket: impl AsFd) -> Result<u64, Errno> {
        let mut outgoing = Outgoing::new();
        self.gather(&mut outgoing);
        match outgoing.send(socket) {
            Ok(taken) => Ok(taken as u64),
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(0),
            Err(errno) => Err(errno),
        }
    }

    /// Appends the completions of what was sent, as far as there is room for them.
    pub(super) fn deliver(&mut self, conn: ConnId, completions: &mut Vec<Completion>) {
        while self.head != self.sent {
            let entry = &self.entries[self.slot(self.head)];
            if entry.signaled {
                if completions.len() == completions.capacity() {
                    return;
                }
                completions.push(Completion {
                    conn,
                    wr_id: entry.wr_id,
                    kind: CompletionKind::Sent,
                });
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

    /// As many chains as fit into one syscall.
    fn gather<'a>(&'a self, outgoing: &mut Outgoing<'a>) {
        let (mut position, mut skip) = (self.sent, self.chain_sent);
        while position != self.chained {
            let chain = self.entries[self.slot(position)].chain;
            let pieces_max = 1 + 2 * chain.entries as usize;
            if outgoing.room() < pieces_max || outgoing.bytes() >= BURST_BYTES {
                return;
            }
            if chain.bytes > 0 {
                self.gather_chain(outgoing, self.slot(position), chain, skip);
            }
            skip = 0;
            position = position.wrapping_add(chain.entries);
        }
    }

    /// A chain without its first `skip` bytes.
    fn gather_chain<'a>(
        &'a self,
        outgoing: &mut Outgoing<'a>,
        first: usize,
        chain: Chain,
        skip: u64,
    ) {
        let end = first + chain.entries as usize;
        let mut skip = usize::try_from(skip).expect("less than the memory it counts");
        let headers = &self.headers[first * HEADER_BYTES..end * HEADER_BYTES];
        outgoing.push_bytes(&headers[skip.min(headers.len())..]);
        skip = skip.saturating_sub(headers.len());
        for span in self.entries[first..end]
            .iter()
            .flat_map(|entry| &entry.payload)
        {
            let skipped = skip.min(span.len());
            skip -= skipped;
            if skipped == 0 {
                outgoing.push_span(*span);
            } else if let Some(rest) = span.slice(skipped, span.len() - skipped) {
                outgoing.push_span(rest);
            }
        }
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
