use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;
use thiserror::Error;

use crate::mapping::{Mapping, PageSize, Pages, populate};
use crate::span::{MappingId, Span};

/// How much memory a process may take, and of which kind.
#[derive(Clone, Debug)]
pub struct MemoryConfig {
    /// Most bytes that all buffers together may have.
    pub limit_bytes: u64,
    /// Whether hugepages are tried at all.
    pub hugepages: bool,
    /// NUMA node that pages should come from.
    pub numa_node: Option<u32>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            limit_bytes: u64::MAX,
            hugepages: true,
            numa_node: None,
        }
    }
}

/// Why a buffer could not be had.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MemoryError {
    /// The budget would be exceeded.
    #[error(
        "{owner} needs {wanted_bytes} bytes, but {used_bytes} of the memory budget of \
         {limit_bytes} bytes are in use (raise it with -s/--mem-size)"
    )]
    OverBudget {
        /// Who asked.
        owner: String,
        /// How much was asked for, rounded up to pages.
        wanted_bytes: u64,
        /// How much all buffers have now.
        used_bytes: u64,
        /// The budget.
        limit_bytes: u64,
    },
    /// The kernel refused.
    #[error("{owner} needs {wanted_bytes} bytes, and the kernel refused: {errno}")]
    Kernel {
        /// Who asked.
        owner: String,
        /// How much was asked for, rounded up to pages.
        wanted_bytes: u64,
        /// What it said.
        errno: Errno,
    },
}

/// What a process has taken so far, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// In buffers.
    pub used_bytes: u64,
    /// Of those, in hugepages.
    pub huge_bytes: u64,
    /// The budget.
    pub limit_bytes: u64,
}

impl MemoryUsage {
    fn check_room(self, owner: &str, wanted_bytes: u64) -> Result<(), MemoryError> {
        if self.used_bytes.saturating_add(wanted_bytes) <= self.limit_bytes {
            return Ok(());
        }
        Err(MemoryError::OverBudget {
            owner: owner.to_owned(),
            wanted_bytes,
            used_bytes: self.used_bytes,
            limit_bytes: self.limit_bytes,
        })
    }
}

/// The I/O memory of a process. Clones are handles to the same memory.
///
/// Buffers are made and freed when sessions and devices are, never per I/O, so this may lock.
#[derive(Clone)]
pub struct Memory {
    shared: Arc<Shared>,
}

struct Shared {
    config: MemoryConfig,
    state: Mutex<State>,
    warned: AtomicBool,
    announce: OnceLock<fn(Span)>,
}

#[derive(Default)]
struct State {
    mappings: Vec<Mapping>,
    free: Vec<MappingId>,
    usage: MemoryUsage,
}

/// Keeps a mapping's pages where they are, for whoever told a device or the kernel about them: a
/// buffer freed meanwhile keeps its pages, cleared, until the last pin is gone.
pub struct Pin {
    span: Span,
    shared: Arc<Shared>,
}

impl Memory {
    /// Memory within `config`; nothing is mapped yet.
    #[must_use]
    pub fn new(config: MemoryConfig) -> Self {
        let usage = MemoryUsage {
            limit_bytes: config.limit_bytes,
            ..MemoryUsage::default()
        };
        let state = Mutex::new(State {
            usage,
            ..State::default()
        });
        Self {
            shared: Arc::new(Shared {
                config,
                state,
                warned: AtomicBool::new(false),
                announce: OnceLock::new(),
            }),
        }
    }

    /// Calls `announce` for every mapping made from now on, which keeps its pages where they are for
    /// the life of the process: for another engine whose devices are to reach it. Only the first
    /// call counts.
    pub fn announce(&self, announce: fn(Span)) {
        self.shared.announce.get_or_init(|| announce);
    }

    /// A zeroed buffer of at least `bytes` for `owner`, whose name appears in errors.
    ///
    /// # Errors
    /// [`MemoryError`], naming the owner, the size and the limit.
    pub fn alloc(&self, owner: &str, bytes: usize, pages: Pages) -> Result<Buffer, MemoryError> {
        let bytes = bytes.max(1);
        for page_size in self.candidates(bytes, pages) {
            match self.alloc_with(owner, bytes, page_size, false) {
                Err(MemoryError::Kernel { errno, .. }) if page_size != PageSize::Small => {
                    self.warn_no_hugepages(owner, page_size, errno);
                }
                other => return other,
            }
        }
        let transparent = self.candidates(bytes, pages).next().is_some();
        self.alloc_with(owner, bytes, PageSize::Small, transparent)
    }

