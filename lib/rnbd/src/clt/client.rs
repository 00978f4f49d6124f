//! The control messages of a session: one outstanding at a time, in order.

use std::collections::VecDeque;

use rnbd_base::Errno;
use rnbd_rtrs::clt::Direction;
use rnbd_wire::Name;
use rnbd_wire::limits::RNBD_VERSION_MAJOR;
use rnbd_wire::rnbd::{AccessMode, Close, Open, OpenRsp, SessInfo, SessInfoRsp};

use super::device::{DeviceIndex, DeviceState, MappedDevice, Opened};
use super::info::DeviceInfo;

/// A request to be made on connection 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlMessage {
    bytes: [u8; Open::BYTES],
    len: usize,
    /// Of the RTRS request.
    pub direction: Direction,
    /// How long the answer's data is.
    pub answer_bytes: u32,
}

impl ControlMessage {
    /// Longest user message.
    pub const MAX_BYTES: usize = Open::BYTES;
    /// Longest answer.
    pub const MAX_ANSWER_BYTES: usize = OpenRsp::BYTES;

    fn new(message: &[u8], direction: Direction, answer_bytes: usize) -> Self {
        let mut bytes = [0; Open::BYTES];
        bytes[..message.len()].copy_from_slice(message);
        #[expect(clippy::cast_possible_truncation, reason = "at most 56")]
        let answer_bytes = answer_bytes as u32;
        Self {
            bytes,
            len: message.len(),
            direction,
            answer_bytes,
        }
    }

    /// The user message.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What became of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// It does I/O, with this information, from now on.
    Opened(DeviceIndex, DeviceInfo),
    /// It could not be opened. One that was never open is forgotten.
    OpenFailed(DeviceIndex, Errno),
    /// It is not what it was and does no I/O.
    Unusable(DeviceIndex, &'static str),
    /// It is not open any more, because the session or the device on the server is gone.
    Closed(DeviceIndex),
    /// It is unmapped and forgotten.
    Unmapped(DeviceIndex),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    SessInfo,
    Open(DeviceIndex),
    /// A device that is being unmapped.
    Close(DeviceIndex),
    /// What the server opened under this id for nobody.
    CloseId(u32),
}

/// The devices of a session and the messages that keep them open.
#[derive(Debug, Default)]
pub struct Client {
    devices: Vec<Option<MappedDevice>>,
    tasks: VecDeque<Task>,
    outstanding: Option<Task>,
    events: VecDeque<ClientEvent>,
    session_up: bool,
    version: u8,
}

impl Client {
    /// A client without devices.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All devices.
    pub fn devices(&self) -> impl Iterator<Item = (DeviceIndex, &MappedDevice)> {
        let index = (0..).map(DeviceIndex);
        let slots = index.zip(&self.devices);
        slots.filter_map(|(index, device)| Some((index, device.as_ref()?)))
    }

    /// A device; `None` if there is no such device.
    #[must_use]
    pub fn device(&self, index: DeviceIndex) -> Option<&MappedDevice> {
        self.devices.get(usize::from(index.0))?.as_ref()
    }

    fn device_mut(&mut self, index: DeviceIndex) -> Option<&mut MappedDevice> {
        self.devices.get_mut(usize::from(index.0))?.as_mut()
    }

    /// The version that both sides speak; zero until it is known.
    #[must_use]
    pub fn version(&self) -> u8 {
        self.version
    }

    // What administrators want.

    /// Maps a device; [`ClientEvent::Opened`] or [`ClientEvent::OpenFailed`] follows.
    ///
    /// # Errors
    /// `EEXIST` if it is mapped already, `ENOTCONN` while the session is down, `ENOSPC` if there
    /// are 65535 devices.
    pub fn map(&mut self, path: Name, access_mode: AccessMode) -> Result<DeviceIndex, Errno> {
        if self.devices().any(|(_, device)| device.path == path) {
            return Err(Errno::EXIST);
        }
        if !self.session_up {
            return Err(Errno::NOTCONN);
        }
        let slot = self.free_slot();
        let index = DeviceIndex(u16::try_from(slot).map_err(|_| Errno::NOSPC)?);
        if slot == self.devices.len() {
            self.devices.push(None);
        }
        self.devices[slot] = Some(MappedDevice::new(path, access_mode));
        self.tasks.push_back(Task::Open(index));
        Ok(index)
    }

