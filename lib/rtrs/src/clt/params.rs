//! What a server says about its chunks, checked before anything is sized by it.

use rnbd_base::Errno;
use rnbd_wire::extension::{Agreement, Features};
use rnbd_wire::limits::{HEADER_BYTES_MAX, HEADER_BYTES_MIN, IO_BYTES_MIN};
use rnbd_wire::rtrs::{ConRsp, InfoRsp, PathParameters};
use rnbd_wire::{DecodeError, ImmLayout};

use super::error::{PathError, Violation};

/// The parameters of a path: those of its first connection, checked (protocol.md 14.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathParams {
    /// Chunks of the session on the server.
    pub queue_depth: u16,
    /// Bytes of one chunk.
    pub chunk_bytes: u32,
    /// Most data bytes of one request.
    pub max_io_bytes: u32,
    /// Each answer brings a new key for its chunk.
    pub new_rkey: bool,
    /// What was agreed beside the kernel's protocol; nothing with a kernel.
    pub agreement: Option<Agreement>,
}

impl PathParams {
    /// From the private data of an accept.
    ///
    /// # Errors
    /// The server refused after all, or the data is malformed or absurd.
    pub fn from_accept(private_data: &[u8]) -> Result<Self, PathError> {
        match ConRsp::decode(private_data) {
            Ok(ConRsp::Accept(said)) => Self::check(&said)
                .map_err(|what| PathError::Violation(Violation::ConnectionResponse(what))),
            Ok(ConRsp::Reject(errno)) => Err(PathError::Rejected(errno)),
            Err(error) => Err(malformed(error)),
        }
    }

    fn check(said: &PathParameters) -> Result<Self, &'static str> {
        let layout = ImmLayout::new(said.queue_depth).ok_or("queue depth 0")?;
        if !(HEADER_BYTES_MIN..=HEADER_BYTES_MAX).contains(&said.max_hdr_size) {
            return Err("max_hdr_size is not within 512 bytes and 1 MiB");
        }
        if said.max_io_size < IO_BYTES_MIN {
            return Err("max_io_size is below 4096 bytes");
        }
        let chunk_bytes = said
            .max_io_size
            .checked_add(said.max_hdr_size)
            .filter(|bytes| layout.fits(*bytes))
            .ok_or("the chunks do not fit the immediate")?;
        Ok(Self {
            queue_depth: said.queue_depth,
            chunk_bytes,
            max_io_bytes: said.max_io_size,
            new_rkey: said.new_rkey,
            agreement: said.extension,
        })
    }

    /// Whether the server confirms that a lost path is finished.
    #[must_use]
    pub fn has_fence(&self) -> bool {
        let features = self.agreement.map(|agreement| agreement.features);
        features.is_some_and(|features| features.contains(Features::FENCE))
    }

    /// Whether requests made for a path with these parameters can go over one with `other`.
    #[must_use]
    pub fn carries_requests_of(&self, other: &Self) -> bool {
        self.queue_depth == other.queue_depth && self.max_io_bytes >= other.max_io_bytes
    }

    /// How immediates of this path are laid out.
    #[must_use]
    pub fn layout(&self) -> ImmLayout {
        ImmLayout::new(self.queue_depth).expect("a depth of 0 was refused")
    }
}

/// The errno of a reject; a reject without one counts as a reset (protocol.md 3.5).
pub(super) fn reject_errno(private_data: &[u8]) -> Errno {
    match ConRsp::decode(private_data) {
        Ok(ConRsp::Reject(errno)) => errno,
        Ok(ConRsp::Accept(_)) | Err(_) => Errno::CONNRESET,
    }
}

fn malformed(error: DecodeError) -> PathError {
    match error {
        DecodeError::WrongVersion { actual } => PathError::Version(actual),
        DecodeError::WrongMagic { .. } => Violation::ConnectionResponse("wrong magic").into(),
        _ => Violation::ConnectionResponse("too short").into(),
    }
}

/// Where the client writes a request, and the key that opens it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Address in the server's terms.
    pub addr: u64,
    /// The key that is valid now.
    pub rkey: u32,
}

/// All chunks of a path, by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkTable {
    chunks: Vec<Chunk>,
}

impl ChunkTable {
    /// From an `INFO_RSP`, whose descriptors must cover the chunks exactly (protocol.md 3.8).
    ///
    /// # Errors
    /// [`Violation::InfoResponse`] saying which rule was broken.
    pub fn from_info_rsp(message: &[u8], params: &PathParams) -> Result<Self, Violation> {
        let info = InfoRsp::decode(message).map_err(|_| Violation::InfoResponse("malformed"))?;
        Self::spread(info, params).map_err(Violation::InfoResponse)
    }

    fn spread(info: InfoRsp<'_>, params: &PathParams) -> Result<Self, &'static str> {
        let depth = usize::from(params.queue_depth);
        let descriptors = info.descriptors();
        if descriptors.len() > depth || !depth.is_multiple_of(descriptors.len()) {
            return Err("the descriptors do not divide the chunks");
        }
        let mut chunks = Vec::with_capacity(depth);
        for descriptor in descriptors {
            let bytes = params.chunk_bytes;
            if descriptor.len == 0 || !descriptor.len.is_multiple_of(bytes) {
                return Err("a descriptor is no multiple of the chunk size");
            }
            if descriptor.addr.checked_add(descriptor.len.into()).is_none() {
                return Err("a descriptor exceeds the address space");
            }
            for index in 0..descriptor.len / bytes {
                chunks.push(Chunk {
                    addr: descriptor.addr + u64::from(index) * u64::from(bytes),
                    rkey: descriptor.key,
                });
            }
            if chunks.len() > depth {
                return Err("the descriptors cover more than the chunks");
            }
        }
        if chunks.len() != depth {
            return Err("the descriptors cover less than the chunks");
        }
        Ok(Self { chunks })
    }

    /// The chunks with these indices; `None` if there are not that many.
    #[must_use]
    pub fn range(&self, range: super::PermitRange) -> Option<&[Chunk]> {
        let first = usize::from(range.first);
        self.chunks.get(first..first + usize::from(range.count))
    }
}
