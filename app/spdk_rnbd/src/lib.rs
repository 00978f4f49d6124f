//! RNBD inside an SPDK application: its bdevs exported to RNBD clients, and devices of RNBD servers
//! as bdevs of its own.
//!
//! Loaded into an unmodified program of a shared-library SPDK (`LD_PRELOAD`), linked into a static
//! one, or as `rnbd_tgt` with its feature `spdk`, it adds to that program
//!
//! - the bdev module `rnbd`, whose bdevs are made by `bdev_rnbd_attach_controller` and
//!   `bdev_rnbd_map_device`,
//! - the methods `rtrs_*` and `rnbd_*` of the target, whose exports name any bdev of the program,
//! - the subsystems `rnbd` and `rtrs`, for `save_config` and configuration files.
//!
//! All is started by the first call of one of these methods; before that nothing is polled.
//!
//! ```text
//!  app thread          control poller ── Hosted (RPC methods, sessions' control)
//!  rnbd_000, rnbd_001  reactor poller ── shards of target and initiator, one thread for each core
//!  any thread          channel of an rnbd bdev: rings to the shard of its core, and a poller
//! ```
//!
//! The crate is empty without the feature `spdk`.

#![cfg(feature = "spdk")]

mod app_only;
mod calls;
mod device;
mod entry;
mod faces;
mod hooks;
mod runtime;
mod seats;
mod source;

use std::ffi::OsString;
use std::process::ExitCode;

pub use entry::register;

/// Runs an SPDK application with target and initiator inside, until it is told to stop.
#[must_use]
pub fn run(name: &'static str, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    register();
    rnbd_spdk::app::run(name, arguments)
}
