//! A channel: what one core has of a session.
//!
//! Each path's connection of the channel goes through these states:
//!
//! ```text
//!          Connect              accepted                Up
//!  Down ────────────> Connecting ────────> Established ────> Up
//!   ^                      │                    │             │ └─ Drain ─> Draining
//!   │                      └────── Close, or failure ─────────┤                │
//!   │  the connection's end                                   v                │
//!   └───────────────────────────────────────────────────── Closing <───────────┘
//!                                            nothing outstanding, Close, or failure
//! ```
//!
//! Whatever happens, exactly one [`FromChannel::Closed`] follows each [`ToChannel::Connect`].

use std::collections::VecDeque;

use rnbd_base::Nanos;
use rnbd_wire::rtrs::ConReq;

use super::config::SessionConfig;
use super::credit::Credit;
use super::error::{PathError, Violation};
use super::lane::{Arrival, BeginError, Ended, Lane, Step};
use super::messages::{Attempt, FromChannel, PathIndex, ToChannel};
use super::outputs::QueueSizes;
use super::params::{ChunkTable, PathParams, reject_errno};
use super::permits::{PermitPlan, PermitRange};
use super::policy::{Candidate, Chooser};
use super::request::{Done, Post, Request};
use super::wr_id::WrId;

/// What the owner of a channel is to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelAction {
    /// Connect to the path's server; tell the outcome by [`Channel::handle_connected`] or
    /// [`Channel::handle_closed`].
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
    /// Post receives; each is to be posted again when it completed.
    PostReceives {
        /// Which path.
        path: PathIndex,
        /// How many.
        count: u32,
        /// Of how many bytes: 8, or 0 for empty ones.
        bytes: u32,
    },
    /// Requests may use the path.
    Up(PathIndex),
    /// Close the connection; [`Channel::handle_closed`] is to follow when that is final.
    Disconnect(PathIndex),
    /// Deliver to the session.
    Send(FromChannel),
}

/// A core's share of a session: its connection of each path, its permits, its requests.
#[derive(Debug)]
pub struct Channel {
    index: u16,
    config: SessionConfig,
    lane: Lane,
    paths: Vec<Link>,
    /// Those that requests may use, in the order of their indexes.
    up: Vec<PathIndex>,
    chooser: Chooser,
    /// Lost lives of paths for which the server may still be doing something.
    unfenced: Vec<Attempt>,
    actions: VecDeque<ChannelAction>,
    next_tick: Option<Nanos>,
}

#[derive(Debug, Default)]
struct Link {
    state: LinkState,
    attempt: Attempt,
    params: Option<PathParams>,
    error: Option<PathError>,
    credit: Credit,
    heard: bool,
    /// Since when requests are outstanding and none was answered.
    silent_since: Nanos,
    latency: Option<Nanos>,
    /// Requests used this life of the path.
    was_up: bool,
    /// That a request is overdue was said.
    told: bool,
    /// The session said so before the end of the connection was known here.
    is_fenced: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LinkState {
    #[default]
    Down,
    Connecting,
    Established,
    Up,
    Draining,
    Closing,
}

impl Channel {
    /// How long requests may go unanswered on a path before others are preferred.
    const SILENCE: Nanos = Nanos::from_millis(100);

    /// Channel `index` of a session.
    #[must_use]
    pub fn new(index: u16, config: SessionConfig) -> Self {
        let mut channel = Self {
            index,
            config,
            lane: Lane::new(PermitRange::default()),
            paths: Vec::new(),
            up: Vec::new(),
            chooser: Chooser::default(),
            unfenced: Vec::new(),
            actions: VecDeque::with_capacity(16),
            next_tick: None,
        };
        channel.chooser.config = config.policy;
        channel
    }

    /// The permits of this channel; none before the first connection.
    #[must_use]
    pub fn permits(&self) -> PermitRange {
        self.lane.range()
    }

    /// Requests that hold a permit.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.lane.in_flight()
    }

    /// Requests outstanding on a path.
    #[must_use]
    pub fn in_flight_on(&self, path: PathIndex) -> u16 {
        self.lane.in_flight_on(path)
    }

