//! Memory that one connection's fabric domain can use.

use rnbd_base::Errno;
use rnbd_bdev::IoOp;
use rnbd_fabric::{Access, DomainId, Fabric, FabricError, MemoryKey, Sge};
use rnbd_mem::{Buffer, Memory, Span};

/// A small buffer of our own, registered with one domain.
#[derive(Debug)]
pub(crate) struct Arena {
    buffer: Buffer,
    key: MemoryKey,
}

impl Arena {
    pub(crate) fn new<F: Fabric>(
        fabric: &mut F,
        domain: DomainId,
        buffer: Buffer,
        access: Access,
    ) -> Result<Self, FabricError> {
        let key = fabric.register(domain, buffer.span(), access)?;
        Ok(Self { buffer, key })
    }

    /// Part of it.
    pub(crate) fn span(&self, offset: usize, len: usize) -> Span {
        let part = self.buffer.span().slice(offset, len);
        part.expect("arenas are laid out with room for all their parts")
    }

    pub(crate) fn sge(&self, offset: usize, len: usize) -> Sge {
        Sge {
            span: self.span(offset, len),
            lkey: self.key.lkey,
        }
    }

    pub(crate) fn rkey(&self) -> u32 {
        self.key.rkey
    }

    /// Gives the registration up; the memory follows.
    pub(crate) fn release<F: Fabric>(self, fabric: &mut F) {
        fabric.deregister(self.key.mr);
    }
}

/// Registrations of consumers' memory: whole mappings, each registered when first seen, for good.
///
/// A consumer's buffers come and go, its mappings stay; so after the first I/O of each mapping a
/// registration is a look into a table.
#[derive(Debug)]
pub(crate) struct Registrations {
    memory: Memory,
    domain: DomainId,
    access: Access,
    keys: Vec<Option<MemoryKey>>,
}

impl Registrations {
    pub(crate) fn new(memory: Memory, domain: DomainId, access: Access) -> Self {
        Self {
            memory,
            domain,
            access,
            keys: Vec::new(),
        }
    }

    /// The key of the mapping that `span` lies in; `None` for memory of unknown origin.
    ///
    /// # Errors
    /// The fabric refuses to register it.
    pub(crate) fn key<F: Fabric>(
        &mut self,
        fabric: &mut F,
        span: Span,
    ) -> Result<Option<MemoryKey>, Errno> {
        let Some(index) = span.mapping().index() else {
            return Ok(None);
        };
        match self.keys.get(index) {
            Some(Some(key)) => Ok(Some(*key)),
            _ => self.register_mapping(fabric, index, span),
        }
    }

    #[cold]
    fn register_mapping<F: Fabric>(
        &mut self,
        fabric: &mut F,
        index: usize,
        span: Span,
    ) -> Result<Option<MemoryKey>, Errno> {
        let Some(whole) = self.memory.mapping(span.mapping()) else {
            return Ok(None);
        };
        let key = self.register(fabric, whole, self.access)?;
        if self.keys.len() <= index {
            self.keys.resize(index + 1, None);
        }
        self.keys[index] = Some(key);
        Ok(Some(key))
    }

    /// Registers just this span, for one I/O: for a read, the peer may write it until it is
    /// deregistered; for a write, the peer cannot reach it.
    ///
    /// # Errors
    /// The fabric refuses.
    pub(crate) fn register_once<F: Fabric>(
        &self,
        fabric: &mut F,
        span: Span,
        op: IoOp,
    ) -> Result<MemoryKey, Errno> {
        let access = match op {
            IoOp::Read => Access::RemoteWrite,
            _ => Access::Local,
        };
        self.register(fabric, span, access)
    }

    fn register<F: Fabric>(
        &self,
        fabric: &mut F,
        span: Span,
        access: Access,
    ) -> Result<MemoryKey, Errno> {
        let key = fabric.register(self.domain, span, access);
        key.map_err(|error| {
            log::warn!("memory of an I/O cannot be registered: {error}");
            Errno::NOMEM
        })
    }

    pub(crate) fn release<F: Fabric>(self, fabric: &mut F) {
        for key in self.keys.into_iter().flatten() {
            fabric.deregister(key.mr);
        }
    }
}
