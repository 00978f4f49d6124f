use rnbd_base::Errno;
use rnbd_wire::Imm;

use super::slot::Slot;

/// Data to be written to the client before the answer, from the start of what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataWrite {
    /// Address in the client's terms.
    pub addr: u64,
    /// The client's key.
    pub key: u32,
    /// Bytes; equal to the request's data length.
    pub len: u32,
}

/// What answers one request, in the order to be posted, all on connection `cid`
/// (protocol.md 5.4).
///
/// In plain mode the immediate goes out as a zero-length write. In NEW_RKEY mode the chunk is
/// opened again after the data write, and the immediate goes out with a send that carries its new
/// rkey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The connection on which the request came.
    pub cid: u16,
    /// First, if there is data.
    pub data: Option<DataWrite>,
    /// Second, the client's key to invalidate by a send, if it asked for that.
    pub invalidate: Option<u32>,
    /// Last.
    pub imm: u32,
}

impl Answer {
    pub(super) fn new(msg_id: u16, slot: &Slot, status: Result<(), Errno>) -> Self {
        let descriptor = slot.descriptor;
        let invalidate = descriptor.filter(|_| slot.need_inval).map(|desc| desc.key);
        let data = descriptor.filter(|_| status.is_ok()).map(|desc| DataWrite {
            addr: desc.addr,
            key: desc.key,
            len: desc.len,
        });
        Self {
            cid: slot.cid,
            data,
            invalidate,
            imm: Imm::response(msg_id, status, invalidate.is_some()),
        }
    }
}
