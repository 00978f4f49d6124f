use rnbd_mem::Span;

/// Bytes of an inbox.
pub(crate) const INBOX_BYTES: usize = 64 << 10;

/// While large payloads arrive, few bytes after them are received along: what follows a payload
/// directly is copied from the inbox to its buffer, what does not lands there at once.
const BYTES_AFTER_LARGE_PAYLOAD: usize = 4 << 10;
const LARGE_PAYLOAD_BYTES: usize = 16 << 10;

/// Where bytes arrive before it is known what they are: many small requests in one system call.
#[derive(Debug)]
pub(crate) struct Inbox {
    area: Span,
    start: usize,
    end: usize,
    expects_large: bool,
}

impl Inbox {
    /// An empty inbox in `area`.
    pub(crate) fn new(area: Span) -> Self {
        Self {
            area,
            start: 0,
            end: 0,
            expects_large: false,
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.area);
    }

    /// What arrived and was not consumed.
    pub(crate) fn pending(&self) -> Span {
        part(self.area, self.start, self.end - self.start)
    }

    /// The next `N` bytes, copied, if they have arrived; they stay pending.
    pub(crate) fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        let pending = self.pending();
        if pending.len() < N {
            return None;
        }
        let mut bytes = [0; N];
        pending.read_at(0, &mut bytes);
        Some(bytes)
    }

    /// Drops the first `bytes` of what is pending.
    pub(crate) fn consume(&mut self, bytes: usize) {
        assert!(bytes <= self.end - self.start, "consumed more than arrived");
        self.start += bytes;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Notes how large the payload is that begins; the next ones will be similar.
    pub(crate) fn expect_payload(&mut self, bytes: usize) {
        self.expects_large = bytes >= LARGE_PAYLOAD_BYTES;
    }

    /// Where to receive more; empty if the inbox is full.
    pub(crate) fn room(&mut self) -> Span {
        if self.end == self.area.len() && self.start > 0 {
            self.area.copy_from(&self.pending());
            self.end -= self.start;
            self.start = 0;
        }
        let free = self.area.len() - self.end;
        let useful = if self.expects_large {
            free.min(BYTES_AFTER_LARGE_PAYLOAD)
        } else {
            free
        };
        part(self.area, self.end, useful)
    }

    /// Adds `bytes` that were received into the room.
    pub(crate) fn received(&mut self, bytes: usize) {
        self.end += bytes;
        assert!(
            self.end <= self.area.len(),
            "received more than there was room"
        );
    }
}

fn part(area: Span, start: usize, len: usize) -> Span {
    area.slice(start, len)
        .expect("positions lie within the area")
}