    /// Whether the budget has room for so many more bytes now. Nothing is set aside.
    ///
    /// # Errors
    /// [`MemoryError::OverBudget`].
    pub fn check_room(&self, owner: &str, bytes: u64) -> Result<(), MemoryError> {
        self.usage().check_room(owner, bytes)
    }

    /// Pins every mapping of hugepages that there is now.
    #[must_use]
    pub fn pin_huge(&self) -> Vec<Pin> {
        let mut state = self.shared.lock();
        let huge = |mapping: &Mapping| mapping.page_size != PageSize::Small;
        let ids: Vec<MappingId> = state.ids().filter(|&id| huge(state.mapping(id))).collect();
        ids.into_iter()
            .map(|id| Pin {
                span: state.pin(id),
                shared: Arc::clone(&self.shared),
            })
            .collect()
    }

    /// All of a mapping, so that a device can be given the whole of it once instead of each part;
    /// `None` if this memory has no such mapping.
    #[must_use]
    pub fn mapping(&self, id: MappingId) -> Option<Span> {
        let state = self.shared.lock();
        let mapping = state.mappings.get(id.index()?)?;
        Some(Span::of_mapping(mapping.start, mapping.len, id))
    }

    /// Takes in memory that somebody else mapped, so that a device can be given the whole of it
    /// once. It is not counted, never handed out, and keeps its number for good;
    /// [`MappingId::FOREIGN`] if there are no more numbers.
    ///
    /// # Safety
    /// The range is mapped, readable and writable whenever a span of it is used, and no Rust
    /// reference to those bytes exists then.
    pub unsafe fn adopt(&self, start: NonNull<u8>, len: usize) -> MappingId {
        let mut state = self.shared.lock();
        match u32::try_from(state.mappings.len()) {
            Ok(index) if index < u32::MAX => {
                state.mappings.push(Mapping::adopted(start, len));
                MappingId::new(index)
            }
            _ => MappingId::FOREIGN,
        }
    }

    /// What is in use.
    #[must_use]
    pub fn usage(&self) -> MemoryUsage {
        self.shared.lock().usage
    }

    fn candidates(&self, bytes: usize, pages: Pages) -> impl Iterator<Item = PageSize> + use<> {
        let huge = self.shared.config.hugepages && pages == Pages::PreferHuge;
        [PageSize::Huge1G, PageSize::Huge2M]
            .into_iter()
            .filter(move |size| huge && bytes >= size.bytes())
    }

    fn alloc_with(
        &self,
        owner: &str,
        bytes: usize,
        page_size: PageSize,
        transparent: bool,
    ) -> Result<Buffer, MemoryError> {
        let len = bytes.next_multiple_of(page_size.bytes());
        let wanted_bytes = len as u64;
        let mut state = self.shared.lock();
        state.usage.check_room(owner, wanted_bytes)?;
        let free = state.take_free(len, page_size, transparent);
        let id = match free {
            Some(id) => id,
            None => self
                .map(&mut state, len, page_size, transparent)
                .map_err(|errno| MemoryError::Kernel {
                    owner: owner.to_owned(),
                    wanted_bytes,
                    errno,
                })?,
        };
        state.charge(len, page_size);
        let span = state.span(id);
        if let (None, Some(announce)) = (free, self.shared.announce.get()) {
            state.pin(id);
            // It may ask this memory in turn.
            drop(state);
            announce(span);
        }
        Ok(Buffer {
            span,
            page_size,
            shared: Arc::clone(&self.shared),
        })
    }

    fn map(
        &self,
        state: &mut State,
        len: usize,
        size: PageSize,
        transparent: bool,
    ) -> Result<MappingId, Errno> {
        let mut mapping = Mapping::new(len, size)?;
        if transparent {
            mapping.make_transparent();
        }
        if let Some(node) = self.shared.config.numa_node
            && let Err(errno) = mapping.bind_to_node(node)
        {
            log::warn!("memory cannot be bound to NUMA node {node}: {errno}");
        }
        let index = u32::try_from(state.mappings.len()).map_err(|_| Errno::NOMEM)?;
        state.mappings.push(mapping);
        Ok(MappingId::new(index))
    }

