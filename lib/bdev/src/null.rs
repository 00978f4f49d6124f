//! `bdev_null_*`: a disk that keeps nothing.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rnbd_base::{CoreIndex, Errno, Nanos, Progress};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bdev::{Bdev, ConfigCall, Features, Geometry};
use crate::channel::IoChannel;
use crate::completions::Completions;
use crate::create::{CreateError, check_name, check_no_metadata, checked_geometry, to_params};
use crate::io::{BdevIo, IoDone, IoOp};
use crate::registry::Registry;

/// Parameters of `bdev_null_create`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NullOptions {
    /// Name of the device.
    pub name: String,
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
    /// Only 0: there is no metadata.
    #[serde(skip_serializing)]
    pub md_size: u32,
    /// Only 0: there is no protection information.
    #[serde(skip_serializing)]
    pub dif_type: u32,
    /// Without effect.
    #[serde(skip_serializing)]
    pub dif_is_head_of_md: bool,
    /// Without effect.
    #[serde(skip_serializing)]
    pub dif_pi_format: u32,
    /// Accepted and kept, without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_write_alignment: Option<u32>,
    /// Accepted and kept, without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_write_granularity: Option<u32>,
    /// Accepted and kept, without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimal_write_size: Option<u32>,
    /// Accepted and kept, without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_unmap_alignment: Option<u32>,
    /// Accepted and kept, without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_unmap_granularity: Option<u32>,
}

/// A disk that takes everything and keeps nothing.
///
/// Reads give zeroes. SPDK leaves the buffer as it was, which over a network would show a client
/// what that memory held before; clearing it costs some 50 ns per 4 KiB.
#[derive(Debug)]
pub struct NullBdev {
    uuid: Uuid,
    geometry: Geometry,
    num_blocks: AtomicU64,
    options: NullOptions,
}

impl NullBdev {
    /// Makes a disk and registers it; returns its name.
    ///
    /// # Errors
    /// [`CreateError`]: parameters out of range, or a name that is taken.
    pub fn create(registry: &Registry, options: NullOptions) -> Result<String, CreateError> {
        let name = options.name.clone();
        registry.register(Arc::new(Self::new(options)?))?;
        Ok(name)
    }

    /// As [`NullBdev::create`], for whoever registers it or uses it without a registry.
    ///
    /// # Errors
    /// As there.
    pub fn new(mut options: NullOptions) -> Result<Self, CreateError> {
        check_name(&options.name)?;
        check_no_metadata(&options.name, options.md_size, options.dif_type)?;
        let geometry = checked_geometry(
            &options.name,
            options.block_size,
            options.physical_block_size,
            options.num_blocks,
        )?;
        Ok(Self {
            uuid: *options.uuid.get_or_insert_with(Uuid::new_v4),
            geometry,
            num_blocks: AtomicU64::new(geometry.num_blocks),
            options,
        })
    }

    /// `bdev_null_resize`: makes it `new_size_mib` MiB large. Tell the registry afterwards
    /// ([`Registry::notify_resized`]).
    ///
    /// # Errors
    /// [`CreateError::Invalid`] if it would shrink.
    pub fn resize(&self, new_size_mib: u64) -> Result<(), CreateError> {
        let block_size = self.geometry.block_size;
        let num_blocks = new_size_mib.saturating_mul(1 << 20) / u64::from(block_size);
        let name = &self.options.name;
        let new = checked_geometry(name, block_size, None, num_blocks)?;
        if new.num_blocks < self.num_blocks.load(Ordering::Relaxed) {
            return Err(CreateError::invalid(name, "it can only grow"));
        }
        self.num_blocks.store(new.num_blocks, Ordering::Relaxed);
        Ok(())
    }
}

impl Bdev for NullBdev {
    fn name(&self) -> &str {
        &self.options.name
    }

    fn product_name(&self) -> &'static str {
        "Null disk"
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            num_blocks: self.num_blocks.load(Ordering::Relaxed),
            ..self.geometry
        }
    }

    fn features(&self) -> Features {
        Features {
            unmap_granularity: self.geometry.block_size,
            ..Features::default()
        }
    }

    fn open_channel(&self, _core: CoreIndex, depth: u32) -> Result<Box<dyn IoChannel>, Errno> {
        Ok(Box::new(NullChannel {
            ended: Completions::new(depth),
        }))
    }

    fn config(&self) -> Vec<ConfigCall> {
        let mut options = self.options.clone();
        options.num_blocks = self.geometry().num_blocks;
        vec![ConfigCall {
            method: "bdev_null_create",
            params: to_params(&options),
        }]
    }
}

#[derive(Debug)]
struct NullChannel {
    ended: Completions,
}

impl IoChannel for NullChannel {
    fn submit(&mut self, io: &BdevIo, _now: Nanos) {
        if io.op == IoOp::Read {
            io.buf.fill(0);
        }
        self.ended.push(io.tag, Ok(()));
    }

    fn poll(&mut self, _now: Nanos, done: &mut Vec<IoDone>) -> Progress {
        self.ended.drain_to(done)
    }

    fn prepare_sleep(&mut self, _fds: &mut Vec<RawFd>) -> bool {
        self.ended.is_empty()
    }
}
