//! A session's devices as bdevs.

use std::sync::Arc;

use rnbd_base::Errno;
use rnbd_fabric::Fabric;
use rnbd_proto::clt::{ClientEvent, DeviceIndex, DeviceInfo, DeviceState};
use rnbd_rtrs::clt::PathIndex;
use rnbd_wire::Name;
use uuid::{Uuid, uuid};

use super::{Attaching, Home, Stage};
use crate::bdev::{Identity, RnbdBdev};
use crate::control::{ControlError, DeviceParams, Reply, UnmapMode};
use crate::directory;
use crate::message::{DeviceView, Message, Peer};
use crate::notification::NotificationKind;
use crate::shard::Core;

/// A device and the bdev that it is here.
pub(super) struct HomeDevice {
    pub(super) name: String,
    params: DeviceParams,
    /// There is none before the first open.
    pub(super) bdev: Option<Arc<RnbdBdev>>,
    mapping: Option<Mapped>,
    /// Who waits for it to be opened again.
    pub(super) opening: Vec<Reply<()>>,
    removal: Removal,
}

/// How far a removal is.
enum Removal {
    None,
    /// Waits for the bdev's users, then for the server.
    Started(Option<Reply<()>>),
}

/// Who is told that a device is mapped.
pub(super) enum Mapped {
    Attach,
    Caller(Reply<String>),
}

/// The devices of a session, by their index.
#[derive(Default)]
pub(super) struct Devices {
    slots: Vec<Option<HomeDevice>>,
}

impl Devices {
    pub(super) fn get_mut(&mut self, index: DeviceIndex) -> Option<&mut HomeDevice> {
        self.slots.get_mut(usize::from(index.0))?.as_mut()
    }

    fn set(&mut self, index: DeviceIndex, device: HomeDevice) {
        let slot = usize::from(index.0);
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.slots[slot] = Some(device);
    }

    fn take(&mut self, index: DeviceIndex) -> Option<HomeDevice> {
        self.slots.get_mut(usize::from(index.0))?.take()
    }

    fn iter(&self) -> impl Iterator<Item = (DeviceIndex, &HomeDevice)> {
        let slots = (0..).map(DeviceIndex).zip(&self.slots);
        slots.filter_map(|(index, device)| Some((index, device.as_ref()?)))
    }

    fn indices(&self) -> Vec<DeviceIndex> {
        self.iter().map(|(index, _)| index).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// Names of those that are bdevs.
    pub(super) fn names(&self) -> Vec<String> {
        let bdevs = self.iter().filter(|(_, device)| device.bdev.is_some());
        bdevs.map(|(_, device)| device.name.clone()).collect()
    }

    /// For what is opened from now on; existing channels keep their limit.
    pub(super) fn set_max_io_bytes(&self, bytes: u32) {
        for bdev in self.iter().filter_map(|(_, device)| device.bdev.as_ref()) {
            bdev.set_max_io_bytes(bytes);
        }
    }
}

impl Home {
    // Mapping.

    /// Maps what the attach asked for, now that the session is up.
    pub(super) fn map_wanted<F: Fabric>(&mut self, core: &mut Core<F>) {
        let Stage::Attaching(attaching) = &mut self.stage else {
            return;
        };
        for params in std::mem::take(&mut attaching.wanted) {
            self.map(params, Mapped::Attach, core);
        }
        self.check_attached();
    }

    pub(super) fn map<F: Fabric>(
        &mut self,
        params: DeviceParams,
        mapped: Mapped,
        core: &mut Core<F>,
    ) {
        if matches!(self.stage, Stage::Detaching(_) | Stage::Over) {
            return self.answer_mapping(mapped, Err(self.is_leaving()), core);
        }
        let name = self.bdev_name(&params);
        match self.start_mapping(&name, &params, core) {
            Ok(index) => {
                let device = HomeDevice {
                    name,
                    params,
                    bdev: None,
                    mapping: Some(mapped),
                    opening: Vec::new(),
                    removal: Removal::None,
                };
                self.devices.set(index, device);
                self.set_view(index, DeviceView::Pending, core);
            }
            Err(error) => self.answer_mapping(mapped, Err(error), core),
        }
    }

    pub(super) fn is_leaving(&self) -> ControlError {
        ControlError::new(Errno::BUSY, format!("{} is being detached", self.name))
    }

    fn bdev_name(&self, params: &DeviceParams) -> String {
        let default = || format!("{}_{}", self.name, params.device_path.replace('/', "!"));
        params.bdev_name.clone().unwrap_or_else(default)
    }

