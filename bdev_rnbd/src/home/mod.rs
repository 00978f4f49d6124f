//! A session on its home core: what keeps it and its devices alive, and who is told.

mod commands;
mod devices;
mod paths;
mod report;
mod service;

use std::sync::Arc;

use rnbd_base::{CoreIndex, Errno, Nanos};
use rnbd_fabric::{Addr, Completion, DomainId, Fabric, FabricError, PrivateData};
use rnbd_proto::clt::{Client, DeviceIndex};
use rnbd_rtrs::clt::{
    FromChannel, PathError, PathIndex, QueueSizes, Session, SessionAction, SessionEvent,
};
use rnbd_wire::rtrs::ConReq;

use crate::control::{ControlError, Reply};
use crate::message::{Attach, ChannelSetup, IoMode, Message, Route, SessionKey};
use crate::options::{Options, Timeouts};
use crate::shard::{Core, Role};
use crate::write_gate::WriteGate;
use devices::Devices;
use paths::Paths;

/// A session on its home core.
pub(crate) struct Home {
    slot: usize,
    session: SessionKey,
    name: Arc<str>,
    sessname: String,
    options: Options,
    timeouts: Timeouts,
    /// Cores of the channels, by channel.
    cores: Vec<CoreIndex>,
    machine: Session,
    client: Client,
    paths: Paths,
    devices: Devices,
    stage: Stage,
    writes: WriteGate,
}

/// Where the session is in its life.
///
/// ```text
///  Attaching ──> Attached ──> Detaching ──> Over
///      └── failure ───────────────^
/// ```
enum Stage {
    Attaching(Attaching),
    Attached,
    /// Ends when the last device and then the path are gone.
    Detaching(Box<dyn FnOnce() + Send>),
    Over,
}

/// Devices that are still to be mapped before an attach is answered.
struct Attaching {
    wanted: Vec<crate::control::DeviceParams>,
    mapped: Vec<String>,
    reply: Reply<Vec<String>>,
}

impl Home {
    /// Starts a session: tells its channels' cores and connects.
    pub(crate) fn attach<F: Fabric>(slot: usize, attach: Attach, core: &mut Core<F>) -> Self {
        let Attach {
            session,
            sessname,
            params,
            options,
            timeouts,
            cores,
            reply,
        } = attach;
        let channels = u16::try_from(cores.len()).expect("there are fewer cores than 65536");
        let mut config = options.session(&timeouts, channels, params.queue_depth);
        config.policy = params.multipath.policy();
        let route = Route {
            dst: params.addr,
            src: params.hostaddr,
        };
        let mut home = Self {
            slot,
            session,
            name: params.name.as_str().into(),
            sessname: params.sessname,
            options,
            timeouts,
            cores,
            machine: Session::new(sessname, uuid_from(core), config),
            client: Client::new(),
            paths: Paths::new(),
            devices: Devices::default(),
            stage: Stage::Attaching(Attaching {
                wanted: params.devices,
                mapped: Vec::new(),
                reply,
            }),
            writes: WriteGate::default(),
        };
        home.add_channels(core);
        let added = home.add_path(route, None, core);
        debug_assert!(added.is_ok(), "a session has room for its first path");
        home.run(core);
        home
    }

    fn add_channels<F: Fabric>(&self, core: &mut Core<F>) {
        for (index, &to) in (0..).zip(&self.cores) {
            let setup = ChannelSetup {
                session: self.session,
                controller: Arc::clone(&self.name),
                home: core.index,
                index,
                config: *self.machine.config(),
                retry_count: self.options.bdev_retry_count,
                late: self.options.action_on_timeout.late(),
                writes: self.writes.clone(),
            };
            core.send(to, Message::AddChannel(Box::new(setup)));
        }
    }

    pub(crate) fn session(&self) -> SessionKey {
        self.session
    }

    /// Whether nothing is left to do: the slot can be had by another session.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    // Inputs.

    pub(crate) fn on_channel<F: Fabric>(
        &mut self,
        channel: u16,
        message: FromChannel,
        core: &mut Core<F>,
    ) {
        self.machine.handle_channel(channel, message, core.now);
        self.run(core);
    }

