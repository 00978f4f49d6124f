//! Who may connect, and how a path comes up and ends.

use super::*;

#[test]
fn what_is_no_request_is_refused() {
    let mut bed = Bed::new(false);
    let good = con_req(1, 0).to_bytes();
    let mut refused = |change: fn(&mut Vec<u8>)| {
        let mut bytes = good.to_vec();
        change(&mut bytes);
        bed.sessions.handle_con_req(&bytes, route(1), NOW).verdict
    };
    let reset = Err(Refusal::Malformed);
    assert_eq!(refused(|bytes| bytes.truncate(55)), reset);
    assert_eq!(refused(|bytes| bytes[2] ^= 1), reset, "magic");
    assert_eq!(refused(|bytes| bytes[5] = 3), reset, "major version");
    assert_eq!(refused(|bytes| bytes[6] = 3), reset, "cid beyond cid_num");
    assert_eq!(refused(|bytes| bytes[8] = 0), reset, "cid_num 0");
    assert_eq!(refused(|bytes| bytes[9] = 0x10), reset, "cid_num 4099");
    assert_eq!(Refusal::Malformed.errno(), Errno::CONNRESET);
    assert_eq!(
        refused(|bytes| bytes[12..28].fill(0)),
        reset,
        "no path uuid"
    );
    assert_eq!(
        refused(|bytes| bytes[28..44].fill(0)),
        reset,
        "no session uuid"
    );
    assert_eq!(
        refused(|bytes| bytes[44] = 0),
        Err(Refusal::UnknownSession),
        "may not create"
    );
    assert!(
        refused(|bytes| bytes.resize(92, 0xff)).is_ok(),
        "padded by the CM"
    );
}

#[test]
fn connections_of_a_path_may_come_in_any_order_but_once() {
    let mut bed = Bed::new(false);
    let first = bed.request(&con_req(1, 2), 1).verdict.unwrap();
    assert!(first.new_path);
    assert_eq!(
        bed.request(&con_req(1, 2), 1).verdict,
        Err(Refusal::Conflict)
    );
    let other_count = ConReq {
        cid_num: 4,
        ..con_req(1, 0)
    };
    assert_eq!(bed.request(&other_count, 1).verdict, Err(Refusal::Conflict));
    let second = bed.request(&con_req(1, 0), 1).verdict.unwrap();
    assert_eq!((second.path, second.new_path), (first.path, false));
}

#[test]
fn a_second_path_needs_other_addresses_and_no_permission_to_create() {
    let mut bed = Bed::new(false);
    bed.connect(1, 1);
    let added = ConReq {
        first_conn: false,
        ..con_req(2, 0)
    };
    assert_eq!(bed.request(&added, 1).verdict, Err(Refusal::AddressPair));
    assert!(bed.request(&added, 2).verdict.is_ok());
    assert_eq!(bed.sessions.iter().count(), 1);
}

#[test]
fn a_path_uuid_names_a_path_of_its_own_session_only() {
    let mut bed = Bed::new(false);
    let first = bed.connect(1, 1);
    let other_session = ConReq {
        paths_uuid: [9; 16],
        ..con_req(1, 0)
    };
    let other = bed.request(&other_session, 1).verdict.unwrap();
    assert!(other.new_path);
    assert_ne!(other.path, first);
    assert_eq!(bed.sessions.iter().count(), 2);
}

#[test]
fn a_session_has_as_many_paths_as_configured() {
    let config = Config {
        paths_per_session: 2,
        ..Config::default()
    };
    let mut bed = Bed::with(config);
    for host in 1..=2 {
        assert!(bed.request(&con_req(host, 0), host).verdict.is_ok());
    }
    assert_eq!(
        bed.request(&con_req(3, 0), 3).verdict,
        Err(Refusal::PathsOfSession)
    );
}

