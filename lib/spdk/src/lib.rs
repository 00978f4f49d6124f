//! SPDK behind safe types.
//!
//! - [`Thread`], [`Poller`]: SPDK's light threads, messages to them and what they poll.
//! - [`Disk`] and [`register_disk`]: a bdev that this process offers to SPDK's users; [`Io`] is one
//!   I/O of theirs.
//! - [`SpdkBdev`]: an SPDK bdev as a device of [`rnbd_bdev`], for the target.
//! - [`MemoryMap`]: which of our registrations SPDK's memory belongs to.
//! - [`rpc`], [`json`], [`notify`], [`module`], [`app`]: methods, configuration, and how it all gets into an
//!   SPDK application.
//!
//! SPDK calls back only on its own threads, and a light thread is polled by one OS thread at a
//! time. It may be polled by another one next time, so everything given to a light thread is
//! `Send`.
//!
//! Nothing here is linked: the symbols are those of the program that the code is loaded into. The
//! crate is empty without the feature `spdk`.

// What the text above links to is not there then.
#![cfg_attr(not(feature = "spdk"), allow(rustdoc::broken_intra_doc_links))]
#![cfg(feature = "spdk")]

pub mod app;
mod consumer;
mod disk;
pub mod env;
mod errors;
mod io;
pub mod json;
mod logger;
mod memory_map;
pub mod module;
pub mod notify;
mod poller;
pub mod rpc;
mod thread;

pub use consumer::{OpenError, SpdkBdev, SpdkEvent};
pub use disk::{Disk, DiskChannel, DiskHandle, DiskInfo, Ended, register_disk};
pub use io::{Io, IoKind, IoVecs};
pub use logger::install_logger;
pub use memory_map::{MemoryMap, share};
pub use poller::Poller;
pub use thread::Thread;
