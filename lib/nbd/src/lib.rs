//! NBD export of any bdev, in the process and at its speed.
//!
//! An [`NbdServer`] listens on a Unix socket or a TCP address and serves one device to any
//! number of clients: qemu, nbdcopy, fio's nbd engine, the kernel's nbd-client. It is one value on
//! one core and is polled there like everything else, so that a request meets its device without
//! crossing a core, a lock or an allocation. The servers that exist as libraries bring threads or
//! an async runtime of their own and a callback that blocks for each request, which is why this
//! is written here.
//!
//! What of the protocol there is: the fixed newstyle handshake, simple and structured replies,
//! read, write, flush, FUA, trim, write zeroes, block size information, and several connections of
//! one client. Reads are always answered in one piece. Not offered: TLS, block status and
//! metadata contexts, extended headers.
//!
//! ```text
//!   socket -> Inbox -> Transmission (slots, buffers) -> Channel of the bdev
//!   socket <- Outbox <------- replies <---------------- completions
//! ```
//!
//! One file each: `handshake` (bytes in, bytes out), `connection` (the life of a client),
//! `transmission` (its requests), `server` (the round on the core), `export` (start and stop).
//! This crate knows no RPC and no RNBD.

#![deny(unsafe_code)]

mod buffers;
mod connection;
mod export;
mod handshake;
mod inbox;
mod listener;
mod outbox;
mod protocol;
mod readiness;
mod requests;
mod server;
mod sys;
mod transmission;

pub use export::{ExportOptions, NbdError, NbdExport, NbdHandle};
pub use listener::{Address, InvalidAddress};
pub use server::{EndReason, NbdServer, OnEnd};
