//! What every program of this repository starts with: options, log, memory, reactors, the RPC
//! server and the configuration.
//!
//! [`run`] sets all of it up, runs the program's own future on the control thread, and takes all
//! of it down again. The control thread never polls I/O: it sleeps until an RPC, a signal or a
//! reply of a reactor arrives, and it alone may block for a short while (opening a file, freeing
//! much memory). What belongs to a core lives on its reactor and is reached by messages whose
//! replies are futures here ([`reply`]).
//!
//! A program that has an event loop and polling threads already, as an SPDK application has, takes
//! [`Hosted`] instead.
//!
//! This crate is the composition root: it names the concrete fabrics and bdev modules and gives
//! them to the target and the initiator, which know traits only.

#![forbid(unsafe_code)]

mod access;
mod address;
mod app;
mod bdev_source;
mod config;
mod context_switches;
mod env;
mod fabrics;
mod flag;
mod hosted;
mod initiator;
mod logging;
mod methods;
mod nbd;
mod options;
mod poll_group;
#[cfg_attr(not(feature = "rdma"), path = "rdma_missing.rs")]
mod rdma;
mod reply;
mod rpc_log;
mod subsystem;
mod system;
mod target;

pub use app::{App, run};
pub use bdev_source::BdevSource;
pub use env::Env;
pub use hosted::Hosted;
pub use logging::{FLAGS, Level, Logger};
pub use options::{DEFAULT_SOCKET, Options, ReactorMode};
pub use reply::reply;

#[cfg(test)]
mod tests;
