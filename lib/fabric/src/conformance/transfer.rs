//! What is posted arrives: once, whole, in order.

use super::Testbed;
use super::rig::{End, Link, Region, Rig, linked, linked_at};
use crate::{Access, CompletionKind, Fabric, RemoteAddr, Sge, WorkRequest, WrOp};

/// Bytes that differ from those of every other seed.
fn pattern(seed: usize, len: usize) -> Vec<u8> {
    let byte = |at: usize| u8::try_from((seed * 31 + at * 7 + at / 251) % 255 + 1);
    (0..len).map(|at| byte(at).expect("below 256")).collect()
}

fn expect_recv(kind: CompletionKind) -> (u32, Option<u32>, Option<u32>) {
    match kind {
        CompletionKind::Recv {
            bytes,
            imm,
            invalidated,
        } => (bytes, imm, invalidated),
        other => panic!("{other:?} instead of a receive"),
    }
}

fn source<T: Testbed>(rig: &mut Rig<T>, end: End, seed: usize, len: usize) -> Region {
    let bytes = pattern(seed, len);
    rig.source(end, &bytes)
}

/// Each send takes one receive, the one that waits longest.
pub fn a_send_fills_the_oldest_receive<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let inbox = rig.region(link.server, 300, Access::Local);
    rig.post_recv(link.server, 71, inbox.sge(0, 100));
    rig.post_recv(link.server, 72, inbox.sge(100, 200));
    for (seed, len) in [(1, 60), (2, 200)] {
        let from = source(&mut rig, link.client, seed, len);
        rig.post_wr(
            link.client,
            &WorkRequest::new(WrOp::Send).with_sge(from.sge(0, len)),
        );
    }
    for (wr_id, at, seed, len) in [(71, 0, 1, 60), (72, 100, 2, 200)] {
        let completion = rig.completion_of(link.server);
        assert_eq!(completion.wr_id, wr_id);
        let (bytes, imm, invalidated) = expect_recv(completion.kind);
        assert_eq!((bytes as usize, imm, invalidated), (len, None, None));
        assert_eq!(inbox.bytes(at, len), pattern(seed, len));
    }
}

/// A send with immediate delivers both.
pub fn a_send_carries_its_immediate<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let inbox = rig.region(link.client, 8, Access::Local);
    rig.post_recv(link.client, 5, inbox.sge(0, 8));
    let from = rig.source(link.server, b"RKEY_RSP");
    let wr = WorkRequest::new(WrOp::SendImm(0x2000_0005)).with_sge(from.sge(0, 8));
    rig.post_wr(link.server, &wr);
    let completion = rig.completion_of(link.client);
    assert_eq!(completion.wr_id, 5);
    assert_eq!(expect_recv(completion.kind), (8, Some(0x2000_0005), None));
    assert_eq!(inbox.bytes(0, 8), b"RKEY_RSP");
}

/// Messages without bytes need no buffer, and leave one that is there alone.
pub fn a_send_may_be_empty<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let inbox = rig.region(link.server, 8, Access::Local);
    rig.post_empty_recvs(link.server, 1);
    rig.post_recv(link.server, 2, inbox.sge(0, 8));
    rig.post(link.client, WrOp::Send);
    rig.post(link.client, WrOp::SendImm(3));
    let first = rig.completion_of(link.server);
    assert_eq!(expect_recv(first.kind), (0, None, None));
    let second = rig.completion_of(link.server);
    assert_eq!(expect_recv(second.kind), (0, Some(3), None));
    assert_eq!((first.wr_id, second.wr_id), (0, 2));
    assert!(inbox.span.is_zeroed());
}

/// The immediate of a write is seen only when the bytes are.
pub fn a_write_with_immediate_tells_when_its_bytes_are_there<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let chunk = rig.region(link.server, 8192, Access::RemoteWrite);
    rig.post_empty_recvs(link.server, 3);
    for (imm, len) in [(1_u32, 1), (2, 4096), (3, 5000)] {
        let from = source(&mut rig, link.client, len, len);
        let op = WrOp::WriteImm(chunk.remote(64), imm);
        let wr = WorkRequest::new(op).with_sge(from.sge(0, len));
        rig.post_wr(link.client, &wr);
        assert_eq!(rig.write_imm(link.server), imm);
        assert_eq!(chunk.bytes(64, len), pattern(len, len));
    }
    assert_eq!(chunk.bytes(0, 64), [0; 64]);
}

/// A write without immediate takes no receive and is there before the next message is seen.
pub fn a_plain_write_is_in_place_before_what_follows<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let buffer = rig.region(link.client, 65_536, Access::RemoteWrite);
    rig.post_empty_recvs(link.client, 1);
    let from = source(&mut rig, link.server, 3, 65_536);
    let op = WrOp::Write(buffer.remote(0));
    rig.post_wr(
        link.server,
        &WorkRequest::new(op).with_sge(from.sge(0, 65_536)),
    );
    rig.post(link.server, WrOp::WriteImm(RemoteAddr::NONE, 8));
    assert_eq!(rig.write_imm(link.client), 8);
    assert_eq!(buffer.bytes(0, 65_536), pattern(3, 65_536));
}