    fn warn_no_hugepages(&self, owner: &str, size: PageSize, errno: Errno) {
        if size == PageSize::Huge2M && !self.shared.warned.swap(true, Ordering::Relaxed) {
            log::warn!(
                "no hugepages of 2 MiB for {owner} ({errno}): using ordinary pages, which costs \
                 speed; reserve some with `sysctl vm.nr_hugepages=N`"
            );
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn mapping(&self, id: MappingId) -> &Mapping {
        let index = id
            .index()
            .expect("buffers lie in mappings of their own memory");
        &self.mappings[index]
    }

    fn mapping_mut(&mut self, id: MappingId) -> &mut Mapping {
        let index = id
            .index()
            .expect("buffers lie in mappings of their own memory");
        &mut self.mappings[index]
    }

    fn span(&self, id: MappingId) -> Span {
        let mapping = self.mapping(id);
        Span::of_mapping(mapping.start, mapping.len, id)
    }

    fn take_free(
        &mut self,
        len: usize,
        page_size: PageSize,
        transparent: bool,
    ) -> Option<MappingId> {
        let fits = |id: &MappingId| {
            let mapping = self.mapping(*id);
            mapping.len == len
                && mapping.page_size == page_size
                && mapping.transparent == transparent
        };
        let at = self.free.iter().position(fits)?;
        Some(self.free.swap_remove(at))
    }

    fn charge(&mut self, len: usize, page_size: PageSize) {
        self.usage.used_bytes += len as u64;
        if page_size != PageSize::Small {
            self.usage.huge_bytes += len as u64;
        }
    }

    fn ids(&self) -> impl Iterator<Item = MappingId> + use<> {
        let count = u32::try_from(self.mappings.len()).expect("each has an index of 32 bits");
        (0..count).map(MappingId::new)
    }

    fn pin(&mut self, id: MappingId) -> Span {
        self.mapping_mut(id).pins += 1;
        self.span(id)
    }

    fn unpin(&mut self, id: MappingId) {
        let mapping = self.mapping_mut(id);
        mapping.pins -= 1;
        if mapping.pins == 0 && self.free.contains(&id) {
            // It is clear already, so all that is lost on failure is memory.
            let _ = self.mapping(id).decommit();
        }
    }

    fn release(&mut self, id: MappingId) {
        let mapping = self.mapping(id);
        let (len, page_size) = (mapping.len as u64, mapping.page_size);
        if mapping.pins > 0 || mapping.decommit().is_err() {
            self.span(id).fill(0);
        }
        self.usage.used_bytes -= len;
        if page_size != PageSize::Small {
            self.usage.huge_bytes -= len;
        }
        self.free.push(id);
    }
}

/// A piece of memory with one owner; dropping it gives the pages back.
pub struct Buffer {
    span: Span,
    page_size: PageSize,
    shared: Arc<Shared>,
}

impl Buffer {
    /// All of it. The buffer must be kept until every I/O on the span has completed.
    #[must_use]
    pub fn span(&self) -> Span {
        self.span
    }

    /// Makes all its pages resident, which may take a second per few gigabytes. For memory that a
    /// core will touch at random: a page fault there costs more than the I/O that runs into it.
    ///
    /// # Errors
    /// [`MemoryError::Kernel`] if the machine has not that much memory. Kernels before 5.14 cannot
    /// do this; pages are then faulted in as they are touched.
    pub fn populate(&self, owner: &str) -> Result<(), MemoryError> {
        match populate(&self.span) {
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(MemoryError::Kernel {
                owner: owner.to_owned(),
                wanted_bytes: self.span.len() as u64,
                errno,
            }),
        }
    }

    /// What its pages are.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.shared.lock().release(self.span.mapping());
    }
}

impl Pin {
    /// The whole mapping.
    #[must_use]
    pub fn span(&self) -> Span {
        self.span
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.shared.lock().unpin(self.span.mapping());
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({:?})", self.span)
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({:?}, {:?})", self.span, self.page_size)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({:?})", self.usage())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(limit_bytes: u64) -> Memory {
        Memory::new(MemoryConfig {
            limit_bytes,
            hugepages: false,
            numa_node: None,
        })
    }

    #[test]
    fn the_budget_is_kept_and_named() {
        let memory = small(8192);
        let held = memory.alloc("first", 5000, Pages::Small).unwrap();
        let error = memory.alloc("session clt1", 1, Pages::Small).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("session clt1 needs 4096 bytes"), "{text}");
        assert!(text.contains("8192 of the memory budget of 8192"), "{text}");
        drop(held);
        assert_eq!(memory.usage().used_bytes, 0);
        memory.alloc("second", 8192, Pages::Small).unwrap();
    }

