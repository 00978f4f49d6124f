//! The conformance suite over a real device, or soft-RoCE.
//!
//! `RNBD_VERBS_ADDRESS` is an IP address of this host on an RDMA device. Without it there is
//! nothing to test on, and each test says so; with `RNBD_VERBS_REQUIRED` set it fails instead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use rnbd_base::Nanos;
use rnbd_fabric::Addr;
use rnbd_fabric::conformance::Testbed;
use rnbd_verbs::{VerbsConfig, VerbsFabric};

const NAP: Duration = Duration::from_micros(50);

/// One device, on which all hosts are one.
struct Bed {
    ip: IpAddr,
    start: Instant,
}

fn address() -> Option<IpAddr> {
    let text = std::env::var("RNBD_VERBS_ADDRESS").ok()?;
    Some(text.parse().expect("RNBD_VERBS_ADDRESS is an IP address"))
}

/// Another address of the same network, at which nobody is.
fn neighbour(ip: IpAddr) -> IpAddr {
    const NOBODY: u8 = 253;
    match ip {
        IpAddr::V4(ip) => {
            let mut octets = ip.octets();
            octets[3] = NOBODY;
            Ipv4Addr::from(octets).into()
        }
        IpAddr::V6(ip) => {
            let mut octets = ip.octets();
            octets[15] = NOBODY;
            Ipv6Addr::from(octets).into()
        }
    }
}

/// Whether the host has soft-RoCE devices: only those name the interface that they sit on.
fn is_soft_roce() -> bool {
    let devices = std::fs::read_dir("/sys/class/infiniband");
    devices.is_ok_and(|mut devices| {
        devices.any(|device| device.is_ok_and(|device| device.path().join("parent").exists()))
    })
}

impl Testbed for Bed {
    type Fabric = VerbsFabric;

    fn missing(test: &str) -> Option<String> {
        let missing = address().is_none();
        let required = std::env::var_os("RNBD_VERBS_REQUIRED").is_some();
        assert!(!(missing && required), "RNBD_VERBS_ADDRESS names no device");
        if missing {
            return Some("RNBD_VERBS_ADDRESS names no address on an RDMA device".to_owned());
        }
        let needs_ranges = test == "a_window_opens_exactly_what_it_is_bound_to";
        (needs_ranges && is_soft_roce())
            .then(|| "soft-RoCE checks the range of a window's region, not the window's".to_owned())
    }

    fn new() -> Self {
        Self {
            ip: address().expect("the suite asked whether something is missing"),
            start: Instant::now(),
        }
    }

    fn fabric(&mut self, _host: u8) -> VerbsFabric {
        VerbsFabric::new(VerbsConfig::default()).expect("the host has an RDMA device")
    }

    fn listen_addr(&mut self, _host: u8) -> Addr {
        Addr::Ip(SocketAddr::new(self.ip, 0))
    }

    fn unused_addr(&mut self) -> Addr {
        Addr::Ip(SocketAddr::new(self.ip, 1))
    }

    fn silent_addr(&mut self) -> Addr {
        Addr::Ip(SocketAddr::new(neighbour(self.ip), 1))
    }

    fn pass_time(&mut self, now: Nanos, _deadline: Option<Nanos>) -> Nanos {
        std::thread::sleep(NAP);
        Nanos::from(self.start.elapsed()).max(now + Nanos(1))
    }
}

rnbd_fabric::conformance_tests!(Bed);
