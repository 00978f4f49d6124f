//! The block service of one client: its version and its devices.

use rnbd_base::Errno;
use rnbd_rtrs::srv::{Direction, Request};
use rnbd_wire::limits::RNBD_VERSION_MAJOR;
use rnbd_wire::rnbd::{self, AccessMode, Open, OpenRsp, SessInfoRsp};
use rnbd_wire::{DecodeError, Name};

use super::exports::Ticket;
use super::io::{DeviceView, Plan};

/// First version in which a request's priority counts.
const VERSION_WITH_PRIO: u8 = 2;
/// Bits of a device id that are its index; the rest tells one device in a place from the next.
const INDEX_BITS: u32 = 16;

/// What a user message asks for, fully checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "lives on the stack while a request is looked at; a box would be an allocation"
)]
pub enum Command {
    /// Answer, nothing else.
    Answer(Result<(), Errno>),
    /// Answer with this data.
    SessInfo(SessInfoRsp),
    /// Open a device; see [`Session::start_open`].
    Open(Open),
    /// Close a device; see [`Session::close`].
    Close {
        /// As the client names it.
        device_id: u32,
    },
    /// The I/O goes beyond the end that the client was told: answer with `errno`, unless the device
    /// has grown since; see [`Session::refresh`].
    BeyondEnd {
        /// The device's index.
        device: usize,
        /// The answer.
        errno: Errno,
    },
    /// Do I/O on the device in this place.
    Io {
        /// The device's index.
        device: usize,
        /// What.
        plan: Plan,
        /// Linux I/O priority.
        prio: u16,
    },
}

/// Where a device is in its life.
///
/// ```text
///  OPEN          opened          CLOSE            I/O drained
/// ──────> Opening ─────> Open ──────────> Closing ───────────> (free)
///            │ failed      │ force-close, bdev gone               ^
///            v             v             I/O drained              │ CLOSE
///          (free)       Revoking ────────────────────> Reserved ──┤
///                          └─ CLOSE ─> Closing            ^       │ OPEN of the same name
///                                                  failed │       v
///                                                         └─── Opening, with the same id
/// ```
///
/// A reserved id belongs to nobody else: a client that was not told that its device is gone must
/// not reach another one (protocol.md 9.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Being looked up.
    Opening,
    /// Serving.
    Open,
    /// The client gave it back.
    Closing,
    /// Taken away from the client.
    Revoking,
    /// Taken away, and nothing in flight.
    Reserved,
}

/// One device of the client.
#[derive(Clone, Debug)]
pub struct Device {
    /// As the client names it.
    pub id: u32,
    /// As it asked for it.
    pub name: Name,
    /// As it asked for it.
    pub mode: AccessMode,
    /// Where it is in its life.
    pub state: DeviceState,
    /// What the client was told.
    pub view: DeviceView,
    /// Its entry in the table of exports.
    pub ticket: Option<Ticket>,
    /// I/O in flight.
    pub inflight: u32,
    /// Its id stays reserved if it cannot be opened.
    reopened: bool,
}

/// How an OPEN goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartOpen {
    /// The client has the device in this place already; tell it about it again.
    Existing(usize),
    /// Look it up, then call [`Session::finish_open`] or [`Session::fail_open`].
    New(usize),
    /// A device of this name is being opened or closed: try again when that is done.
    Later,
}

/// How a close goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// No such device: done.
    Nothing,
    /// The device in this place closes when its I/O has drained; ask [`Session::take_drained`].
    Device(usize),
}

/// One client's devices.
#[derive(Debug)]
pub struct Session {
    version: u8,
    max_devices: usize,
    places: Vec<Place>,
}

#[derive(Debug, Default)]
struct Place {
    generation: u16,
    device: Option<Device>,
}

impl Session {
    /// No devices yet.
    #[must_use]
    pub fn new(max_devices: u32) -> Self {
        let most = (1 << INDEX_BITS) - 1;
        Self {
            version: 0,
            max_devices: usize::try_from(max_devices).map_or(most, |max| max.min(most)),
            places: Vec::new(),
        }
    }

    // Requests.

