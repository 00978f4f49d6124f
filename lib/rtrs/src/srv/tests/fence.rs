//! The extension between peers of this project: what is agreed, and the end of one path confirmed
//! over another.

use rnbd_wire::extension::{Features, PathToken};

use super::*;
use crate::HeartbeatConfig;

const PEER: HeartbeatConfig = HeartbeatConfig {
    interval: Nanos::from_millis(250),
    missed_max: 2,
};

fn bed() -> Bed {
    Bed::with(Config {
        queue_depth: DEPTH,
        chunk_bytes: CHUNK,
        extension: Some(ExtensionConfig {
            instance: 77,
            heartbeat: PEER,
        }),
        ..Config::default()
    })
}

fn peer_req(uuid: u8, cid: u16) -> ConReq {
    ConReq {
        extension: Some(Features::FENCE),
        ..con_req(uuid, cid)
    }
}

impl Bed {
    fn peer_up(&mut self, uuid: u8) -> (PathKey, PathToken) {
        let mut path = None;
        for cid in 0..3 {
            let verdict = self.request(&peer_req(uuid, cid), uuid).verdict;
            path = Some(verdict.unwrap().path);
        }
        let key = path.unwrap();
        self.info(key, "clt1").unwrap();
        (key, self.path(key).token().unwrap())
    }

    fn fence(&mut self, asker: PathKey, token: PathToken) -> Fence {
        let asked = self.imm(asker, 0, Imm::fence(token)).unwrap();
        assert_eq!(asked, Inbound::Fence(token));
        self.sessions.handle_fence(asker, token)
    }

    /// Whom to tell once the path is gone.
    fn confirmed(&mut self, key: PathKey) -> Vec<PathKey> {
        let confirmation = self.sessions.remove_path(key).confirmation;
        confirmation.map_or_else(Vec::new, |confirmation| confirmation.askers)
    }
}

#[test]
fn a_client_that_offers_gets_a_token_for_each_life_of_a_path() {
    let mut bed = bed();
    let (first, token) = bed.peer_up(1);
    let agreement = bed.path(first).parameters().extension.unwrap();
    assert_eq!((agreement.instance, agreement.token), (77, token));
    assert_eq!(agreement.features, Features::FENCE);
    let (_, second) = bed.peer_up(2);
    assert_ne!(second, token);
    bed.lose(first);
    bed.sessions.remove_path(first);
    let (_, again) = bed.peer_up(1);
    assert_ne!(again, token);
}

#[test]
fn a_kernel_client_is_told_nothing_and_may_not_ask() {
    let mut bed = bed();
    let (peer, token) = bed.peer_up(1);
    let key = bed.connect(2, 2);
    bed.info(key, "clt1").unwrap();
    assert_eq!(bed.path(key).parameters().extension, None);
    let ignored = bed.imm(key, 0, Imm::fence(token));
    assert_eq!(ignored, Ok(Inbound::Ignored { first: true }));
    assert_eq!(bed.path(peer).state(), PathState::Connected);
}

#[test]
fn a_server_that_shall_not_use_the_extension_agrees_to_nothing() {
    let mut bed = Bed::new(false);
    let key = bed.request(&peer_req(1, 0), 1).verdict.unwrap().path;
    assert_eq!(bed.path(key).parameters().extension, None);
}

#[test]
fn clients_that_know_the_extension_have_a_heartbeat_of_their_own() {
    let mut bed = bed();
    let (peer, _) = bed.peer_up(1);
    assert_eq!(bed.path(peer).heartbeat_config(), PEER);
    assert_eq!(bed.path(peer).next_deadline(), Some(NOW + PEER.interval));
    let kernel = bed.connect(2, 2);
    bed.info(kernel, "clt1").unwrap();
    assert_eq!(
        bed.path(kernel).heartbeat_config(),
        HeartbeatConfig::default()
    );
}

#[test]
fn a_path_is_confirmed_when_its_connections_and_its_io_are_gone() {
    let mut bed = bed();
    let (lost, token) = bed.peer_up(1);
    let (asker, _) = bed.peer_up(2);
    bed.arrive(lost, 0, 32, &read_header(32, false, None))
        .unwrap()
        .unwrap();
    assert_eq!(bed.fence(asker, token), Fence::Awaited(lost));
    bed.lose(lost);
    assert!(!bed.path(lost).is_drained(), "its I/O is in flight");
    assert_eq!(bed.path(lost).answer(0, Ok(())), None);
    assert_eq!(bed.confirmed(lost), [asker]);
    assert_eq!(bed.fence(asker, token), Fence::Confirmed);
}

#[test]
fn whoever_asks_is_answered_once() {
    let mut bed = bed();
    let (lost, token) = bed.peer_up(1);
    let (second, _) = bed.peer_up(2);
    let (third, _) = bed.peer_up(3);
    for asker in [second, third, second] {
        assert_eq!(bed.fence(asker, token), Fence::Awaited(lost));
    }
    assert_eq!(bed.path(lost).fence_askers(), 2);
    bed.lose(lost);
    assert_eq!(bed.confirmed(lost), [second, third]);
}

#[test]
fn a_token_that_no_path_of_the_session_has_is_confirmed() {
    let mut bed = bed();
    let (asker, _) = bed.peer_up(1);
    assert_eq!(bed.fence(asker, PathToken::LAST), Fence::Confirmed);
    let stranger = ConReq {
        paths_uuid: [9; 16],
        cid_num: 1,
        ..peer_req(7, 0)
    };
    let other = bed.request(&stranger, 7).verdict.unwrap().path;
    let token = bed.path(other).token().unwrap();
    assert_eq!(bed.fence(asker, token), Fence::Confirmed);
    assert_eq!(bed.path(other).state(), PathState::Connecting);
}

#[test]
fn a_question_counts_on_connection_0_only() {
    let mut bed = bed();
    let (key, token) = bed.peer_up(1);
    let elsewhere = bed.imm(key, 1, Imm::fence(token));
    assert_eq!(elsewhere, Ok(Inbound::Ignored { first: true }));
    assert_eq!(bed.path(key).counters().fences, 0);
}
