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
//! ```
//!
//! Within CONNECTING the connections are made one after another: connection 0, then one of each
//! channel, then `INFO_REQ` and `INFO_RSP` on connection 0, each step within its own time limit.
//! An attempt ends only when every connection of it has reported its end, so nothing of an old
//! incarnation is left when the next one starts.

use std::sync::Arc;

use rnbd_base::Nanos;
use rnbd_wire::Imm;
use rnbd_wire::rtrs::{ConReq, InfoRsp};

use super::config::SessionConfig;
use super::error::{PathError, Violation};
use super::lane::{Arrival, Lane};
use super::messages::{Attempt, FromChannel, PathIndex, ToChannel};
use super::params::{ChunkTable, PathParams};
use super::permits::PermitPlan;
use super::reconnect::Reconnect;
use super::session::{Outputs, QueueSizes, SessionAction, SessionEvent};
use crate::{Beat, Heartbeat};

/// The states of protocol.md 7.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathState {
    /// A handshake is under way.
    Connecting,
    /// Requests may use it.
    Connected,
    /// The handshake failed and is being undone.
    ConnectingErr,
    /// It was lost: waits for its connections to end, then for the next attempt.
    Reconnecting,
    /// It is being closed and will not come back by itself.
    Closing,
    /// It is closed and stays so until an administrator reconnects it. (The protocol's DEAD, a path
    /// that was removed, is a path that no longer exists.)
    Closed,
}

impl PathState {
    /// As in RPC answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::ConnectingErr | Self::Reconnecting => "reconnecting",
            Self::Closing => "closing",
            Self::Closed => "disconnected",
        }
    }

    /// Whether the table of protocol.md 7.1 has this transition.
    #[must_use]
    pub fn may_become(self, new: Self) -> bool {
        use PathState::{Closed, Closing, Connected, Connecting, ConnectingErr, Reconnecting};
        match new {
            Connecting => self == Reconnecting,
            Connected | ConnectingErr => self == Connecting,
            Reconnecting => matches!(self, Connected | ConnectingErr | Closed),
            Closing => matches!(self, Connecting | ConnectingErr | Reconnecting | Connected),
            Closed => self == Closing,
        }
    }
}

/// How far a handshake got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not in a handshake.
    Idle,
    /// This connection was asked for.
    Connecting(u16),
    /// `INFO_REQ` was sent.
    AwaitingInfo,
}

/// What follows when the last connection of an attempt is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intent {
    Retry,
    Restart,
    Stop,
}

/// What a path works with besides itself.
pub(super) struct Context<'a> {
    pub(super) config: &'a SessionConfig,
    pub(super) lane: &'a mut Lane,
    pub(super) out: &'a mut Outputs,
    pub(super) now: Nanos,
}

#[derive(Debug)]
pub(super) struct Path {
    pub(super) index: PathIndex,
    uuid: [u8; 16],
    session_uuid: [u8; 16],
    state: PathState,
    stage: Stage,
    intent: Intent,
    attempt: Attempt,
    recon_cnt: u16,
    params: Option<PathParams>,
    heartbeat: Option<Heartbeat>,
    /// Of the handshake's step, or the time of the next attempt.
    deadline: Option<Nanos>,
    /// Connections that have not reported their end, by cid.
    open: Vec<bool>,
    reconnect: Reconnect,
    error: PathError,
    was_up: bool,
    pub(super) reconnects_ok: u64,
    pub(super) reconnects_failed: u64,
}

