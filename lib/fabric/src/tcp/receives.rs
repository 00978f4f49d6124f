//! The receives posted on a connection, oldest first.

use std::collections::VecDeque;

use rnbd_mem::Span;

use crate::types::PostError;

/// A posted receive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Receive {
    pub(super) wr_id: u64,
    /// Where a message goes; empty for messages without bytes.
    pub(super) span: Span,
}

/// A queue of posted receives with a limit.
#[derive(Debug)]
pub(super) struct Receives {
    queue: VecDeque<Receive>,
    limit: usize,
}

impl Receives {
    /// A queue of at most `limit` receives. Memory for `reserved` of them is taken at once.
    pub(super) fn new(limit: u32, reserved: u32) -> Self {
        Self {
            queue: VecDeque::with_capacity(reserved as usize),
            limit: limit as usize,
        }
    }

    /// Sets the limit and takes the memory for that many. What is posted already stays.
    pub(super) fn set_limit(&mut self, limit: u32) {
        self.limit = limit as usize;
        self.queue
            .reserve(self.limit.saturating_sub(self.queue.len()));
    }

    pub(super) fn post(&mut self, receive: Receive) -> Result<(), PostError> {
        if self.queue.len() >= self.limit {
            return Err(PostError::OverLimit);
        }
        self.queue.push_back(receive);
        Ok(())
    }

    /// Whether `count` more may be posted.
    pub(super) fn has_room(&self, count: u32) -> bool {
        self.limit.saturating_sub(self.queue.len()) >= count as usize
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// The one that the next message but `nth` takes.
    pub(super) fn peek(&self, nth: usize) -> Option<&Receive> {
        self.queue.get(nth)
    }

    pub(super) fn take(&mut self) -> Option<Receive> {
        self.queue.pop_front()
    }
}
