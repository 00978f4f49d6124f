use rnbd_base::Errno;

use crate::extension::PathToken;

const PAYLOAD_BITS: u32 = 28;
const PAYLOAD_MASK: u32 = (1 << PAYLOAD_BITS) - 1;
const RESPONSE_ID_BITS: u32 = 19;
const RESPONSE_ID_MASK: u32 = (1 << RESPONSE_ID_BITS) - 1;
const ERRNO_MASK: u32 = 0x1ff;

const IO_REQ: u32 = 0;
const IO_RSP: u32 = 1;
const IO_RSP_W_INV: u32 = 2;
const HB_MSG: u32 = 8;
const HB_ACK: u32 = 9;
const FENCE: u32 = 10;
const FENCED: u32 = 11;

/// What the 32-bit immediate of an RDMA operation says (protocol.md section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imm {
    /// A request is in a chunk. Client to server.
    Request {
        /// The chunk's index.
        msg_id: u16,
        /// Where the RTRS message starts in the chunk, in bytes.
        offset: u32,
    },
    /// A request is done. Server to client.
    Response {
        /// The chunk's index; 19 bits, so a hostile one may be no chunk at all.
        msg_id: u32,
        /// How the request ended.
        status: Result<(), Errno>,
        /// A send with invalidate for this request came before.
        invalidated: bool,
    },
    /// Are you there? Both directions.
    Heartbeat,
    /// I am. Both directions.
    HeartbeatAck,
    /// Is that path finished? Client to server, only where the extension is agreed.
    Fence(PathToken),
    /// It is: nothing of it will be done any more. Server to client, likewise.
    Fenced(PathToken),
    /// A type that is not known; to be ignored and counted.
    Unknown {
        /// The type, 0 … 15.
        kind: u8,
    },
}

/// How a session's queue depth splits the payload of a request into chunk index and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImmLayout {
    mem_bits: u32,
}

impl ImmLayout {
    /// The layout of a session with `queue_depth` chunks; `None` for 0.
    #[must_use]
    pub const fn new(queue_depth: u16) -> Option<Self> {
        match queue_depth.checked_sub(1) {
            Some(last) => Some(Self {
                mem_bits: PAYLOAD_BITS - bits(last as u32),
            }),
            None => None,
        }
    }

    /// Bits of a request's payload that index a chunk.
    #[must_use]
    pub const fn chunk_bits(self) -> u32 {
        PAYLOAD_BITS - self.mem_bits
    }

    /// Bits of a request's payload that are an offset in the chunk.
    #[must_use]
    pub const fn mem_bits(self) -> u32 {
        self.mem_bits
    }

    /// Whether every offset in a chunk of `chunk_bytes` can be said: `false` for 0, and when all
    /// chunks together exceed 256 MiB.
    #[must_use]
    pub const fn fits(self, chunk_bytes: u32) -> bool {
        match chunk_bytes.checked_sub(1) {
            Some(last) => bits(last) <= self.mem_bits,
            None => false,
        }
    }

    /// What `value` says.
    #[must_use]
    pub const fn decode(self, value: u32) -> Imm {
        let payload = value & PAYLOAD_MASK;
        match value >> PAYLOAD_BITS {
            IO_REQ => self.decode_request(payload),
            IO_RSP => decode_response(payload, false),
            IO_RSP_W_INV => decode_response(payload, true),
            HB_MSG => Imm::Heartbeat,
            HB_ACK => Imm::HeartbeatAck,
            kind => decode_extension(kind, payload),
        }
    }

    /// The immediate of the request in chunk `msg_id` whose RTRS message is at `offset`. Bits of
    /// either that the layout has no room for are dropped.
    #[must_use]
    pub const fn request(self, msg_id: u16, offset: u32) -> u32 {
        debug_assert!(bits(msg_id as u32) <= self.chunk_bits());
        debug_assert!(bits(offset) <= self.mem_bits);
        let id = (msg_id as u32) << self.mem_bits;
        (IO_REQ << PAYLOAD_BITS) | (id & PAYLOAD_MASK) | (offset & self.offset_mask())
    }

