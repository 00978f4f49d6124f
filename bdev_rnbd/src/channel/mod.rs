//! A session's part on one core: it turns the I/O of ports into requests and back.
//!
//! ```text
//!  port ──> submit ──> request with a permit ──> complete ──> port
//!             ^                  │
//!             └──── retries <────┘ its path was lost
//! ```
//!
//! What cannot go out now stays where it is: in the rings, which push back on their consumers, or
//! among the retries, which have room for every permit.

mod complete;
mod link;
mod port;
mod submit;

use std::collections::VecDeque;

use rnbd_base::{CoreIndex, Errno, Nanos};
use rnbd_bdev::BdevIo;
use rnbd_fabric::{ConnectParams, DomainId, Fabric, MrId, PrivateData, QpLimits, WindowId};
use rnbd_proto::clt::{DeviceIndex, DeviceInfo};
use rnbd_rtrs::clt::{
    Channel, ChannelAction, FromChannel, PathError, PathIndex, QueueSizes, ToChannel,
};
use rnbd_wire::rtrs::ConReq;

use crate::control::{IoPath, PathStats};
use crate::directory::Tables;
use crate::message::{ChannelSetup, DeviceView, IoMode, Message, PortSetup, SessionKey};
use crate::shard::{Core, Role};
use link::Link;
use port::Port;

/// The only path of a session for now.
const PATH: PathIndex = PathIndex(0);

/// A session's part on one core.
#[derive(Debug)]
pub(crate) struct CoreChannel {
    slot: usize,
    setup: ChannelSetup,
    machine: Channel,
    link: Option<Link>,
    max_io_bytes: u32,
    mode: IoMode,
    devices: Vec<DeviceView>,
    ports: Vec<Option<Port>>,
    /// The port that is served first next time.
    turn: usize,
    /// By position of the permit.
    requests: Vec<Option<IoRequest>>,
    retries: VecDeque<IoRequest>,
    stats: Counters,
}

/// An I/O that has been taken out of its port's ring.
#[derive(Clone, Copy, Debug)]
struct IoRequest {
    port: usize,
    device: DeviceIndex,
    io: BdevIo,
    /// Times that it was sent and its path was lost.
    retries: u32,
    opening: Opening,
}

/// How the buffer of a read is open to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    /// Not, or for good.
    None,
    /// Through a window of its own.
    Window(WindowId),
    /// By a registration of its own.
    Region(MrId),
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    reads: u64,
    read_bytes: u64,
    writes: u64,
    write_bytes: u64,
    retried: u64,
}

/// What may be done with a device's I/O now.
enum Gate {
    Open(DeviceInfo),
    Wait,
    Fail(Errno),
}

impl CoreChannel {
    pub(crate) fn new(slot: usize, setup: ChannelSetup) -> Self {
        Self {
            slot,
            machine: Channel::new(setup.index, setup.config, 1),
            setup,
            link: None,
            max_io_bytes: 0,
            mode: IoMode::Wait,
            devices: Vec::new(),
            ports: Vec::new(),
            turn: 0,
            requests: Vec::new(),
            retries: VecDeque::new(),
            stats: Counters::default(),
        }
    }

    pub(crate) fn session(&self) -> SessionKey {
        self.setup.session
    }

    // What the session says.

    pub(crate) fn on_message<F: Fabric>(&mut self, message: &ToChannel, core: &mut Core<F>) {
        if let ToChannel::Connect { params, .. } = message {
            self.max_io_bytes = params.max_io_bytes;
        }
        self.machine.handle_message(message, core.now);
        self.run_actions(core);
    }

    pub(crate) fn set_mode(&mut self, mode: IoMode) {
        self.mode = mode;
    }

    pub(crate) fn set_device(&mut self, device: DeviceIndex, view: DeviceView) {
        let index = usize::from(device.0);
        if self.devices.len() <= index {
            self.devices.resize(index + 1, DeviceView::Pending);
        }
        self.devices[index] = view;
    }

    pub(crate) fn open_port(&mut self, setup: PortSetup) {
        let port = Some(Port::new(setup));
        match self.ports.iter().position(Option::is_none) {
            Some(free) => self.ports[free] = port,
            None => self.ports.push(port),
        }
    }

    // Its connection.

