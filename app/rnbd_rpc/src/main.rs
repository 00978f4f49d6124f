//! Command line client of the RPC server.

fn main() {}
