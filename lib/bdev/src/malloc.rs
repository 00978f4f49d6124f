//! `bdev_malloc_*`: a disk in memory.

use std::os::fd::RawFd;
use std::sync::Arc;

use rnbd_base::{CoreIndex, Errno, Nanos, Progress};
use rnbd_mem::{Buffer, Memory, Pages, Span};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bdev::{Bdev, ConfigCall, Features, Geometry};
use crate::channel::IoChannel;
use crate::completions::Completions;
use crate::create::{CreateError, check_name, check_no_metadata, checked_geometry, to_params};
use crate::io::{BdevIo, IoDone, IoOp};
use crate::registry::Registry;

/// Zeroing is done at memory speed on the caller's core, so this much at a time.
const MOST_ZEROED_BYTES: u64 = 1 << 20;

/// Parameters of `bdev_malloc_create`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MallocOptions {
    /// By default the first free of `Malloc0`, `Malloc1`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Size in blocks.
    pub num_blocks: u64,
    /// Bytes per block.
    pub block_size: u32,
    /// Bytes per physical block; by default those of a block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub physical_block_size: Option<u32>,
    /// By default a random one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Accepted and kept, without effect: memory has no boundaries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimal_io_boundary: Option<u32>,
    /// Only 0: there is no metadata.
    #[serde(skip_serializing)]
    pub md_size: u32,
    /// Without effect.
    #[serde(skip_serializing)]
    pub md_interleave: bool,
    /// Only 0: there is no protection information.
    #[serde(skip_serializing)]
    pub dif_type: u32,
    /// Without effect.
    #[serde(skip_serializing)]
    pub dif_is_head_of_md: bool,
    /// Without effect.
    #[serde(skip_serializing)]
    pub dif_pi_format: u32,
    /// Accepted and kept; the node is chosen for all memory of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa_id: Option<i32>,
}

/// A disk in memory.
///
/// All its memory is resident from the start, so that no I/O waits for a page. I/O is copying, done
/// when it is submitted; it completes at the next poll. Unmap and write-zeroes both clear the
/// blocks and keep their memory.
#[derive(Debug)]
pub struct MallocBdev {
    name: String,
    uuid: Uuid,
    geometry: Geometry,
    options: MallocOptions,
    content: Arc<Buffer>,
    span: Span,
}

impl MallocBdev {
    /// Makes a disk of zeroes and registers it; returns its name.
    ///
    /// # Errors
    /// [`CreateError`]: parameters out of range, no memory, or a name that is taken.
    pub fn create(
        registry: &Registry,
        memory: &Memory,
        mut options: MallocOptions,
    ) -> Result<String, CreateError> {
        let name = options
            .name
            .get_or_insert_with(|| registry.free_name("Malloc"))
            .clone();
        registry.register(Arc::new(Self::new(memory, options)?))?;
        Ok(name)
    }

    /// As [`MallocBdev::create`], for whoever registers it or uses it without a registry.
    ///
    /// # Errors
    /// As there. A name is needed.
    pub fn new(memory: &Memory, mut options: MallocOptions) -> Result<Self, CreateError> {
        let name = options.name.clone().unwrap_or_default();
        check_name(&name)?;
        check_no_metadata(&name, options.md_size, options.dif_type)?;
        let geometry = checked_geometry(
            &name,
            options.block_size,
            options.physical_block_size,
            options.num_blocks,
        )?;
        let bytes = usize::try_from(geometry.bytes())
            .map_err(|_| CreateError::invalid(&name, "it does not fit the address space"))?;
        let owner = format!("bdev {name}");
        let content = memory.alloc(&owner, bytes, Pages::PreferHuge)?;
        content.populate(&owner)?;
        let span = content
            .span()
            .slice(0, bytes)
            .expect("a buffer is at least as asked for");
        Ok(Self {
            uuid: *options.uuid.get_or_insert_with(Uuid::new_v4),
            name,
            geometry,
            options,
            content: Arc::new(content),
            span,
        })
    }
}

impl Bdev for MallocBdev {
    fn name(&self) -> &str {
        &self.name
    }

    fn product_name(&self) -> &'static str {
        "Malloc disk"
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn features(&self) -> Features {
        let most_zeroed_blocks = MOST_ZEROED_BYTES / u64::from(self.geometry.block_size);
        Features {
            max_unmap_blocks: most_zeroed_blocks,
            max_write_zeroes_blocks: most_zeroed_blocks,
            unmap_granularity: self.geometry.block_size,
            ..Features::default()
        }
    }

    fn open_channel(&self, _core: CoreIndex, depth: u32) -> Result<Box<dyn IoChannel>, Errno> {
        Ok(Box::new(MallocChannel {
            _content: Arc::clone(&self.content),
            span: self.span,
            block_size: self.geometry.block_size as usize,
            ended: Completions::new(depth),
        }))
    }

    fn config(&self) -> Vec<ConfigCall> {
        vec![ConfigCall {
            method: "bdev_malloc_create",
            params: to_params(&self.options),
        }]
    }

    fn memory(&self) -> Option<Span> {
        Some(self.span)
    }
}

#[derive(Debug)]
struct MallocChannel {
    _content: Arc<Buffer>,
    span: Span,
    block_size: usize,
    ended: Completions,
}

impl MallocChannel {
    fn blocks(&self, io: &BdevIo) -> Result<Span, Errno> {
        let locate = || {
            let offset = usize::try_from(io.offset_blocks)
                .ok()?
                .checked_mul(self.block_size)?;
            let len = usize::try_from(io.num_blocks)
                .ok()?
                .checked_mul(self.block_size)?;
            self.span.slice(offset, len)
        };
        locate().ok_or(Errno::INVAL)
    }

    fn apply(&self, io: &BdevIo) -> Result<(), Errno> {
        match io.op {
            IoOp::Read => io.buf.copy_from(&self.blocks(io)?),
            IoOp::Write { .. } => self.blocks(io)?.store_from(&io.buf),
            IoOp::Unmap | IoOp::WriteZeroes { .. } => self.blocks(io)?.fill(0),
            IoOp::Flush => {}
        }
        Ok(())
    }
}

impl IoChannel for MallocChannel {
    fn submit(&mut self, io: &BdevIo, _now: Nanos) {
        let result = self.apply(io);
        self.ended.push(io.tag, result);
    }

    fn poll(&mut self, _now: Nanos, done: &mut Vec<IoDone>) -> Progress {
        self.ended.drain_to(done)
    }

    fn prepare_sleep(&mut self, _fds: &mut Vec<RawFd>) -> bool {
        self.ended.is_empty()
    }
}
