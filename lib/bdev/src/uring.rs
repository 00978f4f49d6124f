//! `bdev_uring_*` and `bdev_aio_*`: a file or block device, through io_uring.
//!
//! Opening and looking at the file may block, and is done by the control plane; afterwards every
//! operation, also the slow ones, goes through the ring, so that no core ever waits.
//!
//! A file that is cut short under an exported device gives I/O errors where nothing is left to
//! read; writing there makes it grow again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rnbd_base::{CoreIndex, Errno};
use rnbd_mem::Memory;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::bdev::{Bdev, ConfigCall, Features, Geometry};
use crate::channel::IoChannel;
use crate::create::{CreateError, check_block_size, check_name, checked_geometry, to_params};
use crate::registry::Registry;

mod channel;
mod file;
mod ring;

use channel::UringChannel;
use file::DiskFile;
use ring::Ring;

/// Parameters of `bdev_uring_create`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UringOptions {
    /// Name of the device.
    pub name: String,
    /// Path of the file or block device.
    pub filename: PathBuf,
    /// Bytes per block; by default those of the block device, or 512 for a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// By default a random one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

/// Parameters of `bdev_aio_create`. The device is the same as that of `bdev_uring_create`; it
/// only looks like SPDK's AIO disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AioOptions {
    /// Name of the device.
    pub name: String,
    /// Path of the file or block device.
    pub filename: PathBuf,
    /// Bytes per block; by default those of the block device, or 512 for a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// It cannot be written to.
    pub readonly: bool,
    /// Unmap and write-zeroes are done by the file system or device.
    pub fallocate: bool,
    /// By default a random one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Accepted and kept, without effect.
    pub nowait: bool,
}

/// Which call it was made by.
#[derive(Clone, Debug)]
enum Options {
    Uring(UringOptions),
    Aio(AioOptions),
}

impl Options {
    fn name(&self) -> &str {
        match self {
            Self::Uring(options) => &options.name,
            Self::Aio(options) => &options.name,
        }
    }

    fn filename(&self) -> &PathBuf {
        match self {
            Self::Uring(options) => &options.filename,
            Self::Aio(options) => &options.filename,
        }
    }

    fn block_size_mut(&mut self) -> &mut Option<u32> {
        match self {
            Self::Uring(options) => &mut options.block_size,
            Self::Aio(options) => &mut options.block_size,
        }
    }

    fn uuid_mut(&mut self) -> &mut Option<Uuid> {
        match self {
            Self::Uring(options) => &mut options.uuid,
            Self::Aio(options) => &mut options.uuid,
        }
    }

    fn read_only(&self) -> bool {
        matches!(self, Self::Aio(options) if options.readonly)
    }

    fn may_fallocate(&self) -> bool {
        match self {
            Self::Uring(_) => true,
            Self::Aio(options) => options.fallocate,
        }
    }
}

/// A file or block device.
///
/// It is opened with `O_DIRECT` where file system and block size allow it, and through the page
/// cache else, which is said in the log. With `O_DIRECT`, I/O whose buffer is not aligned as
/// [`Features::buf_align`] says takes a copy. A file that cannot be opened for writing becomes a read-only
/// device.
#[derive(Debug)]
pub struct UringBdev {
    options: Options,
    uuid: Uuid,
    geometry: Geometry,
    num_blocks: AtomicU64,
    features: Features,
    file: Arc<DiskFile>,
    memory: Memory,
}

impl UringBdev {
    /// `bdev_uring_create`: opens the file and registers the device; returns its name. May block.
    ///
    /// # Errors
    /// [`CreateError`]: the file is missing, of another kind, empty or not a multiple of the block
    /// size; io_uring cannot be used; the name is taken.
    pub fn create(
        registry: &Registry,
        memory: &Memory,
        options: UringOptions,
    ) -> Result<String, CreateError> {
        Self::open(memory, Options::Uring(options))?.register(registry)
    }

    /// `bdev_aio_create`, as [`UringBdev::create`].
    ///
    /// # Errors
    /// As there.
    pub fn create_aio(
        registry: &Registry,
        memory: &Memory,
        options: AioOptions,
    ) -> Result<String, CreateError> {
        Self::open(memory, Options::Aio(options))?.register(registry)
    }

    /// `bdev_uring_rescan`, `bdev_aio_rescan`: looks how large the file is now. If that returns
    /// true, tell the registry ([`Registry::notify_resized`]). May block.
    ///
    /// # Errors
    /// [`CreateError::File`]; [`CreateError::Invalid`] if it has shrunk: the device then keeps its
    /// size, and I/O beyond the end of the file fails.
    pub fn rescan(&self) -> Result<bool, CreateError> {
        let bytes = self
            .file
            .bytes()
            .map_err(|errno| self.file_error("measure", errno))?;
        let now = bytes / u64::from(self.geometry.block_size);
        let before = self.num_blocks.load(Ordering::Relaxed);
        if now < before {
            let reason = format!("the file has shrunk from {before} blocks to {now}");
            return Err(CreateError::invalid(self.name(), reason));
        }
        self.num_blocks.store(now, Ordering::Relaxed);
        Ok(now > before)
    }