#[test]
fn a_path_has_as_many_connections_as_configured() {
    let config = Config {
        cons_per_path: 2,
        ..Config::default()
    };
    let mut bed = Bed::with(config);
    let refused = bed.request(&con_req(1, 0), 1).verdict;
    assert_eq!(refused, Err(Refusal::ConnectionsOfPath));
    assert_eq!(bed.sessions.iter().count(), 0);
}

/// As `[7.0]` (protocol.md 3.6), by the timer: meanwhile the old path is left alone.
#[test]
fn a_path_that_stopped_in_its_handshake_gives_way_after_a_while() {
    let mut bed = Bed::new(false);
    let stuck = bed.request(&con_req(1, 0), 1).verdict.unwrap().path;
    bed.now = NOW + Nanos::from_secs(29);
    for request in [con_req(1, 0), con_req(2, 0)] {
        let decision = bed.request(&request, 1);
        assert!(decision.verdict.is_err());
        assert_eq!(decision.superseded, None);
    }
    let deadline = NOW + Nanos::from_secs(30);
    assert_eq!(
        bed.path(stuck).handle_timer(deadline),
        TimerAction::Close(CloseCause::HandshakeTimeout)
    );
    bed.lose(stuck);
    bed.sessions.remove_path(stuck);
    assert!(bed.request(&con_req(2, 0), 1).verdict.is_ok());
}

#[test]
fn a_path_that_comes_again_is_refused_until_its_old_incarnation_has_drained() {
    let mut bed = Bed::new(false);
    let old = bed.up();
    bed.arrive(old, 0, 32, &read_header(32, false, None))
        .unwrap()
        .unwrap();
    let again = ConReq {
        recon_cnt: 2,
        ..con_req(1, 0)
    };
    let decision = bed.request(&again, 1);
    assert_eq!(decision.verdict, Err(Refusal::Draining));
    assert_eq!(decision.superseded, Some(old));

    bed.lose(old);
    assert!(!bed.path(old).is_drained(), "an I/O is in flight");
    assert_eq!(bed.request(&again, 1).verdict, Err(Refusal::Draining));
    assert_eq!(
        bed.path(old).answer(0, Ok(())),
        None,
        "its answer is dropped"
    );
    assert!(
        bed.sessions.remove_path(old).session.is_some(),
        "with its last path goes the session"
    );
    let new = bed.request(&again, 1).verdict.unwrap();
    assert!(new.new_path);
    assert_ne!(new.path, old);
    assert!(
        bed.sessions.path(old).is_none(),
        "the old key reaches nothing"
    );
}

#[test]
fn a_request_from_before_the_last_reconnect_closes_nothing() {
    let mut bed = Bed::new(false);
    let attempt = |recon_cnt| ConReq {
        recon_cnt,
        ..con_req(1, 0)
    };
    let path = bed.request(&attempt(3), 1).verdict.unwrap().path;
    for (recon_cnt, verdict, superseded) in [
        (2, Err(Refusal::Conflict), None),
        (0x8003, Err(Refusal::Conflict), None),
        (3, Err(Refusal::Conflict), None),
        (4, Err(Refusal::Draining), Some(path)),
        (0x8002, Err(Refusal::Draining), Some(path)),
    ] {
        let decision = bed.request(&attempt(recon_cnt), 1);
        assert_eq!(
            decision,
            Decision {
                verdict,
                superseded
            },
            "{recon_cnt:#x}"
        );
    }
}

#[test]
fn the_attempt_counter_wraps() {
    let mut bed = Bed::new(false);
    let attempt = |recon_cnt| ConReq {
        recon_cnt,
        ..con_req(1, 0)
    };
    let path = bed.request(&attempt(u16::MAX), 1).verdict.unwrap().path;
    assert_eq!(bed.request(&attempt(0), 1).superseded, Some(path));
}

#[test]
fn info_req_needs_all_connections() {
    let mut bed = Bed::new(false);
    let key = bed.request(&con_req(1, 0), 1).verdict.unwrap().path;
    assert_eq!(bed.info(key, "clt1"), Err(Violation::ConnectionsMissing));
}