    pub(crate) fn on_connected<F: Fabric>(
        &mut self,
        path: PathIndex,
        domain: DomainId,
        private_data: &PrivateData,
        src: Addr,
        core: &mut Core<F>,
    ) {
        let Some(service) = self.service_mut(path) else {
            return;
        };
        match service.set_up(domain, src, core) {
            Ok(()) => {
                let bytes = private_data.as_bytes();
                self.machine.handle_connected(path, bytes, core.now);
            }
            Err(error) => {
                log::warn!("{}: {error}", self.name);
                let error = PathError::Fabric("memory for the connection could not be had");
                self.machine.fail(path, error, core.now);
            }
        }
        self.run(core);
    }

    pub(crate) fn on_closed<F: Fabric>(
        &mut self,
        path: PathIndex,
        error: PathError,
        core: &mut Core<F>,
    ) {
        if let Some(service) = self.service_mut(path) {
            service.release(core);
        }
        self.end_connection(path, error, core);
        self.run(core);
    }

    /// Connection 0 of a path is gone, with the control message that was on it.
    fn end_connection<F: Fabric>(&mut self, path: PathIndex, error: PathError, core: &Core<F>) {
        let client = &mut self.client;
        self.machine
            .handle_closed(path, error, core.now, |_, _| client.handle_lost());
    }

    pub(crate) fn on_completion<F: Fabric>(
        &mut self,
        path: PathIndex,
        completion: &Completion,
        core: &mut Core<F>,
    ) {
        self.handle_completion(path, completion, core);
        self.run(core);
    }

    pub(crate) fn on_timeout<F: Fabric>(&mut self, core: &mut Core<F>) {
        self.machine.handle_timeout(core.now);
        self.run(core);
    }

    pub(crate) fn next_deadline(&self) -> Option<Nanos> {
        self.machine.next_deadline()
    }

    pub(crate) fn on_not_connected<F: Fabric>(
        &mut self,
        device: DeviceIndex,
        opening: u32,
        core: &mut Core<F>,
    ) {
        self.client.handle_not_connected(device, opening);
        self.run(core);
    }

    /// Wakes the channels, each of which may have writes that waited.
    pub(crate) fn on_writes_free<F: Fabric>(&self, core: &mut Core<F>) {
        self.to_cores(core, |_| Message::Wake);
    }

    fn to_cores<F: Fabric>(&self, core: &mut Core<F>, message: impl Fn(SessionKey) -> Message) {
        for &to in &self.cores {
            core.send(to, message(self.session));
        }
    }

    /// Does what the machines ask for until they ask for nothing more.
    fn run<F: Fabric>(&mut self, core: &mut Core<F>) {
        loop {
            if let Some(action) = self.machine.poll_action() {
                self.act(action, core);
            } else if let Some(event) = self.machine.poll_event() {
                self.on_event(event, core);
            } else if let Some(event) = self.client.poll_event() {
                self.on_device_event(event, core);
            } else if self.machine.can_begin()
                && let Some(message) = self.client.poll_message()
            {
                self.send_control(&message, core);
            } else if !self.finish_stage(core) {
                break;
            }
        }
    }

    fn act<F: Fabric>(&mut self, action: SessionAction, core: &mut Core<F>) {
        match action {
            SessionAction::ToChannel { channel, message } => {
                let to = self.cores[usize::from(channel)];
                core.send(to, Message::ToChannel(self.session, message));
            }
            SessionAction::Disconnect { path } => {
                if let Some(service) = self.service(path) {
                    service.disconnect(core);
                }
            }
            SessionAction::Connect {
                path,
                request,
                sizes,
                timeout,
            } => self.connect(path, &request, sizes, timeout, core),
            SessionAction::PostInfoReceive { path, .. }
            | SessionAction::SendInfo { path }
            | SessionAction::PostReceives { path, .. }
            | SessionAction::SendImmediate { path, .. } => self.post(path, &action, core),
        }
    }

