use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use rnbd_base::Nanos;

use crate::conformance::Testbed;
use crate::tcp::{TcpConfig, TcpFabric};
use crate::types::Addr;

const NAP: Duration = Duration::from_micros(50);

/// Loopback, on which all hosts are one.
struct Loopback {
    ip: &'static str,
    config: TcpConfig,
    start: Instant,
    /// Takes connections and never answers.
    silent: TcpListener,
}

impl Loopback {
    fn over(ip: &'static str, config: TcpConfig) -> Self {
        Self {
            ip,
            config,
            start: Instant::now(),
            silent: TcpListener::bind((ip, 0)).unwrap(),
        }
    }

    fn fabric(&self) -> TcpFabric {
        TcpFabric::new(self.config.clone()).unwrap()
    }

    fn any_port(&self) -> Addr {
        Addr::Ip(SocketAddr::new(self.ip.parse().unwrap(), 0))
    }

    fn unused_addr(&self) -> Addr {
        let listener = TcpListener::bind((self.ip, 0)).unwrap();
        Addr::Ip(listener.local_addr().unwrap())
    }

    fn silent_addr(&self) -> Addr {
        Addr::Ip(self.silent.local_addr().unwrap())
    }

    /// Lets the kernel run.
    fn pass_time(&self, now: Nanos) -> Nanos {
        std::thread::sleep(NAP);
        Nanos::from(self.start.elapsed()).max(now + Nanos(1))
    }
}

macro_rules! testbed {
    ($module:ident, $ip:literal, $config:expr) => {
        mod $module {
            use super::*;

            struct Bed(Loopback);

            impl Testbed for Bed {
                type Fabric = TcpFabric;

                fn new() -> Self {
                    Self(Loopback::over($ip, $config))
                }

                fn fabric(&mut self, _host: u8) -> TcpFabric {
                    self.0.fabric()
                }

                fn listen_addr(&mut self, _host: u8) -> Addr {
                    self.0.any_port()
                }

                fn unused_addr(&mut self) -> Addr {
                    self.0.unused_addr()
                }

                fn silent_addr(&mut self) -> Addr {
                    self.0.silent_addr()
                }

                fn pass_time(&mut self, now: Nanos, _deadline: Option<Nanos>) -> Nanos {
                    self.0.pass_time(now)
                }
            }

            crate::conformance_tests!(Bed);
        }
    };
}

testbed!(v4, "127.0.0.1", TcpConfig::default());
testbed!(v6, "::1", TcpConfig::default());
testbed!(
    partial_sends,
    "127.0.0.1",
    TcpConfig {
        // The kernel makes this its minimum, a few kilobytes.
        send_buffer_bytes: Some(1),
        ..TcpConfig::default()
    }
);
