use proptest::prelude::*;
use rnbd_base::Nanos;
use rnbd_wire::Imm;

use super::rig::{Out, PATH, Rig, accept, vector};
use crate::clt::{
    Arrival, Direction, PathError, PathState, ReconnectPolicy, Request, SessionConfig,
    SessionEvent, Step,
};

const SECOND: Nanos = Nanos::from_secs(1);

const NO_DATA: Request = Request {
    direction: Direction::Write,
    user_bytes: 8,
    data_bytes: 0,
    exposure: None,
};

fn state(rig: &Rig) -> PathState {
    rig.session.path(PATH).unwrap().state
}

fn lose(rig: &mut Rig) {
    rig.close(1, PathError::PeerClosed);
    rig.play_handshake();
}

fn policy(policy: ReconnectPolicy) -> SessionConfig {
    SessionConfig {
        reconnect: policy,
        ..SessionConfig::default()
    }
}

fn up(config: SessionConfig) -> Rig {
    let mut rig = Rig::new(config, accept(16, false));
    rig.start();
    rig.play_handshake();
    rig
}

#[test]
fn a_lost_path_comes_back_under_the_same_uuids() {
    let mut rig = Rig::new(
        SessionConfig {
            channels: 4,
            offer_fence: false,
            ..SessionConfig::default()
        },
        accept(512, false),
    );
    rig.start();
    rig.play_handshake();
    for attempt in 2..=7 {
        rig.close(2, PathError::PeerClosed);
        assert_eq!(state(&rig), PathState::Reconnecting);
        rig.play_handshake();
        rig.advance(Nanos::from_secs(60));
        if attempt == 7 {
            let Some(Out::Connect(0, request)) = rig.out.front() else {
                panic!("{:?}", rig.out);
            };
            assert_eq!(request.to_bytes().to_vec(), vector("con_req_reconnect"));
        }
        rig.play_handshake();
        assert_eq!(state(&rig), PathState::Connected);
    }
    assert_eq!(rig.session.path(PATH).unwrap().reconnects_ok, 6);
}

#[test]
fn the_next_attempt_waits_for_every_connection_of_the_last() {
    let mut rig = up(SessionConfig::default());
    rig.close(0, PathError::PeerClosed);
    rig.out.clear();
    rig.advance(Nanos::from_secs(600));
    let again = [Out::Disconnect(1)];
    assert_eq!(rig.out, again, "connection 1 has not reported its end");
    rig.out.clear();
    rig.close(1, PathError::Requested);
    rig.advance(Nanos::from_secs(10));
    assert!(matches!(rig.out.front(), Some(Out::Connect(0, _))));
}

#[test]
fn a_changed_queue_depth_ends_reconnecting() {
    let mut rig = up(SessionConfig::default());
    lose(&mut rig);
    rig.params = accept(32, false);
    rig.advance(Nanos::from_secs(10));
    rig.play_handshake();
    let error = PathError::QueueDepthChanged { was: 16, is: 32 };
    assert_eq!(rig.events.last(), Some(&SessionEvent::Lost(error)));
    assert_eq!(state(&rig), PathState::Closed);
}

#[test]
fn attempts_are_limited() {
    let mut rig = up(policy(ReconnectPolicy {
        max_attempts: Some(3),
        ..ReconnectPolicy::default()
    }));
    lose(&mut rig);
    for _ in 0..3 {
        assert_eq!(state(&rig), PathState::Reconnecting);
        rig.advance(Nanos::from_secs(60));
        rig.out.clear();
        rig.close(0, PathError::Refused);
    }
    assert_eq!(
        rig.events.last(),
        Some(&SessionEvent::Lost(PathError::Refused))
    );
    let failed = |event: &&SessionEvent| matches!(event, SessionEvent::ReconnectFailed { .. });
    assert_eq!(rig.events.iter().filter(failed).count(), 3);
}

#[test]
fn a_server_that_does_not_answer_is_asked_again_soon_and_given_more_time() {
    let mut rig = up(policy(ReconnectPolicy {
        delay: SECOND,
        jitter: Nanos::ZERO,
        ..ReconnectPolicy::default()
    }));
    lose(&mut rig);
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        rig.advance(SECOND);
        assert!(matches!(rig.out.pop_front(), Some(Out::Connect(0, _))));
        rig.advance(Nanos(seconds * SECOND.0 - 1));
        assert_eq!(state(&rig), PathState::Connecting, "after {seconds} s");
        rig.advance(Nanos(1));
        assert_eq!(rig.path_error(), PathError::TimedOut);
        rig.out.clear();
        rig.close(0, PathError::TimedOut);
    }
}

