use rnbd_base::Errno;
use thiserror::Error;

use crate::NameError;

/// Why the bytes of a peer are not the message they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The input ends before the message does.
    #[error("{message} has {actual} bytes, needs at least {needed}")]
    TooShort {
        /// The message.
        message: &'static str,
        /// Bytes that its fields take.
        needed: usize,
        /// Bytes that there are.
        actual: usize,
    },
    /// The type field names another message.
    #[error("{message} has type {actual}, not {expected}")]
    WrongType {
        /// The message.
        message: &'static str,
        /// Its type.
        expected: u16,
        /// The type found.
        actual: u16,
    },
    /// The type field names no message that may stand here.
    #[error("{protocol} request has unknown type {actual}")]
    UnknownType {
        /// RTRS or RNBD.
        protocol: &'static str,
        /// The type found.
        actual: u16,
    },
    /// The peer does not speak RTRS.
    #[error("magic is {actual:#06x}, not 0x1bbd")]
    WrongMagic {
        /// The magic found.
        actual: u16,
    },
    /// The peer speaks an RTRS that is not ours.
    #[error("version is {}.{}, not 2.x", .actual >> 8, .actual & 0xff)]
    WrongVersion {
        /// The version found.
        actual: u16,
    },
    /// A number is outside of its limits.
    #[error("{field} is {actual}, not within {min} … {max}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// The number found.
        actual: u64,
        /// Least legal.
        min: u64,
        /// Greatest legal.
        max: u64,
    },
    /// A block operation that this version does not know.
    #[error("operation {code} is not known")]
    UnknownOperation {
        /// The operation found.
        code: u8,
    },
    /// A name cannot be used.
    #[error("{field}: {reason}")]
    Name {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: NameError,
    },
}

impl DecodeError {
    /// What a server answers a request with that it could not decode (protocol.md 9.7, 14.1).
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::UnknownOperation { .. } => Errno::OPNOTSUPP,
            _ => Errno::INVAL,
        }
    }
}

/// The first `N` bytes, for a message of at least that many.
pub(crate) fn prefix<'a, const N: usize>(
    message: &'static str,
    bytes: &'a [u8],
) -> Result<&'a [u8; N], DecodeError> {
    bytes.first_chunk().ok_or(DecodeError::TooShort {
        message,
        needed: N,
        actual: bytes.len(),
    })
}

/// Whether the type field says that the message is what the caller takes it for.
pub(crate) fn expect_type(
    message: &'static str,
    expected: u16,
    actual: u16,
) -> Result<(), DecodeError> {
    if actual == expected {
        return Ok(());
    }
    Err(DecodeError::WrongType {
        message,
        expected,
        actual,
    })
}

/// Whether a number is within its limits.
pub(crate) fn expect_range(
    field: &'static str,
    actual: u64,
    min: u64,
    max: u64,
) -> Result<(), DecodeError> {
    if (min..=max).contains(&actual) {
        return Ok(());
    }
    Err(DecodeError::OutOfRange {
        field,
        actual,
        min,
        max,
    })
}
