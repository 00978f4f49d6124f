//! Who may open an export.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rnbd_base::Host;
use rnbd_wire::rnbd::AccessMode;
use thiserror::Error;

/// A network: an address and how many of its leading bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: Host,
    prefix: u32,
}

/// Not an address, or a prefix longer than it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not an address or a network like 192.0.2.0/24, 2001:db8::/32 or gid:fe80::/64")]
pub struct ParseCidrError(String);

impl Cidr {
    /// Whether `addr` is in the network. An IPv4 address that came in through an IPv6 socket is
    /// taken as what it is. GIDs are in networks of GIDs only.
    #[must_use]
    pub fn contains(&self, addr: Host) -> bool {
        let Some((network, addr, bits)) = common_form(self.network, addr.to_canonical()) else {
            return false;
        };
        let ignored = bits - self.prefix;
        network.checked_shr(ignored) == addr.checked_shr(ignored)
    }
}

/// Both as numbers, and how many bits they have; `None` if they are of different families.
fn common_form(one: Host, two: Host) -> Option<(u128, u128, u32)> {
    match (one, two) {
        (Host::Ip(IpAddr::V4(one)), Host::Ip(IpAddr::V4(two))) => {
            Some((one.to_bits().into(), two.to_bits().into(), 32))
        }
        (Host::Ip(IpAddr::V6(one)), Host::Ip(IpAddr::V6(two))) => {
            Some((one.to_bits(), two.to_bits(), 128))
        }
        (Host::Gid(one), Host::Gid(two)) => Some((one.to_bits(), two.to_bits(), 128)),
        _ => None,
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (addr, prefix) = match text.split_once('/') {
                Some((addr, prefix)) => (addr, Some(prefix)),
                None => (text, None),
            };
            let network: Host = addr.parse().ok()?;
            let bits = match network {
                Host::Ip(IpAddr::V4(_)) => 32,
                Host::Ip(IpAddr::V6(_)) | Host::Gid(_) => 128,
            };
            let prefix = match prefix {
                Some(prefix) => prefix.parse().ok()?,
                None => bits,
            };
            (prefix <= bits).then_some(Self { network, prefix })
        };
        parse().ok_or_else(|| ParseCidrError(text.to_owned()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// Lets clients in whose session name and address match. A session name is chosen by the client:
/// it tells hosts apart but proves nothing, the address is what protects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRule {
    /// Session name, with `*` for any characters and `?` for any one.
    pub sessname: String,
    /// Where the client must come from; `None` for anywhere.
    pub source: Option<Cidr>,
    /// The most that it may ask for.
    pub max_access: AccessMode,
}

impl HostRule {
    /// Whether the rule speaks of this client.
    #[must_use]
    pub fn matches(&self, sessname: &str, client: Host) -> bool {
        glob(self.sessname.as_bytes(), sessname.as_bytes())
            && self.source.is_none_or(|source| source.contains(client))
    }
}

/// Whether one who may have `most` may have `wanted`: `ro` is less than `rw`, which is less than
/// `migration`.
#[must_use]
pub fn permits(most: AccessMode, wanted: AccessMode) -> bool {
    wanted.code() <= most.code()
}

/// Matches without recursion: on a mismatch the last `*` takes one more character.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((star_p, star_t)) = star else {
                    return false;
                };
                star = Some((star_p, star_t + 1));
                p = star_p + 1;
                t = star_t + 1;
            }
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_their_addresses_only() {
        let contains =
            |net: &str, addr: &str| net.parse::<Cidr>().unwrap().contains(addr.parse().unwrap());
        assert!(contains("192.0.2.0/24", "192.0.2.255"));
        assert!(!contains("192.0.2.0/24", "192.0.3.0"));
        assert!(contains("192.0.2.7", "::ffff:192.0.2.7"));
        assert!(contains("0.0.0.0/0", "203.0.113.9"));
        assert!(!contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("2001:db8::/32", "2001:db8:1::1"));
        assert!(contains("::/0", "2001:db8::1"));
        assert!(contains("gid:fe80::/64", "gid:fe80::2:c903:1:2"));
        assert!(!contains("gid:fe80::/64", "gid:fec0::2:c903:1:2"));
        assert!(!contains("gid:::/0", "fe80::1"));
        assert!(!contains("::/0", "gid:fe80::1"));
        assert!(!contains("192.0.2.0/24", "gid:::ffff:192.0.2.1"));
        for bad in [
            "",
            "gid:fe80::/129",
            "gid:/64",
            "192.0.2.0/33",
            "host",
            "192.0.2.0/",
            "2001:db8::/129",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn globs_match_as_in_a_shell() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("clt?-*", "clt1-srv", true),
            ("clt?-*", "clt12-srv", false),
            ("*a*b*c", "xxaxxbxxbxc", true),
            ("*a*b*c", "xxaxxbxxbx", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }
}
