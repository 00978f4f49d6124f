//! The RNBD initiator: sessions to targets, each mapped device a bdev.
