//! A path that comes up while another one is thought to be up.

use rnbd_base::Nanos;
use rnbd_wire::Imm;
use rnbd_wire::extension::ServiceId;

use super::many::{A, B, Many};
use crate::clt::{PathError, PathState, SessionConfig, SessionEvent};

fn service(number: u32) -> Option<ServiceId> {
    ServiceId::new(number)
}

/// A session with path A up in a service, or at a server that does not say it.
fn one(instance: Option<u64>, number: u32) -> Many {
    let mut many = Many::new(instance, SessionConfig::default());
    many.service = service(number);
    assert_eq!(many.add(), A);
    assert_eq!(many.state(A), PathState::Connected);
    many.events.clear();
    many
}

fn downs(many: &Many) -> usize {
    let is_down = |event: &&SessionEvent| matches!(event, SessionEvent::Down(_));
    many.events.iter().filter(is_down).count()
}

#[test]
fn a_path_of_the_same_service_is_used_at_once() {
    let mut many = one(Some(1), 7);
    many.mute.push(A);
    many.add();
    assert_eq!(many.state(B), PathState::Connected);
    assert!(many.channel.is_path_up(B));
    assert_eq!((downs(&many), many.heartbeats), (0, 0));
}

#[test]
fn a_path_of_a_later_service_shows_that_the_devices_are_closed() {
    let mut many = one(Some(1), u32::MAX);
    many.service = service(1); // Numbers wrap.
    many.add();
    assert_eq!(
        many.session.path(A).unwrap().error,
        PathError::SessionUnknown
    );
    assert_eq!(downs(&many), 1);
    assert!(!many.channel.is_path_up(B), "not before that is known");
    many.advance(Nanos(1));
    assert_eq!(many.state(B), PathState::Connected);
    let ups = many.events.iter();
    let ups = ups.filter(|event| matches!(event, SessionEvent::Up(_)));
    assert_eq!(ups.count(), 1, "devices are opened again");
}

#[test]
fn a_path_of_an_earlier_service_is_dead_itself() {
    let mut many = one(Some(1), 7);
    many.service = service(6);
    many.add();
    assert_eq!(
        many.session.path(B).unwrap().error,
        PathError::SessionUnknown
    );
    assert_eq!(many.state(A), PathState::Connected);
    assert_eq!(downs(&many), 0);
}

#[test]
fn a_kernel_server_shows_on_another_path_that_it_has_both() {
    let mut many = one(None, 0);
    many.mute.push(A);
    many.add();
    assert_eq!(many.heartbeats, 1);
    assert_eq!(many.state(B), PathState::Connecting);
    assert!(!many.channel.is_path_up(B));
    many.arrive(A, Imm::HEARTBEAT_ACK);
    assert_eq!(many.state(B), PathState::Connected);
    assert!(many.channel.is_path_up(B));
    assert_eq!(downs(&many), 0);
}

#[test]
fn a_heartbeat_that_was_sent_before_shows_nothing() {
    let mut many = one(None, 0);
    many.mute.push(A);
    many.advance(Nanos::from_secs(5));
    assert_eq!(many.heartbeats, 1);
    many.add();
    many.arrive(A, Imm::HEARTBEAT_ACK);
    assert_eq!(many.state(B), PathState::Connecting);
    assert_eq!(many.heartbeats, 2, "one after the other");
    many.arrive(A, Imm::HEARTBEAT_ACK);
    assert_eq!(many.state(B), PathState::Connected);
}

#[test]
fn a_server_without_numbers_that_is_silent_elsewhere_is_opened_anew() {
    let mut many = one(None, 0);
    many.mute.push(A);
    many.add();
    for _ in 0..40 {
        many.advance(Nanos::from_secs(1));
        if many.state(B) == PathState::Connecting {
            many.arrive(B, Imm::HEARTBEAT);
            assert!(!many.channel.is_path_up(B));
        }
    }
    assert_eq!(
        many.session.path(A).unwrap().error,
        PathError::HeartbeatLost
    );
    assert_eq!(downs(&many), 1);
    assert_eq!(many.state(B), PathState::Connected);
}

#[test]
fn of_two_that_join_when_the_last_is_lost_the_second_waits_for_the_first() {
    let mut many = one(None, 0);
    many.mute.push(A);
    many.add();
    let c = many.add();
    assert_eq!(many.heartbeats, 1, "one for both, or one after the other");
    many.mute.push(B);
    many.lose(A);
    many.advance(Nanos(1));
    assert_eq!(many.state(B), PathState::Connected);
    assert_eq!(many.state(c), PathState::Connecting);
    many.arrive(B, Imm::HEARTBEAT_ACK);
    assert_eq!(many.state(c), PathState::Connected);
    assert_eq!(downs(&many), 1);
}

#[test]
fn heartbeats_of_the_server_are_answered_while_a_path_joins() {
    let mut many = one(None, 0);
    many.mute.push(A);
    many.add();
    many.immediates.clear();
    many.arrive(B, Imm::HEARTBEAT);
    assert_eq!(many.immediates, [(B, Imm::HEARTBEAT_ACK)]);
}
