//! NBD export of any bdev.
