//! One of our bdevs as a disk of SPDK's.

mod bounce;
mod channel;
mod memory;

use std::fmt;
use std::sync::Arc;

use rnbd_base::Errno;
use rnbd_bdev::Features;
use rnbd_spdk::{Disk, DiskChannel, IoKind};
use serde_json::{Map, Value};

use crate::runtime::Shared;
use channel::FaceChannel;

/// A bdev of the initiator. SPDK's users open it when they open a channel, so that it counts as
/// used only while it is.
pub(crate) struct RnbdDisk {
    name: String,
    features: Features,
    shared: Arc<Shared>,
}

impl RnbdDisk {
    pub(crate) fn new(name: &str, features: Features, shared: Arc<Shared>) -> Self {
        Self {
            name: name.to_owned(),
            features,
            shared,
        }
    }
}

impl Disk for RnbdDisk {
    fn open_channel(&self) -> Result<Box<dyn DiskChannel>, Errno> {
        let write = !self.features.read_only;
        let desc = self.shared.bdevs.open(&self.name, write);
        let desc = desc.map_err(|error| error.errno())?;
        let channel = FaceChannel::open(desc, Arc::clone(&self.shared))?;
        Ok(Box::new(channel))
    }

    /// A flush of a disk without a cache succeeds at once.
    fn supports(&self, kind: IoKind) -> bool {
        match kind {
            IoKind::Read | IoKind::Write | IoKind::Flush => true,
            IoKind::Unmap => self.features.unmap,
            IoKind::WriteZeroes => self.features.write_zeroes,
        }
    }

    fn driver_specific(&self) -> Map<String, Value> {
        let info = self.shared.bdevs.get(&self.name);
        info.map_or_else(Map::new, |info| info.bdev.driver_specific())
    }
}

impl fmt::Debug for RnbdDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RnbdDisk({})", self.name)
    }
}
