use rnbd_mem::Span;

/// Bytes in which memory is handed out; a page, so that buffers suit direct I/O.
const UNIT_BYTES: usize = 4096;

/// A contiguous piece of a [`BufferPool`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    first: usize,
    units: usize,
}

impl Run {
    /// No memory.
    pub(crate) const NONE: Self = Self { first: 0, units: 0 };
}

/// Hands out contiguous memory for requests of any size up to its own.
///
/// First fit over a bitmap: small requests keep reusing the lowest pages, which stay in the cache,
/// and the rest of the area is never touched unless requests are large or many. Contiguous memory
/// lets every read be answered in one chunk, and its error be known before its first byte is sent.
#[derive(Debug)]
pub(crate) struct BufferPool {
    area: Span,
    used: Box<[bool]>,
    /// No unit below this one is free.
    lowest_free: usize,
}

impl BufferPool {
    /// A pool of all whole pages of `area`.
    pub(crate) fn new(area: Span) -> Self {
        let units = area.len() / UNIT_BYTES;
        Self {
            area,
            used: vec![false; units].into_boxed_slice(),
            lowest_free: 0,
        }
    }

    /// Memory for `bytes`; `None` as long as there is no gap that large.
    pub(crate) fn take(&mut self, bytes: usize) -> Option<Run> {
        if bytes == 0 {
            return Some(Run::NONE);
        }
        let units = bytes.div_ceil(UNIT_BYTES);
        let first = self.find_gap(units)?;
        self.used[first..first + units].fill(true);
        if first == self.lowest_free {
            self.lowest_free = first + units;
        }
        Some(Run { first, units })
    }

    /// Takes `run` back; nothing may use its memory any more.
    pub(crate) fn give_back(&mut self, run: Run) {
        if run == Run::NONE {
            return;
        }
        self.used[run.first..run.first + run.units].fill(false);
        self.lowest_free = self.lowest_free.min(run.first);
    }

    /// The first `bytes` of `run`.
    pub(crate) fn span(&self, run: Run, bytes: usize) -> Span {
        self.area
            .slice(run.first * UNIT_BYTES, bytes.min(run.units * UNIT_BYTES))
            .expect("runs lie within the area")
    }

    fn find_gap(&self, units: usize) -> Option<usize> {
        let mut free_units = 0;
        for (unit, &used) in self.used.iter().enumerate().skip(self.lowest_free) {
            if free_units == units {
                return Some(unit - units);
            }
            free_units = if used { 0 } else { free_units + 1 };
        }
        (free_units == units).then(|| self.used.len() - units)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rnbd_mem::{Buffer, Memory, MemoryConfig, Pages};

    use super::*;

    fn pool(units: usize) -> (Buffer, BufferPool) {
        let memory = Memory::new(MemoryConfig::default());
        let buffer = memory
            .alloc("pool", units * UNIT_BYTES, Pages::Small)
            .unwrap();
        let pool = BufferPool::new(buffer.span());
        (buffer, pool)
    }

    #[test]
    fn a_pool_serves_one_request_of_its_whole_size() {
        let (_buffer, mut pool) = pool(16);
        let run = pool.take(16 * UNIT_BYTES).unwrap();
        assert_eq!(pool.span(run, 16 * UNIT_BYTES).len(), 16 * UNIT_BYTES);
        assert!(pool.take(1).is_none());
        pool.give_back(run);
        assert!(pool.take(17 * UNIT_BYTES).is_none());
        assert!(pool.take(16 * UNIT_BYTES).is_some());
    }

    proptest! {
        #[test]
        fn runs_never_overlap_and_all_memory_comes_back(
            steps in prop::collection::vec((1..6_usize, any::<prop::sample::Index>(), any::<bool>()), 1..200),
        ) {
            let (_buffer, mut pool) = pool(32);
            let mut held: Vec<Run> = Vec::new();
            for (units, which, take) in steps {
                if take {
                    if let Some(run) = pool.take(units * UNIT_BYTES) {
                        let clear = |other: &Run| {
                            run.first + run.units <= other.first || other.first + other.units <= run.first
                        };
                        prop_assert!(held.iter().all(clear));
                        held.push(run);
                    }
                } else if !held.is_empty() {
                    pool.give_back(held.swap_remove(which.index(held.len())));
                }
            }
            for run in held {
                pool.give_back(run);
            }
            prop_assert!(pool.take(32 * UNIT_BYTES).is_some());
        }
    }
}
