//! The fabric over RDMA verbs: `InfiniBand`, `RoCE` and soft-`RoCE`, through rdma-core.
//!
//! Addresses and connections are the RDMA connection manager's: IP in its TCP port space, GIDs, which
//! only `InfiniBand` devices have, in that of `InfiniBand`. Bytes move through reliable-connection
//! queue pairs (protocol.md 3.1, 3.9). One value belongs to one core:
//! it opens every device for itself and polls its own completion queues.
//!
//! - `fabric` implements [`rnbd_fabric::Fabric`]; `lifecycle` and `handshake` hold how
//!   connections come, get up and go, `progress` what a poll does, `posting` how work gets to the
//!   device.
//! - `host` is what the fabrics of a process share: the devices, the thread that watches them and
//!   the one that lets go of things; `removal` is a fabric's part when a device goes or comes.
//! - `connection`, `send_queue` and `recv_queue` are one connection; `keys` and `domains` who may
//!   reach which memory; `devices` and `probe` what the hardware is and can do.
//! - `sys` is rdma-core behind safe types, and all unsafe code.
//!
//! # What may take long
//!
//! Nothing waits for the network or a peer. Calls that go to the device's firmware take up to a
//! few milliseconds and are made on the control path only: registering memory (by the number of
//! pages), making queue pairs and windows, and the first connection over a device, which makes its
//! completion queue. Opening devices and ending things is left to the host's threads; only what a
//! live queue pair could still reach is ended on the spot. With the service `ibacm` running,
//! librdmacm asks it for routes and waits for the answer.

mod config;
mod connection;
mod connections;
mod devices;
mod domains;
mod fabric;
mod handshake;
mod host;
mod keys;
mod lifecycle;
mod listeners;
mod posting;
mod probe;
mod progress;
mod recv_queue;
mod removal;
mod send_queue;
mod sys;

pub use config::VerbsConfig;
pub use fabric::VerbsFabric;
pub use host::{Abilities, DeviceCounters, DeviceInfo, DeviceState, HostNews, PortInfo, VerbsHost};
pub use lifecycle::VerbsIncoming;