impl Path {
    pub(super) fn new(
        index: PathIndex,
        uuid: [u8; 16],
        session_uuid: [u8; 16],
        channels: u16,
        seed: u64,
    ) -> Self {
        Self {
            index,
            uuid,
            session_uuid,
            state: PathState::Connecting,
            stage: Stage::Idle,
            intent: Intent::Retry,
            attempt: Attempt::default(),
            recon_cnt: 0,
            params: None,
            heartbeat: None,
            deadline: None,
            open: vec![false; usize::from(channels) + 1],
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

    pub(super) fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    pub(super) fn attempts(&self) -> u32 {
        self.reconnect.attempts()
    }

    pub(super) fn heartbeat(&self) -> Option<&Heartbeat> {
        self.heartbeat.as_ref()
    }

    pub(super) fn next_deadline(&self) -> Option<Nanos> {
        let beat = self.heartbeat.as_ref().map(Heartbeat::deadline);
        [self.deadline, beat].into_iter().flatten().min()
    }

    // The handshake.

    /// Starts an attempt; nothing of an earlier one is left.
    pub(super) fn start(&mut self, cx: &mut Context<'_>) {
        self.set_state(PathState::Connecting, cx);
        self.attempt = self.attempt.next();
        self.recon_cnt = self.recon_cnt.wrapping_add(1);
        self.intent = Intent::Retry;
        self.params = None;
        self.stage = Stage::Connecting(0);
        self.open[0] = true;
        self.deadline = Some(cx.now + cx.config.connect_timeout);
        cx.out.act(SessionAction::Connect {
            path: self.index,
            request: self.con_req(0),
            sizes: QueueSizes::SERVICE,
            timeout: cx.config.connect_timeout,
        });
    }

    fn con_req(&self, cid: u16) -> ConReq {
        #[expect(clippy::cast_possible_truncation, reason = "made of a u16 and one")]
        let cid_num = self.open.len() as u16;
        ConReq {
            cid,
            cid_num,
            recon_cnt: self.recon_cnt,
            sess_uuid: self.uuid,
            paths_uuid: self.session_uuid,
            first_conn: true,
            extension: None,
        }
    }

    /// Connection 0 is up.
    pub(super) fn on_connected(
        &mut self,
        private_data: &[u8],
        session: Option<&PathParams>,
        cx: &mut Context<'_>,
    ) {
        if self.stage != Stage::Connecting(0) {
            return;
        }
        match Self::first_params(private_data, session, cx.config) {
            Ok(params) => {
                self.params = Some(params);
                self.connect_channel(0, params, cx);
            }
            Err(error) => self.fail(error, cx),
        }
    }

    fn first_params(
        private_data: &[u8],
        session: Option<&PathParams>,
        config: &SessionConfig,
    ) -> Result<PathParams, PathError> {
        let params = PathParams::from_accept(private_data)?;
        if let Some(before) = session
            && before.queue_depth != params.queue_depth
        {
            return Err(PathError::QueueDepthChanged {
                was: before.queue_depth,
                is: params.queue_depth,
            });
        }
        PermitPlan::new(config.usable_depth(params.queue_depth), config.channels)?;
        Ok(params)
    }

    fn connect_channel(&mut self, channel: u16, params: PathParams, cx: &mut Context<'_>) {
        self.stage = Stage::Connecting(channel + 1);
        self.open[usize::from(channel) + 1] = true;
        self.deadline = Some(cx.now + cx.config.connect_timeout);
        let message = ToChannel::Connect {
            path: self.index,
            attempt: self.attempt,
            request: self.con_req(channel + 1),
            params,
        };
        cx.out.act(SessionAction::ToChannel { channel, message });
    }

    /// A channel reports on its connection.
    pub(super) fn on_channel(&mut self, channel: u16, message: FromChannel, cx: &mut Context<'_>) {
        match message {
            FromChannel::Connected {
                attempt, params, ..
            } if attempt == self.attempt => {
                self.on_channel_connected(channel, &params, cx);
            }
            FromChannel::Closed { attempt, error, .. } if attempt == self.attempt => {
                self.open[usize::from(channel) + 1] = false;
                self.on_end_of_connection(error, cx);
            }
            FromChannel::Heard { attempt, .. } if attempt == self.attempt => self.on_heard(),
            _ => {}
        }
    }

    fn on_channel_connected(&mut self, channel: u16, said: &PathParams, cx: &mut Context<'_>) {
        let (Stage::Connecting(cid), Some(params)) = (self.stage, self.params) else {
            return;
        };
        if cid != channel + 1 {
            return;
        }
        if *said != params {
            let what = "other parameters than on the first connection";
            self.fail(Violation::ConnectionResponse(what).into(), cx);
        } else if cid < cx.config.channels {
            self.connect_channel(cid, params, cx);
        } else {
            self.ask_for_info(&params, cx);
        }
    }

    fn ask_for_info(&mut self, params: &PathParams, cx: &mut Context<'_>) {
        self.stage = Stage::AwaitingInfo;
        self.deadline = Some(cx.now + cx.config.connect_timeout);
        let path = self.index;
        let bytes = InfoRsp::bytes(params.queue_depth);
        cx.out.act(SessionAction::PostInfoReceive { path, bytes });
        cx.out.act(SessionAction::SendInfo { path });
    }

    /// The receive of `INFO_RSP` completed.
    pub(super) fn on_info_rsp(&mut self, message: &[u8], cx: &mut Context<'_>) {
        let (Stage::AwaitingInfo, Some(params)) = (self.stage, self.params) else {
            return;
        };
        match ChunkTable::from_info_rsp(message, &params) {
            Ok(chunks) => self.on_up(&params, Arc::new(chunks), cx),
            Err(violation) => self.fail(violation.into(), cx),
        }
    }

    fn on_up(&mut self, params: &PathParams, chunks: Arc<ChunkTable>, cx: &mut Context<'_>) {
        let path = self.index;
        self.stage = Stage::Idle;
        self.deadline = None;
        self.heartbeat = Some(Heartbeat::start(cx.config.heartbeat, cx.now));
        self.reconnect.reset();
        self.reconnects_ok += u64::from(self.was_up);
        self.was_up = true;
        cx.lane.path_up(path, params, &chunks);
        cx.out.act(SessionAction::PostReceives {
            path,
            count: QueueSizes::SERVICE.recv,
            bytes: QueueSizes::SERVICE.recv_bytes(params),
        });
        for channel in 0..cx.config.channels {
            let message = ToChannel::Up {
                path,
                attempt: self.attempt,
                chunks: Arc::clone(&chunks),
            };
            cx.out.act(SessionAction::ToChannel { channel, message });
        }
        self.set_state(PathState::Connected, cx);
    }

    // Life.

    pub(super) fn on_heard(&mut self) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.on_receive();
        }
    }

