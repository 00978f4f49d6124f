//! Bytes of the NBD protocol: big-endian, as the specification of the `nbd` project numbers them.

use rnbd_base::Errno;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First eight bytes of the server's greeting, `NBDMAGIC`.
pub(crate) const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Starts every option of the client, `IHAVEOPT`.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Starts every answer to an option.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Starts every request.
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Starts a simple reply.
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Starts a chunk of a structured reply.
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Most bytes of one read or write, and most that a client may assume without being told.
pub(crate) const MAX_PAYLOAD_BYTES: u32 = 32 << 20;
/// Longest string in the protocol: export names, descriptions.
pub(crate) const MAX_STRING_BYTES: usize = 4096;

/// Flags of the handshake, the same bits in both directions.
pub(crate) mod handshake_flags {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(crate) const NO_ZEROES: u16 = 1 << 1;
}

/// Options that a client may send.
pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
}

/// Types of answers to options; errors have the top bit.
pub(crate) mod option_reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const ERR_UNSUP: u32 = 1 << 31 | 1;
    pub(crate) const ERR_INVALID: u32 = 1 << 31 | 3;
    pub(crate) const ERR_UNKNOWN: u32 = 1 << 31 | 6;
}

/// Pieces of information about an export.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub(crate) mod transmission_flags {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Flags of a request.
pub(crate) mod command_flags {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
}

const CHUNK_FLAG_DONE: u16 = 1 << 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_ERROR: u16 = 1 << 15 | 1;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
    /// Not known to this server.
    Other(u16),
}

impl Command {
    fn from_wire(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            6 => Self::WriteZeroes,
            other => Self::Other(other),
        }
    }
}

/// A request, without the payload of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: Command,
    /// The client's, repeated in the reply.
    pub(crate) cookie: u64,
    /// In bytes.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) length: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRequest {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U32,
}

impl Request {
    /// Size on the wire.
    pub(crate) const BYTES: usize = size_of::<RawRequest>();

    /// `None` if the magic is wrong, after which the stream means nothing.
    pub(crate) fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let raw = RawRequest::read_from_bytes(bytes).ok()?;
        if raw.magic.get() != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: raw.flags.get(),
            command: Command::from_wire(raw.command.get()),
            cookie: raw.cookie.get(),
            offset: raw.offset.get(),
            length: raw.length.get(),
        })
    }

    /// Whether `flag` is set.
    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// How many bytes of payload follow it.
    pub(crate) fn payload_bytes(&self) -> u32 {
        if self.command == Command::Write {
            self.length
        } else {
            0
        }
    }
}