#[test]
fn patience_has_two_limits() {
    let mut rig = up(policy(ReconnectPolicy {
        fast_io_fail: Some(Nanos::from_secs(5)),
        loss_timeout: Some(Nanos::from_secs(20)),
        ..ReconnectPolicy::default()
    }));
    lose(&mut rig);
    let has = |rig: &Rig, wanted| rig.events.contains(&wanted);
    for second in 1..=25 {
        rig.advance(SECOND);
        for out in std::mem::take(&mut rig.out) {
            if let Out::Connect(..) = out {
                rig.close(0, PathError::Refused);
            }
        }
        assert_eq!(
            has(&rig, SessionEvent::FastIoFail),
            second >= 5,
            "second {second}"
        );
        assert_eq!(
            has(&rig, SessionEvent::Lost(PathError::Refused)),
            second >= 20
        );
    }
    assert_eq!(rig.session.next_deadline(), None);
    rig.session.reconnect_path(PATH, rig.now);
    rig.run();
    rig.play_handshake();
    assert_eq!(state(&rig), PathState::Connected);
}

#[test]
fn nothing_is_due_while_a_session_that_is_given_up_closes() {
    let mut rig = up(policy(ReconnectPolicy {
        loss_timeout: Some(Nanos::from_secs(20)),
        ..ReconnectPolicy::default()
    }));
    lose(&mut rig);
    for _ in 0..20 {
        rig.advance(SECOND);
    }
    assert_eq!(state(&rig), PathState::Closing);
    let due = rig
        .session
        .next_deadline()
        .expect("the time for its connection to end");
    assert!(due > rig.now, "due at {due:?}, now {:?}", rig.now);
}

#[test]
fn a_disconnected_path_stays_so_until_it_is_reconnected() {
    let mut rig = up(SessionConfig::default());
    rig.session.disconnect_path(PATH, rig.now);
    rig.run();
    assert_eq!(state(&rig), PathState::Closing);
    rig.play_handshake();
    assert_eq!(state(&rig), PathState::Closed);
    rig.advance(Nanos::from_secs(600));
    assert!(rig.out.is_empty());
    rig.session.reconnect_path(PATH, rig.now);
    rig.run();
    rig.play_handshake();
    assert_eq!(state(&rig), PathState::Connected);
}

#[test]
fn a_path_that_is_closing_can_be_reconnected() {
    let mut rig = up(SessionConfig::default());
    rig.session.disconnect_path(PATH, rig.now);
    rig.session.reconnect_path(PATH, rig.now);
    rig.run();
    rig.play_handshake();
    assert_eq!(state(&rig), PathState::Connected);
}

#[test]
fn a_path_that_is_disconnected_finishes_what_is_outstanding_first() {
    let mut rig = up(SessionConfig::default());
    let post = rig.begin(&NO_DATA);
    rig.session.disconnect_path(PATH, rig.now);
    rig.run();
    assert!(rig.out.is_empty());
    assert!(!rig.channels[0].is_up(), "nothing new begins on it");
    let answer = Arrival::Immediate(Imm::response(post.msg_id, Ok(()), false));
    assert!(matches!(rig.arrive(answer), Step::Done(_)));
    assert_eq!(rig.out, [Out::Disconnect(1)]);
    rig.play_handshake();
    assert_eq!(state(&rig), PathState::Closed);
    assert!(rig.ended.is_empty());
    assert_eq!(rig.session.unfenced(), 0);
}

#[test]
fn a_path_that_is_disconnected_does_not_wait_for_ever() {
    let mut rig = up(SessionConfig::default());
    rig.begin(&NO_DATA);
    rig.session.disconnect_path(PATH, rig.now);
    rig.run();
    rig.advance(Nanos::from_secs(5));
    assert_eq!(rig.out, [Out::Disconnect(0), Out::Disconnect(1)]);
    rig.play_handshake();
    assert_eq!(state(&rig), PathState::Closed);
    assert_eq!(rig.ended.len(), 1);
}

#[test]
fn reconnecting_a_path_that_is_up_closes_it_first() {
    let mut rig = up(SessionConfig::default());
    rig.session.reconnect_path(PATH, rig.now);
    rig.run();
    assert_eq!(rig.out, [Out::Disconnect(0), Out::Disconnect(1)]);
    rig.play_handshake();
    rig.advance(Nanos(1));
    rig.play_handshake();
    assert_eq!(state(&rig), PathState::Connected);
}

#[test]
fn heartbeats_are_sent_answered_and_missed() {
    let mut rig = up(SessionConfig::default());
    rig.session
        .handle_arrival(PATH, Arrival::Immediate(Imm::HEARTBEAT), rig.now);
    rig.run();
    assert_eq!(
        rig.out.pop_front(),
        Some(Out::Immediate(Imm::HEARTBEAT_ACK))
    );
    rig.advance(Nanos::from_secs(5));
    assert_eq!(rig.out.pop_front(), Some(Out::Immediate(Imm::HEARTBEAT)));
    let ack_at = rig.now + Nanos::from_millis(3);
    rig.session
        .handle_arrival(PATH, Arrival::Immediate(Imm::HEARTBEAT_ACK), ack_at);
    let path = rig.session.path(PATH).unwrap();
    assert_eq!(path.heartbeat_rtt, Some(Nanos::from_millis(3)));
    for _ in 0..8 {
        rig.advance(Nanos::from_secs(5));
    }
    rig.play_handshake();
    assert_eq!(rig.path_error(), PathError::HeartbeatLost);
}