    /// Whether requests may use the path.
    #[must_use]
    pub fn is_path_up(&self, path: PathIndex) -> bool {
        self.up.contains(&path)
    }

    /// Whether requests may use some path.
    #[must_use]
    pub fn is_up(&self) -> bool {
        !self.up.is_empty()
    }

    /// The path that got the last request.
    #[must_use]
    pub fn current_path(&self) -> Option<PathIndex> {
        self.chooser.current()
    }

    /// The last heartbeat's round trip on a path.
    #[must_use]
    pub fn latency(&self, path: PathIndex) -> Option<Nanos> {
        self.paths.get(path.index())?.latency
    }

    /// Whether a request could begin now.
    #[must_use]
    pub fn can_begin(&self) -> bool {
        self.lane.has_permit() && self.up.iter().any(|path| self.has_room(*path))
    }

    /// The path that the next request should use; `None` while there is no permit, or no path that
    /// has room.
    #[must_use]
    pub fn choose(&self, now: Nanos) -> Option<PathIndex> {
        if !self.lane.has_permit() {
            return None;
        }
        if let [only] = self.up[..] {
            return self.has_room(only).then_some(only);
        }
        let with_room = self.up.iter().filter(|path| self.has_room(**path));
        self.chooser
            .choose(with_room.map(|path| self.candidate(*path, now)))
    }

    fn has_room(&self, path: PathIndex) -> bool {
        self.paths[path.index()].credit.has_room()
    }

    fn candidate(&self, path: PathIndex, now: Nanos) -> Candidate {
        let link = &self.paths[path.index()];
        let in_flight = self.lane.in_flight_on(path);
        let is_silent = in_flight > 0 && now.since(link.silent_since) > Self::SILENCE;
        Candidate {
            path,
            in_flight,
            latency: link.latency,
            is_slow: is_silent || in_flight >= self.share(),
        }
    }

    /// How many permits a path may hold as long as another one could use them: not all, so that
    /// a path that has died unnoticed does not take the last.
    fn share(&self) -> u16 {
        let permits = self.lane.range().count;
        permits - permits.div_ceil(4)
    }

    /// Whether the server does nothing more for requests of that lost life of a path.
    #[must_use]
    pub fn is_fenced(&self, attempt: Attempt) -> bool {
        !self.unfenced.contains(&attempt)
    }

    /// Why a path is being given up, if it is from here.
    #[must_use]
    pub fn failure(&self, path: PathIndex) -> Option<PathError> {
        self.paths.get(path.index())?.error
    }

    /// The present life of a path, or its last.
    #[must_use]
    pub fn attempt(&self, path: PathIndex) -> Attempt {
        self.paths
            .get(path.index())
            .map_or(Attempt::default(), |link| link.attempt)
    }

    /// What is to be done; to be asked after every input until there is nothing.
    pub fn poll_action(&mut self) -> Option<ChannelAction> {
        self.actions.pop_front()
    }

    /// The session says something.
    pub fn handle_message(&mut self, message: &ToChannel, now: Nanos) {
        match message {
            ToChannel::Connect {
                path,
                attempt,
                request,
                params,
            } => self.on_connect(*path, *attempt, request, params),
            ToChannel::Up {
                path,
                attempt,
                chunks,
            } => {
                if let Some(params) = self.established(*path, *attempt) {
                    self.on_up(*path, &params, chunks, now);
                }
            }
            ToChannel::Drain { path, attempt } => self.on_drain(*path, *attempt),
            ToChannel::Close { path, attempt } => self.on_close(*path, *attempt),
            ToChannel::Fenced { path, attempt } => self.on_fenced(*path, *attempt),
            ToChannel::Latency { path, latency } => {
                if let Some(link) = self.paths.get_mut(path.index()) {
                    link.latency = Some(*latency);
                }
            }
            ToChannel::Policy(policy) => self.chooser.config = *policy,
        }
    }

