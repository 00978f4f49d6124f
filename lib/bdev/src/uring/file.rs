//! The file behind a device: how it can be opened, and what it can do.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use rnbd_base::Errno;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom, Stat, StatxFlags, fallocate, fstat,
    ioctl_blkpbszget, ioctl_blksszget, open, seek, stat, statx,
};

use crate::create::CreateError;

/// Block size of a file when none is asked for.
const DEFAULT_BLOCK_SIZE: u32 = 512;
/// What direct I/O needs where the kernel does not say (before Linux 6.1).
const USUAL_DIRECT_ALIGN: u32 = 512;

/// An open file or block device.
#[derive(Debug)]
pub(super) struct DiskFile {
    file: File,
    block_size: u32,
    physical_block_size: u32,
    read_only: bool,
    /// Alignment of buffers for direct I/O; `None` if it goes through the page cache.
    direct: Option<u32>,
    abilities: Abilities,
}

#[derive(Clone, Copy, Debug)]
struct Abilities {
    punch_hole: bool,
    zero_range: bool,
    unmap_granularity: u32,
    /// What was written may be lost with the power until it is flushed.
    write_cache: bool,
}

/// What is being opened, for errors and log lines.
#[derive(Clone, Copy)]
struct Target<'a> {
    name: &'a str,
    path: &'a Path,
}

impl Target<'_> {
    fn error(&self, action: &'static str, errno: rustix::io::Errno) -> CreateError {
        CreateError::File {
            name: self.name.to_owned(),
            action,
            path: self.path.to_owned(),
            errno: from_rustix(errno),
        }
    }
}

impl DiskFile {
    /// Opens `path` for the device `name`; without a `block_size` the file's own is taken.
    pub(super) fn open(
        name: &str,
        path: &Path,
        read_only: bool,
        block_size: Option<u32>,
    ) -> Result<Self, CreateError> {
        let target = Target { name, path };
        target.check_type()?;
        let (buffered, read_only) = target.open_buffered(read_only)?;
        let status = fstat(&buffered).map_err(|errno| target.error("look at", errno))?;
        let own_block_size = own_block_size(&buffered, &status);
        let block_size = block_size.unwrap_or(own_block_size);
        if is_block_device(&status) && block_size < own_block_size {
            let reason = format!(
                "the blocks of {} have {own_block_size} bytes",
                path.display()
            );
            return Err(CreateError::invalid(name, reason));
        }
        let physical_block_size = physical_block_size(&buffered, &status, block_size);
        let abilities = Abilities::of(&buffered, &status, path);
        let (file, direct) = target.prefer_direct(buffered, read_only, block_size);
        Ok(Self {
            file,
            block_size,
            physical_block_size,
            read_only,
            direct,
            abilities,
        })
    }

    /// Size as of now.
    pub(super) fn bytes(&self) -> Result<u64, Errno> {
        seek(&self.file, SeekFrom::End(0)).map_err(from_rustix)
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(super) fn physical_block_size(&self) -> u32 {
        self.physical_block_size
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn buf_align(&self) -> u32 {
        self.direct.unwrap_or(1)
    }

    /// A file on which reads wait until someone writes to the other end.
    #[cfg(test)]
    pub(super) fn of_pipe(file: File) -> Self {
        Self {
            file,
            block_size: DEFAULT_BLOCK_SIZE,
            physical_block_size: DEFAULT_BLOCK_SIZE,
            read_only: true,
            direct: None,
            abilities: Abilities {
                punch_hole: false,
                zero_range: false,
                unmap_granularity: 0,
                write_cache: false,
            },
        }
    }

    #[cfg(test)]
    pub(super) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    pub(super) fn can_punch_holes(&self) -> bool {
        self.abilities.punch_hole
    }

    pub(super) fn can_zero_ranges(&self) -> bool {
        self.abilities.zero_range
    }

    pub(super) fn unmap_granularity(&self) -> u32 {
        self.abilities.unmap_granularity
    }

    /// Whether writes go to a cache first: that of the device, or the page cache.
    pub(super) fn has_write_cache(&self) -> bool {
        self.abilities.write_cache || self.direct.is_none()
    }
}

impl Target<'_> {
    /// Done before opening, because opening a FIFO waits for its other end.
    fn check_type(&self) -> Result<(), CreateError> {
        let status = stat(self.path).map_err(|errno| self.error("open", errno))?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile | FileType::BlockDevice => Ok(()),
            _ => {
                let path = self.path.display();
                let reason = format!("{path} is neither a file nor a block device");
                Err(CreateError::invalid(self.name, reason))
            }
        }
    }

