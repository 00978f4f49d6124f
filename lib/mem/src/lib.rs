//! Memory that devices and peers may touch: buffers within a budget, spans, chunk pools.
//!
//! All I/O memory of a process comes from one [`Memory`]: anonymous mappings of hugepages where
//! there are any, of ordinary pages where there are none, never a file mapping. A [`Buffer`] owns
//! a piece of it; a [`Span`] names a part of a buffer and is what travels through the data path.
//!
//! Two rules make spans cheap and sound at once. Memory that was mapped stays mapped for the life
//! of the process (a freed buffer's pages go back to the system, its address range to the next
//! buffer of that size), so a span always points at mapped memory. And nobody ever forms a
//! reference to the bytes behind a span, because a peer may write them at any time: they are
//! copied in and out, or handed to the kernel or a device by address; a [`LendingPipe`] hands pages to
//! a socket.
//!
//! This crate knows no protocol and no device; `lib/fabric` registers spans with devices.

mod chunk_pool;
mod lending;
mod mapping;
mod memory;
mod span;
mod streaming;

pub use chunk_pool::ChunkPool;
pub use lending::LendingPipe;
pub use mapping::{PageSize, Pages};
pub use memory::{Buffer, Memory, MemoryConfig, MemoryError, MemoryUsage, Pin};
pub use span::{MappingId, Span};
