//! The client's machines against a server that a test plays by hand.

mod handshake;
mod hostile;
mod joining;
mod life;
mod many;
mod requests;
mod rig;