    /// Something arrived on connection 0: returns what is not a heartbeat.
    pub(super) fn on_arrival(&mut self, arrival: Arrival, cx: &mut Context<'_>) -> Option<Arrival> {
        self.on_heard();
        match arrival {
            Arrival::Immediate(Imm::HEARTBEAT) => {
                self.send_immediate(Imm::HEARTBEAT_ACK, cx);
                None
            }
            Arrival::Immediate(Imm::HEARTBEAT_ACK) => {
                if let Some(heartbeat) = &mut self.heartbeat {
                    heartbeat.on_ack(cx.now);
                }
                None
            }
            other => Some(other),
        }
    }

    fn send_immediate(&self, imm: u32, cx: &mut Context<'_>) {
        if self.is_up() {
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
        if self.deadline.is_some_and(|at| at <= cx.now) {
            self.deadline = None;
            match self.state {
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
        self.deadline = None;
        self.heartbeat = None;
        let (path, attempt) = (self.index, self.attempt);
        if self.open[0] {
            cx.out.act(SessionAction::Disconnect { path });
        }
        for channel in (0..).zip(&self.open[1..]).filter_map(open_channel) {
            let message = ToChannel::Close { path, attempt };
            cx.out.act(SessionAction::ToChannel { channel, message });
        }
    }

    /// Connection 0 is gone, or could not be made.
    pub(super) fn on_closed(&mut self, error: PathError, cx: &mut Context<'_>) {
        self.open[0] = false;
        self.on_end_of_connection(error, cx);
    }

    fn on_end_of_connection(&mut self, error: PathError, cx: &mut Context<'_>) {
        self.fail(error, cx);
        if !self.open.contains(&true) {
            self.on_torn_down(cx);
        }
    }

    fn on_torn_down(&mut self, cx: &mut Context<'_>) {
        match self.state {
            PathState::ConnectingErr => self.on_attempt_failed(cx),
            PathState::Reconnecting if self.deadline.is_none() => {}
            PathState::Closing => return self.set_state(PathState::Closed, cx),
            _ => return,
        }
        match self.next_wait(cx.config) {
            Some(wait) => self.deadline = Some(cx.now + wait),
            None => self.close(cx),
        }
    }

    fn on_attempt_failed(&mut self, cx: &mut Context<'_>) {
        self.set_state(PathState::Reconnecting, cx);
        if self.was_up {
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
        let is_up_or_coming = matches!(self.state, PathState::Connecting | PathState::Connected);
        self.intent = Intent::Stop;
        self.set_state(PathState::Closing, cx);
        if is_up_or_coming {
            self.tear_down(cx);
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
            PathState::ConnectingErr | PathState::Reconnecting => self.intent = Intent::Restart,
            PathState::Connecting | PathState::Closing => {}
        }
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
