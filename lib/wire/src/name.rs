use std::fmt;
use std::str::Utf8Error;

use thiserror::Error;

use crate::limits::NAME_BYTES;

/// Bytes that a name takes on the wire, its NUL included.
pub(crate) const NAME_FIELD_BYTES: usize = NAME_BYTES + 1;

/// A name as the wire carries it: 1 … 254 bytes, none of them NUL, in a field of 255.
///
/// The bytes need not be UTF-8: a device name is a file name on somebody's host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// What follows the name is zero, so that equal names have equal bytes.
    field: [u8; NAME_FIELD_BYTES],
    len: u8,
}

/// Why bytes are not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing before the NUL.
    #[error("the name is empty")]
    Empty,
    /// More than the wire carries.
    #[error("the name has more than 254 bytes")]
    TooLong,
    /// No NUL within the field.
    #[error("the name does not end in NUL")]
    Unterminated,
    /// A NUL inside of a name to be sent.
    #[error("the name contains a NUL")]
    Nul,
    /// Not allowed in a session name.
    #[error("the session name contains {0:#04x}; it must be printable ASCII without '/' and '.'")]
    SessionCharacter(u8),
}

impl Name {
    /// A name to be sent.
    ///
    /// # Errors
    /// [`NameError`] if it is empty, longer than 254 bytes, or contains a NUL.
    pub fn new(name: impl AsRef<[u8]>) -> Result<Self, NameError> {
        let name = name.as_ref();
        if name.contains(&0) {
            return Err(NameError::Nul);
        }
        Self::from_unterminated(name)
    }

    /// A name received in its fixed-width field; what follows the NUL is ignored.
    ///
    /// # Errors
    /// [`NameError`] if there is no NUL or nothing before it.
    pub fn from_field(field: &[u8; NAME_FIELD_BYTES]) -> Result<Self, NameError> {
        let end = field.iter().position(|&byte| byte == 0);
        Self::from_unterminated(&field[..end.ok_or(NameError::Unterminated)?])
    }

    fn from_unterminated(name: &[u8]) -> Result<Self, NameError> {
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > NAME_BYTES {
            return Err(NameError::TooLong);
        }
        let mut field = [0; NAME_FIELD_BYTES];
        field[..name.len()].copy_from_slice(name);
        let len = u8::try_from(name.len()).map_err(|_| NameError::TooLong)?;
        Ok(Self { field, len })
    }

    /// The same name, if it can be a session's: such a name becomes a component of a path, so it
    /// has no `/` and no `.`, and it is logged, so it is printable.
    ///
    /// # Errors
    /// [`NameError::SessionCharacter`] with the first byte that is not allowed.
    pub fn for_session(self) -> Result<Self, NameError> {
        let allowed =
            |byte: u8| (byte.is_ascii_graphic() || byte == b' ') && !b"/.".contains(&byte);
        match self.as_bytes().iter().find(|&&byte| !allowed(byte)) {
            Some(&byte) => Err(NameError::SessionCharacter(byte)),
            None => Ok(self),
        }
    }

    /// The name, without its NUL.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.field[..usize::from(self.len)]
    }

    /// The name as text.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn to_str(&self) -> Result<&str, Utf8Error> {
        std::str::from_utf8(self.as_bytes())
    }

    /// The whole field, zero after the name.
    pub(crate) const fn field(&self) -> &[u8; NAME_FIELD_BYTES] {
        &self.field
    }
}

impl fmt::Display for Name {
    /// Escapes what is not printable ASCII, so that a peer cannot write control characters into a
    /// log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_bytes().escape_ascii())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_fits_and_one_more_byte_does_not() {
        assert_eq!(Name::new([b'x'; 254]).unwrap().as_bytes().len(), 254);
        assert_eq!(Name::new([b'x'; 255]), Err(NameError::TooLong));
        assert_eq!(Name::new(""), Err(NameError::Empty));
        assert_eq!(Name::new("a\0b"), Err(NameError::Nul));
    }

    #[test]
    fn what_follows_the_nul_does_not_distinguish_names() {
        let mut field = [0xa5; NAME_FIELD_BYTES];
        field[..5].copy_from_slice(b"ram0\0");
        assert_eq!(Name::from_field(&field), Name::new("ram0"));
        assert_eq!(
            Name::from_field(&[b'x'; NAME_FIELD_BYTES]),
            Err(NameError::Unterminated)
        );
    }

    #[test]
    fn a_session_name_cannot_leave_its_directory() {
        assert!(Name::new("clt1-srv1").unwrap().for_session().is_ok());
        for bad in ["..", "a/b", "a.b", "a\nb", "ä"] {
            assert!(Name::new(bad).unwrap().for_session().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_logged_name_carries_no_control_characters() {
        assert_eq!(Name::new("a\n\x1b[2J").unwrap().to_string(), "a\\n\\x1b[2J");
    }
}
