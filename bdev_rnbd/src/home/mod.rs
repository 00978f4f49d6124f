//! A session on its home core: what keeps it and its devices alive, and who is told.

mod commands;
mod devices;
mod service;

use std::sync::Arc;

use rnbd_base::{CoreIndex, Errno, Nanos};
use rnbd_fabric::{Addr, Completion, DomainId, Fabric, PrivateData};
use rnbd_proto::clt::{Client, DeviceIndex};
use rnbd_rtrs::clt::{
    FromChannel, PathError, PathIndex, PathInfo, PathState, Session, SessionAction, SessionEvent,
};
use uuid::Uuid;

use crate::control::{
    ControlError, ControllerInfo, ControllerState, PathReport, PathStats, ReconnectInfo, Reply,
};
use crate::message::{Attach, ChannelSetup, IoMode, Message, Route, SessionKey};
use crate::notification::NotificationKind;
use crate::options::{Options, Timeouts};
use crate::shard::Core;
use devices::Devices;
use service::Service;

/// The only path of a session for now.
const PATH: PathIndex = PathIndex(0);

/// A session on its home core.
pub(crate) struct Home {
    slot: usize,
    session: SessionKey,
    name: Arc<str>,
    sessname: String,
    route: Route,
    options: Options,
    timeouts: Timeouts,
    /// Cores of the channels, by channel.
    cores: Vec<CoreIndex>,
    machine: Session,
    client: Client,
    service: Service,
    devices: Devices,
    stage: Stage,
    reconnecting: Vec<Reply<()>>,
    disconnecting: Vec<Reply<()>>,
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
        let config = options.session(&timeouts, channels, params.queue_depth);
        let (session_uuid, path_uuid) = (uuid_from(core), uuid_from(core));
        let seed = core.random.u64(..);
        let mut home = Self {
            slot,
            session,
            name: params.name.as_str().into(),
            sessname: params.sessname,
            route: Route {
                dst: params.addr,
                src: params.hostaddr,
            },
            options,
            timeouts,
            cores,
            machine: Session::new(sessname, session_uuid, path_uuid, config, seed),
            client: Client::new(),
            service: Service::default(),
            devices: Devices::default(),
            stage: Stage::Attaching(Attaching {
                wanted: params.devices,
                mapped: Vec::new(),
                reply,
            }),
            reconnecting: Vec::new(),
            disconnecting: Vec::new(),
        };
        home.add_channels(core);
        home.machine.start(core.now);
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
                route: self.route,
                retry_count: self.options.bdev_retry_count,
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
        domain: DomainId,
        private_data: &PrivateData,
        src: Addr,
        core: &mut Core<F>,
    ) {
        match self.service.set_up(domain, src, core) {
            Ok(()) => {
                let bytes = private_data.as_bytes();
                self.machine.handle_connected(PATH, bytes, core.now);
            }
            Err(error) => {
                log::warn!("{}: {error}", self.name);
                let error = PathError::Fabric("memory for the connection could not be had");
                self.machine.fail(PATH, error, core.now);
            }
        }
        self.run(core);
    }

    pub(crate) fn on_closed<F: Fabric>(&mut self, error: PathError, core: &mut Core<F>) {
        self.service.release(core);
        self.machine.handle_closed(PATH, error, core.now, |_, _| {});
        self.run(core);
    }

    pub(crate) fn on_completion<F: Fabric>(&mut self, completion: &Completion, core: &mut Core<F>) {
        self.handle_completion(completion, core);
        self.run(core);
    }

    pub(crate) fn on_timeout<F: Fabric>(&mut self, core: &mut Core<F>) {
        self.machine.handle_timeout(core.now);
        self.run(core);
    }

    pub(crate) fn next_deadline(&self) -> Option<Nanos> {
        self.machine.next_deadline()
    }

    pub(crate) fn on_not_connected<F: Fabric>(&mut self, device: DeviceIndex, core: &mut Core<F>) {
        self.client.handle_not_connected(device);
        self.run(core);
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
            } else if let Some(message) = self.client.poll_message() {
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
            SessionAction::Disconnect { .. } => self.service.disconnect(core),
            SessionAction::Connect {
                request,
                sizes,
                timeout,
                ..
            } => {
                let route = self.route;
                let connected = self
                    .service
                    .connect(self.slot, &route, &request, sizes, timeout, core);
                if let Err(error) = connected {
                    log::warn!("{}: {error}", self.name);
                    let error = PathError::Fabric("the connection could not be started");
                    self.machine.handle_closed(PATH, error, core.now, |_, _| {});
                }
            }
            SessionAction::PostInfoReceive { .. }
            | SessionAction::SendInfo { .. }
            | SessionAction::PostReceives { .. }
            | SessionAction::SendImmediate { .. } => self.post(&action, core),
        }
    }

    /// Posts on connection 0; a fabric that does not take it loses the path.
    fn post<F: Fabric>(&mut self, action: &SessionAction, core: &mut Core<F>) {
        let posted = match action {
            SessionAction::PostInfoReceive { bytes, .. } => {
                self.service.post_info_receive(*bytes, core)
            }
            SessionAction::SendInfo { .. } => {
                self.service.send_info(&self.machine.info_req(), core)
            }
            SessionAction::PostReceives { count, bytes, .. } => {
                self.service.post_receives(*count, *bytes, core)
            }
            SessionAction::SendImmediate { imm, .. } => self.service.send_immediate(*imm, core),
            _ => Ok(()),
        };
        if let Err(what) = posted {
            self.machine.fail(PATH, PathError::Fabric(what), core.now);
        }
    }

    // What happened to the session.

    fn on_event<F: Fabric>(&mut self, event: SessionEvent, core: &mut Core<F>) {
        match event {
            SessionEvent::Path { state, error, .. } => self.on_path(state, error, core),
            SessionEvent::ReconnectFailed { error, .. } => {
                log::info!("{}: reconnecting failed: {error}", self.name);
                core.notify(
                    NotificationKind::ReconnectFailed,
                    format!("{}:{}", self.name, PATH.0),
                );
                self.answer_reconnecting(&Err(error));
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

    fn on_path<F: Fabric>(&mut self, state: PathState, error: PathError, core: &mut Core<F>) {
        let ctx = format!("{}:{}:{}", self.name, PATH.0, state.as_str());
        core.notify(NotificationKind::PathState, ctx);
        match state {
            PathState::Connected => self.answer_reconnecting(&Ok(())),
            PathState::Closed => {
                self.answer_reconnecting(&Err(error));
                for reply in self.disconnecting.drain(..) {
                    reply(Ok(()));
                }
            }
            _ => {}
        }
    }

    fn answer_reconnecting(&mut self, result: &Result<(), PathError>) {
        for reply in self.reconnecting.drain(..) {
            reply(result.map_err(|error| ControlError::new(error.errno(), error)));
        }
    }

    fn on_lost<F: Fabric>(&mut self, error: PathError, core: &mut Core<F>) {
        self.set_mode(IoMode::Fail(Errno::CONNABORTED), core);
        if matches!(self.stage, Stage::Attaching(_)) {
            let dst = self.route.dst;
            let text = format!("{dst} port {}: {error}", dst.port());
            self.fail_attach(ControlError::new(error.errno(), text), core);
        } else if !matches!(self.stage, Stage::Detaching(_)) {
            log::error!("{}: session {} is lost: {error}", self.name, self.sessname);
        }
    }

    fn set_mode<F: Fabric>(&self, mode: IoMode, core: &mut Core<F>) {
        for &to in &self.cores {
            core.send(to, Message::Mode(self.session, mode));
        }
    }

    // What is asked about it.

    fn path(&self) -> PathInfo {
        self.machine
            .path(PATH)
            .expect("a session has its first path")
    }

    fn state(&self) -> ControllerState {
        let path = self.path();
        match (&self.stage, path.state) {
            (Stage::Detaching(_) | Stage::Over, _) => ControllerState::Deleting,
            (_, PathState::Connected) => ControllerState::Enabled,
            (_, PathState::Closed | PathState::Closing) => {
                if path.error == PathError::Requested {
                    ControllerState::Disabled
                } else {
                    ControllerState::Failed
                }
            }
            _ => ControllerState::Reconnecting,
        }
    }

    pub(crate) fn info<F: Fabric>(&self, core: &Core<F>) -> ControllerInfo {
        let params = self.machine.params();
        ControllerInfo {
            name: self.name.to_string(),
            sessname: self.sessname.clone(),
            state: self.state(),
            protocol_version: self.client.version(),
            queue_depth: params.map_or(0, |params| params.queue_depth),
            max_io_size: params.map_or(0, |params| params.max_io_bytes),
            reconnect: ReconnectInfo {
                attempts: self.path().attempts,
                max: self.timeouts.max_reconnect_attempts,
            },
            home: core.index,
            paths: vec![self.path_report(core)],
            bdevs: self.devices.names(),
        }
    }

    fn path_report<F: Fabric>(&self, core: &Core<F>) -> PathReport {
        let path = self.path();
        let is_down = path.state != PathState::Connected;
        PathReport {
            path_id: PATH.0,
            state: path.state,
            error: is_down.then(|| path.error.to_string()),
            src_addr: self.service.src().or(self.route.src),
            dst_addr: self.route.dst,
            trtype: core.caps.trtype,
            connections: self.machine.config().channels + 1,
            uuid: Uuid::from_bytes(path.uuid),
            hb_interval_ms: self.options.hb_interval_ms,
            hb_missed: path.missed_heartbeats,
            hb_rtt: path.heartbeat_rtt,
        }
    }

    /// The home's part of a path's counters; its channels have the rest.
    pub(crate) fn path_stats<F: Fabric>(&self, core: &Core<F>) -> PathStats {
        let path = self.path();
        PathStats {
            controller: self.name.to_string(),
            path_id: PATH.0,
            path: self.path_report(core).name(),
            reconnects_ok: path.reconnects_ok,
            reconnects_failed: path.reconnects_failed,
            hb_rtt: path.heartbeat_rtt,
            ..PathStats::default()
        }
    }
}

/// A random (version 4) uuid.
fn uuid_from<F: Fabric>(core: &mut Core<F>) -> [u8; 16] {
    let bytes = core.random.u128(..).to_le_bytes();
    *uuid::Builder::from_random_bytes(bytes).as_uuid().as_bytes()
}

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Home({}, {:?})", self.name, self.path().state)
    }
}
