//! Messages of the transport: the handshake's, and the header of each request.

use bitflags::bitflags;
use rnbd_base::Errno;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{expect_range, expect_type, prefix};
use crate::extension::{Agreement, AgreementBytes, Features, OfferBytes, ServiceId};
use crate::limits::{CONNECTIONS_PER_PATH, MAGIC, VERSION, VERSION_MAJOR};
use crate::name::NAME_FIELD_BYTES;
use crate::{DecodeError, Name};

const INFO_REQ: u16 = 0;
const INFO_RSP: u16 = 1;
const WRITE: u16 = 2;
const READ: u16 = 3;
const RKEY_RSP: u16 = 4;

const NEW_RKEY: u32 = 2;

/// Private data of a connect request (protocol.md 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConReq {
    /// Which connection of the path this is; less than `cid_num`.
    pub cid: u16,
    /// Connections of the path, 1 … 4096; the same in all its requests.
    pub cid_num: u16,
    /// Attempts of this path so far.
    pub recon_cnt: u16,
    /// The path, over all its reconnects.
    pub sess_uuid: [u8; 16],
    /// The session.
    pub paths_uuid: [u8; 16],
    /// May create the session on the server.
    pub first_conn: bool,
    /// What is offered beside the kernel's protocol; a kernel offers nothing.
    pub extension: Option<Features>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ConReqBytes {
    cma_version: u8,
    ip_version: u8,
    magic: U16,
    version: U16,
    cid: U16,
    cid_num: U16,
    recon_cnt: U16,
    sess_uuid: [u8; 16],
    paths_uuid: [u8; 16],
    first_conn: u8,
    reserved: [u8; 3],
    extension: OfferBytes,
}

impl ConReq {
    /// Length on the wire; the connection manager may have padded what arrives.
    pub const BYTES: usize = size_of::<ConReqBytes>();

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        zerocopy::transmute!(ConReqBytes {
            cma_version: 0,
            ip_version: 0,
            magic: MAGIC.into(),
            version: VERSION.into(),
            cid: self.cid.into(),
            cid_num: self.cid_num.into(),
            recon_cnt: self.recon_cnt.into(),
            sess_uuid: self.sess_uuid,
            paths_uuid: self.paths_uuid,
            first_conn: self.first_conn.into(),
            reserved: [0; 3],
            extension: OfferBytes::new(self.extension),
        })
    }

    /// From the private data of a request.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short, of another protocol or version, or `cid_num` or `cid` is out
    /// of its range.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let raw: ConReqBytes = zerocopy::transmute!(*prefix::<{ Self::BYTES }>("CON_REQ", bytes)?);
        expect_rtrs(raw.magic, raw.version)?;
        let cid_num = raw.cid_num.get();
        let cid = raw.cid.get();
        expect_range("cid_num", cid_num.into(), 1, CONNECTIONS_PER_PATH.into())?;
        expect_range("cid", cid.into(), 0, u64::from(cid_num) - 1)?;
        Ok(Self {
            cid,
            cid_num,
            recon_cnt: raw.recon_cnt.get(),
            sess_uuid: raw.sess_uuid,
            paths_uuid: raw.paths_uuid,
            first_conn: raw.first_conn & 1 != 0,
            extension: raw.extension.decode(),
        })
    }
}

/// Private data of the answer to a connect request (protocol.md 3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConRsp {
    /// With an accept.
    Accept(PathParameters),
    /// With a reject.
    Reject(Errno),
}

/// What a server tells about its chunks; the same on all connections of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathParameters {
    /// Chunks of the session.
    pub queue_depth: u16,
    /// Largest transfer in bytes: a chunk without its header part.
    pub max_io_size: u32,
    /// Header part of a chunk in bytes.
    pub max_hdr_size: u32,
    /// Each answer brings a new rkey for the chunk (`always_invalidate`).
    pub new_rkey: bool,
    /// What was agreed beside the kernel's protocol; with a kernel nothing is.
    pub extension: Option<Agreement>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ConRspBytes {
    magic: U16,
    version: U16,
    errno: U16,
    queue_depth: U16,
    max_io_size: U32,
    max_hdr_size: U32,
    flags: U32,
    extension: AgreementBytes,
    reserved: [u8; 16],
}

