//! A channel: what one core has of a session.
//!
//! Each path's connection of the channel goes through these states:
//!
//! ```text
//!          Connect              accepted                Up
//!  Down ────────────> Connecting ────────> Established ────> Up
//!   ^                      │                    │             │
//!   │                      └────── Close, or failure ─────────┤
//!   │  the connection's end                                   v
//!   └───────────────────────────────────────────────────── Closing
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
use super::params::{PathParams, reject_errno};
use super::permits::{PermitPlan, PermitRange};
use super::request::{Post, Request};
use super::session::QueueSizes;
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
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LinkState {
    #[default]
    Down,
    Connecting,
    Established,
    Up,
    Closing,
}

impl Channel {
    /// Channel `index` of a session with `paths` paths.
    #[must_use]
    pub fn new(index: u16, config: SessionConfig, paths: usize) -> Self {
        let mut links = Vec::with_capacity(paths);
        links.resize_with(paths, Link::default);
        Self {
            index,
            config,
            lane: Lane::new(PermitRange::default(), paths),
            paths: links,
            actions: VecDeque::with_capacity(8 * paths.max(1)),
            next_tick: None,
        }
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

    /// Whether a request could begin now on a path that is up.
    #[must_use]
    pub fn can_begin(&self, path: PathIndex) -> bool {
        let link = self.paths.get(path.index());
        self.lane.has_permit() && link.is_some_and(|link| link.credit.has_room())
    }

    /// The path that the next request should use; `None` while none is up.
    #[must_use]
    pub fn usable_path(&self) -> Option<PathIndex> {
        (0..)
            .map(PathIndex)
            .zip(&self.paths)
            .find(|(_, link)| link.state == LinkState::Up)
            .map(|(path, _)| path)
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
                    self.lane.path_up(*path, &params, chunks);
                    let permits = self.lane.range().count;
                    let link = &mut self.paths[path.index()];
                    link.state = LinkState::Up;
                    link.credit.reset(permits);
                    self.next_tick = Some(now + self.tick());
                    self.actions.push_back(ChannelAction::Up(*path));
                }
            }
            ToChannel::Close { path, attempt } => {
                if self.paths[path.index()].attempt == *attempt {
                    self.fail(*path, PathError::Requested);
                }
            }
        }
    }

    fn established(&self, path: PathIndex, attempt: Attempt) -> Option<PathParams> {
        let link = &self.paths[path.index()];
        let matches = link.state == LinkState::Established && link.attempt == attempt;
        link.params.filter(|_| matches)
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
        self.lane.set_range(plan.channel(self.index));
        self.paths[path.index()] = Link {
            state: LinkState::Connecting,
            attempt,
            params: Some(*params),
            ..Link::default()
        };
        self.actions.push_back(ChannelAction::Connect {
            path,
            request: *request,
            sizes: QueueSizes::for_requests(self.lane.range().count),
            timeout: self.config.connect_timeout,
        });
    }

    /// The connection of a path is up, and this is what the server's accept carried.
    pub fn handle_connected(&mut self, path: PathIndex, private_data: &[u8]) {
        let link = &mut self.paths[path.index()];
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
    /// outstanding is told of, and its permit is free again.
    pub fn handle_closed(
        &mut self,
        path: PathIndex,
        error: PathError,
        tell: impl FnMut(u16, Ended),
    ) {
        self.lane.end_path(path, tell);
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
        });
    }

    /// Gives a path up, for example because posting on it failed.
    pub fn fail(&mut self, path: PathIndex, error: PathError) {
        let link = &mut self.paths[path.index()];
        if matches!(link.state, LinkState::Down | LinkState::Closing) {
            return;
        }
        link.state = LinkState::Closing;
        link.error = Some(error);
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
        if !self.can_begin(path) {
            return Err(BeginError::NoPermit);
        }
        let post = self.lane.begin(path, request, now)?;
        self.paths[path.index()].credit.on_post(post.signaled);
        Ok(post)
    }

    /// What [`Channel::begin`] asked for could not be posted: the request was never sent, and its
    /// permit is free again.
    pub fn abort(&mut self, msg_id: u16) {
        self.lane.abort(msg_id);
    }

    /// A receive of a path's connection completed. A server that breaks the rules loses the path.
    pub fn handle_arrival(&mut self, path: PathIndex, arrival: Arrival) -> Step {
        self.paths[path.index()].heard = true;
        match self.lane.on_answer(path, arrival) {
            Ok(step) => step,
            Err(violation) => {
                self.on_violation(path, arrival, violation);
                Step::Wait
            }
        }
    }

    /// Heartbeats belong on the service connection and are ignored elsewhere (protocol.md 14.1).
    fn on_violation(&mut self, path: PathIndex, arrival: Arrival, violation: Violation) {
        if !arrival.is_heartbeat() {
            self.fail(path, violation.into());
        }
    }

    /// An operation of a path's connection completed; all that ask for it must be reported.
    pub fn handle_sent(&mut self, path: PathIndex, id: WrId) -> Step {
        self.paths[path.index()].credit.on_sent();
        match id {
            WrId::Request(msg_id) => self.lane.on_sent(msg_id),
            WrId::Invalidate(msg_id) => self.lane.on_invalidated(msg_id),
            _ => Step::Wait,
        }
    }

    /// What [`Step::Invalidate`] asks for was posted and will complete.
    pub fn handle_invalidate_posted(&mut self, path: PathIndex) {
        self.paths[path.index()].credit.on_post(true);
    }

    /// What [`Step::Invalidate`] asks for was done, on a fabric that does it at once.
    pub fn handle_invalidated(&mut self, msg_id: u16) -> Step {
        self.lane.on_invalidated(msg_id)
    }

    /// Looks after request timeouts and tells the session which paths are alive.
    pub fn handle_timeout(&mut self, now: Nanos) {
        if self.next_tick.is_none_or(|at| now < at) {
            return;
        }
        self.next_tick = None;
        for path in (0..).map(PathIndex).take(self.paths.len()) {
            if self.paths[path.index()].state == LinkState::Up {
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
            self.fail(path, PathError::RequestTimedOut);
        }
    }

    /// When to call [`Channel::handle_timeout`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.next_tick
    }

    fn tick(&self) -> Nanos {
        let heard = self.config.heartbeat.interval.0 / 2;
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