    const fn decode_request(self, payload: u32) -> Imm {
        Imm::Request {
            #[expect(clippy::cast_possible_truncation, reason = "at most 16 chunk bits")]
            msg_id: (payload >> self.mem_bits) as u16,
            offset: payload & self.offset_mask(),
        }
    }

    const fn offset_mask(self) -> u32 {
        (1 << self.mem_bits) - 1
    }
}

impl Imm {
    /// The immediate that asks for a sign of life.
    pub const HEARTBEAT: u32 = HB_MSG << PAYLOAD_BITS;

    /// The immediate that gives it.
    pub const HEARTBEAT_ACK: u32 = HB_ACK << PAYLOAD_BITS;

    /// The immediate that asks for the end of a path's last life.
    #[must_use]
    pub const fn fence(token: PathToken) -> u32 {
        (FENCE << PAYLOAD_BITS) | token.get()
    }

    /// The immediate that confirms it.
    #[must_use]
    pub const fn fenced(token: PathToken) -> u32 {
        (FENCED << PAYLOAD_BITS) | token.get()
    }

    /// The immediate that answers request `msg_id`.
    #[must_use]
    pub const fn response(msg_id: u16, status: Result<(), Errno>, invalidated: bool) -> u32 {
        let kind = if invalidated { IO_RSP_W_INV } else { IO_RSP };
        let errno = match status {
            Ok(()) => 0,
            Err(errno) => errno.get() as u32 & ERRNO_MASK,
        };
        (kind << PAYLOAD_BITS) | (errno << RESPONSE_ID_BITS) | msg_id as u32
    }
}

const fn decode_response(payload: u32, invalidated: bool) -> Imm {
    Imm::Response {
        msg_id: payload & RESPONSE_ID_MASK,
        status: match payload >> RESPONSE_ID_BITS {
            0 => Ok(()),
            #[expect(clippy::cast_possible_wrap, reason = "nine bits")]
            errno => Err(Errno::from_raw(errno as i32)),
        },
        invalidated,
    }
}

const fn decode_extension(kind: u32, payload: u32) -> Imm {
    match (kind, PathToken::new(payload)) {
        (FENCE, Some(token)) => Imm::Fence(token),
        (FENCED, Some(token)) => Imm::Fenced(token),
        #[expect(clippy::cast_possible_truncation, reason = "four bits")]
        _ => Imm::Unknown { kind: kind as u8 },
    }
}

/// Bits that it takes to write `last`, the greatest of a range from 0.
const fn bits(last: u32) -> u32 {
    u32::BITS - last.leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_takes_as_many_bits_as_the_last_chunk_needs() {
        let chunk_bits = |depth| ImmLayout::new(depth).map(ImmLayout::chunk_bits);
        assert_eq!(chunk_bits(0), None);
        assert_eq!(chunk_bits(1), Some(0));
        assert_eq!(chunk_bits(512), Some(9));
        assert_eq!(chunk_bits(513), Some(10));
        assert_eq!(chunk_bits(u16::MAX), Some(16));
    }

    #[test]
    fn chunks_of_a_session_are_256_mib_together_at_most() {
        let layout = ImmLayout::new(512).unwrap();
        assert!(layout.fits(512 * 1024));
        assert!(!layout.fits(512 * 1024 + 1));
        assert!(!layout.fits(0));
    }

    #[test]
    fn a_type_from_the_future_is_named() {
        let layout = ImmLayout::new(512).unwrap();
        assert_eq!(layout.decode(0xf000_0000), Imm::Unknown { kind: 15 });
    }

    #[test]
    fn a_fence_for_no_path_is_of_no_known_type() {
        let layout = ImmLayout::new(512).unwrap();
        assert_eq!(layout.decode(0xa000_0000), Imm::Unknown { kind: 10 });
        assert_eq!(layout.decode(0xb000_0000), Imm::Unknown { kind: 11 });
    }
}
