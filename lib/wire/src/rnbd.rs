//! Messages of the block service: the user messages that RTRS carries.

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{expect_type, prefix};
use crate::name::NAME_FIELD_BYTES;
use crate::{DecodeError, Name};

const SESS_INFO: u16 = 0;
const SESS_INFO_RSP: u16 = 1;
const OPEN: u16 = 2;
const OPEN_RSP: u16 = 3;
const IO: u16 = 4;
const CLOSE: u16 = 5;

/// The common header; its padding is never looked at.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    kind: U16,
    padding: U16,
}

impl Header {
    const fn new(kind: u16) -> Self {
        Self {
            kind: U16::new(kind),
            padding: U16::ZERO,
        }
    }
}

/// Any request, as a server finds it in a chunk.
#[expect(
    clippy::large_enum_variant,
    reason = "lives on the stack while a request is looked at; a box would be an allocation"
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Versions are to be agreed.
    SessInfo(SessInfo),
    /// A device is to be opened.
    Open(Open),
    /// Block I/O.
    Io(Io),
    /// A device is to be closed.
    Close(Close),
}

impl Request {
    /// From the user message: exactly the `usr_len` bytes before the RTRS header.
    ///
    /// # Errors
    /// [`DecodeError`], to be answered with its [`errno`](DecodeError::errno).
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let kind = u16::from_le_bytes(*prefix("RNBD request", bytes)?);
        match kind {
            IO => Io::decode(bytes).map(Self::Io),
            SESS_INFO => SessInfo::decode(bytes).map(Self::SessInfo),
            OPEN => Open::decode(bytes).map(Self::Open),
            CLOSE => Close::decode(bytes).map(Self::Close),
            actual => Err(DecodeError::UnknownType {
                protocol: "RNBD",
                actual,
            }),
        }
    }
}

/// First message of a session: the client's version (protocol.md 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessInfo {
    /// Major version; both sides then use the lesser.
    pub ver: u8,
}

/// Answer to [`SessInfo`]: the version to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessInfoRsp {
    /// The lesser of both sides' versions.
    pub ver: u8,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SessInfoBytes {
    header: Header,
    ver: u8,
    reserved: [u8; 31],
}

impl SessInfo {
    /// Length on the wire.
    pub const BYTES: usize = size_of::<SessInfoBytes>();

    /// Length of the fields that matter; a shorter message is refused.
    pub const BYTES_MIN: usize = 5;

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        sess_info_bytes(SESS_INFO, self.ver)
    }

    /// From a user message.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or of another type.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let ver = decode_sess_info("SESS_INFO", SESS_INFO, bytes)?;
        Ok(Self { ver })
    }
}

impl SessInfoRsp {
    /// Length on the wire.
    pub const BYTES: usize = size_of::<SessInfoBytes>();

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        sess_info_bytes(SESS_INFO_RSP, self.ver)
    }

    /// From the data of an answer.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or of another type.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let ver = decode_sess_info("SESS_INFO_RSP", SESS_INFO_RSP, bytes)?;
        Ok(Self { ver })
    }
}

fn sess_info_bytes(kind: u16, ver: u8) -> [u8; SessInfo::BYTES] {
    zerocopy::transmute!(SessInfoBytes {
        header: Header::new(kind),
        ver,
        reserved: [0; 31],
    })
}

fn decode_sess_info(message: &'static str, kind: u16, bytes: &[u8]) -> Result<u8, DecodeError> {
    let [kind_low, kind_high, _, _, ver]: [u8; SessInfo::BYTES_MIN] = *prefix(message, bytes)?;
    expect_type(message, kind, u16::from_le_bytes([kind_low, kind_high]))?;
    Ok(ver)
}

/// What a client may do with a device (protocol.md 9.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessMode {
    /// Read only; any number of such openers.
    ReadOnly,
    /// Read and write; at most one such opener.
    ReadWrite,
    /// Read and write beside a writer, while a machine moves between hosts.
    Migration,
}

impl AccessMode {
    /// The code on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::ReadOnly => 0,
            Self::ReadWrite => 1,
            Self::Migration => 2,
        }
    }

    /// From the code on the wire.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::ReadOnly),
            1 => Some(Self::ReadWrite),
            2 => Some(Self::Migration),
            _ => None,
        }
    }

    /// `ro`, `rw` or `migration`, as the kernel's sysfs spells them.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "ro",
            Self::ReadWrite => "rw",
            Self::Migration => "migration",
        }
    }
}

/// Asks for a device (protocol.md 9.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// What the client wants to do with it.
    pub access_mode: AccessMode,
    /// Its name on the server.
    pub dev_name: Name,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OpenBytes {
    header: Header,
    access_mode: u8,
    padding: u8,
    dev_name: [u8; NAME_FIELD_BYTES],
}

impl Open {
    /// Length on the wire.
    pub const BYTES: usize = Self::BYTES_MIN + 3;

