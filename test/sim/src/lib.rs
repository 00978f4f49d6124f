//! The deterministic simulator: production target and initiator, unchanged, on a simulated network
//! and on virtual time, with faults, all from one seed.
//!
//! One seed makes a [`Scenario`]: how many hosts, cores and disks, which protocol options, what
//! load, which faults. A [`World`] plays it on one thread: it polls everything in an order that the
//! seed gives, and moves the clock to the next thing that is due. While it does,
//!
//! - a [`model`] of every disk knows which contents each block may have, so that a lost, stale,
//!   misplaced or torn write is found by the next read;
//! - every I/O must end, once, and without an error unless the scenario has a reason for one;
//! - when the faults have ended, everything must recover within a bounded time, and when the
//!   clients have left, target and initiator must have given back all that they took.
//!
//! A failure is a [`Failure`] with what was found; the seed and the commit repeat it.

#![forbid(unsafe_code)]

mod answer;
mod bench;
mod checks;
mod disk;
mod faults;
mod flaw;
mod initiator;
mod job;
mod ledger;
mod mapping;
pub mod model;
mod net;
mod routes;
mod scenario;
mod states;
mod target;
mod world;

pub use bench::Bench;
pub use flaw::Flaw;
pub use scenario::{FaultKind, PATHS_MAX, Scenario, Shape};
pub use world::{Failure, Report, World};

/// Plays the scenario of one seed.
///
/// # Errors
/// What was found.
pub fn run_seed(bench: &Bench, seed: u64, shape: Shape) -> Result<Report, Failure> {
    World::new(bench, Scenario::new(seed, shape)).run()
}

#[cfg(test)]
mod tests;
