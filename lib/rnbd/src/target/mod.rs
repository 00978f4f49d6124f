//! The target: what one core serves, on a fabric and on bdevs.
