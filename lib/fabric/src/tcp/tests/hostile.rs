//! Whoever connects and means no good, or is merely lost.

use std::io::Read;
use std::net::TcpListener;

use proptest::prelude::*;
use rnbd_base::Nanos;

use super::peer::{Host, LIMITS, Raw, RawPeer, frame, header};
use crate::Fabric;
use crate::tcp::TcpConfig;
use crate::tcp::frame::{CHAIN_MAX, FrameKind, Header};
use crate::tcp::hello::{HelloBytes, HelloKind};
use crate::types::{Addr, CloseReason, ConnectParams, PostError, PrivateData};

/// Sends `bytes` as the first ones of a connection: no event may come of it, the connection must
/// be closed, and the next one be served.
fn is_dropped(bytes: &[u8]) {
    let mut host = Host::new(TcpConfig::default());
    let mut stranger = RawPeer::connect(host.addr);
    stranger.send(bytes);
    host.poll_until("the drop", |host| is_closed(host, &mut stranger));
    assert!(host.events.is_empty());
    host.raw_connection(1);
}

/// Whether the peer has been let go, without waiting for it.
fn is_closed(host: &mut Host, peer: &mut RawPeer) -> bool {
    host.poll();
    peer.0.set_nonblocking(true).unwrap();
    let ended = match peer.0.read(&mut [0; 64]) {
        Ok(bytes) => bytes == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    };
    peer.0.set_nonblocking(false).unwrap();
    ended
}

