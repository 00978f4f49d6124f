//! A session's part on one core: it turns the I/O of ports into requests and back.
//!
//! ```text
//!  port ──> submit ──> request with a permit ──> complete ──> port
//!             ^                  │
//!             └──── waiting <────┘ its path was lost
//! ```
//!
//! What cannot go out now stays where it is: in the rings, which push back on their consumers, or
//! among those that wait (see `waiting.rs`).

mod complete;
mod connections;
mod link;
mod port;
mod submit;
mod waiting;

use std::collections::VecDeque;

use rnbd_base::{CoreIndex, Errno, Nanos};
use rnbd_bdev::{BdevIo, IoOp};
use rnbd_fabric::{Fabric, MrId, WindowId};
use rnbd_proto::clt::{DeviceIndex, DeviceInfo};
use rnbd_rtrs::clt::{Attempt, Channel, Ended, PathIndex, ToChannel};

use crate::control::{IoPath, PathStats};
use crate::directory::Tables;
use crate::message::{ChannelSetup, DeviceView, IoMode, PortSetup, Route, SessionKey};
use crate::shard::Core;
use link::Link;
use port::Port;

/// A session's part on one core.
#[derive(Debug)]
pub(crate) struct CoreChannel {
    slot: usize,
    setup: ChannelSetup,
    machine: Channel,
    paths: Vec<ChannelPath>,
    max_io_bytes: u32,
    mode: IoMode,
    devices: Vec<DeviceView>,
    ports: Vec<Option<Port>>,
    /// The port that is served first next time.
    turn: usize,
    /// By position of the permit.
    requests: Vec<Option<IoRequest>>,
    waiting: VecDeque<Waiting>,
    /// Those of a path that has just ended; empty otherwise.
    ended: Vec<(IoRequest, Ended)>,
    /// Lost lives of paths with writes that were given up before their path was fenced.
    abandoned: Vec<Attempt>,
}

/// What the channel has of a path.
#[derive(Debug, Default)]
struct ChannelPath {
    route: Option<Route>,
    link: Option<Link>,
    stats: Counters,
}

/// An I/O that has been taken out of its port's ring. Copied a few times for each I/O, so it is
/// kept small.
#[derive(Clone, Copy, Debug)]
struct IoRequest {
    port: u32,
    device: DeviceIndex,
    /// The path that it is on.
    path: PathIndex,
    /// Times that it was sent and its path was lost.
    retries: u32,
    /// The opening of its device that it was made for.
    device_opening: u32,
    /// When it was first sent; meaningless before.
    begun: Nanos,
    opening: Opening,
    io: BdevIo,
}

/// An I/O that waits to be sent, or to be sent again.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    request: IoRequest,
    since: Nanos,
    /// It changes data and was sent in this life of a path, which was lost.
    held: Option<Attempt>,
}

impl IoRequest {
    fn changes_data(&self) -> bool {
        matches!(
            self.io.op,
            IoOp::Write { .. } | IoOp::Unmap | IoOp::WriteZeroes { .. }
        )
    }
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
    /// Requests that had been lost on another path.
    failovered: u64,
}

/// What may be done with a device's I/O now.
enum Gate {
    Open(Usable),
    Wait,
    Fail(Errno),
}

/// A device that takes I/O.
#[derive(Clone, Copy)]
struct Usable {
    info: DeviceInfo,
    opening: u32,
}

impl CoreChannel {
    pub(crate) fn new(slot: usize, setup: ChannelSetup) -> Self {
        Self {
            slot,
            machine: Channel::new(setup.index, setup.config),
            setup,
            paths: Vec::new(),
            max_io_bytes: 0,
            mode: IoMode::Wait,
            devices: Vec::new(),
            ports: Vec::new(),
            turn: 0,
            requests: Vec::new(),
            waiting: VecDeque::new(),
            ended: Vec::new(),
            abandoned: Vec::new(),
        }
    }

    pub(crate) fn session(&self) -> SessionKey {
        self.setup.session
    }

    // What the session says.

