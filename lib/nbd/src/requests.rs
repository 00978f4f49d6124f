use rnbd_mem::Span;

use crate::buffers::Run;
use crate::protocol::{Command, Request};

/// Which of a connection's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotId(u16);

impl SlotId {
    /// As part of an I/O's tag.
    pub(crate) fn to_tag(self) -> u64 {
        u64::from(self.0)
    }

    /// From the low bits of an I/O's tag.
    pub(crate) fn from_tag(tag: u64) -> Self {
        Self((tag & 0xffff) as u16)
    }

    fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A request that is not answered yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) request: Request,
    /// Its data, if it has a buffer for it.
    pub(crate) run: Run,
    /// Its data, if that is sent from where the device has it.
    pub(crate) lent: Span,
    /// Its blocks were done, what remains is to flush them.
    pub(crate) flushing: bool,
}

/// The requests of a connection, in a table of fixed size.
#[derive(Debug)]
pub(crate) struct Requests {
    slots: Box<[Slot]>,
    free: Vec<SlotId>,
    lent_count: usize,
}

impl Requests {
    /// A table for `depth` requests.
    pub(crate) fn new(depth: u16) -> Self {
        let vacant = Slot {
            request: Request {
                flags: 0,
                command: Command::Flush,
                cookie: 0,
                offset: 0,
                length: 0,
            },
            run: Run::NONE,
            lent: Span::EMPTY,
            flushing: false,
        };
        Self {
            slots: vec![vacant; usize::from(depth)].into_boxed_slice(),
            free: (0..depth).rev().map(SlotId).collect(),
            lent_count: 0,
        }
    }

    /// Whether another request may be taken.
    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether no request is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Takes a slot for `request`, whose data is in `run`.
    ///
    /// # Panics
    /// If there is no room.
    pub(crate) fn insert(&mut self, request: Request, run: Run) -> SlotId {
        let id = self.free.pop().expect("has_room was asked");
        self.slots[id.index()] = Slot {
            request,
            run,
            lent: Span::EMPTY,
            flushing: false,
        };
        id
    }

    /// The request in slot `id`.
    pub(crate) fn get(&self, id: SlotId) -> &Slot {
        &self.slots[id.index()]
    }

    /// The request in slot `id`, to change it.
    pub(crate) fn get_mut(&mut self, id: SlotId) -> &mut Slot {
        &mut self.slots[id.index()]
    }

    /// The device lends `data` as the answer to slot `id`.
    pub(crate) fn lend(&mut self, id: SlotId, data: Span) {
        self.slots[id.index()].lent = data;
        self.lent_count += 1;
    }

    /// Whether any request's data is the device's.
    pub(crate) fn borrow_memory(&self) -> bool {
        self.lent_count > 0
    }

    /// Frees slot `id`; returns its memory, which nothing uses any more.
    pub(crate) fn remove(&mut self, id: SlotId) -> Run {
        self.free.push(id);
        let slot = &self.slots[id.index()];
        self.lent_count -= usize::from(!slot.lent.is_empty());
        slot.run
    }
}