#[test]
fn traffic_on_a_channel_is_a_sign_of_life() {
    let mut rig = up(SessionConfig::default());
    for _ in 0..100 {
        rig.arrive(Arrival::Immediate(Imm::HEARTBEAT));
        rig.advance(Nanos::from_millis(2500));
    }
    assert!(rig.session.is_up());
}

/// A session whose path has gone down because of a control request that nobody answered.
fn with_unanswered_request() -> Rig {
    let mut rig = up(SessionConfig {
        request_timeout: Some(Nanos::from_secs(600)),
        ..SessionConfig::default()
    });
    rig.session.begin(PATH, &NO_DATA, rig.now).unwrap();
    for _ in 0..30 {
        rig.session
            .handle_arrival(PATH, Arrival::Immediate(Imm::HEARTBEAT_ACK), rig.now);
        rig.advance(SECOND);
    }
    rig
}

#[test]
fn a_control_request_that_is_not_answered_costs_the_path() {
    let mut rig = with_unanswered_request();
    rig.play_handshake();
    assert_eq!(rig.path_error(), PathError::RequestTimedOut);
}

#[test]
fn nothing_is_due_while_the_path_of_an_unanswered_request_goes_down() {
    let rig = with_unanswered_request();
    assert_eq!(state(&rig), PathState::Reconnecting);
    let due = rig
        .session
        .next_deadline()
        .expect("the time for its connections to end");
    assert!(due > rig.now, "due at {due:?}, now {:?}", rig.now);
}

#[derive(Clone, Debug)]
enum Input {
    Play,
    Close(u16),
    Wait(u64),
    Disconnect,
    Reconnect,
    Info(Vec<u8>),
    Immediate(u32),
}

fn any_input() -> impl Strategy<Value = Input> {
    prop_oneof![
        4 => Just(Input::Play),
        2 => (0..3_u16).prop_map(Input::Close),
        3 => (0..40_u64).prop_map(Input::Wait),
        1 => Just(Input::Disconnect),
        1 => Just(Input::Reconnect),
        1 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(Input::Info),
        1 => any::<u32>().prop_map(Input::Immediate),
    ]
}

/// The connections that are open as the fabric would have it: no other ends are reported.
fn is_open(rig: &Rig, cid: u16, open: &[bool]) -> bool {
    open[usize::from(cid)] && usize::from(cid) <= rig.channels.len()
}

/// Plays the server for all that was asked, and keeps the books of open connections.
fn play(rig: &mut Rig, open: &mut [bool]) {
    let yes = rnbd_wire::rtrs::ConRsp::Accept(rig.params).to_bytes();
    while let Some(out) = rig.out.pop_front() {
        match out {
            Out::Connect(cid, _) => {
                open[usize::from(cid)] = true;
                rig.accept(cid, &yes);
            }
            Out::Info(_) => {
                let message = rig.info_rsp();
                rig.info(&message);
            }
            Out::Disconnect(cid) if std::mem::take(&mut open[usize::from(cid)]) => {
                rig.close(cid, PathError::Requested);
            }
            Out::Immediate(Imm::HEARTBEAT) => {
                let ack = Arrival::Immediate(Imm::HEARTBEAT_ACK);
                rig.session.handle_arrival(PATH, ack, rig.now);
            }
            _ => {}
        }
    }
}

proptest! {
    /// Illegal transitions are caught by an assertion in the path.
    #[test]
    fn whatever_happens_a_session_can_be_brought_up_again(
        inputs in proptest::collection::vec(any_input(), 0..60),
    ) {
        let config = SessionConfig { channels: 2, ..SessionConfig::default() };
        let mut rig = Rig::new(config, accept(16, false));
        let mut open = [false; 3];
        rig.start();
        for input in inputs {
            match input {
                Input::Play => play(&mut rig, &mut open),
                Input::Close(cid) if is_open(&rig, cid, &open) => {
                    open[usize::from(cid)] = false;
                    rig.close(cid, PathError::PeerClosed);
                }
                Input::Close(_) => {}
                Input::Wait(seconds) => rig.advance(Nanos::from_secs(seconds)),
                Input::Disconnect => rig.session.disconnect_path(PATH, rig.now),
                Input::Reconnect => rig.session.reconnect_path(PATH, rig.now),
                Input::Info(message) => rig.info(&message),
                Input::Immediate(imm) => {
                    rig.session.handle_arrival(PATH, Arrival::Immediate(imm), rig.now);
                }
            }
            rig.run();
        }
        for _ in 0..200 {
            play(&mut rig, &mut open);
            rig.advance(SECOND);
            if state(&rig) == PathState::Closed {
                rig.session.reconnect_path(PATH, rig.now);
                rig.run();
            }
        }
        play(&mut rig, &mut open);
        prop_assert_eq!(state(&rig), PathState::Connected);
    }
}
