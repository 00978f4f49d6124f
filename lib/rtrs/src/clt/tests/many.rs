//! Sessions of several paths.

use std::collections::BTreeMap;

use rnbd_base::{Errno, Nanos};
use rnbd_wire::extension::{Agreement, Features, PathToken, ServiceId};
use rnbd_wire::rtrs::{ConReq, ConRsp, PathParameters};
use rnbd_wire::{Imm, Name};

use super::rig::{SESSION_UUID, accept, info_rsp_of, uuid};
use crate::clt::{
    Arrival, Attempt, BeginError, Channel, ChannelAction, Direction, Ended, FencedBy, PathError,
    PathIndex, PathState, Policy, Post, Request, ServerId, Session, SessionAction, SessionConfig,
    SessionEvent, Step, TooManyPaths,
};

pub(super) const A: PathIndex = PathIndex(0);
pub(super) const B: PathIndex = PathIndex(1);
const SECOND: Nanos = Nanos::from_secs(1);

const WRITE: Request = Request {
    direction: Direction::Write,
    user_bytes: 32,
    data_bytes: 512,
    exposure: None,
};

/// A session with one channel, and a server that a test tells what to do: it accepts what it is
/// not told to reject, and closes what is closed.
pub(super) struct Many {
    pub(super) now: Nanos,
    pub(super) session: Session,
    pub(super) channel: Channel,
    params: PathParameters,
    /// Whether the server has the fence, and how its process calls itself.
    pub(super) instance: Option<u64>,
    /// What it says that paths belong to which come up.
    pub(super) service: Option<ServiceId>,
    /// Paths that it lets wait.
    pub(super) mute: Vec<PathIndex>,
    rejects: BTreeMap<PathIndex, Errno>,
    next_token: u32,
    /// Of each path's present life.
    tokens: BTreeMap<PathIndex, PathToken>,
    requests: Vec<(PathIndex, ConReq)>,
    pub(super) heartbeats: usize,
    pub(super) immediates: Vec<(PathIndex, u32)>,
    pub(super) events: Vec<SessionEvent>,
    ended: Vec<(u16, Ended)>,
}

