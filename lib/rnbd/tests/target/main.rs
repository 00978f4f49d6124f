//! Target shards, served by hand: a scripted client that says exactly what a test wants, over the
//! simulated network and over TCP.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod client;
mod control;
mod fence;
mod geometry;
mod hostile;
mod io;
mod limits;
mod logging;
mod no_alloc;
mod opens;
mod rig;
mod sessions;
mod vectors;
