use std::sync::Arc;

use rnbd_base::{CoreIndex, Errno};

use crate::bdev::{Bdev, Geometry};
use crate::channel::{Channel, ChannelParts};
use crate::claim::ClaimType;
use crate::limits::Limits;
use crate::node::{Node, NodeState};
use crate::registry::{Holder, RegistryError, Shared};
use crate::stats::IoStats;

/// An open device: what keeps it from going away, and the way to its channels.
///
/// The holder polls [`Desc::is_removed`] and, when it is true, drops its channels and the
/// descriptor; the device's removal waits for that. Dropping a descriptor releases its claim.
#[derive(Debug)]
pub struct Desc {
    // Dropped before `hold`, so that the registry's reference is the last one.
    bdev: Arc<dyn Bdev>,
    hold: Hold,
}

impl Desc {
    pub(crate) fn new(bdev: Arc<dyn Bdev>, hold: Hold) -> Self {
        Self { bdev, hold }
    }

    /// The device.
    #[must_use]
    pub fn bdev(&self) -> &Arc<dyn Bdev> {
        &self.bdev
    }

    /// Whether it was opened or claimed for writing.
    #[must_use]
    pub fn may_write(&self) -> bool {
        self.hold.holder == Holder::Writer
    }

    /// Size and shape as of now.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.bdev.geometry()
    }

    /// Whether the device is being removed: new I/O is refused with `ENODEV`.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.hold.node.state().is_removed()
    }

    /// Changes whenever the size does; compare with the value seen last.
    #[must_use]
    pub fn resize_generation(&self) -> u32 {
        self.hold.node.resizes()
    }

    /// A way to the device for a user on `core`, with at most `depth` I/Os outstanding. The
    /// channel keeps the device as the descriptor does.
    ///
    /// # Errors
    /// `EINVAL` for a depth of zero, `ENODEV` after removal, `ENOMEM`, or what the module says.
    pub fn open_channel(&self, core: CoreIndex, depth: u32) -> Result<Channel, Errno> {
        if depth == 0 {
            return Err(Errno::INVAL);
        }
        if self.is_removed() {
            return Err(Errno::NODEV);
        }
        let zeroes = self.hold.shared.zeroes_for(self.bdev.features())?;
        let bounce = self.hold.shared.bounce_for(&*self.bdev, depth)?;
        let io = self.bdev.open_channel(core, depth)?;
        let hold = self
            .hold
            .shared
            .hold_channel(self.hold.entry, &self.hold.node);
        Ok(Channel::new(ChannelParts {
            io,
            device: Arc::clone(&self.bdev),
            write: self.may_write(),
            depth,
            zeroes,
            bounce,
            stats: self.hold.node.open_channel(core),
            hold: ChannelHold(hold),
        }))
    }

    /// Restricts what others may do until this descriptor is dropped. A claim for writing lets
    /// the descriptor write from now on, if it did not already; channels opened before stay as
    /// they were. `claimer` is named to those who are refused.
    ///
    /// # Errors
    /// [`RegistryError::Claimed`] if another claim forbids it, [`RegistryError::Written`] if the
    /// device is open for writing where the claim allows no writer, [`RegistryError::ReadOnly`]
    /// if the claim is for writing and the device is read-only.
    pub fn claim(&mut self, claim_type: ClaimType, claimer: &str) -> Result<(), RegistryError> {
        if claim_type.writes() && self.bdev.features().read_only {
            let name = self.bdev.name().to_owned();
            return Err(RegistryError::ReadOnly { name });
        }
        self.hold.claim(claim_type, claimer)
    }
}

/// A reference that the registry counts.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) shared: Arc<Shared>,
    pub(crate) node: Arc<Node>,
    /// Which device.
    pub(crate) entry: u64,
    /// Which reference.
    pub(crate) id: u64,
    pub(crate) holder: Holder,
}

impl Hold {
    fn claim(&mut self, claim_type: ClaimType, claimer: &str) -> Result<(), RegistryError> {
        self.holder = self
            .shared
            .claim(self.entry, self.id, self.holder, claim_type, claimer)?;
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.release(self.entry, self.id, self.holder);
    }
}

/// The reference that a channel holds.
#[derive(Debug)]
pub(crate) struct ChannelHold(Hold);

impl ChannelHold {
    pub(crate) fn state(&self) -> NodeState {
        self.0.node.state()
    }

    pub(crate) fn limits(&self) -> &Limits {
        self.0.node.limits()
    }

    pub(crate) fn close_stats(&self, stats: &Arc<IoStats>) {
        self.0.node.close_channel(stats);
    }
}