    /// Turns a user message into what to do.
    #[must_use]
    pub fn handle_message(&mut self, request: &Request, message: &[u8]) -> Command {
        match rnbd::Request::decode(message) {
            Ok(rnbd::Request::Io(io)) => self.on_io(request, &io),
            Ok(rnbd::Request::SessInfo(info)) => self.on_sess_info(request, info.ver),
            Ok(rnbd::Request::Open(open)) if can_hold(request, OpenRsp::BYTES) => {
                Command::Open(open)
            }
            Ok(rnbd::Request::Open(_)) => Command::Answer(Err(Errno::INVAL)),
            Ok(rnbd::Request::Close(close)) => Command::Close {
                device_id: close.device_id,
            },
            Err(error) => Command::Answer(Err(DecodeError::errno(error))),
        }
    }

    /// An I/O of a [`Command::Io`] was started.
    pub fn on_io_started(&mut self, device: usize) {
        if let Some(device) = self.device_mut(device) {
            device.inflight += 1;
        }
    }

    /// It ended. Returns whether a closing device has drained by this.
    pub fn on_io_done(&mut self, device: usize) -> bool {
        let Some(device) = self.device_mut(device) else {
            return false;
        };
        device.inflight -= 1;
        device.is_drained()
    }

    fn on_sess_info(&mut self, request: &Request, version: u8) -> Command {
        if !can_hold(request, SessInfoRsp::BYTES) {
            return Command::Answer(Err(Errno::INVAL));
        }
        self.version = version.min(RNBD_VERSION_MAJOR);
        Command::SessInfo(SessInfoRsp { ver: self.version })
    }

    fn on_io(&self, request: &Request, io: &rnbd::Io) -> Command {
        let Some((index, device)) = self.open_device(io.device_id) else {
            return Command::Answer(Err(Errno::NOTCONN));
        };
        match device.view.plan(io, request) {
            Ok(Plan::Nothing) => Command::Answer(Ok(())),
            Ok(plan) => Command::Io {
                device: index,
                plan,
                prio: if self.version < VERSION_WITH_PRIO {
                    0
                } else {
                    io.prio
                },
            },
            Err(errno @ (Errno::IO | Errno::NOSPC)) => Command::BeyondEnd {
                device: index,
                errno,
            },
            Err(errno) => Command::Answer(Err(errno)),
        }
    }

    fn open_device(&self, id: u32) -> Option<(usize, &Device)> {
        let index = index_of(id);
        let device = self.device(index)?;
        (device.id == id && device.state == DeviceState::Open).then_some((index, device))
    }

    // Opening.

    /// Makes room for a device, or finds the one that the client has under this name.
    ///
    /// # Errors
    /// `ENOSPC`: too many devices.
    pub fn start_open(&mut self, open: &Open) -> Result<StartOpen, Errno> {
        match self.find(&open.dev_name) {
            Some((index, DeviceState::Open)) => Ok(StartOpen::Existing(index)),
            Some((index, DeviceState::Reserved)) => {
                let id = self.places[index].id(index);
                let device = Device::opening(id, open);
                self.places[index].device = Some(Device {
                    reopened: true,
                    ..device
                });
                Ok(StartOpen::New(index))
            }
            Some(_) => Ok(StartOpen::Later),
            None => self.take_place(open).map(StartOpen::New),
        }
    }

    /// The device is open from now on.
    pub fn finish_open(&mut self, index: usize, ticket: Ticket, view: DeviceView) {
        if let Some(device) = self.device_mut(index) {
            device.ticket = Some(ticket);
            device.view = view;
            device.state = DeviceState::Open;
        }
    }

    /// The device could not be opened: its place is free, unless it was reserved before.
    pub fn fail_open(&mut self, index: usize) {
        match self.device_mut(index) {
            Some(device) if device.reopened => device.state = DeviceState::Reserved,
            _ => self.free(index),
        }
    }

    /// An open device is like this from now on.
    pub fn refresh(&mut self, index: usize, view: DeviceView) {
        if let Some(device) = self.device_mut(index) {
            device.view = view;
        }
    }

    fn find(&self, name: &Name) -> Option<(usize, DeviceState)> {
        self.devices()
            .find(|(_, device)| device.name == *name)
            .map(|(index, device)| (index, device.state))
    }

