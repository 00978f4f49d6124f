//! A session: its paths, its control requests, and what happens while no path is up.

use std::collections::VecDeque;

use rnbd_base::Nanos;
use rnbd_wire::Name;
use rnbd_wire::rtrs::{ConReq, InfoReq};

use super::config::{ReconnectPolicy, SessionConfig};
use super::error::PathError;
use super::lane::{Arrival, BeginError, Ended, Lane, Step};
use super::messages::{FromChannel, PathIndex, ToChannel};
use super::params::PathParams;
use super::path::{Context, Path, PathState};
use super::permits::PermitPlan;
use super::request::{Post, Request};

/// How long a connection's queues must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSizes {
    /// Operations posted and not known to be executed.
    pub send: u32,
    /// Receives posted and not consumed.
    pub recv: u32,
}

impl QueueSizes {
    /// Connection 0: `INFO_REQ`, heartbeats, and one control request at a time.
    pub const SERVICE: Self = Self {
        send: 128,
        recv: 64,
    };

    /// A connection of a channel with this many permits: each request may take a bind, a write and
    /// an invalidation, and up to half of the writes may not be known to be executed; each answer
    /// may take two receives (protocol.md 3.9).
    #[must_use]
    pub fn for_requests(permits: u16) -> Self {
        let permits = u32::from(permits);
        Self {
            send: 4 * permits + 1,
            recv: 2 * permits + 1,
        }
    }

    pub(super) fn recv_bytes(self, params: &PathParams) -> u32 {
        if params.new_rkey { 8 } else { 0 }
    }
}

/// What the owner of a session is to do, in this order.
#[derive(Clone, Debug)]
pub enum SessionAction {
    /// Make connection 0 of the path; tell the outcome by [`Session::handle_connected`] or
    /// [`Session::handle_closed`].
    Connect {
        /// Which path.
        path: PathIndex,
        /// What to send along.
        request: ConReq,
        /// How long the queues must be.
        sizes: QueueSizes,
        /// How long it may take.
        timeout: Nanos,
    },
    /// Post a receive of this many bytes on connection 0, for [`Session::handle_info_rsp`].
    PostInfoReceive {
        /// Which path.
        path: PathIndex,
        /// How many bytes.
        bytes: usize,
    },
    /// Send [`Session::info_req`] on connection 0.
    SendInfo {
        /// Which path.
        path: PathIndex,
    },
    /// Post receives on connection 0; each is to be posted again when it completed.
    PostReceives {
        /// Which path.
        path: PathIndex,
        /// How many.
        count: u32,
        /// Of how many bytes: 8, or 0 for empty ones.
        bytes: u32,
    },
    /// Post a write of nothing with this immediate on connection 0.
    SendImmediate {
        /// Which path.
        path: PathIndex,
        /// The immediate.
        imm: u32,
    },
    /// Close connection 0; [`Session::handle_closed`] is to follow when that is final.
    Disconnect {
        /// Which path.
        path: PathIndex,
    },
    /// Deliver to a channel.
    ToChannel {
        /// Which.
        channel: u16,
        /// What.
        message: ToChannel,
    },
}

/// What the owner of a session may want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// A path changed its state.
    Path {
        /// Which path.
        path: PathIndex,
        /// What it is now.
        state: PathState,
        /// Why it was last down; of no meaning while it is up.
        error: PathError,
    },
    /// An attempt to bring a lost path back failed.
    ReconnectFailed {
        /// Which path.
        path: PathIndex,
        /// Why.
        error: PathError,
    },
    /// The first path is up: control requests can be made.
    Up(PathParams),
    /// The last path was lost.
    Down(PathError),
    /// The session has been down for so long that I/O is to fail instead of waiting.
    FastIoFail,
    /// No path is up and none will come up by itself.
    Lost(PathError),
}

/// What is asked about a path.
#[derive(Clone, Copy, Debug)]
pub struct PathInfo {
    /// Its state.
    pub state: PathState,
    /// Its identity on the wire.
    pub uuid: [u8; 16],
    /// Why it was last down.
    pub error: PathError,
    /// Attempts since it was last up.
    pub attempts: u32,
    /// Times it came back.
    pub reconnects_ok: u64,
    /// Attempts that failed.
    pub reconnects_failed: u64,
    /// Looks at the server since it was last heard.
    pub missed_heartbeats: u32,
    /// Round trip of the last answered heartbeat.
    pub heartbeat_rtt: Option<Nanos>,
}

#[derive(Debug)]
pub(super) struct Outputs {
    actions: VecDeque<SessionAction>,
    events: VecDeque<SessionEvent>,
}

impl Outputs {
    pub(super) fn act(&mut self, action: SessionAction) {
        self.actions.push_back(action);
    }

    pub(super) fn tell(&mut self, event: SessionEvent) {
        self.events.push_back(event);
    }
}

/// The part of a session that lives on its home core.
#[derive(Debug)]
pub struct Session {
    name: Name,
    config: SessionConfig,
    params: Option<PathParams>,
    paths: Vec<Path>,
    lane: Lane,
    out: Outputs,
    down_since: Option<Nanos>,
    fast_failed: bool,
    lost: bool,
}