    fn start_mapping<F: Fabric>(
        &mut self,
        name: &str,
        params: &DeviceParams,
        core: &Core<F>,
    ) -> Result<DeviceIndex, ControlError> {
        if core.registry.get(name).is_some() {
            return Err(ControlError::new(
                Errno::EXIST,
                format!("bdev {name} exists"),
            ));
        }
        let path = Name::new(&params.device_path)
            .map_err(|error| ControlError::new(Errno::INVAL, format!("device_path: {error}")))?;
        let index = self.client.map(path, params.access_mode);
        index.map_err(|errno| {
            let text = match errno {
                Errno::EXIST => format!("{path} is mapped already"),
                _ => format!("{path}: {errno}"),
            };
            ControlError::new(errno, text)
        })
    }

    fn answer_mapping<F: Fabric>(
        &mut self,
        mapped: Mapped,
        result: Result<String, ControlError>,
        core: &mut Core<F>,
    ) {
        match (mapped, result) {
            (Mapped::Caller(reply), result) => reply(result),
            (Mapped::Attach, Ok(name)) => {
                if let Stage::Attaching(attaching) = &mut self.stage {
                    attaching.mapped.push(name);
                }
                self.check_attached();
            }
            (Mapped::Attach, Err(error)) => self.fail_attach(error, core),
        }
    }

    /// Answers the attach when nothing of it is outstanding.
    fn check_attached(&mut self) {
        let mut devices = self.devices.iter();
        if devices.any(|(_, device)| matches!(device.mapping, Some(Mapped::Attach))) {
            return;
        }
        match std::mem::replace(&mut self.stage, Stage::Attached) {
            Stage::Attaching(Attaching { mapped, reply, .. }) => reply(Ok(mapped)),
            other => self.stage = other,
        }
    }

    /// Nothing of an attach that failed remains; it is answered when that is so.
    pub(super) fn fail_attach<F: Fabric>(&mut self, error: ControlError, core: &mut Core<F>) {
        match std::mem::replace(&mut self.stage, Stage::Attached) {
            Stage::Attaching(Attaching { reply, .. }) => {
                self.detach(Box::new(move || reply(Err(error))), core);
            }
            other => self.stage = other,
        }
    }

    // What became of devices.

    pub(super) fn on_device_event<F: Fabric>(&mut self, event: ClientEvent, core: &mut Core<F>) {
        match event {
            ClientEvent::Opened(index, info) => self.on_opened(index, info, core),
            ClientEvent::OpenFailed(index, errno) => self.on_open_failed(index, errno, core),
            ClientEvent::Unusable(index, reason) => {
                let error = ControlError::new(Errno::NODEV, reason);
                self.on_unusable(index, error, core);
            }
            ClientEvent::Closed(index) => self.on_device_closed(index, core),
            ClientEvent::Unmapped(index) => self.on_unmapped(index, core),
        }
    }

    fn on_opened<F: Fabric>(&mut self, index: DeviceIndex, info: DeviceInfo, core: &mut Core<F>) {
        let Some(device) = self.devices.get_mut(index) else {
            return;
        };
        if !matches!(device.removal, Removal::None) {
            return;
        }
        let waiting = std::mem::take(&mut device.opening);
        match (device.bdev.clone(), device.mapping.take()) {
            (Some(bdev), _) => self.on_reopened(&bdev, info, core),
            (None, Some(mapped)) => self.on_first_open(index, info, mapped, core),
            (None, None) => {}
        }
        let opening = self.client.device(index).map_or(0, |device| device.opening);
        self.set_view(index, DeviceView::Usable(info, opening), core);
        for reply in waiting {
            reply(Ok(()));
        }
    }

    fn on_reopened<F: Fabric>(&self, bdev: &RnbdBdev, info: DeviceInfo, core: &Core<F>) {
        use rnbd_bdev::Bdev;
        bdev.set_state(DeviceState::Open);
        if bdev.set_info(info) {
            log::info!(
                "{}: the size is now {} blocks",
                bdev.name(),
                info.num_blocks
            );
            if let Err(error) = core.registry.notify_resized(bdev.name()) {
                log::warn!("{error}");
            }
        }
    }