    /// A slot whose late answer, if one is still to come, cannot be taken for the next device's.
    fn free_slot(&self) -> usize {
        let awaited = match self.outstanding {
            Some(Task::Open(index)) => Some(usize::from(index.0)),
            _ => None,
        };
        let mut slots = self.devices.iter().enumerate();
        let free = slots.find(|(slot, device)| device.is_none() && Some(*slot) != awaited);
        free.map_or(self.devices.len(), |(slot, _)| slot)
    }

    /// Opens a device again: to learn its size, or because it is closed.
    /// [`ClientEvent::Opened`], [`ClientEvent::OpenFailed`] or [`ClientEvent::Unusable`] follows.
    ///
    /// # Errors
    /// `ENODEV` if there is no such device, `ENOTCONN` while the session is down, `EBUSY` while
    /// it is being unmapped.
    pub fn reopen(&mut self, index: DeviceIndex) -> Result<(), Errno> {
        let device = self.device(index).ok_or(Errno::NODEV)?;
        if device.unmapping {
            return Err(Errno::BUSY);
        }
        if !self.session_up {
            return Err(Errno::NOTCONN);
        }
        self.tasks.push_back(Task::Open(index));
        Ok(())
    }

    /// Closes a device that does no more I/O. [`ClientEvent::Unmapped`] follows.
    ///
    /// # Errors
    /// `ENODEV` if there is no such device, `EALREADY` if it is being unmapped.
    pub fn unmap(&mut self, index: DeviceIndex) -> Result<(), Errno> {
        let session_up = self.session_up;
        let device = self.device_mut(index).ok_or(Errno::NODEV)?;
        if device.unmapping {
            return Err(Errno::ALREADY);
        }
        device.unmapping = true;
        let is_known = matches!(device.state, DeviceState::Open | DeviceState::Closed);
        if session_up && is_known {
            self.tasks.retain(|task| *task != Task::Open(index));
            self.tasks.push_back(Task::Close(index));
        } else {
            self.forget(index);
        }
        Ok(())
    }

    fn forget(&mut self, index: DeviceIndex) {
        self.devices[usize::from(index.0)] = None;
        self.tasks.retain(|task| *task != Task::Open(index));
        self.events.push_back(ClientEvent::Unmapped(index));
    }

    // Inputs.

    /// The session came up: everything is opened again.
    pub fn handle_session_up(&mut self) {
        self.session_up = true;
        self.outstanding = None;
        self.tasks.clear();
        self.tasks.push_back(Task::SessInfo);
        let mapped = (0..).map(DeviceIndex).zip(&self.devices);
        self.tasks.extend(
            mapped.filter_map(|(index, device)| device.as_ref().map(|_| Task::Open(index))),
        );
    }

    /// The session is down: no device is open any more, and what was never open never will be.
    pub fn handle_session_down(&mut self) {
        self.session_up = false;
        self.outstanding = None;
        self.tasks.clear();
        for index in (0..).map(DeviceIndex).take(self.devices.len()) {
            let Some(device) = self.device_mut(index) else {
                continue;
            };
            if device.unmapping {
                self.forget(index);
            } else if device.state == DeviceState::Init {
                self.on_open_failed(index, Errno::NOTCONN);
            } else {
                self.close(index);
            }
        }
    }

    /// The outstanding message was lost with its path, and can not do anything any more when the
    /// next one is sent: it is sent again.
    pub fn handle_lost(&mut self) {
        if let Some(task) = self.outstanding.take() {
            self.tasks.push_front(task);
        }
    }

    /// The server does not know the device any more: an I/O was answered `ENOTCONN` that was made
    /// for the opening with this number. Of an older one it says nothing.
    pub fn handle_not_connected(&mut self, index: DeviceIndex, opening: u32) {
        if self
            .device(index)
            .is_some_and(|device| device.opening == opening)
        {
            self.close(index);
        }
    }

    fn close(&mut self, index: DeviceIndex) {
        let Some(device) = self.device_mut(index) else {
            return;
        };
        if device.state == DeviceState::Open {
            device.on_closed();
            self.events.push_back(ClientEvent::Closed(index));
        }
    }

    /// The answer to the outstanding message, with its data if it succeeded.
    pub fn handle_answer(&mut self, result: Result<&[u8], Errno>) {
        match self.outstanding.take() {
            Some(Task::SessInfo) => self.on_sess_info(result),
            Some(Task::Open(index)) => self.on_open(index, result),
            Some(Task::Close(index)) => self.forget(index),
            Some(Task::CloseId(_)) | None => {}
        }
    }

