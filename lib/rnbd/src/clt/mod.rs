//! The protocol of the client: which messages keep devices open, and what an I/O looks like.
//!
//! A [`Client`] belongs to one session and lives beside it on its home core: it opens every mapped
//! device again whenever the session came up. I/O does not pass through it: a core's channel makes
//! its messages with [`IoPlan`] from the [`DeviceInfo`] that the client published.

mod client;
mod device;
mod info;
mod io;

pub use client::{Client, ClientEvent, ControlMessage};
pub use device::{DeviceIndex, DeviceState, MappedDevice};
pub use info::DeviceInfo;
pub use io::IoPlan;

#[cfg(test)]
mod tests;
