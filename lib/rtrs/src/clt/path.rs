//! A path: one route to the server, kept alive over reconnects (protocol.md 7.1).
//!
//! ```text
//!                    handshake done
//!      CONNECTING ──────────────────> CONNECTED
//!       ^  │  ^                        │  │
//!       │  │  │ attempt starts         │  │ lost, or reconnect wanted
//!       │  │  └──────── RECONNECTING <─┘  │
//!       │  │ failure      ^   ^   │       │
//!       │  └─> CONNECTING_ERR │   │ given up, or
//!       │  connections gone   │   │ disconnect wanted (from any of these)
//!  (created)                  │   v       v
//!                             │  CLOSING ──────────────> CLOSED
//!                             │        connections gone   │
//!                             └───────────────────────────┘ reconnect wanted
//!                                              CLOSED ────> DEAD, when it is removed
//! ```
//!
//! Within CONNECTING the connections are made one after another: connection 0, then one of each
//! channel, then `INFO_REQ` and `INFO_RSP` on connection 0, each step within its own time limit.
//! While other paths are up the server then has to show that the new one belongs to the same service
//! as they do (see `session/join.rs`); until then it has heartbeats and nothing else.
//! An attempt ends only when every connection of it has reported its end, so nothing of an old
//! incarnation is left when the next one starts.

mod handshake;

use std::sync::Arc;

use rnbd_base::{Errno, Nanos};
use rnbd_wire::Imm;
use rnbd_wire::extension::ServiceId;

use super::config::SessionConfig;
use super::context::Context;
use super::error::PathError;
use super::lane::Arrival;
use super::messages::{Attempt, PathIndex, ServerId, ToChannel};
use super::outputs::{SessionAction, SessionEvent};
use super::params::{ChunkTable, PathParams};
use super::path_state::PathState;
use super::reconnect::Reconnect;
use crate::{Beat, Heartbeat};

/// How far a handshake got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not in a handshake.
    Idle,
    /// This connection was asked for.
    Connecting(u16),
    /// `INFO_REQ` was sent.
    AwaitingInfo,
    /// The server counts it as up; whether it is of use is not known yet.
    Joining,
}

/// What follows when the last connection of an attempt is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intent {
    Retry,
    Restart,
    Stop,
}

#[derive(Debug)]
pub(super) struct Path {
    pub(super) index: PathIndex,
    uuid: [u8; 16],
    server: ServerId,
    session_uuid: [u8; 16],
    state: PathState,
    stage: Stage,
    intent: Intent,
    attempt: Attempt,
    recon_cnt: u16,
    params: Option<PathParams>,
    /// What the server process called itself that accepted last.
    instance: Option<u64>,
    /// Where the chunks are, as long as the path is joining.
    chunks: Option<Arc<ChunkTable>>,
    /// What it belongs to at the server, if that says so.
    service: Option<ServiceId>,
    /// By life of a path that was up while this one joined: the heartbeat whose answer shows that
    /// the server has both.
    witnesses: Vec<(Attempt, u64)>,
    heartbeat: Option<Heartbeat>,
    /// Of the handshake's step, or the time of the next attempt.
    deadline: Option<Nanos>,
    /// Connections that have not reported their end, by cid.
    open: Vec<bool>,
    /// When to ask again for the end of connections that were to close.
    impatient_at: Option<Nanos>,
    /// Channels finish what is outstanding before they close.
    is_draining: bool,
    /// Requests of the present life that were not answered when their connection ended.
    unanswered: u32,
    /// Whether the server may create the session for the present attempt (protocol.md 7.5).
    first_conn: bool,
    reconnect: Reconnect,
    error: PathError,
    was_up: bool,
    pub(super) reconnects_ok: u64,
    pub(super) reconnects_failed: u64,
}

impl Path {
    /// How long a path that is to close may take to finish what is outstanding on it.
    const DRAIN: Nanos = Nanos::from_secs(5);

