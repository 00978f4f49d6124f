use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use rnbd_mem::Span;

use crate::protocol::ReplyHeader;
use crate::requests::SlotId;
use crate::sys::Gather;

/// An answer, whose data stays in the request's buffer until it has been sent.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) header: ReplyHeader,
    pub(crate) data: Span,
    /// Whose request it answers.
    pub(crate) slot: SlotId,
}

impl Reply {
    fn bytes(&self) -> usize {
        self.header.as_bytes().len() + self.data.len()
    }
}

/// Replies on their way, many in one system call.
#[derive(Debug)]
pub(crate) struct Outbox {
    replies: VecDeque<Reply>,
    /// How much of the first reply the socket has taken.
    sent_of_first: usize,
}

impl Outbox {
    /// An outbox for as many replies as there may be requests.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            replies: VecDeque::with_capacity(capacity),
            sent_of_first: 0,
        }
    }

    /// Whether everything was sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Queues `reply`.
    pub(crate) fn push(&mut self, reply: Reply) {
        self.replies.push_back(reply);
    }

    /// Takes back the oldest reply, sent or not.
    pub(crate) fn discard_first(&mut self) -> Option<Reply> {
        self.sent_of_first = 0;
        self.replies.pop_front()
    }

    /// Sends what one system call takes; `on_sent` hears of every reply that is out entirely.
    /// Returns whether the socket took all that it was offered.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` if it takes nothing now.
    pub(crate) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        mut on_sent: impl FnMut(SlotId),
    ) -> io::Result<bool> {
        let mut gather = Gather::new();
        let mut skip = self.sent_of_first;
        for reply in &self.replies {
            if !gather.has_room() {
                break;
            }
            skip = gather.add_bytes(reply.header.as_bytes(), skip);
            gather.add_span(reply.data, skip);
            skip = 0;
        }
        let offered = gather.bytes();
        let sent = gather.send(socket)?;
        self.retire(sent, &mut on_sent);
        Ok(sent == offered)
    }

    fn retire(&mut self, sent: usize, on_sent: &mut impl FnMut(SlotId)) {
        let mut sent = self.sent_of_first + sent;
        while let Some(first) = self.replies.front()
            && first.bytes() <= sent
        {
            sent -= first.bytes();
            on_sent(first.slot);
            self.replies.pop_front();
        }
        self.sent_of_first = sent;
    }
}
