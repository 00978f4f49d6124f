//! What two peers of this project agree on beside the kernel's protocol, in bytes that a kernel
//! sends as zeros and never looks at (protocol.md 3.3, 3.4): the fence of `docs/fencing.md`.
//!
//! ```text
//!  CON_REQ  48 magic u32   52 features offered u16   54 zeros
//!  CON_RSP  20 magic u32   24 features agreed u16    26 zeros   28 path token u32
//!           32 instance u64   40 zeros; all of it only if the request had the magic
//!  INFO_RSP  4 service u32; only on a path where the above was agreed
//! ```

use std::num::NonZeroU32;

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::DecodeError;
use crate::error::expect_range;

/// Tells that the peer knows the extension: "RNBX".
const MAGIC: u32 = 0x5842_4e52;

const TOKEN_MAX: u32 = (1 << 28) - 1;

bitflags! {
    /// What a client offers and a server agrees to; a decoder drops what it does not know.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u16 {
        /// The server confirms over any path of the session that another one is finished.
        const FENCE = 1;
    }
}

/// Names one life of a path within the life of a server process: 28 bits, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathToken(u32);

impl PathToken {
    /// The first.
    pub const FIRST: Self = Self(1);

    /// The greatest.
    pub const LAST: Self = Self(TOKEN_MAX);

    /// `None` for 0 and for what 28 bits cannot hold.
    #[must_use]
    pub const fn new(token: u32) -> Option<Self> {
        match token {
            1..=TOKEN_MAX => Some(Self(token)),
            _ => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Names what a server keeps for a session: one from the first path that is up to the end of the
/// last, with the devices that were opened in it. Numbers of a process are given in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceId(NonZeroU32);

impl ServiceId {
    /// `None` for 0, with which nothing is said.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Whether it began after another one of the same process; numbers wrap.
    #[must_use]
    pub const fn is_after(self, other: Self) -> bool {
        self.get().wrapping_sub(other.get()).cast_signed() > 0
    }
}

/// What a server agreed to, and how it calls itself and the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Those of the client's features that are used.
    pub features: Features,
    /// This life of the path; the same on all its connections.
    pub token: PathToken,
    /// The server process: another one has nothing left of what this one was doing.
    pub instance: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Default)]
#[repr(C)]
pub(crate) struct OfferBytes {
    magic: U32,
    features: U16,
    reserved: [u8; 2],
}

impl OfferBytes {
    pub(crate) fn new(offer: Option<Features>) -> Self {
        offer.map_or_else(Self::default, |features| Self {
            magic: MAGIC.into(),
            features: features.bits().into(),
            reserved: [0; 2],
        })
    }

    pub(crate) fn decode(&self) -> Option<Features> {
        (self.magic == MAGIC).then(|| Features::from_bits_truncate(self.features.get()))
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Default)]
#[repr(C)]
pub(crate) struct AgreementBytes {
    magic: U32,
    features: U16,
    reserved: [u8; 2],
    token: U32,
    instance: U64,
}

impl AgreementBytes {
    pub(crate) fn new(agreement: Option<Agreement>) -> Self {
        agreement.map_or_else(Self::default, |agreement| Self {
            magic: MAGIC.into(),
            features: agreement.features.bits().into(),
            reserved: [0; 2],
            token: agreement.token.0.into(),
            instance: agreement.instance.into(),
        })
    }

    pub(crate) fn decode(&self) -> Result<Option<Agreement>, DecodeError> {
        if self.magic != MAGIC {
            return Ok(None);
        }
        let token = self.token.get();
        expect_range("path token", token.into(), 1, TOKEN_MAX.into())?;
        Ok(Some(Agreement {
            features: Features::from_bits_truncate(self.features.get()),
            token: PathToken(token),
            instance: self.instance.get(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_28_bits_and_are_not_zero() {
        assert_eq!(PathToken::new(1), Some(PathToken::FIRST));
        assert_eq!(PathToken::new(TOKEN_MAX), Some(PathToken::LAST));
        assert_eq!(PathToken::new(0), None);
        assert_eq!(PathToken::new(TOKEN_MAX + 1), None);
    }
}
