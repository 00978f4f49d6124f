use crate::mapping::Pages;
use crate::memory::{Buffer, Memory, MemoryError};
use crate::span::Span;

/// The chunks of one path: `count` pieces of `chunk_bytes` each, side by side in one buffer.
///
/// A pool has one owner, the path whose peer writes into it, and is never shared between paths:
/// what a lost path's I/O still uses cannot be overwritten through another one (protocol.md 7.4).
#[derive(Debug)]
pub struct ChunkPool {
    buffer: Buffer,
    chunk_bytes: usize,
    count: usize,
}

impl ChunkPool {
    /// `count` chunks of `chunk_bytes` for `owner`.
    ///
    /// # Errors
    /// [`MemoryError`], as for any buffer.
    ///
    /// # Panics
    /// If `count` or `chunk_bytes` is zero, or the whole does not fit the address space.
    pub fn new(
        memory: &Memory,
        owner: &str,
        count: usize,
        chunk_bytes: usize,
        pages: Pages,
    ) -> Result<Self, MemoryError> {
        assert!(
            count > 0 && chunk_bytes > 0,
            "a pool of {count} chunks of {chunk_bytes} bytes"
        );
        let bytes = count
            .checked_mul(chunk_bytes)
            .expect("limits keep pools below 256 MiB");
        let buffer = memory.alloc(owner, bytes, pages)?;
        Ok(Self {
            buffer,
            chunk_bytes,
            count,
        })
    }

    /// How many chunks.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Size of each.
    #[must_use]
    pub fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    /// All chunks, in order, without a gap.
    #[must_use]
    pub fn area(&self) -> Span {
        let bytes = self.count * self.chunk_bytes;
        self.buffer
            .span()
            .slice(0, bytes)
            .expect("the buffer holds all chunks")
    }

    /// Chunk `index`; `None` if there is no such chunk.
    #[must_use]
    pub fn chunk(&self, index: usize) -> Option<Span> {
        if index >= self.count {
            return None;
        }
        self.buffer
            .span()
            .slice(index * self.chunk_bytes, self.chunk_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryConfig;

    #[test]
    fn chunks_lie_side_by_side_and_end_with_the_area() {
        let memory = Memory::new(MemoryConfig::default());
        let pool = ChunkPool::new(&memory, "path", 3, 8192, Pages::Small).unwrap();
        let area = pool.area();
        assert_eq!(area.len(), 3 * 8192);
        for index in 0..3 {
            let chunk = pool.chunk(index).unwrap();
            assert_eq!(chunk.addr(), area.addr() + 8192 * index as u64);
            assert_eq!(chunk.len(), 8192);
        }
        assert!(pool.chunk(3).is_none());
    }
}