    pub(super) fn new(
        index: PathIndex,
        uuid: [u8; 16],
        server: ServerId,
        session_uuid: [u8; 16],
        channels: u16,
        seed: u64,
    ) -> Self {
        Self {
            index,
            uuid,
            server,
            session_uuid,
            state: PathState::Connecting,
            stage: Stage::Idle,
            intent: Intent::Retry,
            attempt: Attempt::default(),
            recon_cnt: 0,
            params: None,
            instance: None,
            chunks: None,
            service: None,
            witnesses: Vec::new(),
            heartbeat: None,
            deadline: None,
            open: vec![false; usize::from(channels) + 1],
            impatient_at: None,
            is_draining: false,
            unanswered: 0,
            first_conn: true,
            reconnect: Reconnect::new(seed),
            error: PathError::Requested,
            was_up: false,
            reconnects_ok: 0,
            reconnects_failed: 0,
        }
    }

    pub(super) fn state(&self) -> PathState {
        self.state
    }

    pub(super) fn is_up(&self) -> bool {
        self.state == PathState::Connected
    }

    pub(super) fn error(&self) -> PathError {
        self.error
    }

    /// What the server said in this attempt.
    pub(super) fn params(&self) -> Option<PathParams> {
        self.params
    }

    /// What the server process called itself that accepted last.
    pub(super) fn instance(&self) -> Option<u64> {
        self.instance
    }

    /// The server's service that it belongs to, if that is known: its process, and its number there.
    pub(super) fn service(&self) -> Option<(u64, ServiceId)> {
        self.instance.zip(self.service)
    }

    /// Whether the handshake is done, and something is still to be known of the server.
    pub(super) fn is_joining(&self) -> bool {
        self.stage == Stage::Joining
    }

    pub(super) fn attempt(&self) -> Attempt {
        self.attempt
    }

    pub(super) fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    pub(super) fn attempts(&self) -> u32 {
        self.reconnect.attempts()
    }

    pub(super) fn heartbeat(&self) -> Option<&Heartbeat> {
        self.heartbeat.as_ref()
    }

    pub(super) fn missed_heartbeats(&self) -> u32 {
        self.heartbeat.as_ref().map_or(0, Heartbeat::missed)
    }

    pub(super) fn next_deadline(&self) -> Option<Nanos> {
        let beat = self.heartbeat.as_ref().map(Heartbeat::deadline);
        let all = [self.deadline, self.impatient_at, beat];
        all.into_iter().flatten().min()
    }

    // Life.