    /// A server that does not answer `SESS_INFO` as it should is taken for one of version 0.
    fn on_sess_info(&mut self, result: Result<&[u8], Errno>) {
        let rsp = result.ok().and_then(|data| SessInfoRsp::decode(data).ok());
        self.version = rsp.map_or(0, |rsp| rsp.ver.min(RNBD_VERSION_MAJOR));
    }

    fn on_open(&mut self, index: DeviceIndex, result: Result<&[u8], Errno>) {
        let rsp = match result {
            Ok(data) => OpenRsp::decode(data).map_err(|_| Errno::PROTO),
            Err(errno) => Err(errno),
        };
        match rsp {
            Ok(rsp) => self.on_open_rsp(index, &rsp),
            Err(errno) => self.on_open_failed(index, errno),
        }
    }

    fn on_open_rsp(&mut self, index: DeviceIndex, rsp: &OpenRsp) {
        let Some(device) = self.device_mut(index) else {
            self.close_first(rsp.device_id);
            return;
        };
        let is_new = device.state == DeviceState::Init;
        match device.on_opened(DeviceInfo::from_open_rsp(rsp)) {
            Opened::Usable(info) => self.events.push_back(ClientEvent::Opened(index, info)),
            Opened::Unusable(reason) => {
                self.close_first(rsp.device_id);
                if is_new {
                    self.on_new_device_refused(index, Errno::PROTO);
                } else {
                    self.events.push_back(ClientEvent::Unusable(index, reason));
                }
            }
        }
    }

    /// Gives back what the server opened for nobody, before an OPEN of the same name that may wait:
    /// a server answers that one with the device that it has open already.
    fn close_first(&mut self, device_id: u32) {
        self.tasks.push_front(Task::CloseId(device_id));
    }

    fn on_open_failed(&mut self, index: DeviceIndex, errno: Errno) {
        let Some(device) = self.device_mut(index) else {
            return;
        };
        if device.state == DeviceState::Init {
            self.on_new_device_refused(index, errno);
        } else {
            device.state = DeviceState::Failed(errno);
            self.events.push_back(ClientEvent::OpenFailed(index, errno));
        }
    }

    fn on_new_device_refused(&mut self, index: DeviceIndex, errno: Errno) {
        self.devices[usize::from(index.0)] = None;
        self.events.push_back(ClientEvent::OpenFailed(index, errno));
    }

    // Outputs.

    /// The next message, if none is outstanding and the session is up. The caller sends it and
    /// reports its answer.
    pub fn poll_message(&mut self) -> Option<ControlMessage> {
        if !self.session_up || self.outstanding.is_some() {
            return None;
        }
        loop {
            let task = self.tasks.pop_front()?;
            if let Task::Close(index) = task
                && self.id_to_close(index).is_none()
            {
                self.forget(index);
                continue;
            }
            if let Some(message) = self.message(task) {
                self.outstanding = Some(task);
                return Some(message);
            }
        }
    }

    /// The id of a device that is to be closed; `None` if another one has it: a server that has
    /// closed a device by itself may give its id to the next.
    fn id_to_close(&self, index: DeviceIndex) -> Option<u32> {
        let id = self.device(index)?.info?.device_id;
        let has_it = |device: &MappedDevice| {
            let info = device.info.filter(|_| device.state == DeviceState::Open);
            info.is_some_and(|info| info.device_id == id)
        };
        let mut others = self.devices().filter(|(other, _)| *other != index);
        let is_taken = others.any(|(_, device)| has_it(device));
        (!is_taken).then_some(id)
    }

    fn message(&self, task: Task) -> Option<ControlMessage> {
        Some(match task {
            Task::SessInfo => {
                let ver = RNBD_VERSION_MAJOR;
                let bytes = SessInfo { ver }.to_bytes();
                ControlMessage::new(&bytes, Direction::Read, SessInfoRsp::BYTES)
            }
            Task::Open(index) => {
                let device = self.device(index)?;
                let open = Open {
                    access_mode: device.access_mode,
                    dev_name: device.path,
                };
                ControlMessage::new(&open.to_bytes(), Direction::Read, OpenRsp::BYTES)
            }
            Task::Close(index) => close_message(self.id_to_close(index)?),
            Task::CloseId(device_id) => close_message(device_id),
        })
    }

    /// What became of devices; to be asked after every input until there is nothing.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }
}

fn close_message(device_id: u32) -> ControlMessage {
    ControlMessage::new(&Close { device_id }.to_bytes(), Direction::Write, 0)
}
