//! Transport addresses as RPC writes them: `traddr`, `trsvcid` and `adrfam`.

use std::net::{IpAddr, ToSocketAddrs};

use rnbd_base::{Errno, Gid, Host};
use rnbd_fabric::Addr;
use rnbd_rpc::RpcError;
use serde::{Deserialize, Serialize};

/// The transports that RPC names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum TrType {
    #[default]
    Tcp,
    Rdma,
    Shm,
}

impl TrType {
    /// As RPC writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Rdma => "RDMA",
            Self::Shm => "SHM",
        }
    }

    /// Whether this program was built with it.
    pub(crate) fn check_available(self) -> Result<(), RpcError> {
        let missing = match self {
            Self::Tcp => return Ok(()),
            Self::Rdma if cfg!(feature = "rdma") => return Ok(()),
            Self::Rdma => {
                "without transport RDMA (its cargo feature `rdma` needs the packages \
                           libibverbs-dev, librdmacm-dev and libclang-dev)"
            }
            Self::Shm => "without transport SHM",
        };
        let text = format!("this program was built {missing}; use TCP");
        Err(RpcError::errno(Errno::OPNOTSUPP, text))
    }
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AdrFam {
    Ipv4,
    Ipv6,
    Ib,
}

impl AdrFam {
    fn of(host: Host) -> Self {
        match host {
            Host::Ip(IpAddr::V4(_)) => Self::Ipv4,
            Host::Ip(IpAddr::V6(_)) => Self::Ipv6,
            Host::Gid(_) => Self::Ib,
        }
    }
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListenAddress {
    pub(crate) trtype: TrType,
    pub(crate) traddr: String,
    pub(crate) trsvcid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) adrfam: Option<AdrFam>,
}

impl ListenAddress {
    /// As it is written when asked for.
    pub(crate) fn of(trtype: TrType, addr: Addr) -> Self {
        Self {
            trtype,
            traddr: addr.host().to_string(),
            trsvcid: addr.port().to_string(),
            adrfam: Some(AdrFam::of(addr.host())),
        }
    }

    pub(crate) fn addr(&self) -> Result<Addr, RpcError> {
        literal(&self.traddr, &self.trsvcid, self.adrfam)
    }
}

/// An address of this host: no name, so that nothing is listened on that was not told.
pub(crate) fn literal(
    traddr: &str,
    trsvcid: &str,
    adrfam: Option<AdrFam>,
) -> Result<Addr, RpcError> {
    let host = match gid(traddr, adrfam)? {
        Some(gid) => Host::Gid(gid),
        None => Host::Ip(traddr.parse().map_err(|_| {
            let text = format!("traddr '{traddr}' is not an IPv4 or IPv6 address or a GID (gid:…)");
            invalid(text)
        })?),
    };
    check_family(host, adrfam)?;
    Ok(Addr::new(host, port(trsvcid)?))
}

/// The address of another host, which may be a name. May block for as long as DNS does.
pub(crate) fn resolve(
    traddr: &str,
    trsvcid: &str,
    adrfam: Option<AdrFam>,
) -> Result<Addr, RpcError> {
    if gid(traddr, adrfam)?.is_some() || traddr.parse::<IpAddr>().is_ok() {
        return literal(traddr, trsvcid, adrfam);
    }
    let unknown = |reason: String| {
        RpcError::errno(
            Errno::HOSTUNREACH,
            format!("cannot resolve '{traddr}': {reason}"),
        )
    };
    let found = (traddr, port(trsvcid)?)
        .to_socket_addrs()
        .map_err(|error| unknown(error.to_string()))?;
    found
        .into_iter()
        .find(|addr| check_family(addr.ip().into(), adrfam).is_ok())
        .map(Addr::Ip)
        .ok_or_else(|| unknown("it has no address of this family".to_owned()))
}

