use rnbd_base::Errno;
use rnbd_mem::{Buffer, Pages, Span};
use rnbd_spdk::{Io, IoKind};

use super::memory::spans;
use crate::runtime::Shared;

/// The data of an I/O whose buffers are cut in the middle of a block, in one piece.
#[derive(Debug)]
pub(super) struct Bounce {
    _buffer: Buffer,
    span: Span,
}

impl Bounce {
    /// Has the data already, if it is to be written.
    pub(super) fn new(shared: &Shared, io: &Io) -> Result<Self, Errno> {
        let bytes = io.buffers().map(|(_, len)| len).sum();
        let buffer = shared
            .memory
            .alloc("an I/O in odd pieces", bytes, Pages::Small);
        let buffer = buffer.map_err(|_| Errno::NOMEM)?;
        let span = buffer.span().slice(0, bytes).ok_or(Errno::NOMEM)?;
        if io.kind() == IoKind::Write {
            for (piece, part) in pieces(span, io, shared) {
                part.copy_from(&piece);
            }
        }
        Ok(Self {
            _buffer: buffer,
            span,
        })
    }

    pub(super) fn span(&self) -> Span {
        self.span
    }

    /// Gives the data that was read to whom it is for.
    pub(super) fn copy_out(&self, io: &Io, shared: &Shared) {
        for (piece, part) in pieces(self.span, io, shared) {
            piece.copy_from(&part);
        }
    }
}

/// The I/O's own buffers, each with its part of the copy.
fn pieces<'a>(whole: Span, io: &'a Io, shared: &'a Shared) -> impl Iterator<Item = (Span, Span)> {
    let mut offset = 0;
    spans(io, &shared.memory_map).filter_map(move |piece| {
        let part = whole.slice(offset, piece.len())?;
        offset += piece.len();
        Some((piece, part))
    })
}
