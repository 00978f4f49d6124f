//! Who has which address. Each path is a network of its own, on which every host has a port.

use std::net::{IpAddr, Ipv4Addr};

use rnbd_fabric::Addr;
use rnbd_fabric::sim::SimNetwork;

use crate::scenario::{PATHS_MAX, Scenario};

const PORT: u16 = 1234;

/// The target's address on a path.
pub(crate) fn target_ip(path: usize) -> IpAddr {
    ip(path, 1)
}

/// Where the target listens on a path.
pub(crate) fn target(path: usize) -> Addr {
    Addr::Ip((target_ip(path), PORT).into())
}

/// The address of a client on a path.
pub(crate) fn client_ip(nth: usize, path: usize) -> IpAddr {
    ip(path, 2 + nth)
}

/// Where a client's connections come from on a path.
pub(crate) fn client(nth: usize, path: usize) -> Addr {
    Addr::Ip((client_ip(nth, path), 0).into())
}

fn ip(path: usize, host: usize) -> IpAddr {
    let byte = |n: usize| u8::try_from(n).expect("simulations are small");
    Ipv4Addr::new(10, byte(path), 0, byte(host)).into()
}

/// Makes all ports of all hosts.
pub(crate) fn lay(network: &SimNetwork, scenario: &Scenario) {
    let clients = scenario.initiators.len();
    for path in 0..PATHS_MAX {
        network.add_address(target_ip(0), target_ip(path));
        let delay = scenario.path_delays[path];
        for nth in 0..clients {
            network.add_address(client_ip(nth, 0), client_ip(nth, path));
            network.set_delay(client_ip(nth, path), target_ip(path), delay);
            network.set_delay(target_ip(path), client_ip(nth, path), delay);
        }
    }
}
