//! Where SPDK's users have their data.

use rnbd_mem::Span;
use rnbd_spdk::{Io, MemoryMap};

/// The buffers of an I/O, which must be forgotten when it is given back.
pub(super) fn spans<'a>(io: &'a Io, map: &'a MemoryMap) -> impl Iterator<Item = Span> + 'a {
    // SAFETY: SPDK's users leave the buffers of an I/O mapped and untouched until it is completed;
    // `FaceChannel` gives an I/O back only after all of its parts have ended.
    io.buffers()
        .map(|(start, len)| unsafe { map.span(start, len) })
}
