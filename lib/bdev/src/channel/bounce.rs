//! Aligned buffers that stand in for those that the device cannot use.

use std::collections::VecDeque;

use rnbd_mem::{Buffer, Span};

/// One buffer, and so the largest piece that a misaligned I/O is done in.
const BUFFER_BYTES: usize = 128 << 10;
/// How many misaligned I/Os are at the device at a time; others wait.
const MOST_BUFFERS: usize = 4;

/// The buffers of one channel.
#[derive(Debug, Default)]
pub(crate) struct Bounce {
    area: Option<Buffer>,
    free: Vec<u16>,
    /// Slots whose I/O waits for a buffer.
    waiting: VecDeque<u32>,
}

/// An aligned buffer in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct StandIn {
    index: u16,
    /// What it stands in for.
    pub(super) user: Span,
    /// As much of the aligned buffer.
    pub(super) aligned: Span,
}

impl Bounce {
    /// Bytes that the buffers of a channel of `depth` need.
    pub(crate) fn bytes(depth: u32) -> usize {
        BUFFER_BYTES * MOST_BUFFERS.min(depth as usize)
    }

    /// Buffers in `area`, which has [`Bounce::bytes`], for a channel of `depth`.
    pub(crate) fn new(area: Buffer, depth: u32) -> Self {
        let count = Self::bytes(depth) / BUFFER_BYTES;
        Self {
            area: Some(area),
            free: (0..).take(count).collect(),
            waiting: VecDeque::with_capacity(depth as usize),
        }
    }

    /// Most blocks of one piece.
    pub(super) fn most_blocks(block_size: u32) -> u64 {
        BUFFER_BYTES as u64 / u64::from(block_size)
    }

    /// Whether there is a buffer; else the slot is remembered and comes out of
    /// [`Bounce::next_waiting`].
    pub(super) fn has_room_for(&mut self, slot: u32) -> bool {
        let has_room = !self.free.is_empty();
        if !has_room {
            self.waiting.push_back(slot);
        }
        has_room
    }

    /// A buffer that stands in for `user`, which is no larger than [`Bounce::most_blocks`].
    pub(super) fn stand_in(&mut self, user: Span) -> StandIn {
        let index = self.free.pop().expect("has_room_for was asked");
        let area = self.area.as_ref().expect("a free buffer lies in it").span();
        let aligned = area.slice(usize::from(index) * BUFFER_BYTES, user.len());
        StandIn {
            index,
            user,
            aligned: aligned.expect("pieces are no larger than a buffer"),
        }
    }

    /// Takes a buffer back.
    pub(super) fn give_back(&mut self, stand_in: StandIn) {
        self.free.push(stand_in.index);
    }

    /// The slot that has waited longest.
    pub(super) fn next_waiting(&mut self) -> Option<u32> {
        self.waiting.pop_front()
    }
}
