//! The fabric over TCP, IPv4 and IPv6.
//!
//! Each operation travels as a frame: a small header, and for writes and sends the payload
//! (`docs/tcp-frames.md`). The receiver plays the part of the adapter: it checks the key and the
//! range that a write names and lets the kernel copy the payload straight to its place.
//!
//! - `fabric` implements [`crate::Fabric`]; `lifecycle` and `handshake` hold how connections
//!   come, get up and go, `progress` what a poll does.
//! - `outbound` and `inbound` are the two directions of one connection, `frame` and `hello` the
//!   bytes, `keys` and `domains` who may write where.
//! - `sys` has the syscalls of the data path and all unsafe code; `socket` and `watcher` the
//!   other syscalls.

mod config;
mod connection;
mod fabric;
mod frame;
mod handshake;
mod hello;
mod inbound;
mod keys;
mod lifecycle;
mod outbound;
mod progress;
mod receives;
mod socket;
mod strangers;
mod sys;
#[cfg(test)]
mod tests;
mod watcher;

pub use config::TcpConfig;
pub use fabric::TcpFabric;
pub use lifecycle::TcpIncoming;