impl Many {
    pub(super) fn new(instance: Option<u64>, config: SessionConfig) -> Self {
        let name = Name::new("clt1-srv1").unwrap();
        Self {
            now: Nanos::ZERO,
            session: Session::new(name, uuid(SESSION_UUID), config),
            channel: Channel::new(0, config),
            params: accept(16, false),
            instance,
            service: None,
            mute: Vec::new(),
            rejects: BTreeMap::new(),
            next_token: 1,
            tokens: BTreeMap::new(),
            requests: Vec::new(),
            heartbeats: 0,
            immediates: Vec::new(),
            events: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// With paths A and B up.
    pub(super) fn two(instance: Option<u64>) -> Self {
        let mut many = Self::new(instance, SessionConfig::default());
        for path in [A, B] {
            assert_eq!(many.add(), path);
            assert_eq!(many.state(path), PathState::Connected);
        }
        many.requests.clear();
        many
    }

    pub(super) fn add(&mut self) -> PathIndex {
        let seed = self.requests.len() as u64 + 1;
        let uuid = u128::from(seed).to_le_bytes();
        let path = self.session.add_path(uuid, ServerId(0), seed).unwrap();
        self.session.start(path, self.now);
        self.run();
        path
    }

    pub(super) fn state(&self, path: PathIndex) -> PathState {
        self.session.path(path).unwrap().state
    }

    pub(super) fn run(&mut self) {
        loop {
            if let Some(action) = self.session.poll_action() {
                self.on_session_action(action);
            } else if let Some(action) = self.channel.poll_action() {
                self.on_channel_action(action);
            } else {
                break;
            }
        }
        self.events
            .extend(std::iter::from_fn(|| self.session.poll_event()));
    }

    fn on_session_action(&mut self, action: SessionAction) {
        match action {
            SessionAction::Connect { path, request, .. } => {
                self.requests.push((path, request));
                self.on_connect(path);
            }
            SessionAction::SendInfo { path } => {
                let message = info_rsp_of(&self.params, self.service);
                self.session.handle_info_rsp(path, &message, self.now);
            }
            SessionAction::SendImmediate {
                path,
                imm: Imm::HEARTBEAT,
            } => self.on_heartbeat(path),
            SessionAction::SendImmediate { path, imm } => self.immediates.push((path, imm)),
            SessionAction::Disconnect { path } if !self.mute.contains(&path) => {
                self.end_service(path, PathError::Requested);
            }
            SessionAction::ToChannel { message, .. } => {
                self.channel.handle_message(&message, self.now);
            }
            _ => {}
        }
    }

    pub(super) fn on_heartbeat(&mut self, path: PathIndex) {
        self.heartbeats += 1;
        if !self.mute.contains(&path) {
            let arrival = Arrival::Immediate(Imm::HEARTBEAT_ACK);
            self.session.handle_arrival(path, arrival, self.now);
        }
    }

    fn on_connect(&mut self, path: PathIndex) {
        if self.mute.contains(&path) {
            return;
        }
        if let Some(errno) = self.rejects.get(&path) {
            return self.end_service(path, PathError::Rejected(*errno));
        }
        let token = PathToken::new(self.next_token).unwrap();
        self.next_token += 1;
        self.tokens.insert(path, token);
        let accept = self.accept(path);
        self.session.handle_connected(path, &accept, self.now);
    }

    fn accept(&self, path: PathIndex) -> Vec<u8> {
        let agreement = |instance| Agreement {
            features: Features::FENCE,
            token: self.tokens[&path],
            instance,
        };
        let params = PathParameters {
            extension: self.instance.map(agreement),
            ..self.params
        };
        ConRsp::Accept(params).to_bytes().to_vec()
    }

    fn on_channel_action(&mut self, action: ChannelAction) {
        match action {
            ChannelAction::Connect { path, .. } => {
                let accept = self.accept(path);
                self.channel.handle_connected(path, &accept);
            }
            ChannelAction::Disconnect(path) if !self.mute.contains(&path) => {
                self.end_io(path, PathError::Requested);
            }
            ChannelAction::Send(message) => self.session.handle_channel(0, message, self.now),
            _ => {}
        }
    }

    /// Connection 0 of a path ends.
    fn end_service(&mut self, path: PathIndex, error: PathError) {
        let ended = &mut self.ended;
        self.session
            .handle_closed(path, error, self.now, |id, how| ended.push((id, how)));
    }

    /// The other connection of a path ends.
    fn end_io(&mut self, path: PathIndex, error: PathError) {
        let ended = &mut self.ended;
        self.channel
            .handle_closed(path, error, |id, how| ended.push((id, how)));
    }

    /// The server closes a path.
    pub(super) fn lose(&mut self, path: PathIndex) {
        self.end_io(path, PathError::PeerClosed);
        self.run();
    }

    pub(super) fn begin(&mut self, path: PathIndex) -> Result<Post, BeginError> {
        self.channel.begin(path, &WRITE, self.now)
    }

    pub(super) fn arrive(&mut self, path: PathIndex, imm: u32) -> Step {
        let arrival = Arrival::Immediate(imm);
        let step = self.session.handle_arrival(path, arrival, self.now);
        self.run();
        step
    }

    pub(super) fn advance(&mut self, span: Nanos) {
        self.now += span;
        self.session.handle_timeout(self.now);
        self.channel.handle_timeout(self.now);
        self.run();
    }

    fn fenced(&self) -> Vec<(PathIndex, FencedBy)> {
        let fenced = |event: &SessionEvent| match event {
            SessionEvent::Fenced { path, by } => Some((*path, *by)),
            _ => None,
        };
        self.events.iter().filter_map(fenced).collect()
    }
}

#[test]
fn a_session_has_up_to_128_paths_and_indexes_are_used_again() {
    let mut many = Many::new(Some(1), SessionConfig::default());
    for index in 0..128 {
        assert_eq!(many.add(), PathIndex(index));
    }
    assert_eq!(
        many.session.add_path([9; 16], ServerId(0), 9),
        Err(TooManyPaths)
    );
    let gone = PathIndex(77);
    many.session.disconnect_path(gone, many.now);
    many.run();
    assert!(many.session.remove_path(gone, many.now));
    assert!(!many.session.remove_path(A, many.now), "it is up");
    assert_eq!(many.session.path(gone).map(|path| path.state), None);
    assert_eq!(many.add(), gone);
}

#[test]
fn only_a_path_without_others_may_create_the_session() {
    let mut many = Many::new(Some(1), SessionConfig::default());
    let said = |many: &mut Many| many.requests.pop().unwrap().1;
    many.add();
    assert!(said(&mut many).first_conn);
    many.add();
    let request = said(&mut many);
    assert!(!request.first_conn && request.recon_cnt == 1);
    many.lose(B);
    many.advance(Nanos::from_secs(10));
    let request = said(&mut many);
    assert!(!request.first_conn && request.recon_cnt == 2);
    many.rejects.extend([(A, Errno::BUSY), (B, Errno::BUSY)]);
    many.lose(A);
    many.lose(B);
    many.advance(Nanos::from_secs(10));
    assert!(said(&mut many).first_conn, "all are lost");
}

#[test]
fn a_server_that_does_not_know_the_session_shows_that_the_other_paths_are_dead() {
    let mut many = Many::two(Some(1));
    many.mute.push(B);
    many.rejects.insert(A, Errno::NXIO);
    many.lose(A);
    many.advance(Nanos::from_secs(3));
    assert_ne!(many.state(B), PathState::Connected);
    let error = many.session.path(B).unwrap().error;
    assert_eq!(error, PathError::SessionUnknown);
    assert!(many.events.contains(&SessionEvent::Down(error)));
    many.rejects.clear();
    many.advance(Nanos(1));
    assert_eq!(many.state(A), PathState::Connected);
    let (path, request) = many.requests.last().unwrap();
    assert!(*path == A && request.first_conn);
}

#[test]
fn another_process_in_the_place_of_the_server_shows_that_the_other_paths_are_dead() {
    let mut many = Many::two(Some(1));
    many.begin(A).unwrap();
    many.mute.push(B);
    many.instance = Some(2);
    many.lose(A);
    many.advance(Nanos::from_secs(3));
    assert_eq!(many.state(A), PathState::Connected);
    assert_eq!(
        many.session.path(B).unwrap().error,
        PathError::ServerRestarted
    );
    let downs = many.events.iter();
    let downs = downs.filter(|event| matches!(event, SessionEvent::Down(_)));
    assert_eq!(downs.count(), 1, "devices have to be opened again");
    assert!(many.fenced().contains(&(A, FencedBy::Reconnect)));
}

#[test]
fn the_end_of_a_lost_path_is_asked_for_until_somebody_confirms_it() {
    let mut many = Many::two(Some(1));
    let c = many.add();
    many.begin(A).unwrap();
    let attempt = many.channel.attempt(A);
    let lost = many.tokens[&A];
    many.mute.push(A);
    many.lose(A);
    many.end_service(A, PathError::PeerClosed);
    many.run();
    assert_eq!(many.immediates.pop(), Some((B, Imm::fence(lost))));
    assert!(!many.channel.is_fenced(attempt));
    many.mute.push(B);
    many.lose(B);
    let other = many.tokens[&B];
    let asked: Vec<_> = many.immediates.drain(..).collect();
    assert!(asked.contains(&(c, Imm::fence(lost))), "{asked:?}");
    assert!(asked.contains(&(c, Imm::fence(other))), "{asked:?}");
    let unknown = PathToken::new(1000).unwrap();
    assert_eq!(many.arrive(c, Imm::fenced(unknown)), Step::Wait);
    assert!(!many.channel.is_fenced(attempt), "that is none of them");
    many.arrive(c, Imm::fenced(lost));
    assert!(many.channel.is_fenced(attempt));
    assert!(many.fenced().contains(&(A, FencedBy::Confirmation)));
    let counters = many.session.fence_counters();
    assert_eq!((counters.sent, counters.confirmed), (3, 1));
}

#[test]
fn a_confirmation_may_come_before_the_end_of_the_connection_here() {
    let mut many = Many::two(Some(1));
    many.begin(A).unwrap();
    let attempt = many.channel.attempt(A);
    many.mute.push(A);
    many.session.fail(A, PathError::HeartbeatLost, many.now);
    many.run();
    many.arrive(B, Imm::fenced(many.tokens[&A]));
    assert!(many.ended.is_empty(), "the buffer may still be touched");
    many.lose(A);
    assert_eq!(many.ended, [(1, Ended::Unknown)]);
    assert!(many.channel.is_fenced(attempt));
}

#[test]
fn chunks_of_a_kernel_server_stay_taken_until_its_time_is_over() {
    let mut many = Many::two(None);
    let post = many.begin(A).unwrap();
    many.rejects.insert(A, Errno::CONNRESET);
    many.lose(A);
    assert_eq!(many.ended, [(post.msg_id, Ended::Unknown)]);
    let mut taken = Vec::new();
    while let Ok(post) = many.begin(B) {
        taken.push(post.msg_id);
    }
    assert_eq!(taken.len(), 14, "16 less the control permit and the ghost");
    assert!(!taken.contains(&post.msg_id));
    for _ in 0..36 {
        many.arrive(B, Imm::HEARTBEAT_ACK);
        many.advance(SECOND);
    }
    assert_eq!(many.fenced(), [(A, FencedBy::Timeout)]);
    assert_eq!(many.begin(B).unwrap().msg_id, post.msg_id);
}

#[test]
fn chunks_of_our_own_server_are_free_at_once() {
    let mut many = Many::two(Some(1));
    many.begin(A).unwrap();
    many.lose(A);
    let free = std::iter::from_fn(|| many.begin(B).ok()).count();
    assert_eq!(free, 15);
}

#[test]
fn a_control_request_that_was_lost_keeps_the_next_back_until_its_path_is_fenced() {
    let mut many = Many::two(Some(1));
    let path = many.session.control_path().unwrap();
    let other = PathIndex(1 - path.0);
    many.session.begin(path, &WRITE, many.now).unwrap();
    many.mute.push(path);
    many.lose(path);
    many.end_service(path, PathError::PeerClosed);
    many.run();
    assert_eq!(many.ended, [(0, Ended::Unknown)]);
    assert!(!many.session.can_begin());
    many.arrive(other, Imm::fenced(many.tokens[&path]));
    assert!(many.session.can_begin());
    assert_eq!(many.session.control_path(), Some(other));
}

#[test]
fn an_answer_on_another_path_than_the_request_is_a_violation() {
    let mut many = Many::two(Some(1));
    let post = many.begin(A).unwrap();
    let answer = Arrival::Immediate(Imm::response(post.msg_id, Ok(()), false));
    assert_eq!(many.channel.handle_arrival(B, answer, many.now), Step::Wait);
    many.run();
    assert_eq!(many.channel.in_flight_on(A), 1);
    assert!(matches!(
        many.session.path(B).unwrap().error,
        PathError::Violation(_)
    ));
}

#[test]
fn what_is_said_of_an_earlier_life_of_a_path_is_void() {
    let mut many = Many::two(Some(1));
    let old = many.channel.attempt(A);
    many.lose(A);
    many.advance(Nanos::from_secs(3));
    assert_eq!(many.state(A), PathState::Connected);
    assert_ne!(many.channel.attempt(A), old);
    let late = crate::clt::FromChannel::Closed {
        path: A,
        attempt: old,
        error: PathError::PeerClosed,
        unanswered: 3,
    };
    many.session.handle_channel(0, late, many.now);
    let close = crate::clt::ToChannel::Close {
        path: A,
        attempt: old,
    };
    many.channel.handle_message(&close, many.now);
    many.run();
    assert_eq!(many.state(A), PathState::Connected);
    assert!(many.channel.is_path_up(A));
    assert_eq!(
        many.channel.attempt(B),
        Attempt(2),
        "each life has a number"
    );
}

#[test]
fn paths_of_one_session_must_be_of_one_kind() {
    let mut many = Many::two(Some(1));
    many.params.max_io_size -= 4096;
    let c = many.add();
    let error = many.session.path(c).unwrap().error;
    assert!(matches!(error, PathError::MaxIoDiffers { .. }), "{error}");
    many.params = accept(32, false);
    let d = many.add();
    let error = PathError::QueueDepthChanged { was: 16, is: 32 };
    assert_eq!(many.session.path(d).unwrap().error, error);
    assert!(many.session.is_up());
}

#[test]
fn a_path_that_answers_nothing_gets_no_more_than_its_share() {
    let mut many = Many::two(Some(1));
    let mut config = many.session.config().policy;
    config.policy = Policy::RoundRobin;
    many.session.set_policy(config);
    many.run();
    let mut dead = 0;
    for _ in 0..100 {
        many.advance(Nanos::from_millis(10));
        let path = many.channel.choose(many.now).expect("B answers at once");
        let post = many.begin(path).unwrap();
        if path == A {
            dead += 1;
            continue;
        }
        let answer = Arrival::Immediate(Imm::response(post.msg_id, Ok(()), false));
        many.channel.handle_arrival(B, answer, many.now);
        let sent = crate::clt::WrId::Executed(post.serial);
        many.channel.handle_sent(B, sent);
        assert!(many.channel.next_sent(B).is_some());
    }
    assert!(dead <= 11, "{dead} in the first 100 ms and 10 ms more");
}
