//! JSON-RPC over a Unix socket with SPDK's framing and rules.
