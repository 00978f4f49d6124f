//! Transport addresses as RPC writes them: `traddr`, `trsvcid` and `adrfam`.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use rnbd_base::Errno;
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
    fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
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
        let (traddr, trsvcid, adrfam) = match addr {
            Addr::Ip(addr) => (
                addr.ip().to_string(),
                addr.port().to_string(),
                AdrFam::of(addr.ip()),
            ),
            other => (other.to_string(), String::new(), AdrFam::Ib),
        };
        Self {
            trtype,
            traddr,
            trsvcid,
            adrfam: Some(adrfam),
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
    check_no_gid(traddr, adrfam)?;
    let ip: IpAddr = traddr
        .parse()
        .map_err(|_| invalid(format!("traddr '{traddr}' is not an IPv4 or IPv6 address")))?;
    check_family(ip, adrfam)?;
    Ok(Addr::Ip(SocketAddr::new(ip, port(trsvcid)?)))
}

/// The address of another host, which may be a name. May block for as long as DNS does.
pub(crate) fn resolve(
    traddr: &str,
    trsvcid: &str,
    adrfam: Option<AdrFam>,
) -> Result<Addr, RpcError> {
    check_no_gid(traddr, adrfam)?;
    if traddr.parse::<IpAddr>().is_ok() {
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
        .find(|addr| check_family(addr.ip(), adrfam).is_ok())
        .map(Addr::Ip)
        .ok_or_else(|| unknown("it has no address of this family".to_owned()))
}

/// Addresses of InfiniBand itself, as the kernel writes them (`gid:fe80::1`), are not for this
/// program.
fn check_no_gid(traddr: &str, adrfam: Option<AdrFam>) -> Result<(), RpcError> {
    if adrfam != Some(AdrFam::Ib) && !traddr.starts_with("gid:") {
        return Ok(());
    }
    let text = format!(
        "traddr '{traddr}' is a GID, which this program cannot use; use an IP address of the device \
         (on InfiniBand that of its IPoIB interface)"
    );
    Err(RpcError::errno(Errno::OPNOTSUPP, text))
}

fn port(trsvcid: &str) -> Result<u16, RpcError> {
    trsvcid
        .parse()
        .map_err(|_| invalid(format!("trsvcid '{trsvcid}' is not a port number")))
}

fn check_family(ip: IpAddr, adrfam: Option<AdrFam>) -> Result<(), RpcError> {
    match adrfam {
        Some(wanted) if wanted != AdrFam::of(ip) => Err(invalid(format!(
            "traddr '{ip}' is not of family {wanted:?}"
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
    fn a_gid_is_refused_by_name() {
        let calls = [
            literal("gid:fe80::1", "1234", None),
            literal("fe80::1", "1234", Some(AdrFam::Ib)),
            resolve("gid:fe80::1", "1234", None),
        ];
        for answer in calls {
            let error = answer.unwrap_err();
            assert_eq!(error.code, -95);
            assert!(error.message.contains("GID"), "{error}");
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
