//! One chunk's request, from its arrival to its answer.

use rnbd_base::Errno;
use rnbd_wire::DecodeError;
use rnbd_wire::rtrs::{self, Descriptor, ReadFlags};

use super::violation::Violation;

/// Where a request is.
///
/// ```text
///        imm, plain mode                    header copied
///  Free ─────────────────────────> Arrived ───────────────> Busy ──> (answered) Free
///    │  imm, NEW_RKEY      revoked    ^
///    └───────────> Revoking ──────────┘
///                          or a READ, or a small WRITE
/// ```
///
/// `Busy` includes requests whose header is refused: they are answered like any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    Free,
    Revoking,
    Arrived,
    Busy,
}

/// Which way a request moves data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the client.
    Read,
    /// To the server.
    Write,
}

/// A request whose RTRS header is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its chunk.
    pub msg_id: u16,
    /// Which way its data goes.
    pub direction: Direction,
    /// Bytes of data, at the start of the chunk.
    pub data_len: u32,
    /// Bytes of the user message, which lies in the chunk directly behind the data.
    pub usr_len: u16,
    /// A READ that says where its data goes.
    pub has_descriptor: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) state: SlotState,
    pub(super) cid: u16,
    pub(super) offset: u32,
    pub(super) descriptor: Option<Descriptor>,
    pub(super) need_inval: bool,
}

impl Slot {
    pub(super) const FREE: Self = Self {
        state: SlotState::Free,
        cid: 0,
        offset: 0,
        descriptor: None,
        need_inval: false,
    };

    /// Whether this is the header of a READ, or of a WRITE of at most `copied_max` bytes.
    pub(super) fn may_stay_open(&self, header: &[u8], copied_max: u32) -> bool {
        match rtrs::Request::decode(header) {
            Ok(rtrs::Request::Read(_)) => true,
            Ok(rtrs::Request::Write(write)) => {
                let data_len = self.data_len(write.usr_len);
                data_len.is_some_and(|len| len <= copied_max)
            }
            Err(_) => false,
        }
    }

    /// Takes the header copied from the chunk. The slot is busy afterwards, whether the request
    /// is good or to be answered with an errno.
    pub(super) fn handle_header(
        &mut self,
        msg_id: u16,
        header: &[u8],
    ) -> Result<Result<Request, Errno>, Violation> {
        let message = match rtrs::Request::decode(header) {
            Ok(message) => message,
            Err(DecodeError::UnknownType { .. }) => return Err(Violation::MessageType),
            Err(error) => {
                self.state = SlotState::Busy;
                return Ok(Err(error.errno()));
            }
        };
        self.state = SlotState::Busy;
        Ok(self.check(msg_id, message))
    }

    fn check(&mut self, msg_id: u16, message: rtrs::Request) -> Result<Request, Errno> {
        let usr_len = message.usr_len();
        let direction = match message {
            rtrs::Request::Read(read) => {
                self.descriptor = read.descriptor;
                self.need_inval = read.flags.contains(ReadFlags::NEED_INVAL);
                Direction::Read
            }
            rtrs::Request::Write(_) => Direction::Write,
        };
        let data_len = self.data_len(usr_len).ok_or(Errno::INVAL)?;
        if self.descriptor.is_some_and(|desc| desc.len != data_len) {
            return Err(Errno::INVAL);
        }
        Ok(Request {
            msg_id,
            direction,
            data_len,
            usr_len,
            has_descriptor: self.descriptor.is_some(),
        })
    }

    /// What lies before the user message; `None` if that does not fit before the header or is too
    /// short to have a type.
    fn data_len(&self, usr_len: u16) -> Option<u32> {
        if usr_len < 4 {
            return None;
        }
        self.offset.checked_sub(u32::from(usr_len))
    }
}