/// Many operations of all kinds with one flush: seen in the order posted.
pub fn operations_arrive_in_the_order_posted<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let cell = rig.region(link.server, 64, Access::RemoteWrite);
    rig.post_empty_recvs(link.server, 200);
    let from = source(&mut rig, link.client, 9, 64);
    for n in 0..100 {
        let op = WrOp::WriteImm(cell.remote(0), n);
        rig.post_wr(link.client, &WorkRequest::new(op).with_sge(from.sge(0, 64)));
        rig.post(link.client, WrOp::SendImm(1000 + n));
    }
    let now = rig.now();
    rig.fabric(0).flush(now);
    for n in 0..100 {
        assert_eq!(rig.write_imm(link.server), n);
        let (_, imm, _) = expect_recv(rig.completion_of(link.server).kind);
        assert_eq!(imm, Some(1000 + n));
    }
}

/// The second piece of local bytes follows the first without a gap.
pub fn two_pieces_arrive_as_one<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let chunk = rig.region(link.server, 1024, Access::RemoteWrite);
    let inbox = rig.region(link.server, 1024, Access::Local);
    rig.post_empty_recvs(link.server, 1);
    rig.post_recv(link.server, 2, inbox.sge(0, 1024));
    let data = source(&mut rig, link.client, 4, 512);
    let header = source(&mut rig, link.client, 5, 36);
    let both = [pattern(4, 512), pattern(5, 36)].concat();
    for op in [WrOp::WriteImm(chunk.remote(0), 1), WrOp::Send] {
        let wr = WorkRequest::new(op).with_sges(data.sge(0, 512), header.sge(0, 36));
        rig.post_wr(link.client, &wr);
    }
    assert_eq!(rig.write_imm(link.server), 1);
    assert_eq!(chunk.bytes(0, both.len()), both);
    let (bytes, ..) = expect_recv(rig.completion_of(link.server).kind);
    assert_eq!(bytes as usize, both.len());
    assert_eq!(inbox.bytes(0, both.len()), both);
    let wr = WorkRequest::new(WrOp::WriteImm(chunk.remote(600), 2))
        .with_sges(Sge::EMPTY, header.sge(0, 36));
    rig.post_empty_recvs(link.server, 1);
    rig.post_wr(link.client, &wr);
    assert_eq!(rig.write_imm(link.server), 2);
    assert_eq!(chunk.bytes(600, 36), pattern(5, 36));
}

/// A write of no bytes names no memory, so no key of it is looked at.
pub fn writes_may_be_empty<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    rig.post_empty_recvs(link.server, 1);
    rig.post(link.client, WrOp::Write(RemoteAddr::NONE));
    rig.post(link.client, WrOp::WriteImm(RemoteAddr::NONE, 0x8000_0000));
    assert_eq!(rig.write_imm(link.server), 0x8000_0000);
    rig.assert_alive(&link);
}

/// The largest things that the protocol sends: a chunk, and a descriptor of each of 65535 chunks.
pub fn large_writes_and_sends_arrive_whole<T: Testbed>() {
    const LEN: usize = 4 << 20;
    const DESCRIPTORS: usize = 8 + 16 * 65_535;
    let (mut rig, link) = linked::<T>();
    let chunk = rig.region(link.server, LEN, Access::RemoteWrite);
    let inbox = rig.region(link.server, DESCRIPTORS, Access::Local);
    rig.post_empty_recvs(link.server, 1);
    rig.post_recv(link.server, 1, inbox.sge(0, DESCRIPTORS));
    let from = source(&mut rig, link.client, 6, LEN);
    let write = WorkRequest::new(WrOp::WriteImm(chunk.remote(0), 1)).with_sge(from.sge(0, LEN));
    rig.post_wr(link.client, &write);
    let send = WorkRequest::new(WrOp::Send).with_sge(from.sge(0, DESCRIPTORS));
    rig.post_wr(link.client, &send);
    assert_eq!(rig.write_imm(link.server), 1);
    assert!(chunk.bytes(0, LEN) == pattern(6, LEN));
    let (bytes, ..) = expect_recv(rig.completion_of(link.server).kind);
    assert_eq!(bytes as usize, DESCRIPTORS);
    assert!(inbox.bytes(0, DESCRIPTORS) == pattern(6, DESCRIPTORS));
}