#[test]
fn a_browser_is_dropped() {
    is_dropped(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
}

#[test]
fn random_bytes_are_dropped() {
    is_dropped(&[0xa5; 1000]);
    is_dropped(b"RNBDFRM?");
}

#[test]
fn a_malformed_hello_is_dropped() {
    let hello = HelloBytes::encode(HelloKind::Connect, &PrivateData::EMPTY);
    for (at, byte) in [(10, 0), (10, 2), (10, 99), (11, 197), (11, 255), (15, 1)] {
        let mut bytes = hello.as_bytes().to_vec();
        bytes[at] = byte;
        is_dropped(&bytes);
    }
}

#[test]
fn who_leaves_without_a_word_leaves_nothing_behind() {
    let config = TcpConfig {
        max_connections: 1,
        ..TcpConfig::default()
    };
    let mut host = Host::new(config);
    for _ in 0..10 {
        drop(RawPeer::connect(host.addr));
        (0..50).for_each(|_| host.poll());
    }
    assert!(host.events.is_empty());
    host.raw_connection(1);
}

#[test]
fn another_version_is_told_ours() {
    let mut host = Host::new(TcpConfig::default());
    let mut peer = RawPeer::connect(host.addr);
    let hello = HelloBytes::encode(HelloKind::Connect, &PrivateData::EMPTY);
    let mut bytes = hello.as_bytes().to_vec();
    bytes[8] = 2;
    bytes.extend([7; 40]);
    peer.send(&bytes);
    host.poll_until("the answer", |_| peer.has_bytes());
    assert_eq!(peer.hear_hello(), Some(4));
    peer.expect_end();
    assert!(host.events.is_empty());
}

#[test]
fn who_says_nothing_is_closed_by_the_clock() {
    let mut host = Host::new(TcpConfig::default());
    let mut slow = RawPeer::connect(host.addr);
    slow.send(b"RNBDF");
    host.poll_until("the connection", |host| {
        host.fabric.next_deadline().is_some()
    });
    assert_eq!(
        host.fabric.next_deadline(),
        Some(host.now + Nanos::from_secs(5))
    );
    host.now += Nanos::from_secs(5);
    host.poll();
    slow.expect_end();
    assert_eq!(host.fabric.next_deadline(), None);
    assert!(host.events.is_empty());
}

#[test]
fn a_crowd_that_says_nothing_does_not_keep_others_out() {
    let config = TcpConfig {
        max_pending_handshakes: 4,
        ..TcpConfig::default()
    };
    let mut host = Host::new(config);
    let mut crowd: Vec<_> = (0..20).map(|_| RawPeer::connect(host.addr)).collect();
    host.raw_connection(1);
    for early in &mut crowd[..10] {
        early.expect_end();
    }
}

#[test]
fn a_request_that_nobody_answers_ends() {
    let mut host = Host::new(TcpConfig::default());
    let mut peer = RawPeer::connect(host.addr);
    peer.say_hello(HelloKind::Connect);
    let conn = host.request();
    host.now += Nanos::from_secs(5);
    assert_eq!(host.closed(conn), CloseReason::TimedOut);
    peer.expect_end();
}

#[test]
fn frames_before_the_accept_are_a_violation() {
    let mut host = Host::new(TcpConfig::default());
    let mut peer = RawPeer::connect(host.addr);
    peer.say_hello(HelloKind::Connect);
    let conn = host.request();
    peer.send(&header(FrameKind::Send, 0).encode());
    assert!(matches!(host.closed(conn), CloseReason::Violation(_)));
}

/// Connects a fabric to a server that answers with `answer`.
fn connect_to(answer: &[u8]) -> CloseReason {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut host = Host::new(TcpConfig::default());
    let params = ConnectParams {
        dst: Addr::Ip(server.local_addr().unwrap()),
        src: None,
        private_data: PrivateData::EMPTY,
        domain: None,
        limits: LIMITS,
        timeout_ns: 1_000_000_000,
    };
    let conn = host.fabric.connect(&params, host.now).unwrap();
    let mut peer = RawPeer(server.accept().unwrap().0);
    peer.send(answer);
    let reason = host.closed(conn);
    assert_eq!(host.events.len(), 1);
    let posted = host.fabric.post_recv(conn, 0, None);
    assert_eq!(posted, Err(PostError::NotConnected));
    reason
}

#[test]
fn a_server_of_another_kind_is_recognised() {
    let reason = connect_to(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    assert!(matches!(reason, CloseReason::Violation(_)));
}

#[test]
fn a_server_of_another_version_is_recognised() {
    let hello = HelloBytes::encode(HelloKind::Version, &PrivateData::EMPTY);
    let mut bytes = hello.as_bytes().to_vec();
    bytes[8] = 3;
    let reason = connect_to(&bytes);
    assert!(matches!(reason, CloseReason::Failed(why) if why.contains("version")));
}

#[test]
fn a_server_that_asks_in_return_is_refused() {
    let hello = HelloBytes::encode(HelloKind::Connect, &PrivateData::EMPTY);
    let reason = connect_to(hello.as_bytes());
    assert!(matches!(reason, CloseReason::Violation(_)));
}

/// Sends what `attack` makes on a connection that is up: it must end with a violation, the memory
/// that was not opened stay untouched, and another connection stay up.
fn is_a_violation(attack: impl FnOnce(&Raw) -> Vec<u8>) {
    let mut host = Host::new(TcpConfig::default());
    let mut raw = host.raw_connection(4);
    let other = host.raw_connection(4);
    let bytes = attack(&raw);
    raw.stream.send(&bytes);
    let reason = host.closed(raw.conn);
    assert!(matches!(reason, CloseReason::Violation(_)), "{reason:?}");
    assert_eq!(host.fabric.stats().violations, 1);
    assert_eq!(host.events.len(), 1);
    raw.stream.expect_end();
    let outside = raw.buffer.span().slice(12288, 4096).unwrap();
    assert!(outside.is_zeroed());
    host.fabric.post_recv(other.conn, 9, None).unwrap();
}

fn write(raw: &Raw, rkey: u32, offset: i64, length: u32) -> Header {
    Header {
        rkey,
        addr: raw.target().wrapping_add_signed(offset),
        ..header(FrameKind::Write, length)
    }
}

#[test]
fn a_huge_length_is_a_violation() {
    is_a_violation(|raw| frame(write(raw, raw.key.rkey, 0, u32::MAX), &[1; 100]));
    is_a_violation(|_| frame(header(FrameKind::Send, u32::MAX), &[1; 100]));
}

#[test]
fn a_key_that_is_not_valid_is_a_violation() {
    for change in [1, 0x100, 0xffff_ffff] {
        is_a_violation(|raw| frame(write(raw, raw.key.rkey ^ change, 0, 8), &[1; 8]));
    }
    is_a_violation(|raw| frame(write(raw, 0, 0, 8), &[1; 8]));
}

#[test]
fn a_range_outside_the_key_is_a_violation() {
    for (offset, length) in [(-1, 8), (4089, 8), (4096, 1), (i64::MIN, 8)] {
        is_a_violation(|raw| {
            let payload = vec![1; length as usize];
            frame(write(raw, raw.key.rkey, offset, length), &payload)
        });
    }
}

#[test]
fn a_send_longer_than_the_receive_is_a_violation() {
    is_a_violation(|_| frame(header(FrameKind::Send, 101), &[1; 101]));
}

#[test]
fn a_malformed_header_is_a_violation() {
    for (at, byte) in [(0, 0), (0, 6), (0, 255), (1, 2), (1, 255), (2, 1), (3, 1)] {
        is_a_violation(|_| {
            let mut bytes = header(FrameKind::Send, 0).encode();
            bytes[at] = byte;
            bytes.to_vec()
        });
    }
}

#[test]
fn a_chain_that_never_ends_is_a_violation() {
    let mut link = header(FrameKind::Write, 0);
    link.chained = true;
    is_a_violation(|_| link.encode().repeat(CHAIN_MAX + 1));
}

#[test]
fn a_violation_in_the_middle_of_a_chain_ends_it_there() {
    is_a_violation(|raw| {
        let mut good = write(raw, raw.key.rkey, 0, 8);
        good.chained = true;
        let bad = write(raw, raw.key.rkey, 4090, 8);
        [&good.encode()[..], &bad.encode(), &[1; 16]].concat()
    });
}

#[test]
fn an_invalidation_of_what_is_not_a_window_is_a_violation() {
    is_a_violation(|raw| {
        let mut inv = header(FrameKind::SendInv, 0);
        inv.imm = raw.key.rkey;
        inv.encode().to_vec()
    });
}

#[test]
fn a_write_in_progress_stops_when_its_key_is_taken_away() {
    let mut host = Host::new(TcpConfig::default());
    let mut raw = host.raw_connection(1);
    let bytes = frame(write(&raw, raw.key.rkey, 0, 4096), &[1; 1000]);
    raw.stream.send(&bytes);
    let last = raw.buffer.span().slice(8192 + 999, 1).unwrap();
    host.poll_until("the first part", |_| !last.is_zeroed());
    host.fabric.deregister(raw.key.mr);
    raw.stream.send(&[2; 3096]);
    assert!(matches!(host.closed(raw.conn), CloseReason::Violation(_)));
    let rest = raw.buffer.span().slice(8192 + 1000, 3096).unwrap();
    assert!(rest.is_zeroed());
}

/// Bytes that resemble frames closely enough to get past the first checks now and then.
fn any_frames() -> impl Strategy<Value = Vec<(u8, bool, u32, bool, i16, u8)>> {
    let length = prop_oneof![0_u32..200, Just(4096), any::<u32>()];
    let frame = (
        0_u8..7,
        any::<bool>(),
        length,
        any::<bool>(),
        -9_i16..4200,
        0_u8..255,
    );
    proptest::collection::vec(frame, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_frames_harm_nobody(frames in any_frames(), tail in any::<[u8; 32]>()) {
        let mut host = Host::new(TcpConfig::default());
        let mut raw = host.raw_connection(8);
        for (code, chained, length, right_key, offset, fill) in frames {
            let key = if right_key { raw.key.rkey } else { u32::from(fill) };
            let mut bytes = write(&raw, key, offset.into(), length).encode();
            bytes[0] = code;
            bytes[1] = chained.into();
            raw.stream.send(&bytes);
            raw.stream.send(&vec![fill; length.min(5000) as usize]);
        }
        raw.stream.send(&tail);
        raw.stream.0.shutdown(std::net::Shutdown::Write).unwrap_or_default();
        // Receives run out at times; then the fabric rightly waits.
        (0..200).for_each(|_| host.poll());
        host.fabric.disconnect(raw.conn);
        host.closed(raw.conn);
        prop_assert!(raw.buffer.span().slice(800, 8192 - 800).unwrap().is_zeroed());
        prop_assert!(raw.buffer.span().slice(12288, 4096).unwrap().is_zeroed());
    }
}
