use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

use crate::RpcError;
use crate::envelope::Id;
use crate::registry::RpcResult;
use crate::traffic::{Tap, Traffic};

/// The longest reply.
const REPLY_BYTES_MAX: usize = 32 << 20;
/// A connection with this much unsent is not read from.
const UNSENT_BYTES_MAX: usize = 1 << 20;

/// The replies of one connection that are not sent yet, in the order of completion.
#[derive(Default)]
pub(crate) struct Outbox {
    unsent: RefCell<VecDeque<u8>>,
    /// Replies that come after this are dropped.
    closed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    tap: Tap,
}

impl Outbox {
    pub(crate) fn new(tap: Tap) -> Self {
        Self {
            tap,
            ..Self::default()
        }
    }

    pub(crate) fn push(&self, reply: &str) {
        if self.closed.get() {
            log::warn!("a reply is dropped: its connection is closed");
            return;
        }
        self.tap.show(Traffic::Reply, reply.as_bytes());
        let mut unsent = self.unsent.borrow_mut();
        unsent.extend(reply.as_bytes());
        unsent.push_back(b'\n');
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Takes no more replies.
    pub(crate) fn close(&self) {
        self.closed.set(true);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.unsent.borrow().is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.unsent.borrow().len() >= UNSENT_BYTES_MAX
    }

    /// Whom to wake when there is something to send.
    pub(crate) fn set_waker(&self, waker: Waker) {
        self.waker.replace(Some(waker));
    }

    /// Lets `write` have the unsent bytes, which says how many it took.
    pub(crate) fn write_with<E>(
        &self,
        write: impl FnOnce(&[u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let mut unsent = self.unsent.borrow_mut();
        let taken = write(unsent.as_slices().0)?;
        unsent.drain(..taken);
        Ok(())
    }
}

/// Replies of calls that are answered together.
pub(crate) struct Batch {
    outbox: Rc<Outbox>,
    pending: usize,
    replies: Vec<String>,
}

impl Batch {
    pub(crate) fn new(outbox: &Rc<Outbox>, calls: usize) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            outbox: Rc::clone(outbox),
            pending: calls,
            replies: Vec::new(),
        }))
    }

    /// One call is done; `None` if it is not to be answered.
    fn complete(&mut self, reply: Option<String>) {
        self.replies.extend(reply);
        self.pending -= 1;
        if self.pending == 0 && !self.replies.is_empty() {
            self.outbox.push(&format!("[{}]", self.replies.join(",")));
        }
    }
}

/// Where the result of one call goes.
#[derive(Clone)]
pub(crate) enum Destination {
    Alone(Rc<Outbox>),
    InBatch(Rc<RefCell<Batch>>),
}

impl Destination {
    pub(crate) fn deliver(&self, id: &Id, result: &RpcResult) {
        let reply = limited(id, id.reply(result));
        match self {
            Self::Alone(outbox) => reply.iter().for_each(|reply| outbox.push(reply)),
            Self::InBatch(batch) => batch.borrow_mut().complete(reply),
        }
    }
}

fn limited(id: &Id, reply: Option<String>) -> Option<String> {
    if reply
        .as_ref()
        .is_none_or(|reply| reply.len() < REPLY_BYTES_MAX)
    {
        return reply;
    }
    let text = format!("the reply has more than {REPLY_BYTES_MAX} bytes");
    id.reply(&Err(RpcError::internal(text)))
}
