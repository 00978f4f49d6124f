//! The hello: what both sides send first, once. The format is described in `docs/tcp-frames.md`.

use crate::types::PrivateData;

/// Version of the hello and of the frames that follow it.
pub(super) const VERSION: u16 = 1;
/// Bytes before the private data.
pub(super) const PREFIX_BYTES: usize = 16;
/// Bytes of the longest hello.
pub(super) const HELLO_BYTES_MAX: usize = PREFIX_BYTES + PrivateData::MAX;

const MAGIC: [u8; 8] = *b"RNBDFRM\n";

/// What a hello says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HelloKind {
    /// The connecting side asks for a connection.
    Connect,
    /// The listening side takes it; frames follow.
    Accept,
    /// The listening side refuses.
    Reject,
    /// The listening side speaks another version, the one in the hello.
    Version,
}

/// A hello without its private data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) version: u16,
    pub(super) kind: HelloKind,
    pub(super) private_bytes: u8,
}

/// Why bytes are not a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotHello {
    /// Something else is speaking.
    Stranger,
    /// It is a hello of another version.
    Version(u16),
    /// The version is ours, the rest is not.
    Malformed,
}

impl HelloKind {
    fn code(self) -> u8 {
        match self {
            Self::Connect => 1,
            Self::Accept => 2,
            Self::Reject => 3,
            Self::Version => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Connect, Self::Accept, Self::Reject, Self::Version]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// A hello as it is built or arrives: the prefix, then the private data.
#[derive(Clone, Copy, Debug)]
pub(super) struct HelloBytes {
    bytes: [u8; HELLO_BYTES_MAX],
    len: usize,
}

impl HelloBytes {
    /// None yet.
    pub(super) const EMPTY: Self = Self {
        bytes: [0; HELLO_BYTES_MAX],
        len: 0,
    };

    /// A hello to send.
    pub(super) fn encode(kind: HelloKind, private_data: &PrivateData) -> Self {
        let mut hello = Self::EMPTY;
        let private = private_data.as_bytes();
        hello.bytes[..8].copy_from_slice(&MAGIC);
        hello.bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        hello.bytes[10] = kind.code();
        hello.bytes[11] = u8::try_from(private.len()).expect("private data has at most 196 bytes");
        hello.len = PREFIX_BYTES + private.len();
        hello.bytes[PREFIX_BYTES..hello.len].copy_from_slice(private);
        hello
    }

    /// All bytes so far.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Room for exactly what is still missing: never a byte of what follows the hello.
    pub(super) fn missing(&mut self) -> &mut [u8] {
        let end = self.expected();
        &mut self.bytes[self.len..end]
    }

    fn expected(&self) -> usize {
        if self.len < PREFIX_BYTES {
            return PREFIX_BYTES;
        }
        (PREFIX_BYTES + usize::from(self.bytes[11])).min(HELLO_BYTES_MAX)
    }

    /// Counts `bytes` of the missing ones as arrived. `None` until the hello is complete.
    pub(super) fn arrived(&mut self, bytes: usize) -> Result<Option<Prefix>, NotHello> {
        self.len += bytes;
        let prefix = self.prefix()?;
        Ok(prefix.filter(|_| self.len == self.expected()))
    }

    /// The private data of a complete hello.
    pub(super) fn private_data(&self) -> PrivateData {
        PrivateData::new(&self.bytes[PREFIX_BYTES..self.len.max(PREFIX_BYTES)])
            .expect("a prefix with a larger length is refused")
    }

    fn prefix(&self) -> Result<Option<Prefix>, NotHello> {
        let known = self.len.min(MAGIC.len());
        if self.bytes[..known] != MAGIC[..known] {
            return Err(NotHello::Stranger);
        }
        if self.len < PREFIX_BYTES {
            return Ok(None);
        }
        let version = u16::from_le_bytes([self.bytes[8], self.bytes[9]]);
        let kind = HelloKind::from_code(self.bytes[10]);
        if version != VERSION || kind == Some(HelloKind::Version) {
            return Err(NotHello::Version(version));
        }
        let private_bytes = self.bytes[11];
        let reserved = &self.bytes[12..PREFIX_BYTES];
        match kind {
            Some(kind) if usize::from(private_bytes) <= PrivateData::MAX && reserved == [0; 4] => {
                Ok(Some(Prefix {
                    version,
                    kind,
                    private_bytes,
                }))
            }
            _ => Err(NotHello::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(bytes: &[u8], step: usize) -> Result<Option<(Prefix, PrivateData)>, NotHello> {
        let mut hello = HelloBytes::EMPTY;
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = hello.missing();
            let n = room.len().min(step).min(rest.len());
            room[..n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            if let Some(prefix) = hello.arrived(n)? {
                return Ok(Some((prefix, hello.private_data())));
            }
        }
        Ok(None)
    }

    proptest! {
        #[test]
        fn a_hello_arrives_whole_however_it_is_cut(
            private in proptest::collection::vec(any::<u8>(), 0..=PrivateData::MAX),
            step in 1_usize..64,
        ) {
            let private = PrivateData::new(&private).unwrap();
            let sent = HelloBytes::encode(HelloKind::Accept, &private);
            let mut stream = sent.as_bytes().to_vec();
            stream.extend([1, 2, 3]);
            let (prefix, got) = feed(&stream, step).unwrap().unwrap();
            prop_assert_eq!(prefix.kind, HelloKind::Accept);
            prop_assert_eq!(got, private);
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            tail in proptest::collection::vec(any::<u8>(), 0..300),
            keep in 0_usize..=10,
            step in 1_usize..300,
        ) {
            let hello = HelloBytes::encode(HelloKind::Connect, &PrivateData::EMPTY);
            let mut bytes = hello.as_bytes()[..keep].to_vec();
            bytes.extend(tail);
            let _outcome = feed(&bytes, step);
        }
    }

    #[test]
    fn a_stranger_is_known_by_the_first_wrong_byte() {
        assert_eq!(feed(b"GET / HTTP/1.1\r\n\r\n", 1), Err(NotHello::Stranger));
        assert_eq!(feed(b"R", 1), Ok(None));
    }

    #[test]
    fn another_version_is_told_from_a_malformed_hello() {
        let hello = HelloBytes::encode(HelloKind::Connect, &PrivateData::EMPTY);
        let mut other = hello.as_bytes().to_vec();
        other[8] = 9;
        other[12] = 77;
        assert_eq!(feed(&other, 16), Err(NotHello::Version(9)));
        let mut bad = hello.as_bytes().to_vec();
        bad[11] = 197;
        assert_eq!(feed(&bad, 16), Err(NotHello::Malformed));
    }
}