/// The address of `InfiniBand` itself that it is, if it is one: the prefix of such addresses says so
/// (`gid:fe80::1`, as the kernel writes them), or the family.
fn gid(traddr: &str, adrfam: Option<AdrFam>) -> Result<Option<Gid>, RpcError> {
    if adrfam != Some(AdrFam::Ib) && !traddr.starts_with(Gid::PREFIX) {
        return Ok(None);
    }
    let gid = traddr.parse().map_err(|_| {
        let text = format!("traddr '{traddr}' is not a GID, which looks like gid:fe80::1");
        invalid(text)
    })?;
    Ok(Some(gid))
}

fn port(trsvcid: &str) -> Result<u16, RpcError> {
    trsvcid
        .parse()
        .map_err(|_| invalid(format!("trsvcid '{trsvcid}' is not a port number")))
}

fn check_family(host: Host, adrfam: Option<AdrFam>) -> Result<(), RpcError> {
    match adrfam {
        Some(wanted) if wanted != AdrFam::of(host) => Err(invalid(format!(
            "traddr '{host}' is not of family {wanted:?}"
        ))),
        _ => Ok(()),
    }
}

fn invalid(text: String) -> RpcError {
    RpcError::errno(Errno::INVAL, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_listen_on_is_literal_and_of_its_family() {
        let addr = |traddr, adrfam| literal(traddr, "1234", adrfam).map_err(|error| error.code);
        assert_eq!(
            addr("::1", None),
            Ok(Addr::Ip("[::1]:1234".parse().unwrap()))
        );
        assert!(addr("127.0.0.1", Some(AdrFam::Ipv4)).is_ok());
        assert_eq!(addr("127.0.0.1", Some(AdrFam::Ipv6)), Err(-22));
        assert_eq!(addr("localhost", None), Err(-22));
        assert!(literal("127.0.0.1", "65536", None).is_err());
    }

    #[test]
    fn a_gid_is_known_by_its_prefix_or_its_family() {
        let gid = Addr::new("gid:fe80::1".parse().unwrap(), 1234);
        let ways = [
            ("gid:fe80::1", None),
            ("gid:fe80::1", Some(AdrFam::Ib)),
            ("fe80::1", Some(AdrFam::Ib)),
        ];
        for (traddr, adrfam) in ways {
            assert_eq!(literal(traddr, "1234", adrfam), Ok(gid));
            assert_eq!(resolve(traddr, "1234", adrfam), Ok(gid));
        }
        let wrong = [
            ("gid:fe80::1", Some(AdrFam::Ipv6)),
            ("gid:192.0.2.1", None),
            ("gid:host", None),
            ("192.0.2.1", Some(AdrFam::Ib)),
            ("host", Some(AdrFam::Ib)),
        ];
        for (traddr, adrfam) in wrong {
            assert_eq!(literal(traddr, "1234", adrfam).unwrap_err().code, -22);
            assert_eq!(resolve(traddr, "1234", adrfam).unwrap_err().code, -22);
        }
    }

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for host in ["192.0.2.1", "2001:db8::1", "gid:fe80::1"] {
            let addr = Addr::new(host.parse().unwrap(), 1234);
            let written = ListenAddress::of(TrType::Rdma, addr);
            assert_eq!(written.addr(), Ok(addr));
            let json = serde_json::to_string(&written).unwrap();
            assert_eq!(
                serde_json::from_str::<ListenAddress>(&json).unwrap(),
                written
            );
        }
    }

    #[test]
    fn what_is_not_in_this_program_is_said() {
        let error = TrType::Shm.check_available().unwrap_err();
        assert_eq!(error.code, -95);
        assert!(error.message.contains("SHM"), "{error}");
        let rdma = TrType::Rdma.check_available();
        assert_eq!(rdma.is_ok(), cfg!(feature = "rdma"));
        if let Err(error) = rdma {
            assert_eq!(error.code, -95);
            assert!(error.message.contains("libibverbs-dev"), "{error}");
        }
    }
}
