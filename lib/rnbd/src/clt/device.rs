//! A mapped device (protocol.md 9.10).
//!
//! ```text
//!                 opened                    session lost, or closed by the server
//!   Init ───────────────────────> Open ──────────────────────────────────────> Closed
//!    │                             ^ │                                          │ │
//!    │ refused                     │ │ opened again, same geometry or larger    │ │
//!    v                             │ └────────── opened again, other geometry   │ │
//!  (removed)                       └────────────────────│───────────────────────┘ │
//!                                                       v                         │
//!                unmapped, from any state             Failed <────────────────────┘
//!                                                            opened again, other geometry
//! ```

use rnbd_base::Errno;
use rnbd_wire::Name;
use rnbd_wire::rnbd::AccessMode;

use super::info::DeviceInfo;

/// A device of a session, by its position in the client's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceIndex(pub u16);

/// What a device is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// It was never open.
    Init,
    /// It does I/O.
    Open,
    /// It is not open on the server now.
    Closed,
    /// It came back as another device, or not at all; it does no I/O until it is remapped.
    Failed(Errno),
}

impl DeviceState {
    /// As the kernel's sysfs spells it; `failed` is our own.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Failed(_) => "failed",
        }
    }
}

/// A device that an administrator mapped.
#[derive(Clone, Copy, Debug)]
pub struct MappedDevice {
    /// Its name on the server.
    pub path: Name,
    /// What it may be used for.
    pub access_mode: AccessMode,
    /// What it is good for.
    pub state: DeviceState,
    /// What the server said about it last.
    pub info: Option<DeviceInfo>,
    /// How often the server opened it.
    pub opening: u32,
    /// It is being unmapped.
    pub unmapping: bool,
}

/// What an open means for its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// It does I/O.
    Usable(DeviceInfo),
    /// It must not be used, and the server is to be told to close it.
    Unusable(&'static str),
}

impl MappedDevice {
    pub(super) fn new(path: Name, access_mode: AccessMode) -> Self {
        Self {
            path,
            access_mode,
            state: DeviceState::Init,
            info: None,
            opening: 0,
            unmapping: false,
        }
    }

    pub(super) fn on_opened(&mut self, said: Result<DeviceInfo, &'static str>) -> Opened {
        let continues = |info: DeviceInfo| match &self.info {
            Some(before) => info.continues(before).map(|()| info),
            None => Ok(info),
        };
        self.opening = self.opening.wrapping_add(1);
        match said.and_then(continues) {
            Ok(info) => {
                self.state = DeviceState::Open;
                self.info = Some(info);
                Opened::Usable(info)
            }
            Err(reason) => {
                self.state = DeviceState::Failed(Errno::NODEV);
                Opened::Unusable(reason)
            }
        }
    }

    pub(super) fn on_closed(&mut self) {
        if self.state == DeviceState::Open {
            self.state = DeviceState::Closed;
        }
    }
}