impl ConRsp {
    /// Length on the wire; the connection manager may have padded what arrives.
    pub const BYTES: usize = size_of::<ConRspBytes>();

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut raw = ConRspBytes::new_zeroed();
        raw.magic = MAGIC.into();
        raw.version = VERSION.into();
        match self {
            Self::Accept(path) => {
                raw.queue_depth = path.queue_depth.into();
                raw.max_io_size = path.max_io_size.into();
                raw.max_hdr_size = path.max_hdr_size.into();
                raw.flags = if path.new_rkey { NEW_RKEY } else { 0 }.into();
                raw.extension = AgreementBytes::new(path.extension);
            }
            Self::Reject(errno) => raw.errno = errno.get().wrapping_neg().into(),
        }
        zerocopy::transmute!(raw)
    }

    /// From the private data of an answer. Whether the parameters make sense is for the client to
    /// say (protocol.md 14.2).
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or of another protocol or version, or agrees to the
    /// extension without a path token.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let raw: ConRspBytes = zerocopy::transmute!(*prefix::<{ Self::BYTES }>("CON_RSP", bytes)?);
        expect_rtrs(raw.magic, raw.version)?;
        Ok(match raw.errno.get().cast_signed() {
            0 => Self::Accept(PathParameters {
                queue_depth: raw.queue_depth.get(),
                max_io_size: raw.max_io_size.get(),
                max_hdr_size: raw.max_hdr_size.get(),
                new_rkey: raw.flags.get() & NEW_RKEY != 0,
                extension: raw.extension.decode()?,
            }),
            errno => Self::Reject(Errno::from_raw(errno.into())),
        })
    }
}

fn expect_rtrs(magic: U16, version: U16) -> Result<(), DecodeError> {
    if magic != MAGIC {
        return Err(DecodeError::WrongMagic {
            actual: magic.get(),
        });
    }
    if version.get() >> 8 != u16::from(VERSION_MAJOR) {
        return Err(DecodeError::WrongVersion {
            actual: version.get(),
        });
    }
    Ok(())
}

/// First message of a client on connection 0: names the session (protocol.md 3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoReq {
    /// The session's name: printable, without `/` and `.`.
    pub pathname: Name,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct InfoReqBytes {
    kind: U16,
    pathname: [u8; NAME_FIELD_BYTES],
    reserved: [u8; 15],
}

impl InfoReq {
    /// Length on the wire.
    pub const BYTES: usize = size_of::<InfoReqBytes>();

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        zerocopy::transmute!(InfoReqBytes {
            kind: INFO_REQ.into(),
            pathname: *self.pathname.field(),
            reserved: [0; 15],
        })
    }

    /// From a received message.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short, of another type, or the name cannot be a session's.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let raw: InfoReqBytes =
            zerocopy::transmute!(*prefix::<{ Self::BYTES }>("INFO_REQ", bytes)?);
        expect_type("INFO_REQ", INFO_REQ, raw.kind.get())?;
        let pathname = Name::from_field(&raw.pathname)
            .and_then(Name::for_session)
            .map_err(|reason| DecodeError::Name {
                field: "pathname",
                reason,
            })?;
        Ok(Self { pathname })
    }
}

/// Remote memory: where it is, what opens it, how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Address in the peer's terms; only offsets are ever added to it.
    pub addr: u64,
    /// The rkey.
    pub key: u32,
    /// Bytes.
    pub len: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DescriptorBytes {
    addr: U64,
    key: U32,
    len: U32,
}

impl Descriptor {
    /// Length on the wire.
    pub const BYTES: usize = size_of::<DescriptorBytes>();

    fn to_bytes(self) -> [u8; Self::BYTES] {
        zerocopy::transmute!(DescriptorBytes {
            addr: self.addr.into(),
            key: self.key.into(),
            len: self.len.into(),
        })
    }

    fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let raw: DescriptorBytes = zerocopy::transmute!(*bytes);
        Self {
            addr: raw.addr.get(),
            key: raw.key.get(),
            len: raw.len.get(),
        }
    }
}

/// Answer to [`InfoReq`]: where the chunks are (protocol.md 3.8). Borrows the descriptors from the
/// received bytes; there may be as many as chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoRsp<'a> {
    service: Option<ServiceId>,
    descriptors: &'a [[u8; Descriptor::BYTES]],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct InfoRspBytes {
    kind: U16,
    sg_cnt: U16,
    /// Of the extension; zero from a kernel, which never looks at it.
    service: U32,
}

impl<'a> InfoRsp<'a> {
    const HEADER_BYTES: usize = size_of::<InfoRspBytes>();

    /// Length on the wire of an answer with `sg_cnt` descriptors.
    #[must_use]
    pub const fn bytes(sg_cnt: u16) -> usize {
        Self::HEADER_BYTES + Descriptor::BYTES * sg_cnt as usize
    }

