//! A session: its paths, its control requests, and what happens while no path is up.

mod join;

use std::collections::VecDeque;

use rnbd_base::Nanos;
use rnbd_wire::rtrs::InfoReq;
use rnbd_wire::{Imm, Name};

use super::config::{ReconnectPolicy, SessionConfig};
use super::context::{Context, Reference};
use super::error::PathError;
use super::fence::{FenceCounters, Fences};
use super::lane::{Arrival, BeginError, Ended, Lane, Step};
use super::messages::{Attempt, FromChannel, PathIndex, ServerId, ToChannel};
use super::outputs::{Outputs, PathInfo, SessionAction, SessionEvent};
use super::params::PathParams;
use super::path::Path;
use super::path_state::PathState;
use super::permits::PermitPlan;
use super::policy::PathPolicy;
use super::request::{Post, Request};

/// The part of a session that lives on its home core.
#[derive(Debug)]
pub struct Session {
    name: Name,
    uuid: [u8; 16],
    config: SessionConfig,
    params: Option<PathParams>,
    paths: Vec<Option<Path>>,
    last_attempt: Attempt,
    lane: Lane,
    fences: Fences,
    out: Outputs,
    down_since: Option<Nanos>,
    fast_failed: bool,
    lost: bool,
}

/// A session has as many paths as it can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyPaths;

impl Session {
    /// Most paths of a session (protocol.md 3.6).
    pub const PATHS_MAX: usize = 128;

    /// A session without a path, identified by a random uuid of the caller's.
    #[must_use]
    pub fn new(name: Name, uuid: [u8; 16], config: SessionConfig) -> Self {
        let queued = 4 * usize::from(config.channels) + 8;
        Self {
            name,
            uuid,
            config,
            params: None,
            paths: Vec::new(),
            last_attempt: Attempt::default(),
            lane: Lane::new(PermitPlan::CONTROL),
            fences: Fences::default(),
            out: Outputs {
                actions: VecDeque::with_capacity(queued),
                events: VecDeque::with_capacity(16),
            },
            down_since: None,
            fast_failed: false,
            lost: false,
        }
    }

    // Paths.

    /// Makes a path to a server, identified by a random uuid of the caller's; `seed` makes the
    /// reconnect jitter. Nothing happens before [`Session::start`].
    ///
    /// # Errors
    /// [`TooManyPaths`] if there are [`Session::PATHS_MAX`].
    pub fn add_path(
        &mut self,
        uuid: [u8; 16],
        server: ServerId,
        seed: u64,
    ) -> Result<PathIndex, TooManyPaths> {
        if self.paths.iter().flatten().count() >= Self::PATHS_MAX {
            return Err(TooManyPaths);
        }
        let index = self.free_index();
        let path = Path::new(index, uuid, server, self.uuid, self.config.channels, seed);
        let count = self.paths.len().max(index.index() + 1);
        self.paths.resize_with(count, || None);
        self.paths[index.index()] = Some(path);
        Ok(index)
    }

    /// An index under which the server has nothing left of a path that was removed.
    fn free_index(&self) -> PathIndex {
        let is_free = |index: &PathIndex| {
            let path = self.paths.get(index.index());
            path.is_none_or(Option::is_none) && !self.fences.is_waiting_for(*index)
        };
        (0..)
            .map(PathIndex)
            .find(is_free)
            .expect("there are more indexes than paths, and than lost ones that matter")
    }

    /// Starts to connect a new path. If that fails, the path becomes CLOSED.
    pub fn start(&mut self, path: PathIndex, now: Nanos) {
        self.with_path(path, now, |path, cx| path.start(cx));
    }

    /// Removes a path that is CLOSED; `false` if it is not.
    pub fn remove_path(&mut self, path: PathIndex, now: Nanos) -> bool {
        let state = self.path(path).map(|path| path.state);
        if state != Some(PathState::Closed) {
            return false;
        }
        self.with_path(path, now, |path, cx| path.bury(cx));
        self.paths[path.index()] = None;
        true
    }