    fn run_actions<F: Fabric>(&mut self, core: &mut Core<F>) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                ChannelAction::Connect {
                    request,
                    sizes,
                    timeout,
                    ..
                } => self.connect(&request, sizes, timeout, core),
                ChannelAction::PostReceives { count, bytes, .. } => {
                    let posted = self
                        .link
                        .as_mut()
                        .map(|link| link.post_receives(count, bytes, core));
                    if posted != Some(true) {
                        self.machine
                            .fail(PATH, PathError::Fabric("receives cannot be posted"));
                    }
                }
                ChannelAction::Up(_) => self.make_room(),
                ChannelAction::Disconnect(_) => {
                    if let Some(link) = &self.link {
                        core.fabric.disconnect(link.conn());
                    }
                }
                ChannelAction::Send(message) => self.tell(message, core),
            }
        }
    }

    fn tell<F: Fabric>(&self, message: FromChannel, core: &mut Core<F>) {
        let message = Message::FromChannel(self.setup.session, self.setup.index, message);
        core.send(self.setup.home, message);
    }

    /// There is room for as many requests as permits before the first of them begins.
    fn make_room(&mut self) {
        let permits = usize::from(self.machine.permits().count);
        self.requests.resize(permits, None);
        let missing = permits.saturating_sub(self.retries.capacity());
        self.retries.reserve(missing);
    }

    fn connect<F: Fabric>(
        &mut self,
        request: &ConReq,
        sizes: QueueSizes,
        timeout: Nanos,
        core: &mut Core<F>,
    ) {
        let private_data = PrivateData::new(&request.to_bytes());
        let params = ConnectParams {
            dst: self.setup.route.dst,
            src: self.setup.route.src,
            private_data: private_data.expect("56 bytes are below the limit"),
            domain: None,
            limits: QpLimits {
                send_wrs: sizes.send,
                recv_wrs: sizes.recv,
            },
            timeout_ns: timeout.0,
        };
        match core.fabric.connect(&params, core.now) {
            Ok(conn) => {
                core.assign(conn, Role::Channel(self.slot));
                self.link = Some(Link::new(conn));
            }
            Err(error) => {
                log::warn!("{}: {error}", self.setup.controller);
                let error = PathError::Fabric("the connection could not be started");
                self.end(error, core);
            }
        }
    }

    pub(crate) fn on_connected<F: Fabric>(
        &mut self,
        domain: DomainId,
        private_data: &PrivateData,
        core: &mut Core<F>,
    ) {
        let permits = self.machine.permits();
        let Some(link) = &mut self.link else {
            return;
        };
        match link.set_up(domain, permits, core) {
            Ok(()) => self.machine.handle_connected(PATH, private_data.as_bytes()),
            Err(error) => {
                log::warn!("{}: {error}", self.setup.controller);
                let error = PathError::Fabric("memory for the connection could not be had");
                self.machine.fail(PATH, error);
            }
        }
        self.run_actions(core);
    }

    pub(crate) fn on_closed<F: Fabric>(&mut self, error: PathError, core: &mut Core<F>) {
        self.end(error, core);
        self.run_actions(core);
    }

    pub(crate) fn on_timeout<F: Fabric>(&mut self, core: &mut Core<F>) {
        self.machine.handle_timeout(core.now);
        self.run_actions(core);
    }

    pub(crate) fn next_deadline(&self) -> Option<Nanos> {
        self.machine.next_deadline()
    }

    /// Whether a ring holds something that could be taken now. What waits for a permit or for a
    /// path is announced by the fabric.
    pub(crate) fn has_work(&self) -> bool {
        let can_move = |port: &Port| match self.gate(port.device()) {
            Gate::Open(_) => self.machine.can_begin(PATH),
            Gate::Fail(_) => true,
            Gate::Wait => false,
        };
        let mut ports = self.ports.iter().flatten();
        ports.any(|port| port.has_request() && can_move(port))
    }

    // What is asked about it.

    pub(crate) fn path_stats(&self) -> PathStats {
        PathStats {
            controller: self.setup.controller.to_string(),
            reads: self.stats.reads,
            read_bytes: self.stats.read_bytes,
            writes: self.stats.writes,
            write_bytes: self.stats.write_bytes,
            inflight: self.machine.in_flight() as u64,
            failovered: self.stats.retried,
            ..PathStats::default()
        }
    }

    pub(crate) fn reset_stats(&mut self) {
        self.stats = Counters::default();
    }

    pub(crate) fn io_paths(
        &self,
        core: CoreIndex,
        trtype: &'static str,
        directory: &Tables,
    ) -> Vec<IoPath> {
        let Some(controller) = directory.by_name(&self.setup.controller) else {
            return Vec::new();
        };
        let connected = self.machine.usable_path().is_some();
        let devices = controller.devices.iter().map(|device| IoPath {
            core,
            bdev_name: device.bdev_name.clone(),
            path_id: PATH.0,
            dst_addr: self.setup.route.dst,
            trtype,
            connected,
            accessible: matches!(self.gate(device.index), Gate::Open(_)),
            inflight: self.machine.in_flight() as u64,
        });
        devices.collect()
    }

    fn gate(&self, device: DeviceIndex) -> Gate {
        let view = self.devices.get(usize::from(device.0));
        match (view, self.mode) {
            (Some(DeviceView::Failed(errno)), _) => Gate::Fail(*errno),
            (Some(DeviceView::Usable(info)), _) if self.machine.usable_path().is_some() => {
                Gate::Open(*info)
            }
            (_, IoMode::Fail(errno)) => Gate::Fail(errno),
            (_, IoMode::Wait) => Gate::Wait,
        }
    }
}