    fn established(&self, path: PathIndex, attempt: Attempt) -> Option<PathParams> {
        let link = self.paths.get(path.index())?;
        let matches = link.state == LinkState::Established && link.attempt == attempt;
        link.params.filter(|_| matches)
    }

    fn on_up(&mut self, path: PathIndex, params: &PathParams, chunks: &ChunkTable, now: Nanos) {
        self.lane.path_up(path, params, chunks);
        let permits = self.lane.range().count;
        let link = &mut self.paths[path.index()];
        link.state = LinkState::Up;
        link.was_up = true;
        link.credit.reset(permits);
        self.next_tick.get_or_insert(now + self.tick());
        let place = self.up.partition_point(|other| *other < path);
        self.up.insert(place, path);
        self.actions.push_back(ChannelAction::Up(path));
    }

    fn on_drain(&mut self, path: PathIndex, attempt: Attempt) {
        let Some(link) = self.paths.get_mut(path.index()) else {
            return;
        };
        match link.state {
            _ if link.attempt != attempt => {}
            LinkState::Up => {
                link.state = LinkState::Draining;
                self.up.retain(|up| *up != path);
                self.check_drained(path);
            }
            _ => self.fail(path, PathError::Requested),
        }
    }

    fn check_drained(&mut self, path: PathIndex) {
        let state = self.paths[path.index()].state;
        if state == LinkState::Draining && self.lane.in_flight_on(path) == 0 {
            self.fail(path, PathError::Requested);
        }
    }

    /// Closing what is being closed already is done again: the fabric may be slow to say so.
    fn on_close(&mut self, path: PathIndex, attempt: Attempt) {
        let Some(link) = self.paths.get(path.index()) else {
            return;
        };
        match link.state {
            _ if link.attempt != attempt => {}
            LinkState::Closing => self.actions.push_back(ChannelAction::Disconnect(path)),
            _ => self.fail(path, PathError::Requested),
        }
    }

    fn on_fenced(&mut self, path: PathIndex, attempt: Attempt) {
        self.unfenced.retain(|unfenced| *unfenced != attempt);
        self.lane.release_ghosts(attempt);
        if let Some(link) = self.paths.get_mut(path.index())
            && link.attempt == attempt
        {
            link.is_fenced = true;
        }
    }

    fn on_connect(
        &mut self,
        path: PathIndex,
        attempt: Attempt,
        request: &ConReq,
        params: &PathParams,
    ) {
        let depth = self.config.usable_depth(params.queue_depth);
        let plan = PermitPlan::new(depth, self.config.channels)
            .expect("the session connects channels only when all get permits");
        let count = self.paths.len().max(path.index() + 1);
        self.paths.resize_with(count, Link::default);
        self.paths[path.index()] = Link {
            state: LinkState::Connecting,
            attempt,
            params: Some(*params),
            ..Link::default()
        };
        if !self.lane.set_range(plan.channel(self.index)) {
            let what = "another queue depth while requests are outstanding";
            return self.end(path, Violation::ConnectionResponse(what).into(), 0);
        }
        self.actions.push_back(ChannelAction::Connect {
            path,
            request: *request,
            sizes: QueueSizes::for_requests(self.lane.range().count),
            timeout: self.config.connect_timeout,
        });
    }

    /// The connection of a path is up, and this is what the server's accept carried.
    pub fn handle_connected(&mut self, path: PathIndex, private_data: &[u8]) {
        let Some(link) = self.paths.get_mut(path.index()) else {
            return;
        };
        if link.state != LinkState::Connecting {
            return;
        }
        match PathParams::from_accept(private_data) {
            Ok(params) => {
                link.state = LinkState::Established;
                let (attempt, sizes) = (
                    link.attempt,
                    QueueSizes::for_requests(self.lane.range().count),
                );
                self.actions.push_back(ChannelAction::PostReceives {
                    path,
                    count: sizes.recv,
                    bytes: sizes.recv_bytes(&params),
                });
                self.send(FromChannel::Connected {
                    path,
                    attempt,
                    params,
                });
            }
            Err(error) => self.fail(path, error),
        }
    }

