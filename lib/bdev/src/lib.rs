//! Block devices: the trait, the registry and the native modules.
//!
//! A [`Bdev`] is a device that exists once per process; an [`IoChannel`] is one user's way to it
//! from one core. A [`Registry`] holds all devices by name, hands out descriptors ([`Desc`]) and
//! tells their holders of removal and resize through flags that they poll, so that no callback
//! ever runs on a foreign core.
//!
//! Users never call an [`IoChannel`] themselves: a [`Channel`] checks what is submitted, splits
//! what is too large for the device, and counts.
//!
//! This crate knows no protocol and no fabric, and reads no clock.

#![deny(unsafe_code)]

mod bdev;
mod channel;
mod claim;
mod completions;
mod create;
mod delay;
mod desc;
mod error;
mod histogram;
mod info;
mod io;
mod limits;
mod malloc;
mod node;
mod null;
mod plan;
mod registry;
mod stats;
#[cfg(test)]
mod testing;
mod uring;

pub use bdev::{Bdev, ConfigCall, Features, Geometry};
pub use channel::{Channel, IoChannel};
pub use claim::{ClaimInfo, ClaimType};
pub use create::CreateError;
pub use delay::{DelayBdev, DelayOptions, LatencyType};
pub use desc::Desc;
pub use error::{ErrorBdev, ErrorOptions, ErrorType, InjectError, InjectIoType};
pub use histogram::{HistogramOptions, HistogramSnapshot};
pub use info::BdevInfo;
pub use io::{BdevIo, IoDone, IoKind, IoOp};
pub use limits::RateLimits;
pub use malloc::{MallocBdev, MallocOptions};
pub use null::{NullBdev, NullOptions};
pub use registry::{BdevEvent, EventKind, OnRemoved, Registry, RegistryError, WaitId};
pub use stats::{
    BdevStats, ChannelStats, KindStats, QueueDepth, ResetMode, SamplingId, StatsSnapshot,
};
pub use uring::{AioOptions, UringBdev, UringOptions};