/// The start of a reply, in place for a gathering send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplyHeader {
    bytes: [u8; Self::MAX_BYTES],
    len: u8,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct RawSimpleReply {
    magic: U32,
    error: U32,
    cookie: U64,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct RawChunk {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    length: U32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct RawDataChunk {
    chunk: RawChunk,
    offset: U64,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct RawErrorChunk {
    chunk: RawChunk,
    error: U32,
    message_bytes: U16,
}

impl ReplyHeader {
    const MAX_BYTES: usize = size_of::<RawDataChunk>();

    /// A simple reply; after a successful read the data follows.
    pub(crate) fn simple(cookie: u64, result: Result<(), Errno>) -> Self {
        let raw = RawSimpleReply {
            magic: U32::new(SIMPLE_REPLY_MAGIC),
            error: U32::new(result.err().map_or(0, error_on_the_wire)),
            cookie: U64::new(cookie),
        };
        Self::new(raw.as_bytes())
    }

    /// The only chunk of a structured reply, before `length` bytes of data read at `offset`.
    pub(crate) fn data(cookie: u64, offset: u64, length: u32) -> Self {
        let raw = RawDataChunk {
            chunk: RawChunk::only(CHUNK_OFFSET_DATA, cookie, 8 + length),
            offset: U64::new(offset),
        };
        Self::new(raw.as_bytes())
    }

    /// The only chunk of a structured reply that reports an error.
    pub(crate) fn error(cookie: u64, errno: Errno) -> Self {
        let raw = RawErrorChunk {
            chunk: RawChunk::only(CHUNK_ERROR, cookie, 6),
            error: U32::new(error_on_the_wire(errno)),
            message_bytes: U16::ZERO,
        };
        Self::new(raw.as_bytes())
    }

    /// As sent.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn new(from: &[u8]) -> Self {
        let mut bytes = [0; Self::MAX_BYTES];
        bytes[..from.len()].copy_from_slice(from);
        let len = u8::try_from(from.len()).expect("headers have at most 28 bytes");
        Self { bytes, len }
    }
}

impl RawChunk {
    fn only(kind: u16, cookie: u64, length: u32) -> Self {
        Self {
            magic: U32::new(STRUCTURED_REPLY_MAGIC),
            flags: U16::new(CHUNK_FLAG_DONE),
            kind: U16::new(kind),
            cookie: U64::new(cookie),
            length: U32::new(length),
        }
    }
}

/// The device went away under the connection: `ESHUTDOWN`.
pub(crate) const SHUTDOWN: Errno = Errno::from_raw(108);

/// The protocol knows eight errors; what is none of them is `EIO`.
fn error_on_the_wire(errno: Errno) -> u32 {
    const EFBIG: u16 = 27;
    const EOVERFLOW: u16 = 75;
    const EDQUOT: u16 = 122;
    match errno {
        Errno::PERM | Errno::ACCES | Errno::ROFS => 1,
        Errno::NOMEM => 12,
        Errno::INVAL => 22,
        Errno::NOSPC => 28,
        Errno::OPNOTSUPP => 95,
        Errno::NODEV | SHUTDOWN => 108,
        other => match other.get() {
            EFBIG | EDQUOT => 28,
            EOVERFLOW => 75,
            _ => 5,
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(request: &Request, command: u16) -> [u8; Request::BYTES] {
        let raw = RawRequest {
            magic: U32::new(REQUEST_MAGIC),
            flags: U16::new(request.flags),
            command: U16::new(command),
            cookie: U64::new(request.cookie),
            offset: U64::new(request.offset),
            length: U32::new(request.length),
        };
        raw.as_bytes().try_into().unwrap()
    }

    proptest! {
        #[test]
        fn any_request_is_decoded_to_what_was_sent(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u32,
        ) {
            let request = Request { flags, command: Command::from_wire(command), cookie, offset, length };
            prop_assert_eq!(Request::decode(&encode(&request, command)), Some(request));
        }

        #[test]
        fn nothing_is_decoded_without_the_magic(bytes: [u8; Request::BYTES]) {
            let has_magic = bytes[..4] == REQUEST_MAGIC.to_be_bytes();
            prop_assert_eq!(Request::decode(&bytes).is_some(), has_magic);
        }

        #[test]
        fn only_errors_of_the_protocol_are_sent(raw in 1..=511_i32) {
            let known = [1, 5, 12, 22, 28, 75, 95, 108];
            prop_assert!(known.contains(&error_on_the_wire(Errno::from_raw(raw))));
        }
    }

    #[test]
    fn replies_have_the_bytes_of_the_specification() {
        let simple = ReplyHeader::simple(0x0102_0304_0506_0708, Err(Errno::IO));
        assert_eq!(
            simple.as_bytes(),
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8]
        );
        let data = ReplyHeader::data(1, 4096, 512);
        assert_eq!(
            data.as_bytes(),
            [
                0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 8, 0, 0, 0, 0,
                0, 0, 0x10, 0
            ]
        );
        let error = ReplyHeader::error(2, Errno::NOSPC);
        assert_eq!(
            error.as_bytes(),
            [
                0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 6, 0, 0, 0,
                28, 0, 0
            ]
        );
    }
}
