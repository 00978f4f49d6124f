//! The shard, over a simulated fabric.
