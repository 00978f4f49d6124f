//! The RNBD block service: [`srv`] and [`clt`] are the protocol of both sides, without I/O;
//! [`target`] runs the server on a fabric and on bdevs.
//!
//! The initiator's counterpart of [`target`] is the crate `bdev_rnbd`.

#![forbid(unsafe_code)]

pub mod clt;
pub mod srv;
pub mod target;
