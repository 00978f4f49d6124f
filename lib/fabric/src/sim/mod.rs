//! A fabric in memory, on virtual time, with faults by seed.
//!
//! A [`SimNetwork`] connects hosts, which are IP addresses; each core of a host has a
//! [`SimFabric`]. Everything random comes from the one seed of the network, and time is what the
//! fabrics are polled with, so the same calls give the same run.
//!
//! It is as strict as the contract of [`Fabric`](crate::Fabric) allows, in order to find callers
//! that rely on more than they were promised:
//!
//! - Local bytes are read when the operation is executed at the peer, not when it is posted, so
//!   that a buffer which is reused too early sends wrong bytes.
//! - A send slot is free again only when a signalled completion that covers it was polled.
//! - Keys are random, and a host that restarts has others.
//! - Completions come late and in any order between connections.
//!
//! And it is as unreliable as a network is: a message that was on its way when its sender crashed
//! or gave up may still arrive, and arrives before anything that tells of the end.

mod conn;
mod delivery;
mod fabric;
mod keys;
mod lifecycle;
mod net;
mod network;
mod plan;
mod posting;
mod sight;
mod wire;

pub use fabric::{SimFabric, SimIncoming};
pub use network::{Connection, Crash, Injection, SimNetwork};
pub use plan::{Device, FaultPlan, PerMillion};
pub use sight::{Seen, Sight};
pub use wire::{Side, WireId};

#[cfg(test)]
mod tests;