    /// Writes an answer with these descriptors to the start of `out`; returns its length. Only a
    /// client that agreed to the extension is to be told the service.
    ///
    /// # Panics
    /// If `out` is shorter than [`InfoRsp::bytes`] or there are more than 65535 descriptors.
    pub fn encode(descriptors: &[Descriptor], service: Option<ServiceId>, out: &mut [u8]) -> usize {
        let sg_cnt = u16::try_from(descriptors.len()).expect("at most one descriptor a chunk");
        let header = InfoRspBytes {
            kind: INFO_RSP.into(),
            sg_cnt: sg_cnt.into(),
            service: service.map_or(0, ServiceId::get).into(),
        };
        let (head, rest) = out.split_at_mut(Self::HEADER_BYTES);
        head.copy_from_slice(header.as_bytes());
        for (index, descriptor) in descriptors.iter().enumerate() {
            let start = index * Descriptor::BYTES;
            rest[start..start + Descriptor::BYTES].copy_from_slice(&descriptor.to_bytes());
        }
        Self::bytes(sg_cnt)
    }

    /// From a received message. Whether the descriptors cover the chunks is for the client to say.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short, of another type, or has no descriptor.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let raw: InfoRspBytes =
            zerocopy::transmute!(*prefix::<{ InfoRsp::HEADER_BYTES }>("INFO_RSP", bytes)?);
        expect_type("INFO_RSP", INFO_RSP, raw.kind.get())?;
        let sg_cnt = raw.sg_cnt.get();
        expect_range("sg_cnt", sg_cnt.into(), 1, u16::MAX.into())?;
        let (all, _) = bytes[Self::HEADER_BYTES..].as_chunks();
        let descriptors = all
            .get(..usize::from(sg_cnt))
            .ok_or(DecodeError::TooShort {
                message: "INFO_RSP",
                needed: Self::bytes(sg_cnt),
                actual: bytes.len(),
            })?;
        Ok(Self {
            service: ServiceId::new(raw.service.get()),
            descriptors,
        })
    }

    /// What the path belongs to; of no meaning on a path without the extension.
    #[must_use]
    pub fn service(self) -> Option<ServiceId> {
        self.service
    }

    /// The descriptors, in the order of the chunks.
    pub fn descriptors(self) -> impl ExactSizeIterator<Item = Descriptor> + 'a {
        self.descriptors.iter().map(Descriptor::from_bytes)
    }
}

/// Header of a request that moves data to the server, or none (protocol.md 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteMsg {
    /// Bytes of the user message directly before this header.
    pub usr_len: u16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WriteMsgBytes {
    kind: U16,
    usr_len: U16,
}

impl WriteMsg {
    /// Length on the wire.
    pub const BYTES: usize = size_of::<WriteMsgBytes>();

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        zerocopy::transmute!(WriteMsgBytes {
            kind: WRITE.into(),
            usr_len: self.usr_len.into(),
        })
    }

    /// From the bytes that follow a user message.
    ///
    /// # Errors
    /// [`DecodeError`] if they are too few or of another type.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let raw: WriteMsgBytes = zerocopy::transmute!(*prefix::<{ Self::BYTES }>("WRITE", bytes)?);
        expect_type("WRITE", WRITE, raw.kind.get())?;
        Ok(Self {
            usr_len: raw.usr_len.get(),
        })
    }
}

bitflags! {
    /// Flags of a [`ReadMsg`]; a decoder drops those that it does not know.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ReadFlags: u16 {
        /// The answer is to invalidate the descriptor's key.
        const NEED_INVAL = 1;
    }
}

/// Header of a request that moves data to the client, or none (protocol.md 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadMsg {
    /// Bytes of the user message directly before this header.
    pub usr_len: u16,
    /// How to answer.
    pub flags: ReadFlags,
    /// Where the data goes; `None` when there is none, as for a flush.
    pub descriptor: Option<Descriptor>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ReadMsgBytes {
    kind: U16,
    usr_len: U16,
    flags: U16,
    sg_cnt: U16,
}

impl ReadMsg {
    /// Length on the wire without a descriptor.
    pub const BYTES_MIN: usize = size_of::<ReadMsgBytes>();

    /// Length on the wire with a descriptor.
    pub const BYTES_MAX: usize = Self::BYTES_MIN + Descriptor::BYTES;

