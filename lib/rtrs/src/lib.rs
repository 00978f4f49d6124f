//! The RTRS transport protocol as sans-I/O state machines: [`srv`] and [`clt`].
//!
//! A machine is told what happened (`handle_*`, with the time as a parameter) and is asked what to
//! do (`poll_*`). It sees descriptors (chunk index, offset, length, immediate), never payload; the
//! small headers that it parses were copied out of shared memory once, by whoever calls it. It
//! knows no fabric, clock, socket or thread, so the same code runs on every fabric, under SPDK and
//! in the simulator.

#![forbid(unsafe_code)]

pub mod clt;
mod heartbeat;
pub mod srv;

pub use heartbeat::{Beat, Heartbeat, HeartbeatConfig};
