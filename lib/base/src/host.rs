//! Where a host is: an IP address, or one of `InfiniBand` itself.

use std::fmt;
use std::net::{AddrParseError, IpAddr, Ipv6Addr};
use std::str::FromStr;

/// An address of `InfiniBand` itself. It looks like an IPv6 address and is none: no interface needs
/// to have it, and what has the same digits as an IPv6 address may be another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gid([u8; 16]);

impl Gid {
    /// What tells it from an IP address where either may stand.
    pub const PREFIX: &'static str = "gid:";

    /// From the bytes as they are on the wire.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes as they are on the wire.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// As a number, whose leading bits are those of the address.
    #[must_use]
    pub const fn to_bits(self) -> u128 {
        u128::from_be_bytes(self.0)
    }

    /// The IPv6 address with the same digits.
    #[must_use]
    pub fn as_ipv6(self) -> Ipv6Addr {
        self.0.into()
    }
}

impl fmt::Display for Gid {
    /// With the prefix and all digits, as the kernel's RTRS writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("gid")?;
        let mut groups = self.as_ipv6().segments().into_iter();
        groups.try_for_each(|group| write!(f, ":{group:04x}"))
    }
}

impl FromStr for Gid {
    type Err = AddrParseError;

    /// With the prefix or without; groups of zeros may be left out as in IPv6.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(Self::PREFIX).unwrap_or(text);
        digits.parse().map(|ip: Ipv6Addr| Self(ip.octets()))
    }
}

/// A host by one of its addresses, without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// IPv4 or IPv6.
    Ip(IpAddr),
    /// `InfiniBand`.
    Gid(Gid),
}

impl Host {
    /// The same; an IPv4 address in IPv6's clothes is undressed.
    #[must_use]
    pub fn to_canonical(self) -> Self {
        match self {
            Self::Ip(ip) => Self::Ip(ip.to_canonical()),
            Self::Gid(_) => self,
        }
    }

    /// As the kernel writes it in the name of a path: `ip:192.0.2.1`, `gid:fe80:…`.
    #[must_use]
    pub fn in_path(self) -> String {
        match self {
            Self::Ip(ip) => format!("ip:{ip}"),
            Self::Gid(gid) => gid.to_string(),
        }
    }
}

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Self {
        Self::Ip(ip)
    }
}

impl fmt::Display for Host {
    /// As RPC writes it: `192.0.2.1`, `gid:fe80:…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Gid(gid) => gid.fmt(f),
        }
    }
}

impl FromStr for Host {
    type Err = AddrParseError;

    /// A GID has its prefix here.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with(Gid::PREFIX) {
            text.parse().map(Self::Gid)
        } else {
            text.parse().map(Self::Ip)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = "gid:fe80:0000:0000:0000:0000:0000:0000:0001";

    #[test]
    fn a_gid_is_written_as_the_kernel_does() {
        for text in ["gid:fe80::1", "fe80::1", FULL] {
            let gid: Gid = text.parse().unwrap();
            assert_eq!(gid.to_string(), FULL);
            assert_eq!(Gid::from_bytes(gid.to_bytes()), gid);
        }
        for bad in [
            "gid:",
            "gid:192.0.2.1",
            "gid:gid:::1",
            "GID:::1",
            "gid:::1/64",
        ] {
            assert!(bad.parse::<Gid>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_same_digits_are_two_hosts() {
        let (gid, ip): (Host, Host) = ("gid:fe80::1".parse().unwrap(), "fe80::1".parse().unwrap());
        assert_ne!(gid, ip);
        assert_eq!(
            (gid.to_string().as_str(), ip.to_string().as_str()),
            (FULL, "fe80::1")
        );
        assert_eq!(
            (gid.in_path().as_str(), ip.in_path().as_str()),
            (FULL, "ip:fe80::1")
        );
        let mapped: Host = "gid:::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(mapped.to_canonical(), mapped);
    }
}
