//! Streams of frames, cut and held up anywhere.

use proptest::prelude::*;

use super::peer::{Host, Raw, frame, header};
use crate::Fabric;
use crate::tcp::TcpConfig;
use crate::tcp::frame::{FrameKind, HEADER_BYTES, Header};
use crate::types::{Completion, CompletionKind, RemoteAddr, Sge, WorkRequest, WrOp};

fn pattern(seed: u8, bytes: usize) -> Vec<u8> {
    let start = usize::from(seed);
    (start..start + bytes)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

fn write(raw: &Raw, kind: FrameKind, offset: u64, length: u32, imm: u32) -> Header {
    Header {
        rkey: raw.key.rkey,
        addr: raw.target() + offset,
        imm,
        ..header(kind, length)
    }
}

/// A chain of four, then single frames; five of them are reported.
fn stream(raw: &Raw) -> Vec<u8> {
    let mut chain = [
        write(raw, FrameKind::Write, 0, 700, 0),
        write(raw, FrameKind::WriteImm, 700, 0, 11),
        header(FrameKind::Send, 40),
        write(raw, FrameKind::WriteImm, 1000, 300, 12),
    ];
    let mut bytes = Vec::new();
    let last = chain.len() - 1;
    for link in &mut chain[..last] {
        link.chained = true;
    }
    chain.iter().for_each(|link| bytes.extend(link.encode()));
    bytes.extend(pattern(1, 700));
    bytes.extend(pattern(2, 40));
    bytes.extend(pattern(3, 300));
    let mut send_imm = header(FrameKind::SendImm, 100);
    send_imm.imm = 13;
    bytes.extend(frame(send_imm, &pattern(4, 100)));
    bytes.extend(frame(header(FrameKind::Send, 0), &[]));
    bytes
}

const REPORTED: usize = 5;

fn check(raw: &Raw, completions: &[Completion]) {
    let recv = |bytes, imm| CompletionKind::Recv {
        bytes,
        imm,
        invalidated: None,
    };
    let kinds: Vec<_> = completions
        .iter()
        .map(|completion| completion.kind)
        .collect();
    let expected = [
        CompletionKind::WriteImm(11),
        recv(40, None),
        CompletionKind::WriteImm(12),
        recv(100, Some(13)),
        recv(0, None),
    ];
    assert_eq!(kinds, expected);
    let at = |offset: usize, bytes: usize| {
        let mut read = vec![0; bytes];
        raw.buffer.span().read_at(offset, &mut read);
        read
    };
    assert_eq!(at(8192, 700), pattern(1, 700));
    assert_eq!(at(8192 + 1000, 300), pattern(3, 300));
    let receive = |nth: usize| usize::try_from(completions[nth].wr_id).unwrap() * 100;
    assert_eq!(at(receive(1), 40), pattern(2, 40));
    assert_eq!(at(receive(3), 100), pattern(4, 100));
}

/// Sends the stream in `pieces`, polling after each.
fn send_cut(host: &mut Host, raw: &mut Raw, cuts: &[usize]) {
    let bytes = stream(raw);
    let mut rest = &bytes[..];
    for &cut in cuts {
        let (piece, later) = rest.split_at(cut.min(rest.len()));
        raw.stream.send(piece);
        host.poll();
        rest = later;
    }
    raw.stream.send(rest);
}

#[test]
fn a_stream_cut_at_any_byte_arrives_whole() {
    let mut host = Host::new(TcpConfig::default());
    let mut raw = host.raw_connection(REPORTED);
    let length = stream(&raw).len();
    for cut in 0..=length {
        raw.buffer.span().slice(8192, 4096).unwrap().fill(0);
        send_cut(&mut host, &mut raw, &[cut]);
        host.poll_until("all of it", |host| host.completions.len() == REPORTED);
        check(&raw, &host.completions);
        for completion in host.completions.drain(..) {
            let at = usize::try_from(completion.wr_id).unwrap() * 100;
            let span = raw.buffer.span().slice(at, 100).unwrap();
            let sge = Sge { span, lkey: 0 };
            let posted = host.fabric.post_recv(raw.conn, completion.wr_id, Some(sge));
            posted.unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_stream_held_up_anywhere_arrives_whole(
        cuts in proptest::collection::vec(1_usize..400, 0..12),
        receives in 0..=REPORTED,
        room in 1..=REPORTED,
    ) {
        let mut host = Host::new(TcpConfig::default());
        let mut raw = host.raw_connection(receives);
        host.completions = Vec::with_capacity(room);
        let room = host.completions.capacity();
        send_cut(&mut host, &mut raw, &cuts);
        (0..5).for_each(|_| host.poll());
        prop_assert_eq!(host.completions.len(), receives.min(room));
        for late in receives..REPORTED {
            let span = raw.buffer.span().slice(late * 100, 100).unwrap();
            let sge = Sge { span, lkey: 0 };
            host.fabric.post_recv(raw.conn, late as u64, Some(sge)).unwrap();
        }
        let mut all = Vec::new();
        host.poll_until("all of it", |host| {
            all.append(&mut host.completions);
            all.len() == REPORTED
        });
        check(&raw, &all);
    }
}

#[test]
fn headers_stand_in_front_of_their_payloads() {
    let mut host = Host::new(TcpConfig::default());
    let mut raw = host.raw_connection(1);
    let payload = raw.buffer.span().slice(0, 20).unwrap();
    payload.write_at(0, &pattern(9, 20));
    let (first, second) = (payload.slice(0, 15).unwrap(), payload.slice(15, 5).unwrap());
    let sge = |span| Sge { span, lkey: 0 };
    let to = RemoteAddr {
        addr: 0x1122,
        rkey: 0x33,
    };
    let data = WorkRequest::new(WrOp::Write(to)).with_sges(sge(first), sge(second));
    let done = WorkRequest::new(WrOp::WriteImm(RemoteAddr::NONE, 7)).signaled(5);
    host.fabric.post(raw.conn, &data).unwrap();
    host.fabric.post(raw.conn, &done).unwrap();
    host.poll();
    let data = Header {
        chained: true,
        rkey: to.rkey,
        addr: to.addr,
        ..header(FrameKind::Write, 20)
    };
    let mut done = header(FrameKind::WriteImm, 0);
    done.imm = 7;
    let expected = [&data.encode()[..], &done.encode(), &pattern(9, 20)].concat();
    assert_eq!(raw.stream.receive(2 * HEADER_BYTES + 20), expected);
    assert_eq!(host.completions[0].wr_id, 5);
}
