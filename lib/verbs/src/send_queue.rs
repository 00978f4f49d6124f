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

impl Work {
    /// Whether the device alone has to do with it.
    fn is_local(&self) -> bool {
        !matches!(self, Self::Remote(_) | Self::Revoke { mr: None, .. })
    }
}

/// The send side of a connection: entries that the device has, and those parked behind them.
///
/// Few work requests are signalled, since each completion costs. Those that the caller wants are,
/// and every so many others, so that slots become free again: a queue that is full always has a
/// completion to come.
///
/// A queue that keeps local work apart is for soft-RoCE, which cannot send again what was posted
/// before local work that it has done (docs/operations.md). There local work waits until the peer
/// has acknowledged everything, and then goes before all that is parked. So whatever may have to
/// be sent again has no local work behind it; and the last entry handed over is signalled, since
/// its completion is what local work waits for.
#[derive(Debug)]
pub(crate) struct SendQueue {
    /// Most entries, parked ones included.
    limit: usize,
    /// Most entries that the device takes; zero until there is a queue pair.
    room: usize,
    keeps_apart: bool,
    /// Local work that is kept apart.
    local: VecDeque<Entry>,
    parked: VecDeque<Entry>,
    posted: VecDeque<Posted>,
    /// Entries posted since the last signalled one.
    unsignalled: usize,
    /// Posted entries that the peer has to acknowledge.
    unacknowledged: usize,
}

#[derive(Clone, Copy, Debug)]
struct Posted {
    wr_id: u64,
    signal: Signal,
    is_local: bool,
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
            keeps_apart: false,
            local: VecDeque::new(),
            parked: VecDeque::with_capacity(limit),
            posted: VecDeque::new(),
            unsignalled: 0,
            unacknowledged: 0,
        }
    }

    /// The device takes this many, and needs local work kept apart or not.
    pub(crate) fn set_room(&mut self, room: u32, keeps_apart: bool) {
        self.room = room as usize;
        self.posted.reserve(self.room);
        self.keeps_apart = keeps_apart;
        if keeps_apart {
            self.local.reserve(self.limit);
        }
    }

    /// How many more entries are allowed.
    pub(crate) fn free(&self) -> usize {
        let taken = self.local.len() + self.parked.len() + self.posted.len();
        self.limit - taken.min(self.limit)
    }

    /// Parks an entry until the next flush.
    pub(crate) fn push(&mut self, entry: Entry) -> Result<(), PostError> {
        if self.free() == 0 {
            return Err(PostError::OverLimit);
        }
        if self.keeps_apart && entry.work.is_local() {
            self.local.push_back(entry);
        } else {
            self.parked.push_back(entry);
        }
        Ok(())
    }

    /// Whether something could be handed to the device.
    pub(crate) fn is_ready(&self) -> bool {
        self.first().is_some()
    }

    /// The entry that is next, if the device has room for it and it has to wait for nothing.
    pub(crate) fn first(&self) -> Option<&Entry> {
        let may_go = self.local.is_empty() || self.unacknowledged == 0;
        let has_room = self.posted.len() < self.room;
        self.next().filter(|_| may_go && has_room)
    }

    fn next(&self) -> Option<&Entry> {
        self.local.front().or_else(|| self.parked.front())
    }

    /// Whether the first entry is to be signalled.
    pub(crate) fn first_is_signaled(&self) -> bool {
        let interval = (self.room / 4).max(1);
        let is_wanted = self.next().is_some_and(|entry| entry.signaled);
        is_wanted || self.unsignalled + 1 >= interval || self.keeps_apart && self.next_is_last()
    }

    /// Whether nothing can be handed over behind the next entry.
    fn next_is_last(&self) -> bool {
        self.local.len() + self.parked.len() <= 1 || self.posted.len() + 1 >= self.room
    }

    /// The first entry was handed to the device.
    pub(crate) fn note_posted(&mut self) {
        let signaled = self.first_is_signaled();
        let local = self.local.pop_front();
        let is_local = local.is_some();
        let Some(entry) = local.or_else(|| self.parked.pop_front()) else {
            return;
        };
        self.unsignalled = if signaled { 0 } else { self.unsignalled + 1 };
        let signal = match (entry.signaled, signaled) {
            (true, _) => Signal::Wanted,
            (false, true) => Signal::Ours,
            (false, false) => Signal::None,
        };
        self.unacknowledged += usize::from(!is_local);
        self.posted.push_back(Posted {
            wr_id: entry.wr_id,
            signal,
            is_local,
        });
    }

    /// A signalled entry completed, and all before it; returns what the caller is to be told.
    pub(crate) fn complete(&mut self) -> Option<u64> {
        while let Some(posted) = self.posted.pop_front() {
            self.unacknowledged -= usize::from(!posted.is_local);
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
        queue.set_room(4, false);
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
            queue.set_room(room, false);
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
        queue.set_room(8, false);
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

    fn bind() -> Entry {
        let (index, generation) = (1, 1);
        Entry {
            work: Work::Bind {
                window: WindowId { index, generation },
                mr: MrId { index, generation },
                span: Span::EMPTY,
                rkey: 5,
            },
            ..entry(0, false)
        }
    }

    #[test]
    fn local_work_that_is_kept_apart_waits_for_all_acknowledgements_and_goes_first() {
        let mut queue = SendQueue::new(40);
        queue.set_room(40, true);
        queue.push(entry(1, false)).unwrap();
        assert_eq!(post_all(&mut queue), 1, "the last entry is signalled");
        queue.push(entry(2, false)).unwrap();
        queue.push(bind()).unwrap();
        queue.push(entry(3, true)).unwrap();
        assert!(!queue.is_ready(), "entry 1 is on its way");
        assert_eq!(queue.complete(), None);
        assert!(matches!(queue.first().unwrap().work, Work::Bind { .. }));
        assert_eq!(post_all(&mut queue), 1);
        assert_eq!(queue.complete(), Some(3));
        assert_eq!(queue.free(), 40);
    }

    #[test]
    fn local_work_that_is_kept_apart_never_waits_for_ever() {
        for room in 1..20 {
            let mut queue = SendQueue::new(1000);
            queue.set_room(room, true);
            for nth in 0..300 {
                queue.push(entry(nth, nth % 7 == 0)).unwrap();
                if nth % 3 == 0 {
                    post_all(&mut queue);
                    queue.push(bind()).unwrap();
                }
            }
            let mut rounds = 0;
            while queue.free() < 1000 {
                post_all(&mut queue);
                let _wanted = queue.complete();
                rounds += 1;
                assert!(rounds < 2000, "stuck with room for {room}");
            }
        }
    }
}
