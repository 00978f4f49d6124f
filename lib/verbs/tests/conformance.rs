//! The conformance suite over a real device, or soft-RoCE.
//!
//! `RNBD_VERBS_ADDRESS` is an IP address of this host on an RDMA device, or on InfiniBand a GID such
//! as `gid:fe80::1`. Without it there is nothing to test on, and each test says so; with `RNBD_VERBS_REQUIRED` set it fails instead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use rnbd_base::{Gid, Host, Nanos};
use rnbd_fabric::conformance::Testbed;
use rnbd_fabric::{Addr, Fabric};
use rnbd_verbs::{VerbsConfig, VerbsFabric};

/// Set where there is a device for the tests, so that they run or fail.
const REQUIRED: &str = "RNBD_VERBS_REQUIRED";
const NAP: Duration = Duration::from_micros(50);

/// One device, on which all hosts are one.
struct Bed {
    host: Host,
    start: Instant,
}

fn address() -> Option<Host> {
    let text = std::env::var("RNBD_VERBS_ADDRESS").ok()?;
    Some(
        text.parse()
            .expect("RNBD_VERBS_ADDRESS is an IP address or a GID"),
    )
}

/// Another address of the same network, at which nobody is.
fn neighbour(host: Host) -> Host {
    const NOBODY: u8 = 253;
    match host {
        Host::Ip(IpAddr::V4(ip)) => {
            let mut octets = ip.octets();
            octets[3] = NOBODY;
            Host::Ip(Ipv4Addr::from(octets).into())
        }
        Host::Ip(IpAddr::V6(ip)) => {
            let mut octets = ip.octets();
            octets[15] = NOBODY;
            Host::Ip(Ipv6Addr::from(octets).into())
        }
        Host::Gid(gid) => {
            let mut octets = gid.to_bytes();
            octets[15] = NOBODY;
            Host::Gid(Gid::from_bytes(octets))
        }
    }
}

impl Testbed for Bed {
    type Fabric = VerbsFabric;

    fn missing(_test: &str) -> Option<String> {
        let missing = address().is_none();
        let required = std::env::var_os(REQUIRED).is_some();
        assert!(!(missing && required), "RNBD_VERBS_ADDRESS names no device");
        missing.then(|| "RNBD_VERBS_ADDRESS names no address on an RDMA device".to_owned())
    }

    fn new() -> Self {
        Self {
            host: address().expect("the suite asked whether something is missing"),
            start: Instant::now(),
        }
    }

    fn fabric(&mut self, _host: u8) -> VerbsFabric {
        VerbsFabric::new(VerbsConfig::default()).expect("the host has an RDMA device")
    }

    fn listen_addr(&mut self, _host: u8) -> Addr {
        Addr::new(self.host, 0)
    }

    fn unused_addr(&mut self) -> Addr {
        Addr::new(self.host, 1)
    }

    fn silent_addr(&mut self) -> Addr {
        Addr::new(neighbour(self.host), 1)
    }

    fn pass_time(&mut self, now: Nanos, _deadline: Option<Nanos>) -> Nanos {
        std::thread::sleep(NAP);
        Nanos::from(self.start.elapsed()).max(now + Nanos(1))
    }
}

rnbd_fabric::conformance_tests!(Bed);

/// The suite has nothing to show for kinds of window that are not there.
#[test]
fn a_required_device_has_every_kind_of_window() {
    if std::env::var_os(REQUIRED).is_some() {
        let fabric = VerbsFabric::new(VerbsConfig::default()).expect("the host has an RDMA device");
        let caps = fabric.caps();
        assert!(caps.domain_windows && caps.connection_windows, "{caps:?}");
    }
}