impl Session {
    /// A session with one path, both identified by random uuids of the caller's; `seed` makes the
    /// reconnect jitter. Nothing happens before [`Session::start`].
    #[must_use]
    pub fn new(
        name: Name,
        session_uuid: [u8; 16],
        path_uuid: [u8; 16],
        config: SessionConfig,
        seed: u64,
    ) -> Self {
        let path = Path::new(PathIndex(0), path_uuid, session_uuid, config.channels, seed);
        let queued = 4 * usize::from(config.channels) + 8;
        Self {
            name,
            config,
            params: None,
            paths: vec![path],
            lane: Lane::new(PermitPlan::CONTROL, 1),
            out: Outputs {
                actions: VecDeque::with_capacity(queued),
                events: VecDeque::with_capacity(16),
            },
            down_since: None,
            fast_failed: false,
            lost: false,
        }
    }

    /// Starts to connect. If that fails, [`SessionEvent::Lost`] says why.
    pub fn start(&mut self, now: Nanos) {
        self.with_path(PathIndex(0), now, |path, cx| {
            path.start(cx);
        });
    }

    // Inputs.

    /// Connection 0 of a path is up, and this is what the server's accept carried.
    pub fn handle_connected(&mut self, path: PathIndex, private_data: &[u8], now: Nanos) {
        let params = self.params;
        self.with_path(path, now, |path, cx| {
            path.on_connected(private_data, params.as_ref(), cx);
        });
    }

    /// The server's `INFO_RSP`: the bytes of the receive, copied once.
    pub fn handle_info_rsp(&mut self, path: PathIndex, message: &[u8], now: Nanos) {
        self.with_path(path, now, |path, cx| path.on_info_rsp(message, cx));
    }

    /// Connection 0 of a path is gone, or could not be made. Each control request of the path that
    /// was outstanding is told of, and its permit is free again.
    pub fn handle_closed(
        &mut self,
        path: PathIndex,
        error: PathError,
        now: Nanos,
        tell: impl FnMut(u16, Ended),
    ) {
        self.lane.end_path(path, tell);
        self.with_path(path, now, |path, cx| {
            path.on_closed(error, cx);
        });
    }

    /// A channel says something.
    pub fn handle_channel(&mut self, channel: u16, message: FromChannel, now: Nanos) {
        let (FromChannel::Connected { path, .. }
        | FromChannel::Closed { path, .. }
        | FromChannel::Heard { path, .. }) = message;
        self.with_path(path, now, |path, cx| {
            path.on_channel(channel, message, cx);
        });
    }

    /// A receive of connection 0 completed, after `INFO_RSP`.
    pub fn handle_arrival(&mut self, path: PathIndex, arrival: Arrival, now: Nanos) -> Step {
        let mut answer = None;
        self.with_path(path, now, |path, cx| answer = path.on_arrival(arrival, cx));
        let Some(answer) = answer else {
            return Step::Wait;
        };
        match self.lane.on_answer(path, answer) {
            Ok(step) => step,
            Err(violation) => {
                self.fail(path, violation.into(), now);
                Step::Wait
            }
        }
    }

    /// Runs the timers that are due.
    pub fn handle_timeout(&mut self, now: Nanos) {
        for path in (0..).map(PathIndex).take(self.paths.len()) {
            self.with_path(path, now, |path, cx| {
                path.on_timeout(cx);
            });
            self.check_control_request(path, now);
        }
        self.check_patience(now);
    }