    fn open(memory: &Memory, mut options: Options) -> Result<Self, CreateError> {
        check_name(options.name())?;
        if let Some(block_size) = *options.block_size_mut() {
            check_block_size(options.name(), block_size)?;
        }
        Ring::check_available().map_err(|errno| CreateError::NoIoUring { errno })?;
        let block_size = *options.block_size_mut();
        let read_only = options.read_only();
        let file = DiskFile::open(options.name(), options.filename(), read_only, block_size)?;
        let geometry = geometry_of(&options, &file)?;
        *options.block_size_mut() = Some(geometry.block_size);
        Ok(Self {
            uuid: *options.uuid_mut().get_or_insert_with(Uuid::new_v4),
            geometry,
            num_blocks: AtomicU64::new(geometry.num_blocks),
            features: features_of(&options, &file, geometry),
            options,
            file: Arc::new(file),
            memory: memory.clone(),
        })
    }

    fn register(self, registry: &Registry) -> Result<String, CreateError> {
        let name = self.name().to_owned();
        registry.register(Arc::new(self))?;
        Ok(name)
    }

    fn file_error(&self, action: &'static str, errno: Errno) -> CreateError {
        CreateError::File {
            name: self.name().to_owned(),
            action,
            path: self.options.filename().clone(),
            errno,
        }
    }
}

fn geometry_of(options: &Options, file: &DiskFile) -> Result<Geometry, CreateError> {
    let (name, path) = (options.name(), options.filename());
    let block_size = file.block_size();
    let bytes = file.bytes().map_err(|errno| CreateError::File {
        name: name.to_owned(),
        action: "measure",
        path: path.clone(),
        errno,
    })?;
    if bytes == 0 || !bytes.is_multiple_of(u64::from(block_size)) {
        let reason = format!(
            "the size of {} is {bytes} bytes, which is not a positive multiple of the block size \
             of {block_size} bytes",
            path.display()
        );
        return Err(CreateError::invalid(name, reason));
    }
    let num_blocks = bytes / u64::from(block_size);
    checked_geometry(
        name,
        block_size,
        Some(file.physical_block_size()),
        num_blocks,
    )
}

fn features_of(options: &Options, file: &DiskFile, geometry: Geometry) -> Features {
    let fallocate = options.may_fallocate() && !file.is_read_only();
    Features {
        read_only: file.is_read_only(),
        write_cache: file.has_write_cache(),
        unmap: fallocate && file.can_punch_holes(),
        write_zeroes: fallocate && file.can_zero_ranges(),
        // What a length in the ring can say, with a wide margin.
        max_rw_blocks: (64 << 20) / geometry.block_size,
        max_unmap_blocks: 0,
        max_write_zeroes_blocks: 0,
        unmap_granularity: file.unmap_granularity().max(geometry.block_size),
        buf_align: file.buf_align(),
    }
}

impl Bdev for UringBdev {
    fn name(&self) -> &str {
        self.options.name()
    }

    fn product_name(&self) -> &'static str {
        match self.options {
            Options::Uring(_) => "URING bdev",
            Options::Aio(_) => "AIO disk",
        }
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
        self.features
    }

    fn open_channel(&self, _core: CoreIndex, depth: u32) -> Result<Box<dyn IoChannel>, Errno> {
        let ring = Ring::new(&self.file, depth, self.memory.pin_huge())?;
        let block_size = self.geometry.block_size;
        Ok(Box::new(UringChannel::new(
            ring,
            depth,
            block_size,
            self.features.unmap,
        )))
    }

    fn config(&self) -> Vec<ConfigCall> {
        let call = match &self.options {
            Options::Uring(options) => ConfigCall {
                method: "bdev_uring_create",
                params: to_params(options),
            },
            Options::Aio(options) => ConfigCall {
                method: "bdev_aio_create",
                params: to_params(options),
            },
        };
        vec![call]
    }

    fn driver_specific(&self) -> Map<String, Value> {
        let (key, value) = match &self.options {
            Options::Uring(options) => ("uring", json!({ "filename": options.filename })),
            Options::Aio(options) => (
                "aio",
                json!({
                    "filename": options.filename,
                    "block_size_override": true,
                    "readonly": options.readonly,
                    "fallocate": options.fallocate,
                }),
            ),
        };
        Map::from_iter([(key.to_owned(), value)])
    }
}

#[cfg(test)]
mod tests;
