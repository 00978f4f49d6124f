//! Load generator and verifier for any bdev.

fn main() {}
