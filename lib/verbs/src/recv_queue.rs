use std::collections::VecDeque;

use rnbd_fabric::{PostError, Sge};

/// A receive as it was posted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Receive {
    pub(crate) wr_id: u64,
    pub(crate) buffer: Sge,
}

/// The receive side of a connection: receives that the device has, and those parked behind them.
/// The device takes them from the oldest on.
#[derive(Debug)]
pub(crate) struct RecvQueue {
    /// Most receives, parked ones included.
    limit: usize,
    /// Most receives that the device takes; zero until there is a queue pair.
    room: usize,
    parked: VecDeque<Receive>,
    posted: VecDeque<u64>,
}

impl RecvQueue {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit: limit as usize,
            room: 0,
            parked: VecDeque::new(),
            posted: VecDeque::new(),
        }
    }

    /// Allows `limit`, and the device takes `room` of them.
    ///
    /// # Errors
    /// More are posted already.
    pub(crate) fn set_sizes(&mut self, limit: u32, room: u32) -> Result<(), PostError> {
        self.limit = limit as usize;
        self.room = room as usize;
        if self.parked.len() > self.limit {
            return Err(PostError::OverLimit);
        }
        self.parked.reserve(self.limit - self.parked.len());
        self.posted.reserve(self.room);
        Ok(())
    }

    /// How many more are allowed.
    pub(crate) fn free(&self) -> usize {
        self.limit - (self.parked.len() + self.posted.len()).min(self.limit)
    }

    /// Parks a receive until the next flush.
    pub(crate) fn push(&mut self, receive: Receive) -> Result<(), PostError> {
        if self.free() == 0 {
            return Err(PostError::OverLimit);
        }
        self.parked.push_back(receive);
        Ok(())
    }

    /// Takes the receive that is next to be handed to the device, if it has room.
    pub(crate) fn post_next(&mut self) -> Option<Receive> {
        if self.posted.len() >= self.room {
            return None;
        }
        let receive = self.parked.pop_front()?;
        self.posted.push_back(receive.wr_id);
        Some(receive)
    }

    /// Whether something could be handed to the device.
    pub(crate) fn is_ready(&self) -> bool {
        !self.parked.is_empty() && self.posted.len() < self.room
    }

    /// The oldest receive was consumed; returns its `wr_id`.
    pub(crate) fn complete(&mut self) -> Option<u64> {
        self.posted.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receives_complete_in_the_order_posted_however_small_the_device() {
        let mut queue = RecvQueue::new(9);
        for wr_id in 0..9 {
            let buffer = Sge::EMPTY;
            queue.push(Receive { wr_id, buffer }).unwrap();
        }
        assert!(queue.post_next().is_none(), "there is no queue pair yet");
        queue.set_sizes(9, 2).unwrap();
        let mut seen = Vec::new();
        while seen.len() < 9 {
            while queue.post_next().is_some() {}
            seen.extend(queue.complete());
        }
        assert_eq!(seen, (0..9).collect::<Vec<_>>());
        assert_eq!(queue.free(), 9);
    }

    #[test]
    fn more_receives_than_agreed_are_refused() {
        let mut queue = RecvQueue::new(3);
        for wr_id in 0..3 {
            let buffer = Sge::EMPTY;
            queue.push(Receive { wr_id, buffer }).unwrap();
        }
        let buffer = Sge::EMPTY;
        let one_more = queue.push(Receive { wr_id: 3, buffer });
        assert_eq!(one_more, Err(PostError::OverLimit));
        assert_eq!(queue.set_sizes(2, 2), Err(PostError::OverLimit));
    }
}