    /// Length on the wire.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self.descriptor {
            Some(_) => Self::BYTES_MAX,
            None => Self::BYTES_MIN,
        }
    }

    /// Writes the header to the start of `out`; returns its length.
    ///
    /// # Panics
    /// If `out` is shorter than [`ReadMsg::bytes`].
    pub fn encode(self, out: &mut [u8]) -> usize {
        let header = ReadMsgBytes {
            kind: READ.into(),
            usr_len: self.usr_len.into(),
            flags: self.flags.bits().into(),
            sg_cnt: u16::from(self.descriptor.is_some()).into(),
        };
        out[..Self::BYTES_MIN].copy_from_slice(header.as_bytes());
        if let Some(descriptor) = self.descriptor {
            out[Self::BYTES_MIN..Self::BYTES_MAX].copy_from_slice(&descriptor.to_bytes());
        }
        self.bytes()
    }

    /// From the bytes that follow a user message.
    ///
    /// # Errors
    /// [`DecodeError`] if they are too few, of another type, or more than one descriptor or an
    /// empty one is there.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let raw: ReadMsgBytes =
            zerocopy::transmute!(*prefix::<{ Self::BYTES_MIN }>("READ", bytes)?);
        expect_type("READ", READ, raw.kind.get())?;
        expect_range("sg_cnt", raw.sg_cnt.get().into(), 0, 1)?;
        let descriptor = match raw.sg_cnt.get() {
            0 => None,
            _ => Some(Self::decode_descriptor(bytes)?),
        };
        Ok(Self {
            usr_len: raw.usr_len.get(),
            flags: ReadFlags::from_bits_truncate(raw.flags.get()),
            descriptor,
        })
    }

    fn decode_descriptor(bytes: &[u8]) -> Result<Descriptor, DecodeError> {
        let message: &[u8; Self::BYTES_MAX] = prefix("READ", bytes)?;
        let descriptor = Descriptor::from_bytes(prefix("READ", &message[Self::BYTES_MIN..])?);
        expect_range("desc.len", descriptor.len.into(), 1, u32::MAX.into())?;
        Ok(descriptor)
    }
}

/// The header of any request, as a server finds it in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Data goes to the client.
    Read(ReadMsg),
    /// Data came from the client.
    Write(WriteMsg),
}

impl Request {
    /// From the bytes at the offset that the immediate named.
    ///
    /// # Errors
    /// [`DecodeError::UnknownType`] for what is no request: the path is to be closed. Other errors
    /// are answered (protocol.md 14.1).
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let kind = u16::from_le_bytes(*prefix("RTRS request", bytes)?);
        match kind {
            READ => ReadMsg::decode(bytes).map(Self::Read),
            WRITE => WriteMsg::decode(bytes).map(Self::Write),
            actual => Err(DecodeError::UnknownType {
                protocol: "RTRS",
                actual,
            }),
        }
    }

    /// Bytes of the user message before the header.
    #[must_use]
    pub const fn usr_len(self) -> u16 {
        match self {
            Self::Read(read) => read.usr_len,
            Self::Write(write) => write.usr_len,
        }
    }
}

/// Payload of an answer in NEW_RKEY mode: what opens the chunk from now on (protocol.md 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RkeyRsp {
    /// The chunk; equals the `msg_id` of the immediate that comes with it.
    pub buf_id: u16,
    /// Its new rkey.
    pub rkey: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RkeyRspBytes {
    kind: U16,
    buf_id: U16,
    rkey: U32,
}

impl RkeyRsp {
    /// Length on the wire.
    pub const BYTES: usize = size_of::<RkeyRspBytes>();

    /// The bytes to send.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        zerocopy::transmute!(RkeyRspBytes {
            kind: RKEY_RSP.into(),
            buf_id: self.buf_id.into(),
            rkey: self.rkey.into(),
        })
    }

    /// From a received message.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short or of another type.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let raw: RkeyRspBytes =
            zerocopy::transmute!(*prefix::<{ Self::BYTES }>("RKEY_RSP", bytes)?);
        expect_type("RKEY_RSP", RKEY_RSP, raw.kind.get())?;
        Ok(Self {
            buf_id: raw.buf_id.get(),
            rkey: raw.rkey.get(),
        })
    }
}

const _: () = assert!(ConReq::BYTES == 56);
const _: () = assert!(ConRsp::BYTES == 56);
const _: () = assert!(InfoReq::BYTES == 272);
const _: () = assert!(InfoRsp::bytes(1) == 24);
const _: () = assert!(WriteMsg::BYTES == 4);
const _: () = assert!(ReadMsg::BYTES_MAX == 24);
const _: () = assert!(RkeyRsp::BYTES == 8);
