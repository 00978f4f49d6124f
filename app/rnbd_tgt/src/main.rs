//! The RNBD daemon: exports bdevs to clients, attaches devices of other servers as bdevs, or both,
//! as the RPC calls and the configuration say.
//!
//! Built with the feature `spdk` it is an SPDK application: reactors, bdevs, RPC server and command
//! line are SPDK's, and target and initiator are a module of it.

#![forbid(unsafe_code)]

#[cfg(not(feature = "spdk"))]
mod native;

use std::process::ExitCode;

#[cfg(not(feature = "spdk"))]
fn main() -> ExitCode {
    native::run()
}

#[cfg(feature = "spdk")]
fn main() -> ExitCode {
    spdk_rnbd::run("rnbd_tgt", std::env::args_os())
}