    fn on_first_open<F: Fabric>(
        &mut self,
        index: DeviceIndex,
        info: DeviceInfo,
        mapped: Mapped,
        core: &mut Core<F>,
    ) {
        let Some(bdev) = self.make_bdev(index, info, core) else {
            return;
        };
        let name = bdev_name(&bdev);
        if let Err(error) = core.registry.register(Arc::clone(&bdev) as _) {
            let error = ControlError::new(error.errno(), error);
            self.start_unmap(index, None, core);
            self.answer_mapping(mapped, Err(error), core);
            return;
        }
        if let Some(device) = self.devices.get_mut(index) {
            device.bdev = Some(bdev);
            let entry = directory::Device {
                index,
                bdev_name: name.clone(),
                params: device.params.clone(),
            };
            core.directory.add_device(self.session, entry);
        }
        core.notify(NotificationKind::DeviceOpened, name.clone());
        self.answer_mapping(mapped, Ok(name), core);
    }

    fn make_bdev<F: Fabric>(
        &mut self,
        index: DeviceIndex,
        info: DeviceInfo,
        core: &Core<F>,
    ) -> Option<Arc<RnbdBdev>> {
        let device = self.devices.get_mut(index)?;
        let path = &device.params.device_path;
        let derived = || derived_uuid(&self.sessname, path, &self.name);
        let identity = Identity {
            name: device.name.clone(),
            uuid: device.params.uuid.unwrap_or_else(derived),
            controller: Arc::clone(&self.name),
            sessname: self.sessname.clone(),
            device_path: device.params.device_path.clone(),
            access_mode: device.params.access_mode,
            session: self.session,
            device: index,
        };
        let serves = |peer: &&Peer| self.cores.contains(&peer.core);
        let shards = core.peers.iter().filter(serves).cloned().collect();
        let max_io_bytes = self.machine.params()?.max_io_bytes;
        Some(Arc::new(RnbdBdev::new(
            identity,
            shards,
            info,
            max_io_bytes,
        )))
    }

    fn on_open_failed<F: Fabric>(&mut self, index: DeviceIndex, errno: Errno, core: &mut Core<F>) {
        let Some(device) = self.devices.get_mut(index) else {
            return;
        };
        let text = format!("{}: the server says: {errno}", device.params.device_path);
        let error = ControlError::new(errno, text);
        if device.bdev.is_some() {
            self.on_unusable(index, error, core);
        } else if let Some(mapped) = self.devices.take(index).and_then(|device| device.mapping) {
            self.answer_mapping(mapped, Err(error), core);
        }
    }

    fn on_unusable<F: Fabric>(
        &mut self,
        index: DeviceIndex,
        error: ControlError,
        core: &mut Core<F>,
    ) {
        self.set_view(index, DeviceView::Failed(error.errno), core);
        let Some(device) = self.devices.get_mut(index) else {
            return;
        };
        log::error!("{} does no I/O: {error}", device.name);
        if let Some(bdev) = &device.bdev {
            bdev.set_state(DeviceState::Failed(error.errno));
        }
        for reply in device.opening.drain(..) {
            reply(Err(error.clone()));
        }
    }

    /// While the session is down its I/O waits; a device that the server closed by itself answers
    /// as the server does.
    fn on_device_closed<F: Fabric>(&mut self, index: DeviceIndex, core: &mut Core<F>) {
        let view = if self.machine.is_up() {
            DeviceView::Failed(Errno::NOTCONN)
        } else {
            DeviceView::Pending
        };
        let Some(device) = self.devices.get_mut(index) else {
            return;
        };
        if let Some(bdev) = &device.bdev {
            bdev.set_state(DeviceState::Closed);
        }
        core.notify(NotificationKind::DeviceClosed, device.name.clone());
        if matches!(device.removal, Removal::None) {
            self.set_view(index, view, core);
        }
    }

    // Unmapping.

    /// Whether somebody uses the bdev of a device.
    fn is_in_use<F: Fabric>(device: &HomeDevice, core: &Core<F>) -> bool {
        let info = core.registry.get(&device.name);
        device.bdev.is_some() && info.is_some_and(|info| info.descriptors > 0)
    }

    pub(super) fn any_in_use<F: Fabric>(&self, core: &Core<F>) -> bool {
        self.devices
            .iter()
            .any(|(_, device)| Self::is_in_use(device, core))
    }

    pub(super) fn unmap<F: Fabric>(
        &mut self,
        index: DeviceIndex,
        mode: UnmapMode,
        reply: Reply<()>,
        core: &mut Core<F>,
    ) {
        let Some(device) = self.devices.get_mut(index) else {
            return reply(Err(ControlError::new(
                Errno::NODEV,
                "there is no such device",
            )));
        };
        if !matches!(device.removal, Removal::None) {
            let text = format!("{} is being unmapped already", device.name);
            return reply(Err(ControlError::new(Errno::ALREADY, text)));
        }
        if mode == UnmapMode::Normal && Self::is_in_use(device, core) {
            let text = format!("{} is in use; unmap it with mode force", device.name);
            return reply(Err(ControlError::new(Errno::BUSY, text)));
        }
        self.start_unmap(index, Some(reply), core);
    }