/// Lent memory of any size, between and beside what is not lent, arrives like any other.
pub fn lent_memory_arrives_whole_and_in_its_place<T: Testbed>() {
    const LENS: [usize; 7] = [1, 32_767, 32_768, 131_072, 131_073, 1 << 20, 20_000];
    let (mut rig, link) = linked::<T>();
    let chunk = rig.region(link.server, 4 << 20, Access::RemoteWrite);
    rig.post_empty_recvs(link.server, 8);
    let own = source(&mut rig, link.client, 1, 20_000);
    let lent = source(&mut rig, link.client, 2, (1 << 20) + 3);
    let mut expected = Vec::new();
    let end_of = |bytes: &Vec<u8>| chunk.remote(bytes.len() as u64);
    for (imm, len) in (0..).zip(LENS) {
        let write = WrOp::Write(end_of(&expected));
        let wr = WorkRequest::new(write).with_sges(lent.sge(3, len), own.sge(0, 24));
        rig.post_wr(link.client, &wr.lent());
        expected.extend(&pattern(2, (1 << 20) + 3)[3..3 + len]);
        expected.extend(&pattern(1, 24));
        let write = WrOp::WriteImm(end_of(&expected), imm);
        let wr = WorkRequest::new(write).with_sge(own.sge(0, 20_000));
        rig.post_wr(link.client, &wr);
        expected.extend(pattern(1, 20_000));
    }
    for (imm, _) in (0..).zip(LENS) {
        assert_eq!(rig.write_imm(link.server), imm);
    }
    assert!(chunk.bytes(0, expected.len()) == expected);
}

/// One completion for each that was asked for, none for the others.
pub fn only_signalled_operations_complete_and_in_order<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    rig.post_empty_recvs(link.server, 90);
    for n in 0..90 {
        let wr = WorkRequest::new(WrOp::WriteImm(RemoteAddr::NONE, 0));
        let wr = if n % 3 == 2 {
            wr.signaled(u64::MAX - n)
        } else {
            wr
        };
        rig.post_wr(link.client, &wr);
    }
    for n in (2..90).step_by(3) {
        let completion = rig.completion_of(link.client);
        assert_eq!(completion.kind, CompletionKind::Sent);
        assert_eq!(completion.wr_id, u64::MAX - n);
    }
    for _ in 0..90 {
        rig.write_imm(link.server);
    }
    rig.settle();
    assert_eq!(rig.completions_waiting(0), 0);
}

/// Some may be left out, but none that is not cumulative, and never the last; those before are
/// executed.
pub fn of_cumulative_completions_the_last_is_reported<T: Testbed>() {
    const PLAIN: u64 = 5;
    let (mut rig, link) = linked::<T>();
    rig.post_empty_recvs(link.server, 20);
    for round in 0..2 {
        for n in 0..10 {
            let wr = WorkRequest::new(WrOp::WriteImm(RemoteAddr::NONE, 0)).signaled(n);
            let wr = if n == PLAIN { wr } else { wr.cumulative() };
            rig.post_wr(link.client, &wr);
        }
        let mut reported = Vec::new();
        while reported.last() != Some(&9) {
            let completion = rig.completion_of(link.client);
            assert_eq!(completion.kind, CompletionKind::Sent);
            reported.push(completion.wr_id);
        }
        assert!(reported.is_sorted_by(|a, b| a < b), "{round}: {reported:?}");
        assert!(reported.contains(&PLAIN), "{round}: {reported:?}");
        for _ in 0..10 {
            assert_eq!(rig.write_imm(link.server), 0);
        }
    }
}

/// Full duplex: each side's order is kept.
pub fn both_directions_at_once_do_not_disturb_each_other<T: Testbed>() {
    let (mut rig, link) = linked::<T>();
    let up = rig.region(link.server, 4096, Access::RemoteWrite);
    let down = rig.region(link.client, 4096, Access::RemoteWrite);
    for (end, to) in [(link.client, up), (link.server, down)] {
        rig.post_empty_recvs(end, 100);
        let from = source(&mut rig, end, 1, 4096);
        for n in 0..100 {
            let op = WrOp::WriteImm(to.remote(0), n);
            rig.post_wr(end, &WorkRequest::new(op).with_sge(from.sge(0, 4096)));
        }
    }
    for n in 0..100 {
        assert_eq!(rig.write_imm(link.client), n);
        assert_eq!(rig.write_imm(link.server), n);
    }
}

/// Messages of 64 connections reach their own peers.
pub fn many_connections_do_not_mix<T: Testbed>() {
    let (mut rig, first, addr) = linked_at::<T>();
    let mut links = vec![first];
    links.extend((1..64).map(|_| rig.link(addr)));
    for (n, link) in (0..).zip(&links) {
        rig.post_empty_recvs(link.server, 1);
        rig.post(link.client, WrOp::WriteImm(RemoteAddr::NONE, n));
    }
    let mut seen = vec![false; links.len()];
    for _ in &links {
        let completion = rig.completion(1);
        let of = |link: &Link| link.server.conn == completion.conn;
        let n = links.iter().position(of).expect("one of ours");
        let imm = u32::try_from(n).expect("below 64");
        assert_eq!(completion.kind, CompletionKind::WriteImm(imm));
        assert!(!std::mem::replace(&mut seen[n], true));
    }
}
