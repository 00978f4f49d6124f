//! Memory that is sent without a copy, and memory that is not; connections that are not paced.

use rustix::net::sockopt::tcp_congestion;

use super::peer::{Host, Raw, buffer};
use crate::Fabric;
use crate::tcp::TcpConfig;
use crate::tcp::frame::HEADER_BYTES;
use crate::tcp::socket;
use crate::types::{Sge, WorkRequest, WrOp};

/// What the peer receives of memory that changes from 1 to 2 when its sending has completed, and
/// before the peer looks.
fn received(raw: &mut Raw, host: &mut Host, bytes: usize, lent: bool) -> Vec<u8> {
    let memory = buffer(bytes);
    memory.span().fill(1);
    let span = memory.span().slice(0, bytes).unwrap();
    let mut wr = WorkRequest::new(WrOp::Send).with_sge(Sge { span, lkey: 0 });
    wr.lent = lent;
    host.fabric.post(raw.conn, &wr.signaled(1)).unwrap();
    host.poll_until("the end of sending", |host| !host.completions.is_empty());
    host.completions.clear();
    memory.span().fill(2);
    let mut received = raw.stream.receive(HEADER_BYTES + bytes);
    received.drain(..HEADER_BYTES);
    received
}

#[test]
fn lent_memory_is_taken_when_the_peer_receives_it() {
    let mut host = Host::new(TcpConfig::default());
    let mut raw = host.raw_connection(1);
    for bytes in [32 << 10, 128 << 10] {
        let got = received(&mut raw, &mut host, bytes, true);
        assert!(got == vec![2; bytes], "{bytes} bytes were copied");
    }
}

#[test]
fn other_memory_is_free_when_its_sending_has_completed() {
    let mut host = Host::new(TcpConfig::default());
    let mut raw = host.raw_connection(1);
    for bytes in [32 << 10, 128 << 10] {
        assert!(received(&mut raw, &mut host, bytes, false) == vec![1; bytes]);
    }
}

#[test]
fn little_lent_memory_is_copied() {
    let mut host = Host::new(TcpConfig::default());
    let mut raw = host.raw_connection(1);
    assert_eq!(
        received(&mut raw, &mut host, 16 << 10, true),
        vec![1; 16 << 10]
    );
}

#[test]
fn connections_on_loopback_are_not_paced() {
    let mut host = Host::new(TcpConfig::default());
    let raw = host.raw_connection(1);
    let accepted = &host.fabric.connection(raw.conn).unwrap().socket;
    let connecting = socket::open(&host.addr, &TcpConfig::default()).unwrap();
    for socket in [accepted, &connecting] {
        assert_eq!(tcp_congestion(socket).unwrap(), "reno");
    }
}
