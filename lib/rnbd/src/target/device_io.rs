use std::collections::VecDeque;

use rnbd_base::Host;
use rnbd_bdev::{BdevIo, Channel, Desc};
use rnbd_rtrs::srv::{PathKey, SessionKey};
use rnbd_wire::extension::ServiceId;

use super::counters::DeviceCounters;
use crate::srv::{ExportView, Session};

/// The block service of one session: what the client knows, and the way to its devices.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) key: SessionKey,
    /// By which a client that knows the extension notices that it is another one.
    pub(super) id: ServiceId,
    pub(super) sessname: String,
    pub(super) client: Host,
    pub(super) session: Session,
    /// By the place of the device in `session`.
    pub(super) devices: Vec<Option<DeviceIo>>,
}

/// The way to one open device.
#[derive(Debug)]
pub(super) struct DeviceIo {
    pub(super) desc: Desc,
    pub(super) channel: Channel,
    /// I/O that the channel has no room for: beside the requests that a client may have
    /// outstanding there may be those of its lost paths, which it sent again.
    pub(super) waiting: VecDeque<BdevIo>,
    /// As the export was when it was opened.
    pub(super) export: ExportView,
    pub(super) bdev_name: String,
    /// Its own memory may be sent.
    pub(super) in_place: bool,
    pub(super) counters: DeviceCounters,
    /// CLOSE requests to be answered when it has closed.
    pub(super) waiters: Vec<(PathKey, u16)>,
    /// It is in the shard's list of devices with I/O outstanding.
    pub(super) listed: bool,
}

impl Service {
    pub(super) fn device_mut(&mut self, index: usize) -> Option<&mut DeviceIo> {
        self.devices.get_mut(index)?.as_mut()
    }

    pub(super) fn put_device(&mut self, index: usize, device: DeviceIo) {
        if self.devices.len() <= index {
            self.devices.resize_with(index + 1, || None);
        }
        self.devices[index] = Some(device);
    }

    pub(super) fn take_device(&mut self, index: usize) -> Option<DeviceIo> {
        self.devices.get_mut(index)?.take()
    }
}
