//! Connections that are left to epoll, and runtimes that sleep.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;

use super::peer::{Host, Raw, frame, header};
use crate::Fabric;
use crate::tcp::TcpConfig;
use crate::tcp::connection::Watch;
use crate::tcp::frame::FrameKind;
use crate::types::{CloseReason, RemoteAddr, Sge, WorkRequest, WrOp};

fn sleeps(host: &mut Host) -> bool {
    host.fabric.prepare_sleep(&mut Vec::new())
}

/// Whether a sleeper would wake within `seconds`.
fn wakes(host: &Host, seconds: i64) -> bool {
    let mut fds = [PollFd::new(host.fabric.watcher.fd(), PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&timeout)).unwrap() > 0
}

fn watch_of(host: &Host, raw: &Raw) -> Watch {
    host.fabric.connection(raw.conn).unwrap().watch
}

fn send(raw: &mut Raw) {
    raw.stream.send(&frame(header(FrameKind::Send, 3), b"abc"));
}

#[test]
fn many_connections_are_left_to_epoll_and_none_is_forgotten() {
    let mut host = Host::new(TcpConfig::default());
    let mut all: Vec<_> = (0..50).map(|_| host.raw_connection(1)).collect();
    for raw in &mut all {
        send(raw);
        host.poll_until("the message", |host| !host.completions.is_empty());
        assert_eq!(host.completions.pop().unwrap().conn, raw.conn);
    }
    assert!(sleeps(&mut host));
    let hot = all.iter().filter(|raw| watch_of(&host, raw) == Watch::Hot);
    assert_eq!(hot.count(), 0);
}

#[test]
fn a_connection_that_is_quiet_for_long_cools_and_warms_again() {
    let mut host = Host::new(TcpConfig::default());
    let mut raw = host.raw_connection(2);
    assert_eq!(watch_of(&host, &raw), Watch::Hot);
    host.poll_until("cooling", |host| watch_of(host, &raw) != Watch::Hot);
    send(&mut raw);
    host.poll_until("the message", |host| host.completions.len() == 1);
    assert_eq!(watch_of(&host, &raw), Watch::Hot);
    send(&mut raw);
    host.poll_until("the message", |host| host.completions.len() == 2);
}

#[test]
fn a_sleeper_wakes_for_a_message_a_stranger_and_an_end() {
    let mut host = Host::new(TcpConfig::default());
    let mut raw = host.raw_connection(1);
    assert!(sleeps(&mut host) && !wakes(&host, 0));
    send(&mut raw);
    assert!(wakes(&host, 10));
    host.poll_until("the message", |host| host.completions.len() == 1);
    assert!(sleeps(&mut host) && !wakes(&host, 0));
    let other = host.raw_connection(1);
    assert!(sleeps(&mut host) && !wakes(&host, 0));
    drop(other.stream);
    assert!(wakes(&host, 10));
    host.closed(other.conn);
}

#[test]
fn a_sleeper_is_not_woken_by_what_it_cannot_take() {
    let mut host = Host::new(TcpConfig::default());
    let mut raw = host.raw_connection(0);
    send(&mut raw);
    host.poll_until("the stop", |host| {
        let connection = host.fabric.connection(raw.conn).unwrap();
        connection.inbound.is_starved()
    });
    send(&mut raw);
    assert!(sleeps(&mut host) && !wakes(&host, 0));
    let span = raw.buffer.span().slice(0, 100).unwrap();
    let sge = Sge { span, lkey: 0 };
    host.fabric.post_recv(raw.conn, 1, Some(sge)).unwrap();
    assert!(!sleeps(&mut host));
    host.poll_until("the first message", |host| host.completions.len() == 1);
    host.fabric.post_recv(raw.conn, 2, Some(sge)).unwrap();
    host.poll_until("the second message", |host| host.completions.len() == 2);
}

#[test]
fn a_reset_is_noticed_on_a_connection_that_is_not_read() {
    let mut host = Host::new(TcpConfig::default());
    let mut raw = host.raw_connection(0);
    send(&mut raw);
    host.poll_until("the stop", |host| {
        let connection = host.fabric.connection(raw.conn).unwrap();
        connection.inbound.is_starved()
    });
    assert!(sleeps(&mut host) && !wakes(&host, 0));
    set_socket_linger(&raw.stream.0, Some(Duration::ZERO)).unwrap();
    drop(raw.stream);
    assert!(wakes(&host, 10));
    assert_eq!(host.closed(raw.conn), CloseReason::PeerClosed);
}

#[test]
fn a_sleeper_with_output_wakes_when_the_peer_takes_it() {
    let mut host = Host::new(TcpConfig {
        send_buffer_bytes: Some(1),
        ..TcpConfig::default()
    });
    let mut raw = host.raw_connection(1);
    let span = raw.buffer.span();
    let wr = WorkRequest::new(WrOp::Write(RemoteAddr::NONE)).with_sge(Sge { span, lkey: 0 });
    let (frames, length) = (60, 24 + span.len());
    for _ in 0..frames {
        host.fabric.post(raw.conn, &wr).unwrap();
    }
    host.poll_until("a full socket", |host| {
        let before = host.fabric.stats().idle_polls;
        host.poll();
        host.fabric.stats().idle_polls > before
    });
    assert!(sleeps(&mut host) && !wakes(&host, 0));
    let mut stream = raw.stream.0.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; frames * length];
        std::io::Read::read_exact(&mut stream, &mut all).is_ok()
    });
    while !reader.is_finished() {
        let unsent = host
            .fabric
            .connection(raw.conn)
            .unwrap()
            .outbound
            .has_unsent();
        assert!(!unsent || wakes(&host, 10));
        host.poll();
        sleeps(&mut host);
    }
    assert!(reader.join().unwrap());
    raw.stream.send(&[]);
}

#[test]
fn completions_that_nobody_has_taken_keep_the_runtime_awake() {
    let mut host = Host::new(TcpConfig::default());
    let raw = host.raw_connection(1);
    let wr = WorkRequest::new(WrOp::Send).signaled(1);
    host.fabric.post(raw.conn, &wr).unwrap();
    assert!(!sleeps(&mut host));
    host.poll();
    assert_eq!(host.completions.len(), 1);
    assert!(sleeps(&mut host));
}

#[test]
fn a_domain_ends_with_its_last_member() {
    let mut host = Host::new(TcpConfig::default());
    let raw = host.raw_connection(1);
    host.fabric.close_domain(raw.domain);
    host.fabric.unlisten(host.listener);
    host.fabric.disconnect(raw.conn);
    let span = raw.buffer.span();
    let access = crate::Access::Local;
    let late = host.fabric.register(raw.domain, span, access).unwrap();
    host.fabric.deregister(raw.key.mr);
    host.fabric.deregister(late.mr);
    assert!(host.fabric.register(raw.domain, span, access).is_err());
}
