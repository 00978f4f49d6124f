//! Memory is reached through keys, and through nothing else.

use super::Testbed;
use super::rig::{Link, Region, Rig, linked, linked_at};
use crate::{Access, CloseReason, Fabric, RemoteAddr, WorkRequest, WrOp};

const LEN: usize = 4096;

/// The client writes `len` bytes to `remote` and announces it.
fn write<T: Testbed>(rig: &mut Rig<T>, link: &Link, remote: RemoteAddr, len: usize) {
    let from = rig.source(link.client, &vec![0xAB; len]);
    let wr = WorkRequest::new(WrOp::WriteImm(remote, 1)).with_sge(from.sge(0, len));
    rig.post_wr(link.client, &wr);
}

/// The write is a violation and does not change a byte of `region`.
fn assert_refused<T: Testbed>(
    rig: &mut Rig<T>,
    link: &Link,
    region: &Region,
    remote: RemoteAddr,
    len: usize,
) {
    rig.post_empty_recvs(link.server, 1);
    write(rig, link, remote, len);
    rig.assert_violated(link);
    assert_eq!(rig.completions_waiting(1), 0);
    assert!(region.span.is_zeroed());
}

/// First byte, last byte, and all of them.
pub fn a_region_opens_exactly_its_bytes<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let region = rig.region(link.server, LEN, Access::RemoteWrite);
    rig.post_empty_recvs(link.server, 3);
    for (offset, len) in [(0_u16, 1), (4095, 1), (0, LEN)] {
        region.span.fill(0);
        write(&mut rig, &link, region.remote(u64::from(offset)), len);
        assert_eq!(rig.write_imm(link.server), 1);
        assert_eq!(region.bytes(usize::from(offset), len), vec![0xAB; len]);
    }
}

/// A made-up key is a violation.
pub fn a_key_that_nobody_has_is_refused<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let region = rig.region(link.server, LEN, Access::RemoteWrite);
    let remote = RemoteAddr {
        rkey: region.key.rkey ^ 0x00F0_0F00,
        ..region.remote(0)
    };
    assert_refused(&mut rig, &link, &region, remote, 1);
}

/// What another peer was given does not help.
pub fn the_key_of_another_domain_is_refused<T: Testbed>() {
    let (mut rig, link, addr) = linked_at::<T>();
    let other = rig.link(addr);
    let region = rig.region(other.server, LEN, Access::RemoteWrite);
    assert_refused(&mut rig, &link, &region, region.remote(0), 1);
    rig.assert_alive(&other);
}

/// One byte too many.
pub fn a_write_beyond_the_end_is_refused<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let region = rig.region(link.server, LEN, Access::RemoteWrite);
    assert_refused(&mut rig, &link, &region, region.remote(1), LEN);
}

/// One byte too early.
pub fn a_write_before_the_start_is_refused<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let region = rig.region(link.server, LEN, Access::RemoteWrite);
    assert_refused(&mut rig, &link, &region, region.remote(u64::MAX), 2);
}

/// An end that wraps around is not an end within.
pub fn an_address_that_overflows_is_refused<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let region = rig.region(link.server, LEN, Access::RemoteWrite);
    let remote = RemoteAddr {
        addr: u64::MAX - 10,
        ..region.remote(0)
    };
    assert_refused(&mut rig, &link, &region, remote, LEN);
}

/// Memory that was not opened to peers is not.
pub fn a_region_for_local_use_is_refused<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let region = rig.region(link.server, LEN, Access::Local);
    assert_refused(&mut rig, &link, &region, region.remote(0), 1);
}

/// Deregistering takes effect at once.
pub fn a_deregistered_region_is_refused<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let region = rig.region(link.server, LEN, Access::RemoteWrite);
    rig.fabric(1).deregister(region.key.mr);
    assert_refused(&mut rig, &link, &region, region.remote(0), 1);
}

/// A message has to fit into the receive that it takes.
pub fn a_send_longer_than_the_receive_is_refused<T: Testbed>() {
    for room in [0, 16] {
        let (mut rig, link) = linked::<T>();
        let inbox = rig.region(link.server, 64, Access::Local);
        match room {
            0 => rig.post_empty_recvs(link.server, 1),
            room => rig.post_recv(link.server, 1, inbox.sge(0, room)),
        }
        let from = rig.source(link.client, &[1; 17]);
        let wr = WorkRequest::new(WrOp::Send).with_sge(from.sge(0, 17));
        rig.post_wr(link.client, &wr);
        rig.assert_violated(&link);
        assert!(inbox.bytes(16, 48) == [0; 48]);
    }
}

/// Other connections, of the same peer and in the same domain, go on.
pub fn a_violation_closes_one_connection_only<T: Testbed>() {
    let (mut rig, first, addr) = linked_at::<T>();
    let second = rig.link_beside(addr, &first);
    let third = rig.link(addr);
    let region = rig.region(first.server, LEN, Access::RemoteWrite);
    assert_refused(&mut rig, &first, &region, region.remote(9), LEN);
    rig.assert_alive(&second);
    rig.assert_alive(&third);
    rig.post_empty_recvs(second.server, 1);
    write(&mut rig, &second, region.remote(0), LEN);
    assert_eq!(rig.write_imm(second.server), 1);
}

/// A region belongs to the domain, not to the connection that was first.
pub fn connections_of_a_domain_share_its_regions<T: Testbed>() {
    let (mut rig, first, addr) = linked_at::<T>();
    let second = rig.link_beside(addr, &first);
    assert_eq!(second.server.domain, first.server.domain);
    assert_eq!(second.client.domain, first.client.domain);
    let region = rig.region(first.server, LEN, Access::RemoteWrite);
    for link in [&first, &second] {
        rig.post_empty_recvs(link.server, 1);
        write(&mut rig, link, region.remote(0), LEN);
        assert_eq!(rig.write_imm(link.server), 1);
    }
    rig.fabric(1).disconnect(first.server.conn);
    let reason = rig.both_closed(&first);
    assert_eq!(reason, CloseReason::Local);
    rig.post_empty_recvs(second.server, 1);
    write(&mut rig, &second, region.remote(0), LEN);
    assert_eq!(rig.write_imm(second.server), 1);
}

/// Closing a domain waits for what it holds.
pub fn a_closed_domain_serves_what_it_still_has<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let region = rig.region(link.server, LEN, Access::RemoteWrite);
    let from = rig.source(link.client, &[0xAB; LEN]);
    rig.fabric(1).close_domain(link.server.domain);
    rig.fabric(0).close_domain(link.client.domain);
    rig.post_empty_recvs(link.server, 1);
    let op = WrOp::WriteImm(region.remote(0), 1);
    rig.post_wr(
        link.client,
        &WorkRequest::new(op).with_sge(from.sge(0, LEN)),
    );
    assert_eq!(rig.write_imm(link.server), 1);
    rig.fabric(0).disconnect(link.client.conn);
    rig.both_closed(&link);
    rig.fabric(1).deregister(region.key.mr);
    rig.fabric(0).deregister(from.key.mr);
    let span = region.span;
    let late = rig
        .fabric(1)
        .register(link.server.domain, span, Access::Local);
    assert!(late.is_err(), "the domain is gone with its last holder");
}
