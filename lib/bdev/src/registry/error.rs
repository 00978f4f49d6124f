use rnbd_base::Errno;
use thiserror::Error;

use crate::claim::ClaimType;

/// Why the registry refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RegistryError {
    /// There is no such device.
    #[error("no bdev is named {name}")]
    NotFound {
        /// As asked for.
        name: String,
    },
    /// There is such a device, of another module.
    #[error("bdev {name} is a {product_name}")]
    OtherModule {
        /// As asked for.
        name: String,
        /// What it is.
        product_name: &'static str,
    },
    /// The name or UUID is taken.
    #[error("a bdev named {name} exists already")]
    Exists {
        /// The name or UUID.
        name: String,
    },
    /// Its removal has begun.
    #[error("bdev {name} is being removed")]
    Removing {
        /// The device.
        name: String,
    },
    /// A claim forbids it.
    #[error("bdev {name} is claimed by {claimer} ({claim_type})")]
    Claimed {
        /// The device.
        name: String,
        /// Who has it.
        claimer: String,
        /// How.
        claim_type: ClaimType,
    },
    /// It cannot be claimed because others may write.
    #[error("bdev {name} is open for writing elsewhere")]
    Written {
        /// The device.
        name: String,
    },
    /// The device, or the descriptor, is read-only.
    #[error("bdev {name} is read-only")]
    ReadOnly {
        /// The device.
        name: String,
    },
}

impl RegistryError {
    /// As SPDK reports it.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::NotFound { .. } | Self::OtherModule { .. } => Errno::NODEV,
            Self::Exists { .. } => Errno::EXIST,
            Self::Removing { .. } => Errno::BUSY,
            Self::Claimed { .. } | Self::Written { .. } => Errno::PERM,
            Self::ReadOnly { .. } => Errno::ROFS,
        }
    }
}