    /// The connection of a path is gone, or could not be made. Each request of the path that was
    /// outstanding is told of. The permits of those that were not answered may stay taken until
    /// the path is fenced: those of a server whose paths share their chunks.
    pub fn handle_closed(
        &mut self,
        path: PathIndex,
        error: PathError,
        mut tell: impl FnMut(u16, Ended),
    ) {
        let Some(link) = self.paths.get(path.index()) else {
            return;
        };
        let (attempt, is_unfenced) = (link.attempt, link.was_up && !link.is_fenced);
        let has_own_chunks = link.params.is_some_and(|params| params.has_fence());
        if is_unfenced && link.state != LinkState::Down {
            self.unfenced.push(attempt);
        }
        let haunted = (is_unfenced && !has_own_chunks).then_some(attempt);
        let mut unanswered = 0;
        self.lane.end_path(path, haunted, |msg_id, ended| {
            unanswered += u16::from(ended == Ended::Unknown);
            tell(msg_id, ended);
        });
        self.end(path, error, unanswered);
    }

    fn end(&mut self, path: PathIndex, error: PathError, unanswered: u16) {
        self.up.retain(|up| *up != path);
        let link = &mut self.paths[path.index()];
        if link.state == LinkState::Down {
            return;
        }
        link.state = LinkState::Down;
        let error = link.error.take().unwrap_or(error);
        let attempt = link.attempt;
        self.send(FromChannel::Closed {
            path,
            attempt,
            error,
            unanswered,
        });
    }

    /// Gives a path up, for example because posting on it failed.
    pub fn fail(&mut self, path: PathIndex, error: PathError) {
        let Some(link) = self.paths.get_mut(path.index()) else {
            return;
        };
        if matches!(link.state, LinkState::Down | LinkState::Closing) {
            return;
        }
        link.state = LinkState::Closing;
        link.error = Some(error);
        self.up.retain(|up| *up != path);
        self.lane.path_down(path);
        self.actions.push_back(ChannelAction::Disconnect(path));
    }

    /// Starts a request on a path that is up.
    ///
    /// # Errors
    /// No permit, or the path is not up, or the request is too long for a chunk.
    pub fn begin(
        &mut self,
        path: PathIndex,
        request: &Request,
        now: Nanos,
    ) -> Result<Post, BeginError> {
        let link = self.paths.get_mut(path.index());
        let link = link.ok_or(BeginError::PathDown)?;
        if !link.credit.has_room() {
            return Err(BeginError::NoPermit);
        }
        let serial = link.credit.next_serial();
        let post = self.lane.begin(path, request, now, serial)?;
        link.credit.on_post();
        if self.lane.in_flight_on(path) == 1 {
            link.silent_since = now;
        }
        self.chooser.on_begin(path);
        Ok(post)
    }

    /// What [`Channel::begin`] asked for could not be posted: the request was never sent, and its
    /// permit is free again.
    pub fn abort(&mut self, msg_id: u16) {
        self.lane.abort(msg_id);
    }

    /// A receive of a path's connection completed. A server that breaks the rules loses the path.
    pub fn handle_arrival(&mut self, path: PathIndex, arrival: Arrival, now: Nanos) -> Step {
        let Some(link) = self.paths.get_mut(path.index()) else {
            return Step::Wait;
        };
        link.heard = true;
        link.silent_since = now;
        let executed = link.credit.executed();
        match self.lane.on_answer(path, arrival, executed) {
            Ok(step) => self.after(path, step),
            Err(violation) => {
                self.on_violation(path, arrival, violation);
                Step::Wait
            }
        }
    }

    fn after(&mut self, path: PathIndex, step: Step) -> Step {
        if matches!(step, Step::Done(_)) {
            self.check_drained(path);
        }
        step
    }

    /// Heartbeats belong on the service connection and are ignored elsewhere (protocol.md 14.1).
    fn on_violation(&mut self, path: PathIndex, arrival: Arrival, violation: Violation) {
        if !arrival.is_heartbeat() {
            self.fail(path, violation.into());
        }
    }