    fn take_place(&mut self, open: &Open) -> Result<usize, Errno> {
        let free = self.places.iter().position(|place| place.device.is_none());
        let index = free.unwrap_or(self.places.len());
        if index >= self.max_devices {
            return Err(Errno::NOSPC);
        }
        if index == self.places.len() {
            self.places.push(Place::default());
        }
        let place = &mut self.places[index];
        place.device = Some(Device::opening(place.id(index), open));
        Ok(index)
    }

    // Closing.

    /// The client gives a device back.
    pub fn close(&mut self, device_id: u32) -> Closing {
        let index = index_of(device_id);
        let Some(device) = self
            .device_mut(index)
            .filter(|device| device.id == device_id)
        else {
            return Closing::Nothing;
        };
        match device.state {
            DeviceState::Open | DeviceState::Closing | DeviceState::Revoking => {
                device.state = DeviceState::Closing;
                Closing::Device(index)
            }
            DeviceState::Reserved => {
                self.free(index);
                Closing::Nothing
            }
            DeviceState::Opening => Closing::Nothing,
        }
    }

    /// Takes a device away from the client. Returns whether it was open.
    pub fn revoke(&mut self, index: usize) -> bool {
        match self.device_mut(index) {
            Some(device) if device.state == DeviceState::Open => {
                device.state = DeviceState::Revoking;
                true
            }
            _ => false,
        }
    }

    /// The session ends, and no I/O is in flight: every open device closes.
    pub fn close_all(&mut self) {
        for place in &mut self.places {
            if let Some(device) = &mut place.device
                && device.state != DeviceState::Reserved
            {
                device.state = DeviceState::Closing;
            }
        }
    }

    /// Whether the device in this place is to end and has no I/O in flight.
    #[must_use]
    pub fn is_drained(&self, index: usize) -> bool {
        self.device(index).is_some_and(Device::is_drained)
    }

    /// If the device in this place is to end and has drained, ends it and returns its entry in the
    /// table of exports.
    pub fn take_drained(&mut self, index: usize) -> Option<Ticket> {
        let device = self
            .device_mut(index)
            .filter(|device| device.is_drained())?;
        let ticket = device.ticket.take();
        if device.state == DeviceState::Revoking {
            device.state = DeviceState::Reserved;
        } else {
            self.free(index);
        }
        ticket
    }

    fn free(&mut self, index: usize) {
        if let Some(place) = self.places.get_mut(index) {
            place.device = None;
            place.generation = place.generation.wrapping_add(1);
        }
    }

    // Looks.

    /// The version in use.
    #[must_use]
    pub fn version(&self) -> u8 {
        self.version
    }

    /// The device in a place.
    #[must_use]
    pub fn device(&self, index: usize) -> Option<&Device> {
        self.places.get(index)?.device.as_ref()
    }

    /// All devices with their places.
    pub fn devices(&self) -> impl Iterator<Item = (usize, &Device)> {
        let places = self.places.iter().enumerate();
        places.filter_map(|(index, place)| Some((index, place.device.as_ref()?)))
    }

    fn device_mut(&mut self, index: usize) -> Option<&mut Device> {
        self.places.get_mut(index)?.device.as_mut()
    }
}

impl Place {
    fn id(&self, index: usize) -> u32 {
        let index = u32::try_from(index).expect("places are fewer than 2^16");
        index | (u32::from(self.generation) << INDEX_BITS)
    }
}

impl Device {
    fn opening(id: u32, open: &Open) -> Self {
        Self {
            id,
            name: open.dev_name,
            mode: open.access_mode,
            state: DeviceState::Opening,
            view: DeviceView {
                read_only: true,
                block_bytes: 512,
                num_blocks: 0,
                max_discard_bytes: 0,
                max_write_zeroes_bytes: 0,
            },
            ticket: None,
            inflight: 0,
            reopened: false,
        }
    }

    fn is_drained(&self) -> bool {
        let ends = matches!(self.state, DeviceState::Closing | DeviceState::Revoking);
        ends && self.inflight == 0
    }
}

fn index_of(id: u32) -> usize {
    usize::try_from(id & ((1 << INDEX_BITS) - 1)).unwrap_or(usize::MAX)
}

/// Whether the request has room for an answer of `bytes`, and says where it goes.
fn can_hold(request: &Request, bytes: usize) -> bool {
    let data_len = usize::try_from(request.data_len).unwrap_or(usize::MAX);
    request.direction == Direction::Read && request.has_descriptor && data_len >= bytes
}
