use std::fmt;

/// Why an operation failed, as a positive errno of the generic Linux ABI (1 … 511).
///
/// The same number travels from a disk through the target, the wire and the initiator to the
/// user, so it is kept as it is and never mapped to an enum that would lose some.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(u16);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The symbol, for example `EIO`; `None` for a number not listed here.
            #[must_use]
            pub const fn symbol(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(concat!("E", stringify!($name))),)*
                    _ => None,
                }
            }

            /// What `strerror` says.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self.0 {
                    $($value => $text,)*
                    _ => "Unknown error",
                }
            }
        }
    };
}

errnos! {
    /// Not permitted; RNBD: another writer has the device.
    PERM = 1, "Operation not permitted";
    /// No such object.
    NOENT = 2, "No such file or directory";
    /// The medium or the device failed.
    IO = 5, "Input/output error";
    /// RTRS: the session is not known.
    NXIO = 6, "No such device or address";
    /// No resources now.
    AGAIN = 11, "Resource temporarily unavailable";
    /// No memory.
    NOMEM = 12, "Cannot allocate memory";
    /// No access.
    ACCES = 13, "Permission denied";
    /// Nothing is recorded (as SPDK says it).
    FAULT = 14, "Bad address";
    /// Not a block device.
    NOTBLK = 15, "Block device required";
    /// In use.
    BUSY = 16, "Device or resource busy";
    /// Exists already.
    EXIST = 17, "File exists";
    /// No such bdev.
    NODEV = 19, "No such device";
    /// A value is out of its range.
    INVAL = 22, "Invalid argument";
    /// Past the end, or the medium is full.
    NOSPC = 28, "No space left on device";
    /// The device is open read-only.
    ROFS = 30, "Read-only file system";
    /// A result is out of its range.
    RANGE = 34, "Numerical result out of range";
    /// A name is too long.
    NAMETOOLONG = 36, "File name too long";
    /// The connection's peer has another protocol version.
    PROTO = 71, "Protocol error";
    /// Too large for the session.
    MSGSIZE = 90, "Message too long";
    /// The operation is not supported.
    OPNOTSUPP = 95, "Operation not supported";
    /// The address is taken.
    ADDRINUSE = 98, "Address already in use";
    /// The address is not one of this host.
    ADDRNOTAVAIL = 99, "Cannot assign requested address";
    /// The session ended under the request.
    CONNABORTED = 103, "Software caused connection abort";
    /// The peer refused or dropped the connection.
    CONNRESET = 104, "Connection reset by peer";
    /// RNBD: the device id is not known.
    NOTCONN = 107, "Transport endpoint is not connected";
    /// It took too long.
    TIMEDOUT = 110, "Connection timed out";
    /// Nobody listens there.
    CONNREFUSED = 111, "Connection refused";
    /// No route to the address.
    HOSTUNREACH = 113, "No route to host";
    /// Done already.
    ALREADY = 114, "Operation already in progress";
    /// Stopped before it began.
    CANCELED = 125, "Operation canceled";
}

impl Errno {
    /// From an errno as the kernel reports it, with or without its sign. Numbers that the wire
    /// cannot carry (0, or above 511) become [`Errno::IO`].
    #[must_use]
    pub const fn from_raw(raw: i32) -> Self {
        let magnitude = raw.unsigned_abs();
        if magnitude == 0 || magnitude > 511 {
            return Self::IO;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 511")]
        Self(magnitude as u16)
    }

    /// The positive number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The number with the sign that the kernel and JSON-RPC errors carry.
    #[must_use]
    pub const fn negative(self) -> i32 {
        -(self.0 as i32)
    }
}

impl From<&std::io::Error> for Errno {
    fn from(error: &std::io::Error) -> Self {
        error.raw_os_error().map_or(Self::IO, Self::from_raw)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.symbol() {
            Some(symbol) => write!(f, "{} ({symbol})", self.text()),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.symbol() {
            Some(symbol) => f.write_str(symbol),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl std::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_the_wire_cannot_carry_become_eio() {
        assert_eq!(Errno::from_raw(-28), Errno::NOSPC);
        assert_eq!(Errno::from_raw(28).negative(), -28);
        assert_eq!(Errno::from_raw(0), Errno::IO);
        assert_eq!(Errno::from_raw(-524), Errno::IO);
        assert_eq!(Errno::from_raw(i32::MIN), Errno::IO);
    }
}
