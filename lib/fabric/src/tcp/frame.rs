//! Frame headers: 24 bytes, little endian, before or in front of the payloads they announce. The
//! format is described in `docs/tcp-frames.md`.

/// Bytes of a frame header.
pub(super) const HEADER_BYTES: usize = 24;

/// Most frames whose headers may stand together in front of their payloads.
pub(super) const CHAIN_MAX: usize = 64;

const CHAINED: u8 = 1;

/// What a frame does at the receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// Writes the payload to memory; nobody is told.
    #[default]
    Write,
    /// The same, then consumes a receive and delivers the immediate.
    WriteImm,
    /// Fills a receive.
    Send,
    /// Fills a receive and delivers the immediate.
    SendImm,
    /// Fills a receive and closes the window with the given key.
    SendInv,
}

impl FrameKind {
    fn code(self) -> u8 {
        match self {
            Self::Write => 1,
            Self::WriteImm => 2,
            Self::Send => 3,
            Self::SendImm => 4,
            Self::SendInv => 5,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [
            Self::Write,
            Self::WriteImm,
            Self::Send,
            Self::SendImm,
            Self::SendInv,
        ]
        .into_iter()
        .find(|kind| kind.code() == code)
    }

    /// Whether it takes a posted receive and is reported.
    pub(super) fn consumes_receive(self) -> bool {
        self != Self::Write
    }

    /// Whether the payload goes to the memory that the header names.
    pub(super) fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::WriteImm)
    }
}

/// A frame header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: FrameKind,
    /// Another header follows this one; the payloads of all follow the last one.
    pub(super) chained: bool,
    /// Payload bytes.
    pub(super) length: u32,
    /// The immediate, or the key to invalidate.
    pub(super) imm: u32,
    /// Key and address of the memory to write.
    pub(super) rkey: u32,
    pub(super) addr: u64,
}

impl Header {
    /// The bytes on the wire.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.kind.code();
        bytes[1] = if self.chained { CHAINED } else { 0 };
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.imm.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.rkey.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.addr.to_le_bytes());
        bytes
    }

    /// The header, or what is wrong with it.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, &'static str> {
        let [code, flags, 0, 0, rest @ ..] = bytes else {
            return Err("reserved bytes of a frame are not zero");
        };
        let kind = FrameKind::from_code(*code).ok_or("a frame of unknown type")?;
        if flags & !CHAINED != 0 {
            return Err("a frame with unknown flags");
        }
        let chained = *flags == CHAINED;
        if chained && kind == FrameKind::SendInv {
            return Err("a frame chained behind an invalidation");
        }
        let word =
            |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        Ok(Self {
            kind,
            chained,
            length: word(0),
            imm: word(4),
            rkey: word(8),
            addr: u64::from(word(12)) | u64::from(word(16)) << 32,
        })
    }

    /// Marks an encoded header as chained.
    pub(super) fn set_chained(bytes: &mut [u8]) {
        bytes[1] = CHAINED;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_header() -> impl Strategy<Value = Header> {
        let fields = (1_u8..=5, any::<(bool, u32, u32, u32, u64)>());
        fields.prop_map(|(code, (chained, length, imm, rkey, addr))| {
            let kind = FrameKind::from_code(code).unwrap();
            Header {
                kind,
                chained: chained && kind != FrameKind::SendInv,
                length,
                imm,
                rkey,
                addr,
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(header in any_header()) {
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn what_decodes_encodes_to_the_same(bytes in any::<[u8; HEADER_BYTES]>(), code in 0_u8..8) {
            let mut bytes = bytes;
            bytes[0] = code;
            bytes[1] &= 3;
            bytes[2] &= 1;
            bytes[3] = 0;
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let header = Header {
            kind: FrameKind::WriteImm,
            chained: true,
            length: 0x0403_0201,
            imm: 0x0807_0605,
            rkey: 0x0c0b_0a09,
            addr: 0x1413_1211_100f_0e0d,
        };
        let mut expected = vec![2, 1, 0, 0];
        expected.extend(1..=20);
        assert_eq!(header.encode().as_slice(), expected);
    }
}
