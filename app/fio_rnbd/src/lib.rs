//! RNBD devices, and any other bdev of ours, as an I/O engine of fio:
//! `ioengine=external:…/fio-rnbd.so`.
//!
//! One initiator serves all jobs of a fio process. It is set up when the first job is, from the
//! JSON configuration that `rnbd_json_conf` names, and taken down when fio exits.
//!
//! ```text
//!  fio's main thread    setup: configuration, bdevs, sizes
//!  a job's thread       queue, commit, getevents ── channels of its bdevs ── its reactor
//!  rnbd_control         RPC methods, sessions' control, and reactors that no job polls just now
//! ```
//!
//! Each job thread polls a reactor of its own, so an I/O never leaves the thread that submitted it,
//! waits for no lock and allocates nothing; data lies in our own memory (`iomem_alloc`), so nothing
//! is copied on the way.
//!
//! The crate is empty without the feature `fio`. With it, the build takes fio's source: bindings
//! are made from its headers, for this one version.

#![cfg(feature = "fio")]
#![deny(unsafe_code)]

mod job;
mod runtime;
mod seat;
mod setup;
mod sys;
#[path = "../build/version.rs"]
mod version;