    /// Length of the fields that matter; a shorter message is refused.
    pub const BYTES_MIN: usize = size_of::<OpenBytes>();

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let raw = OpenBytes {
            header: Header::new(OPEN),
            access_mode: self.access_mode.code(),
            padding: 0,
            dev_name: *self.dev_name.field(),
        };
        let mut bytes = [0; Self::BYTES];
        bytes[..Self::BYTES_MIN].copy_from_slice(raw.as_bytes());
        bytes
    }

    /// From a user message.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short, of another type, or mode or name are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let raw: OpenBytes = zerocopy::transmute!(*prefix::<{ Self::BYTES_MIN }>("OPEN", bytes)?);
        expect_type("OPEN", OPEN, raw.header.kind.get())?;
        let access_mode =
            AccessMode::from_code(raw.access_mode).ok_or(DecodeError::OutOfRange {
                field: "access_mode",
                actual: raw.access_mode.into(),
                min: 0,
                max: 2,
            })?;
        let dev_name = Name::from_field(&raw.dev_name).map_err(|reason| DecodeError::Name {
            field: "dev_name",
            reason,
        })?;
        Ok(Self {
            access_mode,
            dev_name,
        })
    }
}

bitflags! {
    /// What a device does about durability; a decoder drops flags that it does not know.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct CachePolicy: u8 {
        /// Honours FUA.
        const FUA = 1;
        /// Has a write-back cache, so flush is to be sent.
        const WRITE_BACK = 2;
    }
}

/// Answer to [`Open`]: what the device is like (protocol.md 9.5). Sector counts are in 512 bytes
/// whatever the block size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenRsp {
    /// Names the device from now on, within the session.
    pub device_id: u32,
    /// Capacity in sectors.
    pub nsectors: u64,
    /// Largest transfer in sectors; Linux clients ignore it.
    pub max_hw_sectors: u32,
    /// Largest write zeroes in sectors; 0 for none. 6.1 sends 0.
    pub max_write_zeroes_sectors: u32,
    /// Largest discard in sectors; 0 for none.
    pub max_discard_sectors: u32,
    /// Discard granularity in bytes.
    pub discard_granularity: u32,
    /// Discard alignment in bytes.
    pub discard_alignment: u32,
    /// Physical block size in bytes.
    pub physical_block_size: u16,
    /// Logical block size in bytes; never 0 from a server that works.
    pub logical_block_size: u16,
    /// Segments of a transfer; Linux clients ignore it.
    pub max_segments: u16,
    /// Not 0 if secure erase is supported.
    pub secure_discard: u16,
    /// Obsolete; not 0 if the medium rotates.
    pub rotational: u8,
    /// Durability.
    pub cache_policy: CachePolicy,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OpenRspBytes {
    header: Header,
    device_id: U32,
    nsectors: U64,
    max_hw_sectors: U32,
    max_write_zeroes_sectors: U32,
    max_discard_sectors: U32,
    discard_granularity: U32,
    discard_alignment: U32,
    physical_block_size: U16,
    logical_block_size: U16,
    max_segments: U16,
    secure_discard: U16,
    rotational: u8,
    cache_policy: u8,
    reserved: [u8; 10],
}

impl OpenRsp {
    /// Length on the wire.
    pub const BYTES: usize = size_of::<OpenRspBytes>();

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        zerocopy::transmute!(OpenRspBytes {
            header: Header::new(OPEN_RSP),
            device_id: self.device_id.into(),
            nsectors: self.nsectors.into(),
            max_hw_sectors: self.max_hw_sectors.into(),
            max_write_zeroes_sectors: self.max_write_zeroes_sectors.into(),
            max_discard_sectors: self.max_discard_sectors.into(),
            discard_granularity: self.discard_granularity.into(),
            discard_alignment: self.discard_alignment.into(),
            physical_block_size: self.physical_block_size.into(),
            logical_block_size: self.logical_block_size.into(),
            max_segments: self.max_segments.into(),
            secure_discard: self.secure_discard.into(),
            rotational: self.rotational,
            cache_policy: self.cache_policy.bits(),
            reserved: [0; 10],
        })
    }

    /// From the data of an answer. Whether the sizes make sense is for the client to say
    /// (protocol.md 14.2).
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or of another type.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut raw = OpenRspBytes::new_zeroed();
        raw.as_mut_bytes()
            .copy_from_slice(prefix::<{ Self::BYTES }>("OPEN_RSP", bytes)?);
        expect_type("OPEN_RSP", OPEN_RSP, raw.header.kind.get())?;
        Ok(Self {
            device_id: raw.device_id.get(),
            nsectors: raw.nsectors.get(),
            max_hw_sectors: raw.max_hw_sectors.get(),
            max_write_zeroes_sectors: raw.max_write_zeroes_sectors.get(),
            max_discard_sectors: raw.max_discard_sectors.get(),
            discard_granularity: raw.discard_granularity.get(),
            discard_alignment: raw.discard_alignment.get(),
            physical_block_size: raw.physical_block_size.get(),
            logical_block_size: raw.logical_block_size.get(),
            max_segments: raw.max_segments.get(),
            secure_discard: raw.secure_discard.get(),
            rotational: raw.rotational,
            cache_policy: CachePolicy::from_bits_truncate(raw.cache_policy),
        })
    }
}

