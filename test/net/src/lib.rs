//! The real programs over loopback: what the tests in `tests/` run them with.
//!
//! A [`Daemon`] is one `rnbd_tgt` with a folder, a socket and a log of its own; dropping it ends it.
//! The programs are those built beside the tests. Nothing here waits for a fixed time: everything is
//! polled for, with a bound.

#![forbid(unsafe_code)]

mod daemon;
mod lab;
mod tools;

pub use daemon::{Daemon, DaemonOptions};
pub use lab::{EXPORT, Lab};
pub use tools::{Output, Perf, Running, program, run, wait_until};
