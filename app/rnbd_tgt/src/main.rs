//! RNBD target and initiator daemon.

fn main() {}