/// Gives a device back (protocol.md 9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// The device.
    pub device_id: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CloseBytes {
    header: Header,
    device_id: U32,
}

impl Close {
    /// Length on the wire.
    pub const BYTES: usize = size_of::<CloseBytes>();

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        zerocopy::transmute!(CloseBytes {
            header: Header::new(CLOSE),
            device_id: self.device_id.into(),
        })
    }

    /// From a user message.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or of another type.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let raw: CloseBytes = zerocopy::transmute!(*prefix::<{ Self::BYTES }>("CLOSE", bytes)?);
        expect_type("CLOSE", CLOSE, raw.header.kind.get())?;
        Ok(Self {
            device_id: raw.device_id.get(),
        })
    }
}

/// What a block request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Data to the client.
    Read,
    /// Data to the device.
    Write,
    /// Make durable what was written; the position means nothing.
    Flush,
    /// The range is no longer needed.
    Discard,
    /// Make the range unreadable.
    SecureErase,
    /// Zero the range. Before 5.18 the same code was WRITE_SAME, which carries data.
    WriteZeroes,
}

impl Op {
    /// The code on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Flush => 2,
            Self::Discard => 3,
            Self::SecureErase => 4,
            Self::WriteZeroes => 5,
        }
    }

    /// From the code on the wire.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Read),
            1 => Some(Self::Write),
            2 => Some(Self::Flush),
            3 => Some(Self::Discard),
            4 => Some(Self::SecureErase),
            5 => Some(Self::WriteZeroes),
            _ => None,
        }
    }
}

bitflags! {
    /// How a block request is to be done; a decoder drops flags that it does not know.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct IoFlags: u32 {
        /// Somebody waits for it; Linux sets it on every read.
        const SYNC = 0x100;
        /// Durable before it is answered.
        const FUA = 0x200;
        /// Flush first.
        const PREFLUSH = 0x400;
        /// Zeroed blocks stay allocated.
        const NOUNMAP = 0x800;
    }
}

/// Block I/O (protocol.md 9.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    /// The device.
    pub device_id: u32,
    /// Start in sectors of 512 bytes.
    pub sector: u64,
    /// What to do.
    pub op: Op,
    /// How.
    pub flags: IoFlags,
    /// Bytes affected.
    pub bi_size: u32,
    /// Linux ioprio: class in bits 13 … 15, level below; 0 for none.
    pub prio: u16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct IoBytes {
    header: Header,
    device_id: U32,
    sector: U64,
    rw: U32,
    bi_size: U32,
}

const OP_MASK: u32 = 0xff;

impl Io {
    /// Length on the wire.
    pub const BYTES: usize = 32;

    /// Length without the priority; a shorter message is refused.
    pub const BYTES_MIN: usize = size_of::<IoBytes>();

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let raw = IoBytes {
            header: Header::new(IO),
            device_id: self.device_id.into(),
            sector: self.sector.into(),
            rw: (u32::from(self.op.code()) | self.flags.bits()).into(),
            bi_size: self.bi_size.into(),
        };
        let mut bytes = [0; Self::BYTES];
        bytes[..Self::BYTES_MIN].copy_from_slice(raw.as_bytes());
        bytes[Self::BYTES_MIN..][..2].copy_from_slice(&self.prio.to_le_bytes());
        bytes
    }

    /// From a user message. One without room for the priority has none.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short, of another type, or the operation is not known.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let raw: IoBytes = zerocopy::transmute!(*prefix::<{ Self::BYTES_MIN }>("IO", bytes)?);
        expect_type("IO", IO, raw.header.kind.get())?;
        let [code, _, _, _] = raw.rw.get().to_le_bytes();
        Ok(Self {
            device_id: raw.device_id.get(),
            sector: raw.sector.get(),
            op: Op::from_code(code).ok_or(DecodeError::UnknownOperation { code })?,
            flags: IoFlags::from_bits_truncate(raw.rw.get() & !OP_MASK),
            bi_size: raw.bi_size.get(),
            prio: Self::decode_prio(bytes),
        })
    }

    fn decode_prio(bytes: &[u8]) -> u16 {
        bytes.first_chunk::<{ Self::BYTES }>().map_or(0, |bytes| {
            u16::from_le_bytes([bytes[Self::BYTES_MIN], bytes[Self::BYTES_MIN + 1]])
        })
    }
}

const _: () = assert!(SessInfo::BYTES == 36);
const _: () = assert!(Open::BYTES == 264);
const _: () = assert!(Open::BYTES_MIN == 261);
const _: () = assert!(OpenRsp::BYTES == 56);
const _: () = assert!(Close::BYTES == 8);
const _: () = assert!(Io::BYTES_MIN == 24);
