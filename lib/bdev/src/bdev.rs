use std::any::Any;
use std::fmt;

use rnbd_base::{CoreIndex, Errno};
use rnbd_mem::Span;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::channel::IoChannel;

/// Size and shape. Only `num_blocks` may change while the device exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes per block, a power of two from 512 to 4096 for anything that is exported.
    pub block_size: u32,
    /// Bytes per physical block, at least `block_size`.
    pub physical_block_size: u32,
    /// Capacity in blocks.
    pub num_blocks: u64,
}

impl Geometry {
    /// Capacity in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.num_blocks.saturating_mul(u64::from(self.block_size))
    }
}

/// What a device can do, and in what sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Writes can be refused: the device is read-only.
    pub read_only: bool,
    /// There is a volatile cache, so that flush means something.
    pub write_cache: bool,
    /// [`crate::IoOp::Unmap`] works.
    pub unmap: bool,
    /// [`crate::IoOp::WriteZeroes`] works without writing the blocks out.
    pub write_zeroes: bool,
    /// Most blocks of one read or write; zero for no limit.
    pub max_rw_blocks: u32,
    /// Most blocks of one unmap; zero for no limit.
    pub max_unmap_blocks: u64,
    /// Most blocks of one write-zeroes; zero for no limit.
    pub max_write_zeroes_blocks: u64,
    /// Bytes in which unmap gives space back.
    pub unmap_granularity: u32,
    /// Alignment of the buffers that the device can use, in bytes; 1 for any. Others cost a copy.
    pub buf_align: u32,
}

impl Default for Features {
    /// A plain disk that does everything in any size.
    fn default() -> Self {
        Self {
            read_only: false,
            write_cache: false,
            unmap: true,
            write_zeroes: true,
            max_rw_blocks: 0,
            max_unmap_blocks: 0,
            max_write_zeroes_blocks: 0,
            unmap_granularity: 512,
            buf_align: 1,
        }
    }
}

/// An RPC call that makes something again, for `save_config`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigCall {
    /// Method name.
    pub method: &'static str,
    /// Its parameters, in the order that they are printed.
    pub params: Map<String, Value>,
}

/// A block device. Shared by all cores; what is per core lives in its channels.
///
/// `Any` is for the module's own RPC methods, which find their devices with
/// [`crate::Registry::find`].
pub trait Bdev: Any + Send + Sync + fmt::Debug {
    /// Unique in the process.
    fn name(&self) -> &str;

    /// As SPDK names its modules' disks: `Malloc disk`, `URING bdev`, …
    fn product_name(&self) -> &'static str;

    /// Kept over restarts if it was given at creation.
    fn uuid(&self) -> Uuid;

    /// Size and shape as of now.
    fn geometry(&self) -> Geometry;

    /// The size as of now, in blocks; asked for at each I/O, so it is not to be waited for.
    fn num_blocks(&self) -> u64 {
        self.geometry().num_blocks
    }

    /// What it can do. Does not change while the device exists.
    fn features(&self) -> Features;

    /// The name of the device that this one stands on: it is resized and removed with it.
    fn base_name(&self) -> Option<&str> {
        None
    }

    /// A way to the device for one user, polled on `core`, with at most `depth` I/Os outstanding.
    ///
    /// # Errors
    /// The errno of what could not be set up.
    fn open_channel(&self, core: CoreIndex, depth: u32) -> Result<Box<dyn IoChannel>, Errno>;

    /// The calls that make it again; empty for what is not part of the saved configuration.
    fn config(&self) -> Vec<ConfigCall> {
        Vec::new()
    }

    /// The `driver_specific` object of `bdev_get_bdevs`.
    fn driver_specific(&self) -> Map<String, Value> {
        Map::new()
    }

    /// The device's whole content, if it is memory that may be read in place by whoever holds a
    /// channel: block `n` lies at `n * block_size`. Lets a target send reads without a copy.
    fn memory(&self) -> Option<Span> {
        None
    }
}