    /// Returns also whether it could only be opened for reading.
    fn open_buffered(&self, read_only: bool) -> Result<(File, bool), CreateError> {
        use rustix::io::Errno as E;
        if !read_only {
            match self.open_with(OFlags::RDWR) {
                Ok(file) => return Ok((file, false)),
                Err(errno @ (E::ACCESS | E::PERM | E::ROFS)) => log::warn!(
                    "bdev {} is read-only, because {} cannot be written to: {errno}",
                    self.name,
                    self.path.display()
                ),
                Err(errno) => return Err(self.error("open", errno)),
            }
        }
        let file = self
            .open_with(OFlags::RDONLY)
            .map_err(|errno| self.error("open", errno))?;
        Ok((file, true))
    }

    fn open_with(&self, flags: OFlags) -> rustix::io::Result<File> {
        let fd = open(self.path, flags | OFlags::CLOEXEC, Mode::empty())?;
        Ok(File::from(fd))
    }

    /// Opens the file again for direct I/O. Where that is impossible the page cache serves.
    fn prefer_direct(
        &self,
        buffered: File,
        read_only: bool,
        block_size: u32,
    ) -> (File, Option<u32>) {
        let access = if read_only {
            OFlags::RDONLY
        } else {
            OFlags::RDWR
        };
        let opened = self
            .open_with(access | OFlags::DIRECT)
            .map_err(|errno| errno.to_string());
        let direct = opened.and_then(|file| {
            let align = buffer_alignment(direct_alignment(&file), block_size)?;
            Ok((file, align))
        });
        match direct {
            Ok((file, align)) => (file, Some(align)),
            Err(reason) => {
                log::warn!(
                    "bdev {} uses {} through the page cache, because it cannot be opened with \
                     O_DIRECT: {reason}",
                    self.name,
                    self.path.display()
                );
                (buffered, None)
            }
        }
    }
}

/// What direct I/O on a file has to be aligned to, in bytes; zeroes if there is none.
#[derive(Clone, Copy, Debug)]
struct DirectAlignment {
    buffer: u32,
    offset: u32,
}

fn direct_alignment(file: &File) -> DirectAlignment {
    let said = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
    match said {
        Some(said)
            if StatxFlags::from_bits_retain(said.stx_mask).contains(StatxFlags::DIOALIGN) =>
        {
            DirectAlignment {
                buffer: said.stx_dio_mem_align,
                offset: said.stx_dio_offset_align,
            }
        }
        _ => DirectAlignment {
            buffer: USUAL_DIRECT_ALIGN,
            offset: USUAL_DIRECT_ALIGN,
        },
    }
}

/// How buffers must be aligned for direct I/O in blocks of `block_size`, or why it is impossible.
fn buffer_alignment(needed: DirectAlignment, block_size: u32) -> Result<u32, String> {
    if needed.buffer == 0 || needed.offset == 0 {
        return Err("the file system does not support it".to_owned());
    }
    if !block_size.is_multiple_of(needed.offset) {
        return Err(format!(
            "it works on {} bytes at a time, and the block size is {block_size} bytes",
            needed.offset
        ));
    }
    Ok(needed.buffer)
}

fn is_block_device(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::BlockDevice
}

fn own_block_size(file: &File, status: &Stat) -> u32 {
    if is_block_device(status) {
        ioctl_blksszget(file).unwrap_or(DEFAULT_BLOCK_SIZE)
    } else {
        DEFAULT_BLOCK_SIZE
    }
}