    #[test]
    fn adopted_memory_is_a_mapping_that_is_never_handed_out_or_counted() {
        let memory = small(1 << 20);
        let foreign = small(1 << 20).alloc("b", 8192, Pages::Small).unwrap();
        let start = NonNull::new(foreign.span().as_ptr()).unwrap();
        // SAFETY: what a memory mapped stays mapped, and nobody refers to its bytes.
        let id = unsafe { memory.adopt(start, 8192) };
        let whole = memory.mapping(id).unwrap();
        assert_eq!((whole.addr(), whole.len()), (foreign.span().addr(), 8192));
        // SAFETY: as above.
        let part = unsafe { Span::from_raw_in(start, 512, id) };
        assert_eq!(part.mapping(), MappingId::from_index(id.index().unwrap()));
        assert_eq!(memory.usage().used_bytes, 0);
        let own = memory.alloc("a", 8192, Pages::Small).unwrap();
        assert_ne!(own.span().addr(), whole.addr());
    }

    #[test]
    fn a_freed_range_comes_back_zeroed() {
        let memory = small(1 << 20);
        let buffer = memory.alloc("a", 4096, Pages::Small).unwrap();
        buffer.span().fill(7);
        let addr = buffer.span().addr();
        drop(buffer);
        let again = memory.alloc("b", 4096, Pages::Small).unwrap();
        assert_eq!(again.span().addr(), addr);
        assert!(again.span().is_zeroed());
    }

    #[test]
    fn a_populated_buffer_is_resident_and_still_zeroed() {
        let resident_kib = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status
                .lines()
                .find(|line| line.starts_with("VmRSS:"))
                .unwrap();
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        let memory = small(1 << 30);
        let buffer = memory.alloc("a", 64 << 20, Pages::Small).unwrap();
        let before = resident_kib();
        buffer.populate("a").unwrap();
        assert!(resident_kib() >= before + (60 << 10));
        assert!(buffer.span().is_zeroed());
    }

    #[test]
    fn without_hugepages_ordinary_ones_serve() {
        let memory = Memory::new(MemoryConfig::default());
        let buffer = memory.alloc("a", 3 << 20, Pages::PreferHuge).unwrap();
        assert!(buffer.span().len() >= 3 << 20);
        buffer.span().fill(1);
    }

    #[test]
    fn what_is_freed_while_pinned_is_cleared_all_the_same() {
        let memory = small(1 << 20);
        let buffer = memory.alloc("a", 4096, Pages::Small).unwrap();
        let span = buffer.span();
        span.fill(7);
        let pin = Pin {
            span: memory.shared.lock().pin(span.mapping()),
            shared: Arc::clone(&memory.shared),
        };
        drop(buffer);
        assert!(span.is_zeroed());
        assert_eq!(memory.usage().used_bytes, 0);
        drop(pin);
        assert!(
            memory
                .alloc("b", 4096, Pages::Small)
                .unwrap()
                .span()
                .is_zeroed()
        );
    }

    #[test]
    fn a_new_mapping_is_announced_once_and_its_pages_stay() {
        static ANNOUNCED: Mutex<Vec<Span>> = Mutex::new(Vec::new());
        let memory = small(1 << 20);
        memory.announce(|span| ANNOUNCED.lock().unwrap().push(span));
        let span = memory.alloc("a", 4096, Pages::Small).unwrap().span();
        assert_eq!(memory.shared.lock().mapping(span.mapping()).pins, 1);
        let again = memory.alloc("b", 4096, Pages::Small).unwrap();
        assert_eq!(again.span(), span);
        assert_eq!(*ANNOUNCED.lock().unwrap(), [span]);
    }

    #[test]
    fn memory_that_is_touched_little_never_gets_a_mapping_of_transparent_hugepages() {
        let memory = Memory::new(MemoryConfig::default());
        let hot = memory
            .alloc_with("hot", 2 << 20, PageSize::Small, true)
            .unwrap();
        let addr = hot.span().addr();
        drop(hot);
        let cold = memory.alloc("cold", 2 << 20, Pages::Small).unwrap();
        assert_ne!(cold.span().addr(), addr);
    }
}