    /// When to call [`Session::handle_timeout`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        let paths = self.paths.iter().filter_map(Path::next_deadline).min();
        let policy = &self.config.reconnect;
        let fast = policy.fast_io_fail.filter(|_| !self.fast_failed);
        let loss = policy.loss_timeout.filter(|_| !self.lost);
        let patience = [fast, loss].into_iter().flatten().min();
        let patience = self.down_since.zip(patience).map(|(at, span)| at + span);
        let request = self.request_deadline();
        [paths, patience, request].into_iter().flatten().min()
    }

    fn request_deadline(&self) -> Option<Nanos> {
        let oldest = (0..)
            .map(PathIndex)
            .take(self.paths.len())
            .filter_map(|path| self.lane.oldest(path))
            .min()?;
        Some(oldest + self.control_timeout())
    }

    /// Control requests are always limited in time: nothing else would notice a server that keeps
    /// its heartbeat but not its promises.
    fn control_timeout(&self) -> Nanos {
        self.config
            .request_timeout
            .unwrap_or(self.config.connect_timeout)
    }

    fn check_control_request(&mut self, path: PathIndex, now: Nanos) {
        let oldest = self.lane.oldest(path);
        if oldest.is_some_and(|at| now.since(at) >= self.control_timeout()) {
            self.fail(path, PathError::RequestTimedOut, now);
        }
    }

    fn check_patience(&mut self, now: Nanos) {
        let Some(since) = self.down_since else {
            return;
        };
        let policy = self.config.reconnect;
        let is_over = |span: Option<Nanos>| span.is_some_and(|span| now >= since + span);
        if !self.fast_failed && is_over(policy.fast_io_fail) {
            self.fast_failed = true;
            self.out.tell(SessionEvent::FastIoFail);
        }
        if !self.lost && is_over(policy.loss_timeout) {
            for path in (0..).map(PathIndex).take(self.paths.len()) {
                self.with_path(path, now, |path, cx| {
                    path.disconnect(path.error(), cx);
                });
            }
        }
    }

    // Control requests.

    /// Starts a control request on connection 0 of the first path that is up. Its data, if it has
    /// any, comes from the server, to a buffer that needs no invalidation.
    ///
    /// # Errors
    /// [`BeginError::NoPermit`] while one is outstanding; [`BeginError::PathDown`] if no path is
    /// up.
    pub fn begin(
        &mut self,
        request: &Request,
        now: Nanos,
    ) -> Result<(PathIndex, Post), BeginError> {
        let up = self.paths.iter().find(|path| path.is_up());
        let path = up.ok_or(BeginError::PathDown)?.index;
        Ok((path, self.lane.begin(path, request, now)?))
    }

    /// What [`Session::begin`] asked for could not be posted.
    pub fn abort(&mut self, msg_id: u16) {
        self.lane.abort(msg_id);
    }

    // Outputs.

    /// What is to be done; to be asked after every input until there is nothing.
    pub fn poll_action(&mut self) -> Option<SessionAction> {
        self.out.actions.pop_front()
    }

    /// What happened; to be asked after the actions.
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.out.events.pop_front()
    }

    /// The bytes of `INFO_REQ`.
    #[must_use]
    pub fn info_req(&self) -> [u8; InfoReq::BYTES] {
        InfoReq {
            pathname: self.name,
        }
        .to_bytes()
    }

    // What administrators want.

    /// Gives a path up, for example because posting on it failed; it is tried again.
    pub fn fail(&mut self, path: PathIndex, error: PathError, now: Nanos) {
        self.with_path(path, now, |path, cx| path.fail(error, cx));
    }

    /// Closes a path until it is reconnected.
    pub fn disconnect_path(&mut self, path: PathIndex, now: Nanos) {
        self.with_path(path, now, |path, cx| {
            path.disconnect(PathError::Requested, cx);
        });
    }

    /// Tries a path at once, with all attempts left.
    pub fn reconnect_path(&mut self, path: PathIndex, now: Nanos) {
        self.down_since = self.down_since.map(|_| now);
        self.with_path(path, now, |path, cx| {
            path.reconnect(cx);
        });
    }

    /// Changes what happens when a path is lost, from now on.
    pub fn set_reconnect(&mut self, policy: ReconnectPolicy) {
        self.config.reconnect = policy;
    }

    // State.

    /// As given.
    #[must_use]
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// The session's name.
    #[must_use]
    pub fn name(&self) -> Name {
        self.name
    }

    /// What the server said when a path last came up.
    #[must_use]
    pub fn params(&self) -> Option<PathParams> {
        self.params
    }

    /// Whether a path is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.paths.iter().any(Path::is_up)
    }

    /// What is known of a path; `None` if there is no such path.
    #[must_use]
    pub fn path(&self, path: PathIndex) -> Option<PathInfo> {
        let path = self.paths.get(path.index())?;
        Some(PathInfo {
            state: path.state(),
            uuid: path.uuid(),
            error: path.error(),
            attempts: path.attempts(),
            reconnects_ok: path.reconnects_ok,
            reconnects_failed: path.reconnects_failed,
            missed_heartbeats: path.heartbeat().map_or(0, crate::Heartbeat::missed),
            heartbeat_rtt: path.heartbeat().and_then(crate::Heartbeat::last_rtt),
        })
    }

    /// Gives a path an input, and draws what follows for the session.
    fn with_path(
        &mut self,
        path: PathIndex,
        now: Nanos,
        input: impl FnOnce(&mut Path, &mut Context<'_>),
    ) {
        let was_up = self.is_up();
        let Some(target) = self.paths.get_mut(path.index()) else {
            return;
        };
        let mut cx = Context {
            config: &self.config,
            lane: &mut self.lane,
            out: &mut self.out,
            now,
        };
        input(target, &mut cx);
        let error = target.error();
        if !target.is_up() {
            self.lane.path_down(path);
        }
        match (was_up, self.is_up()) {
            (false, true) => self.on_up(path),
            (true, false) => self.on_down(error, now),
            _ => {}
        }
        self.check_lost(error);
    }

    fn on_up(&mut self, path: PathIndex) {
        let params = self.paths[path.index()].params();
        let params = params.expect("a path that is up has parameters");
        self.params = Some(params);
        self.down_since = None;
        self.fast_failed = false;
        self.out.tell(SessionEvent::Up(params));
    }

    fn on_down(&mut self, error: PathError, now: Nanos) {
        self.down_since = Some(now);
        self.out.tell(SessionEvent::Down(error));
    }

    fn check_lost(&mut self, error: PathError) {
        let lost = self
            .paths
            .iter()
            .all(|path| path.state() == PathState::Closed);
        if lost && !self.lost {
            self.out.tell(SessionEvent::Lost(error));
        }
        self.lost = lost;
    }
}