    /// The paths that exist.
    pub fn paths(&self) -> impl Iterator<Item = PathIndex> + '_ {
        self.paths.iter().flatten().map(|path| path.index)
    }

    fn live(&self, path: PathIndex) -> Option<&Path> {
        self.paths.get(path.index())?.as_ref()
    }

    // Inputs.

    /// Connection 0 of a path is up, and this is what the server's accept carried.
    pub fn handle_connected(&mut self, path: PathIndex, private_data: &[u8], now: Nanos) {
        let reference = self.reference(path);
        let before = self.live(path).and_then(Path::instance);
        self.with_path(path, now, |path, cx| {
            path.on_connected(private_data, reference.as_ref(), cx);
        });
        if before.is_some() && before != self.live(path).and_then(Path::instance) {
            self.fail_others(path, PathError::ServerRestarted, now, |other| {
                other.instance() == before
            });
        }
    }

    /// What a path that connects has to conform to.
    fn reference(&self, connecting: PathIndex) -> Option<Reference> {
        let mut others = self.paths.iter().flatten();
        let other = others.find_map(|path| {
            let is_coming = matches!(path.state(), PathState::Connecting | PathState::Connected);
            path.params()
                .filter(|_| is_coming && path.index != connecting)
        });
        let params = other.or(self.params)?;
        Some(Reference {
            params,
            is_in_use: other.is_some(),
        })
    }

    /// Paths that are up though their server is known to be gone.
    fn fail_others(
        &mut self,
        than: PathIndex,
        error: PathError,
        now: Nanos,
        is_meant: impl Fn(&Path) -> bool,
    ) {
        let others = self.paths.iter().flatten();
        let others = others.filter(|path| path.index != than && path.is_up() && is_meant(path));
        let others: Vec<_> = others.map(|path| path.index).collect();
        for path in others {
            self.fail(path, error, now);
        }
    }

    /// The server's `INFO_RSP`: the bytes of the receive, copied once.
    pub fn handle_info_rsp(&mut self, path: PathIndex, message: &[u8], now: Nanos) {
        self.with_path(path, now, |path, cx| path.on_info_rsp(message, cx));
    }

    /// Connection 0 of a path is gone, or could not be made. The control request of the path that
    /// was outstanding is told of; the next one can begin when it can not do anything any more.
    pub fn handle_closed(
        &mut self,
        path: PathIndex,
        error: PathError,
        now: Nanos,
        mut tell: impl FnMut(u16, Ended),
    ) {
        let Some(attempt) = self.live(path).map(Path::attempt) else {
            return;
        };
        let mut unanswered = 0;
        self.lane.end_path(path, Some(attempt), |msg_id, ended| {
            unanswered += u32::from(ended == Ended::Unknown);
            tell(msg_id, ended);
        });
        let mut is_unknown = false;
        self.with_path(path, now, |path, cx| {
            is_unknown = path.on_closed(error, unanswered, cx);
        });
        if !self.fences.is_waiting_for(path) {
            self.lane.release_ghosts(attempt);
        }
        if is_unknown {
            self.fail_others(path, PathError::SessionUnknown, now, |_| true);
        }
    }

    /// A channel says something.
    pub fn handle_channel(&mut self, channel: u16, message: FromChannel, now: Nanos) {
        self.with_path(message.path(), now, |path, cx| {
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
        match self.lane.on_answer(path, answer, 0) {
            Ok(step) => step,
            Err(violation) => {
                self.fail(path, violation.into(), now);
                Step::Wait
            }
        }
    }

    /// Runs the timers that are due.
    pub fn handle_timeout(&mut self, now: Nanos) {
        for path in self.indexes() {
            self.with_path(path, now, |path, cx| {
                path.on_timeout(cx);
            });
            self.check_control_request(path, now);
        }
        self.fences.on_timer(now);
        self.run_fences();
        self.check_patience(now);
    }

    fn indexes(&self) -> impl Iterator<Item = PathIndex> + use<> {
        (0..).map(PathIndex).take(self.paths.len())
    }

    /// When to call [`Session::handle_timeout`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        let paths = self.paths.iter().flatten();
        let paths = paths.filter_map(Path::next_deadline).min();
        let policy = &self.config.reconnect;
        let fast = policy.fast_io_fail.filter(|_| !self.fast_failed);
        let loss = policy.loss_timeout.filter(|_| self.has_hope());
        let patience = [fast, loss].into_iter().flatten().min();
        let patience = self.down_since.zip(patience).map(|(at, span)| at + span);
        let (request, fence) = (self.request_deadline(), self.fences.next_deadline());
        [paths, patience, request, fence]
            .into_iter()
            .flatten()
            .min()
    }

    /// A path that goes down keeps its request until its connections have ended, for which it has
    /// a time of its own.
    fn request_deadline(&self) -> Option<Nanos> {
        let up = self.paths.iter().flatten().filter(|path| path.is_up());
        let oldest = up.filter_map(|path| self.lane.oldest(path.index)).min()?;
        Some(oldest + self.control_timeout())
    }

    /// Control requests are always limited in time: nothing else would notice a server that keeps
    /// its heartbeat but not its promises.
    fn control_timeout(&self) -> Nanos {
        let connect = self.config.connect_timeout;
        let request = self.config.request_timeout.unwrap_or(connect);
        request.min(connect)
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
        if self.has_hope() && is_over(policy.loss_timeout) {
            for path in self.indexes() {
                self.with_path(path, now, |path, cx| {
                    path.disconnect(path.error(), cx);
                });
            }
        }
    }

    /// Whether a path may still come up by itself.
    fn has_hope(&self) -> bool {
        let mut paths = self.paths.iter().flatten();
        paths.any(|path| path.state().may_become(PathState::Closing))
    }

    // Control requests.

    /// Whether a control request can begin.
    #[must_use]
    pub fn can_begin(&self) -> bool {
        self.lane.has_permit() && self.is_up()
    }

    /// The path for the next control request: of those that are up the one that was heard last,
    /// for all that is known.
    #[must_use]
    pub fn control_path(&self) -> Option<PathIndex> {
        let up = self.paths.iter().flatten().filter(|path| path.is_up());
        let path = up.min_by_key(|path| path.missed_heartbeats())?;
        Some(path.index)
    }

    /// Starts a control request on connection 0 of a path that is up. Its data, if it has any,
    /// comes from the server, to a buffer that needs no invalidation.
    ///
    /// # Errors
    /// [`BeginError::NoPermit`] while one is outstanding, or may still do something at the server;
    /// [`BeginError::PathDown`] if the path is not up.
    pub fn begin(
        &mut self,
        path: PathIndex,
        request: &Request,
        now: Nanos,
    ) -> Result<Post, BeginError> {
        // Nothing that connection 0 sends reads a user's buffer, so nothing waits for it to be sent.
        self.lane.begin(path, request, now, 0)
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

    /// Changes how paths share the requests.
    pub fn set_policy(&mut self, policy: PathPolicy) {
        self.config.policy = policy;
        for channel in 0..self.config.channels {
            let message = ToChannel::Policy(policy);
            self.out.act(SessionAction::ToChannel { channel, message });
        }
    }

    // State.

    /// As given, and changed since.
    #[must_use]
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// The session's name.
    #[must_use]
    pub fn name(&self) -> Name {
        self.name
    }

    /// What the server said when the session last came up.
    #[must_use]
    pub fn params(&self) -> Option<PathParams> {
        self.params
    }

    /// Whether a path is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.paths.iter().flatten().any(Path::is_up)
    }

    /// Fences of lost paths so far.
    #[must_use]
    pub fn fence_counters(&self) -> FenceCounters {
        self.fences.counters
    }

    /// Lost lives of paths for which the server may still be doing something.
    #[must_use]
    pub fn unfenced(&self) -> usize {
        self.fences.waiting()
    }

    /// What is known of a path; `None` if there is no such path.
    #[must_use]
    pub fn path(&self, path: PathIndex) -> Option<PathInfo> {
        let path = self.live(path)?;
        Some(PathInfo {
            state: path.state(),
            uuid: path.uuid(),
            error: path.error(),
            attempts: path.attempts(),
            attempt: path.attempt(),
            params: path.params(),
            is_unfenced: self.fences.is_waiting_for(path.index),
            reconnects_ok: path.reconnects_ok,
            reconnects_failed: path.reconnects_failed,
            missed_heartbeats: path.missed_heartbeats(),
            heartbeat_rtt: path.heartbeat().and_then(crate::Heartbeat::last_rtt),
        })
    }

    /// Gives a path an input, and draws what follows for the session and its other paths.
    fn with_path(
        &mut self,
        path: PathIndex,
        now: Nanos,
        input: impl FnOnce(&mut Path, &mut Context<'_>),
    ) {
        self.tell_path(path, now, input);
        self.run_joins(now);
    }

    fn tell_path(
        &mut self,
        path: PathIndex,
        now: Nanos,
        input: impl FnOnce(&mut Path, &mut Context<'_>),
    ) {
        let was_up = self.is_up();
        let mut others = self.paths.iter().flatten();
        let others_up = others.any(|other| other.index != path && other.is_up());
        let Some(Some(target)) = self.paths.get_mut(path.index()) else {
            return;
        };
        let mut cx = Context {
            config: &self.config,
            lane: &mut self.lane,
            out: &mut self.out,
            fences: &mut self.fences,
            last_attempt: &mut self.last_attempt,
            others_up,
            now,
        };
        input(target, &mut cx);
        let error = target.error();
        if !target.is_up() {
            self.lane.path_down(path);
            self.fences.on_path_down(path);
        }
        match (was_up, self.is_up()) {
            (false, true) => self.on_up(path),
            (true, false) => self.on_down(error, now),
            _ => {}
        }
        self.run_fences();
        self.check_lost(error);
    }

    /// Asks what can be asked, and lets go what turned out to be finished.
    fn run_fences(&mut self) {
        while let Some(fenced) = self.fences.poll_fenced() {
            let (path, attempt) = (fenced.path, fenced.attempt);
            self.lane.release_ghosts(attempt);
            for channel in 0..self.config.channels {
                let message = ToChannel::Fenced { path, attempt };
                self.out.act(SessionAction::ToChannel { channel, message });
            }
            let by = fenced.by;
            self.out.tell(SessionEvent::Fenced { path, by });
        }
        if self.fences.waiting() == 0 {
            return;
        }
        for (path, params) in self.paths.iter().flatten().filter_map(up_with_fence) {
            while let Some(token) = self.fences.poll_question(path, &params) {
                let imm = Imm::fence(token);
                self.out.act(SessionAction::SendImmediate { path, imm });
            }
        }
    }

    fn on_up(&mut self, path: PathIndex) {
        let params = self.live(path).and_then(Path::params);
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
        let mut paths = self.paths.iter().flatten();
        let lost = paths.all(|path| matches!(path.state(), PathState::Closed | PathState::Dead));
        if lost && !self.lost {
            self.out.tell(SessionEvent::Lost(error));
        }
        self.lost = lost;
    }
}

fn up_with_fence(path: &Path) -> Option<(PathIndex, PathParams)> {
    let params = path.params().filter(|_| path.is_up());
    Some((path.index, params.filter(PathParams::has_fence)?))
}