    /// First the bdev's users let go, then the server is told.
    fn start_unmap<F: Fabric>(
        &mut self,
        index: DeviceIndex,
        reply: Option<Reply<()>>,
        core: &mut Core<F>,
    ) {
        let Some(device) = self.devices.get_mut(index) else {
            return;
        };
        if !matches!(device.removal, Removal::None) {
            return;
        }
        device.removal = Removal::Started(reply);
        for reply in device.opening.drain(..) {
            reply(Err(ControlError::new(
                Errno::CANCELED,
                "the device is being unmapped",
            )));
        }
        let has_bdev = device.bdev.take().is_some();
        let name = device.name.clone();
        self.set_view(index, DeviceView::Failed(Errno::NODEV), core);
        if !has_bdev || !self.unregister(&name, index, core) {
            self.on_bdev_gone(index, core);
        }
    }

    fn unregister<F: Fabric>(&self, name: &str, index: DeviceIndex, core: &Core<F>) -> bool {
        core.directory.remove_device(self.session, index);
        let session = self.session;
        let Some(home) = core.peers.iter().find(|peer| peer.core == core.index) else {
            return false;
        };
        let sender = home.sender.clone();
        let gone = move |_bdev| {
            if sender.send(Message::BdevGone(session, index)).is_err() {
                log::error!("a core is too far behind to be told of a bdev's removal");
            }
        };
        core.registry.unregister(name, Box::new(gone)).is_ok()
    }

    /// Nobody uses the bdev any more.
    pub(crate) fn on_bdev_gone<F: Fabric>(&mut self, index: DeviceIndex, core: &mut Core<F>) {
        if self.client.unmap(index).is_err() {
            self.on_unmapped(index, core);
        }
        self.run(core);
    }

    fn on_unmapped<F: Fabric>(&mut self, index: DeviceIndex, core: &mut Core<F>) {
        let Some(device) = self.devices.take(index) else {
            return;
        };
        if device.bdev.is_none() {
            core.notify(NotificationKind::DeviceClosed, device.name);
        }
        if let Removal::Started(Some(reply)) = device.removal {
            reply(Ok(()));
        }
    }

    /// Begins the end of the session; `done` is called when nothing of it is left.
    pub(super) fn detach<F: Fabric>(&mut self, done: Box<dyn FnOnce() + Send>, core: &mut Core<F>) {
        self.stage = Stage::Detaching(done);
        for index in self.devices.indices() {
            self.start_unmap(index, None, core);
        }
    }

    /// Takes the last steps of a detach: the paths when the devices are gone, then the rest.
    /// Returns whether something was done.
    pub(super) fn finish_stage<F: Fabric>(&mut self, core: &mut Core<F>) -> bool {
        use rnbd_rtrs::clt::PathState::{Closed, Closing};
        if !matches!(self.stage, Stage::Detaching(_)) || !self.devices.is_empty() {
            return false;
        }
        let is_open = |index: &PathIndex| {
            let path = self.machine.path(*index);
            path.is_some_and(|path| !matches!(path.state, Closed | Closing))
        };
        let open = self.machine.paths().find(is_open);
        if let Some(open) = open {
            self.machine.disconnect_path(open, core.now);
            return true;
        }
        if self.path_infos().all(|path| path.state == Closed) {
            self.to_cores(core, Message::RemoveChannel);
            core.directory.remove(self.session);
            if let Stage::Detaching(done) = std::mem::replace(&mut self.stage, Stage::Over) {
                done();
            }
        }
        false
    }

    fn set_view<F: Fabric>(&self, index: DeviceIndex, view: DeviceView, core: &mut Core<F>) {
        self.to_cores(core, |session| Message::Device(session, index, view));
    }
}

/// The identity of a device that was given none: the same whenever it is mapped again. The
/// controller is part of it because two servers may have a session and a device of the same names.
fn derived_uuid(sessname: &str, device_path: &str, controller: &str) -> Uuid {
    const NAMESPACE: Uuid = uuid!("9d1c7c3e-2f0b-4b57-9a3d-6c5f0e6a8b21");
    // Neither of the first two has a zero byte, so no two lists have the same text.
    let names = [sessname, device_path, controller].join("\0");
    Uuid::new_v5(&NAMESPACE, names.as_bytes())
}

fn bdev_name(bdev: &RnbdBdev) -> String {
    use rnbd_bdev::Bdev;
    bdev.name().to_owned()
}