/// The unit in which the device or file system writes, as far as it is a sane one.
fn physical_block_size(file: &File, status: &Stat, block_size: u32) -> u32 {
    let said = if is_block_device(status) {
        ioctl_blkpbszget(file).ok()
    } else {
        u32::try_from(status.st_blksize).ok()
    };
    let sane = said.filter(|bytes| bytes.is_power_of_two() && (512..=65536).contains(bytes));
    sane.unwrap_or(block_size).max(block_size)
}

impl Abilities {
    fn of(file: &File, status: &Stat, path: &Path) -> Self {
        if is_block_device(status) {
            Self::of_block_device(status)
        } else {
            Self::of_regular_file(file, status, path)
        }
    }

    /// The kernel zeroes ranges of any block device, by writing if need be. It punches holes only
    /// where the device both discards and zeroes.
    fn of_block_device(status: &Stat) -> Self {
        let limit = |attribute| queue_limit(status, attribute).unwrap_or(0);
        let discards = limit("discard_max_bytes") > 0 && limit("write_zeroes_max_bytes") > 0;
        Self {
            punch_hole: discards,
            zero_range: true,
            unmap_granularity: u32::try_from(limit("discard_granularity")).unwrap_or(0),
            write_cache: is_write_back(queue_attribute(status, "write_cache").as_deref()),
        }
    }

    fn of_regular_file(file: &File, status: &Stat, path: &Path) -> Self {
        Self {
            punch_hole: punches_holes(file, status),
            zero_range: zeroes_ranges_beside(path),
            unmap_granularity: u32::try_from(status.st_blksize).unwrap_or(0),
            // Not even the length of a file is sure to be on disk before it is synced.
            write_cache: true,
        }
    }
}

/// What the kernel says of a device's cache, which may say nothing.
fn is_write_back(said: Option<&str>) -> bool {
    said != Some("write through")
}

/// Tried at the end of the file, where there is nothing to lose.
fn punches_holes(file: &File, status: &Stat) -> bool {
    let Ok(end) = u64::try_from(status.st_size) else {
        return false;
    };
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, mode, end, 4096).is_ok()
}

/// Tried on an unnamed file in the same directory, because on the file itself it would change
/// something.
fn zeroes_ranges_beside(path: &Path) -> bool {
    let Some(directory) = real_directory(path) else {
        return false;
    };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let Ok(scratch) = open(&directory, flags, Mode::RUSR | Mode::WUSR) else {
        return false;
    };
    let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    fallocate(scratch.as_fd(), mode, 0, 4096).is_ok()
}

fn real_directory(path: &Path) -> Option<PathBuf> {
    Some(path.canonicalize().ok()?.parent()?.to_owned())
}

fn queue_limit(status: &Stat, attribute: &str) -> Option<u64> {
    queue_attribute(status, attribute)?.parse().ok()
}

/// A partition has its queue in the directory of the whole disk, one level up.
fn queue_attribute(status: &Stat, attribute: &str) -> Option<String> {
    let major = rustix::fs::major(status.st_rdev);
    let minor = rustix::fs::minor(status.st_rdev);
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
        .canonicalize()
        .ok()?;
    let read =
        |directory: &Path| std::fs::read_to_string(directory.join("queue").join(attribute)).ok();
    let text = read(&device).or_else(|| read(device.parent()?))?;
    Some(text.trim().to_owned())
}

fn from_rustix(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_io_needs_blocks_that_the_device_can_do() {
        let disk_4k = DirectAlignment {
            buffer: 4,
            offset: 4096,
        };
        assert_eq!(buffer_alignment(disk_4k, 4096), Ok(4));
        assert!(
            buffer_alignment(disk_4k, 512)
                .unwrap_err()
                .contains("4096 bytes at a time")
        );
        let none = DirectAlignment {
            buffer: 0,
            offset: 0,
        };
        assert!(buffer_alignment(none, 4096).is_err());
    }

    #[test]
    fn a_device_has_a_cache_unless_the_kernel_knows_that_it_has_none() {
        assert!(is_write_back(None));
        assert!(is_write_back(Some("write back")));
        assert!(!is_write_back(Some("write through")));
    }
}