    pub(crate) fn set_route(&mut self, path: PathIndex, route: Route) {
        let count = self.paths.len().max(path.index() + 1);
        self.paths.resize_with(count, ChannelPath::default);
        self.paths[path.index()] = ChannelPath {
            route: Some(route),
            ..ChannelPath::default()
        };
    }

    pub(crate) fn on_message<F: Fabric>(&mut self, message: &ToChannel, core: &mut Core<F>) {
        if let ToChannel::Connect { params, .. } = message
            && !self.machine.is_up()
        {
            self.max_io_bytes = params.max_io_bytes;
        }
        self.machine.handle_message(message, core.now);
        if let ToChannel::Fenced { attempt, .. } = message {
            self.on_fenced(*attempt, core);
        }
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

    pub(crate) fn on_timeout<F: Fabric>(&mut self, core: &mut Core<F>) {
        self.machine.handle_timeout(core.now);
        self.run_actions(core);
    }

    pub(crate) fn next_deadline(&self) -> Option<Nanos> {
        let machine = self.machine.next_deadline();
        [machine, self.waiting_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether a ring holds something that could be taken now. What waits for a permit or for a
    /// path is announced by the fabric.
    pub(crate) fn has_work(&self) -> bool {
        let can_move = |port: &Port| match self.gate(port.device()) {
            Gate::Open(_) => self.machine.can_begin() && self.may_take(),
            Gate::Fail(_) => true,
            Gate::Wait => false,
        };
        let mut ports = self.ports.iter().flatten();
        ports.any(|port| port.has_request() && can_move(port))
    }

    // What is asked about it.

    pub(crate) fn path_stats(&self) -> Vec<PathStats> {
        let known = self.known_paths();
        let stats = known.map(|(path, of)| PathStats {
            controller: self.setup.controller.to_string(),
            path_id: path.0,
            reads: of.stats.reads,
            read_bytes: of.stats.read_bytes,
            writes: of.stats.writes,
            write_bytes: of.stats.write_bytes,
            inflight: self.machine.in_flight_on(path).into(),
            failovered: of.stats.failovered,
            ..PathStats::default()
        });
        stats.collect()
    }

    fn known_paths(&self) -> impl Iterator<Item = (PathIndex, &ChannelPath)> {
        let all = (0..).map(PathIndex).zip(&self.paths);
        all.filter(|(_, path)| path.route.is_some())
    }

    pub(crate) fn reset_stats(&mut self, path: Option<PathIndex>) {
        for (index, known) in (0..).map(PathIndex).zip(&mut self.paths) {
            if path.is_none_or(|path| path == index) {
                known.stats = Counters::default();
            }
        }
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
        let of_device = |device: &crate::directory::Device| {
            let accessible = matches!(self.gate(device.index), Gate::Open(_));
            let bdev_name = device.bdev_name.clone();
            let io_path = move |(path, dst_addr)| IoPath {
                core,
                bdev_name: bdev_name.clone(),
                path_id: path,
                dst_addr,
                trtype,
                current: self.is_current(PathIndex(path)),
                connected: self.machine.is_path_up(PathIndex(path)),
                accessible,
                inflight: self.machine.in_flight_on(PathIndex(path)).into(),
                latency: self.machine.latency(PathIndex(path)),
            };
            let known = self.known_paths();
            let routes =
                known.filter_map(|(path, known)| Some((path.0, known.route.as_ref()?.dst)));
            routes.map(io_path)
        };
        controller.devices.iter().flat_map(of_device).collect()
    }

    /// Whether the last request took the path, or the next one can only take it.
    fn is_current(&self, path: PathIndex) -> bool {
        match self.machine.current_path() {
            Some(current) => current == path,
            None => self.machine.is_path_up(path),
        }
    }

    fn gate(&self, device: DeviceIndex) -> Gate {
        let view = self.devices.get(usize::from(device.0));
        match (view, self.mode) {
            (Some(DeviceView::Failed(errno)), _) => Gate::Fail(*errno),
            (Some(&DeviceView::Usable(info, opening)), _) if self.machine.is_up() => {
                Gate::Open(Usable { info, opening })
            }
            (_, IoMode::Fail(errno)) => Gate::Fail(errno),
            (_, IoMode::Wait) => Gate::Wait,
        }
    }
}
