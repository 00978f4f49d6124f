use std::collections::VecDeque;

use rnbd_fabric::{MrId, PostError, Sge, WindowId};
use rnbd_mem::Span;

use crate::sys::RemoteOp;

/// One operation as it was posted, its memory objects still by name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) work: Work,
    pub(crate) sges: [Sge; 2],
    pub(crate) wr_id: u64,
    /// Whether the caller wants a completion.
    pub(crate) signaled: bool,
}

/// What an entry does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    Remote(RemoteOp),
    /// Opens a window; it gets this key.
    Bind {
        window: WindowId,
        mr: MrId,
        span: Span,
        rkey: u32,
    },
    /// Closes a window that was bound to the region, if it was; afterwards it has this key.
    Revoke {
        window: WindowId,
        mr: Option<MrId>,
        rkey: u32,
    },
}

/// The send side of a connection: entries that the device has, and those parked behind them.
///
/// Few work requests are signalled, since each completion costs. Those that the caller wants are,
/// and every so many others, so that slots become free again: a queue that is full always has a
/// completion to come.
#[derive(Debug)]
pub(crate) struct SendQueue {
    /// Most entries, parked ones included.
    limit: usize,
    /// Most entries that the device takes; zero until there is a queue pair.
    room: usize,
    parked: VecDeque<Entry>,
    posted: VecDeque<Posted>,
    /// Entries posted since the last signalled one.
    unsignalled: usize,
}

#[derive(Clone, Copy, Debug)]
struct Posted {
    wr_id: u64,
    signal: Signal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    None,
    /// To learn that slots are free.
    Ours,
    /// For the caller.
    Wanted,
}

impl SendQueue {
    pub(crate) fn new(limit: u32) -> Self {
        let limit = limit as usize;
        Self {
            limit,
            room: 0,
            parked: VecDeque::with_capacity(limit),
            posted: VecDeque::new(),
            unsignalled: 0,
        }
    }

    /// The device takes this many.
    pub(crate) fn set_room(&mut self, room: u32) {
        self.room = room as usize;
        self.posted.reserve(self.room);
    }

    /// How many more entries are allowed.
    pub(crate) fn free(&self) -> usize {
        self.limit - (self.parked.len() + self.posted.len()).min(self.limit)
    }

    /// Parks an entry until the next flush.
    pub(crate) fn push(&mut self, entry: Entry) -> Result<(), PostError> {
        if self.free() == 0 {
            return Err(PostError::OverLimit);
        }
        self.parked.push_back(entry);
        Ok(())
    }

    /// Whether something could be handed to the device.
    pub(crate) fn is_ready(&self) -> bool {
        self.first().is_some()
    }

    /// The entry that is next, if the device has room for it.
    pub(crate) fn first(&self) -> Option<&Entry> {
        let has_room = self.posted.len() < self.room;
        self.parked.front().filter(|_| has_room)
    }

    /// Whether the first entry is to be signalled.
    pub(crate) fn first_is_signaled(&self) -> bool {
        let interval = (self.room / 4).max(1);
        self.parked.front().is_some_and(|entry| entry.signaled) || self.unsignalled + 1 >= interval
    }

    /// The first entry was handed to the device.
    pub(crate) fn note_posted(&mut self) {
        let signaled = self.first_is_signaled();
        let Some(entry) = self.parked.pop_front() else {
            return;
        };
        self.unsignalled = if signaled { 0 } else { self.unsignalled + 1 };
        let signal = match (entry.signaled, signaled) {
            (true, _) => Signal::Wanted,
            (false, true) => Signal::Ours,
            (false, false) => Signal::None,
        };
        let wr_id = entry.wr_id;
        self.posted.push_back(Posted { wr_id, signal });
    }

    /// A signalled entry completed, and all before it; returns what the caller is to be told.
    pub(crate) fn complete(&mut self) -> Option<u64> {
        while let Some(posted) = self.posted.pop_front() {
            match posted.signal {
                Signal::None => {}
                Signal::Ours => return None,
                Signal::Wanted => return Some(posted.wr_id),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(wr_id: u64, signaled: bool) -> Entry {
        Entry {
            work: Work::Remote(RemoteOp::Send),
            sges: [Sge::EMPTY; 2],
            wr_id,
            signaled,
        }
    }

    /// Hands over what fits; returns how many of those are signalled.
    fn post_all(queue: &mut SendQueue) -> usize {
        let mut signaled = 0;
        while queue.is_ready() {
            signaled += usize::from(queue.first_is_signaled());
            queue.note_posted();
        }
        signaled
    }

    #[test]
    fn what_does_not_fit_is_parked_and_posted_in_order() {
        let mut queue = SendQueue::new(10);
        queue.set_room(4);
        for wr_id in 0..10 {
            queue.push(entry(wr_id, true)).unwrap();
        }
        assert_eq!(queue.push(entry(10, true)), Err(PostError::OverLimit));
        let mut seen = Vec::new();
        while post_all(&mut queue) > 0 {
            while let Some(wr_id) = queue.complete() {
                seen.push(wr_id);
            }
        }
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_queue_has_a_completion_to_come() {
        for room in 1..40 {
            let mut queue = SendQueue::new(1000);
            queue.set_room(room);
            for wr_id in 0..1000 {
                queue.push(entry(wr_id, false)).unwrap();
            }
            while !queue.parked.is_empty() {
                let signaled = post_all(&mut queue);
                assert!(signaled > 0, "stuck with room for {room}");
                for _ in 0..signaled {
                    assert_eq!(queue.complete(), None, "nobody asked");
                }
            }
        }
    }

    #[test]
    fn callers_hear_only_of_what_they_asked_for() {
        let mut queue = SendQueue::new(8);
        queue.set_room(8);
        for wr_id in 0..8 {
            queue.push(entry(wr_id, wr_id % 4 == 3)).unwrap();
        }
        let mut told = Vec::new();
        for _ in 0..post_all(&mut queue) {
            told.extend(queue.complete());
        }
        assert_eq!(told, [3, 7]);
        assert_eq!(queue.free(), 8);
    }
}