#[test]
fn info_req_comes_once() {
    let mut bed = Bed::new(false);
    let key = bed.up();
    assert_eq!(bed.info(key, "clt1"), Err(Violation::OutOfTurn));
}

#[test]
fn info_req_must_name_a_session() {
    let mut bed = Bed::new(false);
    let key = bed.connect(1, 1);
    let good = InfoReq {
        pathname: Name::new("clt1").unwrap(),
    };
    let mut refused = |change: fn(&mut Vec<u8>)| {
        let mut bytes = good.to_bytes().to_vec();
        change(&mut bytes);
        bed.sessions.handle_info_req(key, &bytes, NOW, |_, _| true)
    };
    let malformed = Err(Violation::InfoReq);
    assert_eq!(refused(|bytes| bytes.truncate(271)), malformed);
    assert_eq!(refused(|bytes| bytes[0] = 1), malformed, "type");
    assert_eq!(refused(|bytes| bytes[2] = 0), malformed, "empty");
    assert_eq!(refused(|bytes| bytes[3] = b'/'), malformed);
    assert_eq!(refused(|bytes| bytes[3] = b'.'), malformed);
    assert_eq!(refused(|bytes| bytes[3] = 7), malformed, "not printable");
    assert_eq!(
        refused(|bytes| bytes[2..257].fill(b'x')),
        malformed,
        "no NUL"
    );
    assert!(
        refused(|bytes| bytes[257..].fill(0xee)).is_ok(),
        "reserved is ignored"
    );
}

#[test]
fn a_name_is_one_sessions_and_the_same_on_all_its_paths() {
    let mut bed = Bed::new(false);
    let first = bed.connect(1, 1);
    let second = bed.connect(2, 2);
    assert!(bed.info(first, "clt1").unwrap().first_path);
    assert_eq!(bed.info(second, "clt2"), Err(Violation::NameDiffers));
    assert!(!bed.info(second, "clt1").unwrap().first_path);

    let stranger = ConReq {
        paths_uuid: [9; 16],
        cid_num: 1,
        ..con_req(3, 0)
    };
    let third = bed.request(&stranger, 3).verdict.unwrap().path;
    let message = InfoReq {
        pathname: Name::new("clt1").unwrap(),
    };
    let taken = bed
        .sessions
        .handle_info_req(third, &message.to_bytes(), NOW, |_, _| false);
    assert_eq!(taken, Err(Violation::NameTaken));
}

#[test]
fn a_handshake_that_stops_times_out() {
    let mut bed = Bed::new(false);
    let key = bed.request(&con_req(1, 0), 1).verdict.unwrap().path;
    bed.now = NOW + Nanos::from_secs(20);
    bed.request(&con_req(1, 1), 1).verdict.unwrap();
    let deadline = bed.sessions.next_deadline().unwrap();
    assert_eq!(
        deadline,
        NOW + Nanos::from_secs(50),
        "each step starts it anew"
    );
    assert_eq!(
        bed.path(key).handle_timer(Nanos(deadline.0 - 1)),
        TimerAction::Nothing
    );
    let action = bed.path(key).handle_timer(deadline);
    assert_eq!(action, TimerAction::Close(CloseCause::HandshakeTimeout));
}

#[test]
fn a_silent_client_is_given_up_and_any_word_keeps_it() {
    let mut bed = Bed::new(false);
    let key = bed.up();
    let mut actions = Vec::new();
    for second in 1..=35 {
        let now = NOW + Nanos::from_secs(second);
        let action = bed.path(key).handle_timer(now);
        if action != TimerAction::Nothing {
            actions.push((second, action));
        }
    }
    let dead = TimerAction::Close(CloseCause::HeartbeatTimeout);
    assert_eq!(actions, [(5, TimerAction::SendHeartbeat), (35, dead)]);
    assert_eq!(bed.path(key).counters().hb_missed, 5);

    bed.imm(key, 0, Imm::HEARTBEAT_ACK).unwrap();
    let action = bed.path(key).handle_timer(NOW + Nanos::from_secs(36));
    assert_ne!(action, dead);
}
