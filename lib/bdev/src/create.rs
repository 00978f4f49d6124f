//! What the modules' creating calls have in common.

use std::path::PathBuf;

use rnbd_base::Errno;
use rnbd_mem::MemoryError;
use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::bdev::Geometry;
use crate::registry::RegistryError;

/// Why a device could not be made or changed.
#[derive(Clone, Debug, Error)]
pub enum CreateError {
    /// A parameter makes no sense.
    #[error("bdev {name}: {reason}")]
    Invalid {
        /// The device.
        name: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A parameter asks for what this project does not have.
    #[error("bdev {name}: {parameter} is not supported: there is no metadata and no DIF here")]
    Unsupported {
        /// The device.
        name: String,
        /// The parameter that must be zero, false or left out.
        parameter: &'static str,
    },
    /// The registry refused it, or its base.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There is not enough memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A file could not be used.
    #[error("bdev {name}: cannot {action} {}: {errno}", path.display())]
    File {
        /// The device.
        name: String,
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
    /// The kernel has no io_uring for us.
    #[error(
        "io_uring cannot be used: {errno}; it needs Linux 5.6, the sysctl \
         kernel.io_uring_disabled at 0, and a container policy that allows it"
    )]
    NoIoUring {
        /// What the kernel said.
        errno: Errno,
    },
}

impl CreateError {
    pub(crate) fn invalid(name: &str, reason: impl Into<String>) -> Self {
        Self::Invalid {
            name: name.to_owned(),
            reason: reason.into(),
        }
    }

    /// As an RPC reports it.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Invalid { .. } => Errno::INVAL,
            Self::Unsupported { .. } => Errno::OPNOTSUPP,
            Self::Registry(error) => error.errno(),
            Self::Memory(_) => Errno::NOMEM,
            Self::File { errno, .. } | Self::NoIoUring { errno } => *errno,
        }
    }
}

/// The shape of a new device, checked. A physical block size of `None` means that of a block.
pub(crate) fn checked_geometry(
    name: &str,
    block_size: u32,
    physical_block_size: Option<u32>,
    num_blocks: u64,
) -> Result<Geometry, CreateError> {
    check_block_size(name, block_size)?;
    let physical_block_size = physical_block_size.unwrap_or(block_size);
    if !physical_block_size.is_power_of_two() || physical_block_size < block_size {
        let reason = format!(
            "a physical block of {physical_block_size} bytes is not a power of two of at least \
             the block size of {block_size} bytes"
        );
        return Err(CreateError::invalid(name, reason));
    }
    let most_blocks = (i64::MAX as u64) / u64::from(block_size);
    if num_blocks == 0 || num_blocks > most_blocks {
        let reason = format!("{num_blocks} blocks are not between 1 and {most_blocks}");
        return Err(CreateError::invalid(name, reason));
    }
    Ok(Geometry {
        block_size,
        physical_block_size,
        num_blocks,
    })
}

pub(crate) fn check_block_size(name: &str, block_size: u32) -> Result<(), CreateError> {
    if block_size.is_power_of_two() && (512..=65536).contains(&block_size) {
        return Ok(());
    }
    let reason = format!("a block of {block_size} bytes is not a power of two from 512 to 65536");
    Err(CreateError::invalid(name, reason))
}

/// SPDK's clients always send these, mostly as zero.
pub(crate) fn check_no_metadata(
    name: &str,
    md_size: u32,
    dif_type: u32,
) -> Result<(), CreateError> {
    let parameter = match (md_size, dif_type) {
        (0, 0) => return Ok(()),
        (0, _) => "dif_type",
        _ => "md_size",
    };
    Err(CreateError::Unsupported {
        name: name.to_owned(),
        parameter,
    })
}

/// Names appear in paths, on command lines and in messages.
pub(crate) fn check_name(name: &str) -> Result<(), CreateError> {
    let printable = name.chars().all(|c| !c.is_control());
    if !name.is_empty() && name.len() <= 255 && printable {
        return Ok(());
    }
    let reason = "a name has 1 to 255 bytes and no control characters";
    Err(CreateError::invalid(
        &name.escape_debug().to_string(),
        reason,
    ))
}

/// Options as the parameters of the call that they came from.
pub(crate) fn to_params(options: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(options) {
        Ok(Value::Object(params)) => params,
        _ => unreachable!("options are plain structs with string keys"),
    }
}

#[cfg(test)]
mod tests;
