//! The real programs over loopback.