    fn connect<F: Fabric>(
        &mut self,
        path: PathIndex,
        request: &ConReq,
        sizes: QueueSizes,
        timeout: Nanos,
        core: &mut Core<F>,
    ) {
        let role = Role::Home(self.slot, path);
        let Some(known) = self.paths.get_mut(path) else {
            return;
        };
        let route = known.route;
        let connected = known
            .service
            .connect(role, &route, request, sizes, timeout, core);
        if let Err(error) = connected {
            log::warn!("{}: {error}", self.name);
            let error = match error {
                FabricError::Unsupported(what) => PathError::Unsupported(what),
                _ => PathError::Fabric("the connection could not be started"),
            };
            self.end_connection(path, error, core);
        }
    }

    /// Posts on connection 0; a fabric that does not take it loses the path.
    fn post<F: Fabric>(&mut self, path: PathIndex, action: &SessionAction, core: &mut Core<F>) {
        let info_req = self.machine.info_req();
        let Some(service) = self.service_mut(path) else {
            return;
        };
        let posted = match action {
            SessionAction::PostInfoReceive { bytes, .. } => service.post_info_receive(*bytes, core),
            SessionAction::SendInfo { .. } => service.send_info(&info_req, core),
            SessionAction::PostReceives { count, bytes, .. } => {
                service.post_receives(*count, *bytes, core)
            }
            SessionAction::SendImmediate { imm, .. } => service.send_immediate(*imm, core),
            _ => Ok(()),
        };
        if let Err(what) = posted {
            self.machine.fail(path, PathError::Fabric(what), core.now);
        }
    }

    // What happened to the session.

    fn on_event<F: Fabric>(&mut self, event: SessionEvent, core: &mut Core<F>) {
        match event {
            SessionEvent::Path { path, state, error } => self.on_path(path, state, error, core),
            SessionEvent::ReconnectFailed { path, error } => {
                self.on_reconnect_failed(path, error, core);
            }
            SessionEvent::Fenced { path, by } => {
                log::info!("{}: path {} is fenced: {by:?}", self.name, path.0);
            }
            SessionEvent::Up(params) => {
                log::info!("{}: session {} is up", self.name, self.sessname);
                self.set_mode(IoMode::Wait, core);
                self.devices.set_max_io_bytes(params.max_io_bytes);
                self.client.handle_session_up();
                self.map_wanted(core);
            }
            SessionEvent::Down(error) => {
                let level = match error {
                    PathError::Requested => log::Level::Info,
                    _ => log::Level::Warn,
                };
                let (name, sessname) = (&self.name, &self.sessname);
                log::log!(level, "{name}: session {sessname} is down: {error}");
                self.client.handle_session_down();
            }
            SessionEvent::FastIoFail => self.set_mode(IoMode::Fail(Errno::TIMEDOUT), core),
            SessionEvent::Lost(error) => self.on_lost(error, core),
        }
    }

    fn on_lost<F: Fabric>(&mut self, error: PathError, core: &mut Core<F>) {
        self.set_mode(IoMode::Fail(Errno::CONNABORTED), core);
        if matches!(self.stage, Stage::Attaching(_)) {
            let dst = self.paths.iter().next().map(|(_, path)| path.route.dst);
            let text = match dst {
                Some(dst) => format!("{dst} port {}: {error}", dst.port()),
                None => error.to_string(),
            };
            self.fail_attach(ControlError::new(error.errno(), text), core);
        } else if !matches!(self.stage, Stage::Detaching(_)) {
            log::error!("{}: session {} is lost: {error}", self.name, self.sessname);
        }
    }

    fn set_mode<F: Fabric>(&self, mode: IoMode, core: &mut Core<F>) {
        self.to_cores(core, |session| Message::Mode(session, mode));
    }
}

/// A random (version 4) uuid.
fn uuid_from<F: Fabric>(core: &mut Core<F>) -> [u8; 16] {
    let bytes = core.random.u128(..).to_le_bytes();
    *uuid::Builder::from_random_bytes(bytes).as_uuid().as_bytes()
}

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Home({})", self.name)
    }
}