    /// An operation of a path's connection completed. Of those that completed together the last is
    /// enough, apart from invalidations. [`Channel::next_sent`] is to be asked next.
    pub fn handle_sent(&mut self, path: PathIndex, id: WrId) -> Step {
        let (WrId::Executed(serial) | WrId::Invalidate { serial, .. }) = id else {
            return Step::Wait;
        };
        let Some(link) = self.paths.get_mut(path.index()) else {
            return Step::Wait;
        };
        link.credit.on_executed(serial);
        match id {
            WrId::Invalidate { msg_id, .. } => self.handle_invalidated(path, msg_id),
            _ => Step::Wait,
        }
    }

    /// A request that ends because it was sent, its answer having come before; to be asked after
    /// [`Channel::handle_sent`] until there is none.
    pub fn next_sent(&mut self, path: PathIndex) -> Option<Done> {
        let executed = self.paths.get(path.index())?.credit.executed();
        match self.lane.next_sent(path, executed) {
            Step::Done(done) => {
                self.check_drained(path);
                Some(done)
            }
            _ => None,
        }
    }

    /// What names the operation that is to be posted for [`Step::Invalidate`].
    pub fn begin_invalidation(&mut self, path: PathIndex, msg_id: u16) -> WrId {
        let credit = &mut self.paths[path.index()].credit;
        let serial = credit.next_serial();
        credit.on_post();
        WrId::Invalidate { msg_id, serial }
    }

    /// What [`Step::Invalidate`] asks for was done, on a fabric that does it at once.
    pub fn handle_invalidated(&mut self, path: PathIndex, msg_id: u16) -> Step {
        let Some(link) = self.paths.get(path.index()) else {
            return Step::Wait;
        };
        let executed = link.credit.executed();
        let step = self.lane.on_invalidated(path, msg_id, executed);
        self.after(path, step)
    }

    /// Looks after request timeouts and tells the session which paths are alive.
    pub fn handle_timeout(&mut self, now: Nanos) {
        if self.next_tick.is_none_or(|at| now < at) {
            return;
        }
        self.next_tick = None;
        for path in (0..).map(PathIndex).take(self.paths.len()) {
            let state = self.paths[path.index()].state;
            if matches!(state, LinkState::Up | LinkState::Draining) {
                self.next_tick = Some(now + self.tick());
                self.check(path, now);
            }
        }
    }

    fn check(&mut self, path: PathIndex, now: Nanos) {
        let link = &mut self.paths[path.index()];
        let attempt = link.attempt;
        if std::mem::take(&mut link.heard) {
            self.send(FromChannel::Heard { path, attempt });
        }
        let overdue = |limit| {
            let oldest = self.lane.oldest(path);
            oldest.is_some_and(|posted_at| now.since(posted_at) >= limit)
        };
        if self.config.request_timeout.is_some_and(overdue) {
            self.on_overdue(path);
        }
    }

    fn on_overdue(&mut self, path: PathIndex) {
        if self.config.timeout_costs_path {
            self.fail(path, PathError::RequestTimedOut);
        } else if !std::mem::replace(&mut self.paths[path.index()].told, true) {
            log::warn!("path {}: {}", path.0, PathError::RequestTimedOut);
        }
    }

    /// When to call [`Channel::handle_timeout`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.next_tick
    }

    fn tick(&self) -> Nanos {
        let (kernel, peer) = (&self.config.heartbeat, &self.config.peer_heartbeat);
        let heard = kernel.interval.min(peer.interval).0 / 2;
        let requests = self.config.request_timeout.map_or(heard, |t| t.0 / 4);
        Nanos(heard.min(requests).max(1_000_000))
    }

    fn send(&mut self, message: FromChannel) {
        self.actions.push_back(ChannelAction::Send(message));
    }
}

/// The error that the end of a connection means, when the server refused it with this data.
impl PathError {
    /// From the private data of a reject.
    #[must_use]
    pub fn from_reject(private_data: &[u8]) -> Self {
        Self::Rejected(reject_errno(private_data))
    }
}