    pub(super) fn on_heard(&mut self) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.on_receive();
        }
    }

    /// Something arrived on connection 0: returns what is neither a heartbeat nor of the fence.
    pub(super) fn on_arrival(&mut self, arrival: Arrival, cx: &mut Context<'_>) -> Option<Arrival> {
        self.on_heard();
        match arrival {
            Arrival::Immediate(Imm::HEARTBEAT) => {
                self.send_immediate(Imm::HEARTBEAT_ACK, cx);
                None
            }
            Arrival::Immediate(Imm::HEARTBEAT_ACK) => {
                self.on_ack(cx);
                None
            }
            Arrival::Immediate(imm) if self.on_fence(imm, cx) => None,
            other => Some(other),
        }
    }

    fn on_ack(&mut self, cx: &mut Context<'_>) {
        let Some(heartbeat) = &mut self.heartbeat else {
            return;
        };
        heartbeat.on_ack(cx.now);
        if let Some(latency) = heartbeat.last_rtt() {
            let path = self.index;
            cx.tell_channels(&ToChannel::Latency { path, latency });
        }
    }

    /// Whether the immediate is the fence's, on a path where that is agreed.
    fn on_fence(&self, imm: u32, cx: &mut Context<'_>) -> bool {
        let Some(params) = self.params.filter(PathParams::has_fence) else {
            return false;
        };
        match params.layout().decode(imm) {
            Imm::Fenced(token) => {
                cx.fences.on_confirmed(token, &params);
                true
            }
            _ => false,
        }
    }

    fn send_immediate(&self, imm: u32, cx: &mut Context<'_>) {
        if self.is_up() || self.is_joining() {
            let path = self.index;
            cx.out.act(SessionAction::SendImmediate { path, imm });
        }
    }

    pub(super) fn on_timeout(&mut self, cx: &mut Context<'_>) {
        if let Some(heartbeat) = &mut self.heartbeat {
            match heartbeat.on_timer(cx.now) {
                Beat::Rest => {}
                Beat::Send => self.send_immediate(Imm::HEARTBEAT, cx),
                Beat::Dead => self.fail(PathError::HeartbeatLost, cx),
            }
        }
        if self.impatient_at.is_some_and(|at| at <= cx.now) {
            if !self.is_draining {
                log::warn!("path {}: connections do not end", self.index.0);
            }
            self.close_connections(cx);
        }
        if self.deadline.is_some_and(|at| at <= cx.now) {
            self.deadline = None;
            match self.state {
                PathState::Connecting if self.is_joining() => self.on_alone(cx),
                PathState::Connecting => self.fail(PathError::TimedOut, cx),
                PathState::Reconnecting => self.start(cx),
                _ => {}
            }
        }
    }

    // The end of an attempt.

    /// Gives the current attempt up; the next one follows when its connections are gone.
    pub(super) fn fail(&mut self, error: PathError, cx: &mut Context<'_>) {
        match self.state {
            PathState::Connecting => self.set_state(PathState::ConnectingErr, cx),
            PathState::Connected => self.set_state(PathState::Reconnecting, cx),
            _ => return,
        }
        self.error = error;
        self.tear_down(cx);
    }

    fn tear_down(&mut self, cx: &mut Context<'_>) {
        self.stage = Stage::Idle;
        self.chunks = None;
        self.deadline = None;
        self.heartbeat = None;
        self.close_connections(cx);
    }

    /// Closes the path when nothing is outstanding on it: nothing has to be sent again, or fenced.
    fn drain(&mut self, cx: &mut Context<'_>) {
        self.heartbeat = None;
        self.is_draining = true;
        self.impatient_at = Some(cx.now + Self::DRAIN);
        let (path, attempt) = (self.index, self.attempt);
        cx.tell_channels(&ToChannel::Drain { path, attempt });
    }

    /// Each connection reports its end once. One that takes too long is told again to close.
    fn close_connections(&mut self, cx: &mut Context<'_>) {
        self.is_draining = false;
        self.impatient_at = Some(cx.now + cx.config.connect_timeout);
        let (path, attempt) = (self.index, self.attempt);
        if self.open[0] {
            cx.out.act(SessionAction::Disconnect { path });
        }
        for channel in (0..).zip(&self.open[1..]).filter_map(open_channel) {
            let message = ToChannel::Close { path, attempt };
            cx.out.act(SessionAction::ToChannel { channel, message });
        }
    }

    /// Connection 0 is gone, or could not be made. Returns whether the server said that it does not
    /// know the session, though another path of it was thought to be up.
    pub(super) fn on_closed(
        &mut self,
        error: PathError,
        unanswered: u32,
        cx: &mut Context<'_>,
    ) -> bool {
        let knows_us_not = error == PathError::Rejected(Errno::NXIO)
            && self.stage == Stage::Connecting(0)
            && !self.first_conn;
        if knows_us_not {
            self.intent = Intent::Restart;
        }
        self.on_end_of_connection(0, error, unanswered, cx);
        knows_us_not
    }

    fn on_end_of_connection(
        &mut self,
        cid: u16,
        error: PathError,
        unanswered: u32,
        cx: &mut Context<'_>,
    ) {
        self.open[usize::from(cid)] = false;
        self.unanswered += unanswered;
        self.fail(error, cx);
        let is_last = cid == 0 || !self.open[1..].contains(&true);
        if self.is_draining && is_last {
            self.close_connections(cx);
        }
        if !self.open.contains(&true) {
            self.impatient_at = None;
            let timeout = cx.config.fence_timeout;
            cx.fences
                .on_torn_down(self.attempt, self.unanswered, cx.now, timeout);
            self.on_torn_down(cx);
        }
    }

    fn on_torn_down(&mut self, cx: &mut Context<'_>) {
        match self.state {
            PathState::ConnectingErr => self.on_attempt_failed(cx),
            PathState::Reconnecting if self.deadline.is_none() => {}
            PathState::Closing => return self.on_all_closed(cx),
            _ => return,
        }
        match self.next_wait(cx.config) {
            Some(wait) => self.deadline = Some(cx.now + wait),
            None => self.close(cx),
        }
    }

    fn on_all_closed(&mut self, cx: &mut Context<'_>) {
        self.set_state(PathState::Closed, cx);
        if self.intent == Intent::Restart {
            self.reconnect(cx);
        }
    }

    fn on_attempt_failed(&mut self, cx: &mut Context<'_>) {
        self.set_state(PathState::Reconnecting, cx);
        if self.was_up && self.intent != Intent::Restart {
            self.reconnects_failed += 1;
            cx.out.tell(SessionEvent::ReconnectFailed {
                path: self.index,
                error: self.error,
            });
        }
    }

    /// How long until the next attempt; `None` if there is to be none. A first connection that
    /// fails is not tried again: whoever asked for it is told.
    fn next_wait(&mut self, config: &SessionConfig) -> Option<Nanos> {
        match std::mem::replace(&mut self.intent, Intent::Retry) {
            Intent::Restart => Some(Nanos::ZERO),
            Intent::Stop => None,
            Intent::Retry if !self.was_up || !self.error.is_worth_retrying() => None,
            Intent::Retry => self.reconnect.next_wait(&config.reconnect),
        }
    }

    // What administrators want.

    /// Closes the path for good; it stays until it is reconnected or removed.
    pub(super) fn disconnect(&mut self, error: PathError, cx: &mut Context<'_>) {
        if self.state.may_become(PathState::Closing) {
            self.error = error;
            self.close(cx);
        }
    }

    fn close(&mut self, cx: &mut Context<'_>) {
        let before = self.state;
        self.intent = Intent::Stop;
        self.set_state(PathState::Closing, cx);
        match before {
            PathState::Connected => self.drain(cx),
            PathState::Connecting => self.tear_down(cx),
            _ => {}
        }
        self.deadline = None;
        if !self.open.contains(&true) {
            self.set_state(PathState::Closed, cx);
        }
    }

    /// Starts afresh: without delay and with all attempts left.
    pub(super) fn reconnect(&mut self, cx: &mut Context<'_>) {
        self.reconnect.reset();
        match self.state {
            PathState::Connected => {
                self.intent = Intent::Restart;
                self.fail(PathError::Requested, cx);
            }
            PathState::Closed => {
                self.set_state(PathState::Reconnecting, cx);
                self.start(cx);
            }
            PathState::Reconnecting if self.deadline.is_some() => self.start(cx),
            PathState::ConnectingErr | PathState::Reconnecting | PathState::Closing => {
                self.intent = Intent::Restart;
            }
            PathState::Connecting | PathState::Dead => {}
        }
    }

    /// It is removed; only when it is closed.
    pub(super) fn bury(&mut self, cx: &mut Context<'_>) {
        self.set_state(PathState::Dead, cx);
    }

    fn set_state(&mut self, state: PathState, cx: &mut Context<'_>) {
        if self.state == state {
            return;
        }
        debug_assert!(
            self.state.may_become(state),
            "{:?} must not become {state:?}",
            self.state
        );
        if let (PathState::Connected, Some(params)) = (self.state, &self.params) {
            let is_draining = state == PathState::Closing;
            cx.fences
                .on_lost(self.index, self.attempt, params, is_draining);
        }
        self.state = state;
        cx.out.tell(SessionEvent::Path {
            path: self.index,
            state,
            error: self.error,
        });
    }
}

fn open_channel((channel, open): (u16, &bool)) -> Option<u16> {
    open.then_some(channel)
}
