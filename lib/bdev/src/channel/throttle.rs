//! Reads and writes that wait because their device has a rate limit.

use std::collections::VecDeque;

use rnbd_base::Nanos;

use crate::io::IoKind;
use crate::limits::Limits;

const LIMITED: [IoKind; 2] = [IoKind::Read, IoKind::Write];

/// The slots of one channel that wait, each kind in the order of submission.
#[derive(Debug)]
pub(super) struct Throttle {
    reads: VecDeque<u32>,
    writes: VecDeque<u32>,
}

impl Throttle {
    /// For a channel of `depth`.
    pub(super) fn new(depth: u32) -> Self {
        Self {
            reads: VecDeque::with_capacity(depth as usize),
            writes: VecDeque::with_capacity(depth as usize),
        }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.writes.is_empty()
    }

    /// Whether the I/O of `slot` may go to the device at once. Else it comes out of
    /// [`Throttle::next_ready`].
    pub(super) fn admits(
        &mut self,
        slot: u32,
        kind: IoKind,
        bytes: u64,
        limits: &Limits,
        now: Nanos,
    ) -> bool {
        if !LIMITED.contains(&kind) {
            return true;
        }
        let waiting = self.waiting_mut(kind);
        let may_go = waiting.is_empty() && limits.ready_at(kind) <= now;
        match may_go {
            true => limits.take(kind, bytes, now),
            false => waiting.push_back(slot),
        }
        may_go
    }

    /// A slot whose time has come; `bytes` says how much it moves.
    pub(super) fn next_ready(
        &mut self,
        limits: &Limits,
        now: Nanos,
        bytes: impl Fn(u32) -> u64,
    ) -> Option<u32> {
        for kind in LIMITED {
            if limits.ready_at(kind) <= now
                && let Some(slot) = self.waiting_mut(kind).pop_front()
            {
                limits.take(kind, bytes(slot), now);
                return Some(slot);
            }
        }
        None
    }

    /// When the next one's time will have come.
    pub(super) fn next_deadline(&self, limits: &Limits) -> Option<Nanos> {
        let reads = (!self.reads.is_empty()).then(|| limits.ready_at(IoKind::Read));
        let writes = (!self.writes.is_empty()).then(|| limits.ready_at(IoKind::Write));
        [reads, writes].into_iter().flatten().min()
    }

    fn waiting_mut(&mut self, kind: IoKind) -> &mut VecDeque<u32> {
        match kind {
            IoKind::Read => &mut self.reads,
            _ => &mut self.writes,
        }
    }
}
