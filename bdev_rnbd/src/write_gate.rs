//! Keeps new writes back while a write that its user was told had failed may still be executed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Shared by all channels of a session. Closed while any of them has given up a write whose path
/// is not fenced: a newer write to the same blocks, which its user may make now, could be
/// overtaken by it (docs/fencing.md).
#[derive(Clone, Debug, Default)]
pub(crate) struct WriteGate {
    /// Lost lives of paths with a write that was given up, summed over the channels.
    closed_by: Arc<AtomicU32>,
    /// Writes that wait for their path to be fenced; only to be shown.
    held: Arc<AtomicU32>,
}

impl WriteGate {
    /// One more reason to be closed. Whoever learns of the failure after this finds it closed.
    pub(crate) fn close(&self) {
        self.closed_by.fetch_add(1, Ordering::AcqRel);
    }

    /// One reason less; `true` if it was the last.
    pub(crate) fn open(&self) -> bool {
        self.closed_by.fetch_sub(1, Ordering::AcqRel) == 1
    }

    pub(crate) fn hold(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn release(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn held(&self) -> u32 {
        self.held.load(Ordering::Relaxed)
    }

    /// A plain load where nobody writes: as good as free on the data path.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed_by.load(Ordering::Acquire) > 0
    }
}
