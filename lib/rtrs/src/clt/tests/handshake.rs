use rnbd_base::{Errno, Nanos};
use rnbd_wire::rtrs::{ConRsp, InfoRsp};

use super::rig::{CHUNKS_AT, Out, PATH, Rig, accept, vector};
use crate::clt::{Direction, PathError, PathState, Request, SessionConfig, SessionEvent};

fn rig(channels: u16) -> Rig {
    let config = SessionConfig {
        channels,
        offer_fence: false,
        ..SessionConfig::default()
    };
    Rig::new(config, accept(512, false))
}

/// Takes what goes out next as a connect request.
fn connect(rig: &mut Rig) -> (u16, Vec<u8>) {
    match rig.out.pop_front() {
        Some(Out::Connect(cid, request)) => (cid, request.to_bytes().to_vec()),
        other => panic!("{other:?} is no connect request"),
    }
}

#[test]
fn connections_are_made_one_after_another_with_the_references_bytes() {
    let mut rig = rig(4);
    rig.start();
    let accept = vector("con_rsp_accept_no_inval");
    assert_eq!(connect(&mut rig), (0, vector("con_req_first")));
    for cid in 1..=4 {
        assert!(
            rig.out.iter().all(|out| !matches!(out, Out::Connect(..))),
            "before its turn"
        );
        rig.accept(cid - 1, &accept);
        rig.out.retain(|out| !matches!(out, Out::Receives(..)));
        let (next, request) = connect(&mut rig);
        assert_eq!(next, cid);
        if cid == 3 {
            assert_eq!(request, vector("con_req_io_con"));
        }
    }
    rig.accept(4, &accept);
    assert_eq!(rig.out.pop_back(), Some(Out::Info(vector("info_req"))));
    assert!(!rig.session.is_up());
    rig.info(&vector("info_rsp_single_mr"));
    assert!(rig.session.is_up());
    assert!(
        rig.events
            .iter()
            .any(|event| matches!(event, SessionEvent::Up(_)))
    );
}

#[test]
fn receives_have_room_for_a_key_only_in_new_rkey_mode() {
    for (new_rkey, expected) in [(false, 0), (true, 8)] {
        let mut rig = Rig::new(SessionConfig::default(), accept(8, new_rkey));
        rig.start();
        let yes = ConRsp::Accept(rig.params).to_bytes();
        rig.out.clear();
        rig.accept(0, &yes);
        rig.out.clear();
        rig.accept(1, &yes);
        // Seven permits of the channel, and each answer may take two receives.
        assert_eq!(rig.out.pop_front(), Some(Out::Receives(1, 15, expected)));
        let info = rig.info_rsp();
        rig.info(&info);
        assert_eq!(rig.out.pop_back(), Some(Out::Receives(0, 64, expected)));
    }
}

#[test]
fn descriptors_are_spread_over_the_chunks_in_order() {
    let mut rig = Rig::new(SessionConfig::default(), accept(4, true));
    rig.start();
    let yes = ConRsp::Accept(rig.params).to_bytes();
    rig.accept(0, &yes);
    rig.accept(1, &yes);
    rig.info(&vector("info_rsp_per_chunk"));
    let request = Request {
        direction: Direction::Write,
        user_bytes: 32,
        data_bytes: 0,
        exposure: None,
    };
    for (msg_id, rkey) in [(1, 0x20_0201), (2, 0x20_0302), (3, 0x20_0403)] {
        let post = rig.begin(&request);
        assert_eq!(post.msg_id, msg_id);
        assert_eq!(post.chunk.addr, CHUNKS_AT + u64::from(msg_id) * 131_072);
        assert_eq!(post.chunk.rkey, rkey);
    }
}

#[test]
fn a_first_connection_that_is_rejected_is_not_tried_again() {
    let mut rig = rig(1);
    rig.start();
    let error = PathError::from_reject(&vector("con_rsp_reject_eexist"));
    assert_eq!(error, PathError::Rejected(Errno::EXIST));
    rig.close(0, error);
    assert_eq!(rig.events.last(), Some(&SessionEvent::Lost(error)));
    assert_eq!(rig.session.path(PATH).unwrap().state, PathState::Closed);
    assert_eq!(rig.session.next_deadline(), None);
}

#[test]
fn a_reject_without_words_is_a_reset() {
    assert_eq!(
        PathError::from_reject(&[]),
        PathError::Rejected(Errno::CONNRESET)
    );
}

#[test]
fn each_step_of_a_handshake_has_its_time() {
    for steps in 0..3 {
        let mut rig = rig(1);
        rig.start();
        let yes = vector("con_rsp_accept_no_inval");
        for cid in 0..steps {
            rig.advance(Nanos::from_secs(29));
            rig.accept(cid, &yes);
        }
        rig.advance(Nanos::from_secs(29));
        assert_eq!(rig.session.path(PATH).unwrap().state, PathState::Connecting);
        rig.advance(Nanos::from_secs(1));
        rig.out.retain(|out| matches!(out, Out::Disconnect(_)));
        assert!(!rig.out.is_empty());
        rig.play_handshake();
        assert_eq!(
            rig.events.last(),
            Some(&SessionEvent::Lost(PathError::TimedOut))
        );
    }
}

#[test]
fn a_queue_that_is_too_short_for_the_channels_is_refused() {
    let mut rig = Rig::new(
        SessionConfig {
            channels: 4,
            ..SessionConfig::default()
        },
        accept(4, false),
    );
    rig.start();
    rig.play_handshake();
    assert!(matches!(rig.path_error(), PathError::QueueTooShallow(_)));
}

#[test]
fn a_client_may_use_less_than_the_server_has() {
    let config = SessionConfig {
        queue_depth: 9,
        channels: 2,
        ..SessionConfig::default()
    };
    let mut rig = Rig::new(config, accept(512, false));
    rig.start();
    rig.play_handshake();
    let counts: Vec<_> = rig
        .channels
        .iter()
        .map(|channel| channel.permits().count)
        .collect();
    assert_eq!(counts, [4, 4]);
}

#[test]
fn the_info_response_may_have_a_descriptor_for_each_chunk_of_any_depth() {
    for depth in [2, 3, 100, 512] {
        let mut rig = Rig::new(SessionConfig::default(), accept(depth, false));
        rig.start();
        let yes = ConRsp::Accept(rig.params).to_bytes();
        rig.accept(0, &yes);
        rig.accept(1, &yes);
        let chunk = rnbd_wire::rtrs::Descriptor {
            addr: 0x1000,
            key: 7,
            len: 131_072,
        };
        let mut message = vec![0; InfoRsp::bytes(depth)];
        InfoRsp::encode(&vec![chunk; depth.into()], None, &mut message);
        rig.info(&message);
        assert!(rig.session.is_up(), "depth {depth}");
    }
}
