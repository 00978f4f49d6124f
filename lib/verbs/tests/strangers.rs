//! Peers that do not keep to the protocol, at the port of a real target, over a real device or
//! soft-RoCE. Whether the target goes on serving others is for whoever started it to look at.
//!
//! `RNBD_VERBS_TARGET` is the target's address and port; without it there is nothing to test on,
//! and each test says so.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what it did not find"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rnbd_base::{Errno, Nanos};
use rnbd_fabric::{
    Access, Addr, CloseReason, Completion, CompletionKind, ConnId, ConnectParams, DomainId, Event,
    Fabric, MemoryKey, PrivateData, QpLimits, Sge, WorkRequest, WrOp,
};
use rnbd_mem::{Buffer, Memory, MemoryConfig, Pages};
use rnbd_verbs::{VerbsConfig, VerbsFabric};
use rnbd_wire::Name;
use rnbd_wire::rtrs::{ConReq, ConRsp, InfoReq};

const NAP: Duration = Duration::from_micros(50);
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes for the INFO_RSP of any target: a descriptor for each of 65535 chunks.
const INFO_RSP_BYTES: usize = 8 + 16 * 65535;
const LIMITS: QpLimits = QpLimits {
    send_wrs: 16,
    recv_wrs: 16,
};

/// One path of a session, as far as it gets.
struct Peer {
    fabric: VerbsFabric,
    start: Instant,
    target: SocketAddr,
    buffer: Buffer,
    key: Option<MemoryKey>,
    domain: Option<DomainId>,
    conns: Vec<ConnId>,
    connected: Vec<ConnId>,
    closed: Vec<(ConnId, CloseReason)>,
    completions: Vec<Completion>,
    info_responses: usize,
}

impl Peer {
    /// `None`, with a word about it, if there is no target to talk to.
    fn new() -> Option<Self> {
        let Ok(target) = std::env::var("RNBD_VERBS_TARGET") else {
            println!("NOT RUN: RNBD_VERBS_TARGET names no target");
            return None;
        };
        let memory = Memory::new(MemoryConfig::default());
        let buffer = memory.alloc("peer", InfoReq::BYTES + INFO_RSP_BYTES, Pages::Small);
        Some(Self {
            fabric: VerbsFabric::new(VerbsConfig::default()).expect("an RDMA device"),
            start: Instant::now(),
            target: target.parse().expect("an address and a port"),
            buffer: buffer.unwrap(),
            key: None,
            domain: None,
            conns: Vec::new(),
            connected: Vec::new(),
            closed: Vec::new(),
            completions: Vec::with_capacity(64),
            info_responses: 0,
        })
    }

    fn connect(&mut self, private_data: &[u8]) -> ConnId {
        let params = ConnectParams {
            dst: Addr::Ip(self.target),
            src: None,
            private_data: PrivateData::new(private_data).unwrap(),
            domain: self.domain,
            limits: LIMITS,
            timeout_ns: Nanos::from_secs(30).0,
        };
        let conn = self.fabric.connect(&params, self.now()).unwrap();
        self.conns.push(conn);
        conn
    }

    /// All connections of a path, and the session's name; then INFO_RSP or the end.
    fn come_up(&mut self, session: u8, name: &str) {
        for cid in 0..2 {
            self.connect(&con_req(session, cid).to_bytes());
            let count = self.conns.len();
            self.wait(|peer| peer.connected.len() == count);
        }
        self.send_info_req(name);
        self.wait(|peer| peer.info_responses > 0 || !peer.closed.is_empty());
    }

    fn send_info_req(&mut self, name: &str) {
        let pathname = Name::new(name).unwrap();
        let sge = self.part(0, InfoReq::BYTES);
        sge.span.write_at(0, &InfoReq { pathname }.to_bytes());
        let send = WorkRequest::new(WrOp::Send).with_sge(sge).signaled(1);
        self.fabric.post(self.conns[0], &send).unwrap();
    }

    fn part(&self, offset: usize, len: usize) -> Sge {
        Sge {
            span: self.buffer.span().slice(offset, len).unwrap(),
            lkey: self.key.expect("a connection is up").lkey,
        }
    }

    fn now(&self) -> Nanos {
        Nanos::from(self.start.elapsed())
    }

    fn wait(&mut self, until: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !until(self) {
            assert!(Instant::now() < deadline, "it does not come");
            let (now, mut completions) = (self.now(), std::mem::take(&mut self.completions));
            self.fabric.poll(now, &mut completions);
            let received = |completion: &Completion| match completion.kind {
                CompletionKind::Recv { imm: None, .. } => 1,
                _ => 0,
            };
            self.info_responses += completions
                .drain(..)
                .map(|one| received(&one))
                .sum::<usize>();
            self.completions = completions;
            while let Some(event) = self.fabric.next_event() {
                self.hear(event);
            }
            std::thread::sleep(NAP);
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Connected { conn, domain, .. } => {
                self.connected.push(conn);
                if self.key.is_none() {
                    self.be_ready(conn, domain);
                }
            }
            Event::Closed { conn, reason } => self.closed.push((conn, reason)),
            Event::ConnectRequest { .. } => panic!("nobody listens here"),
        }
    }

    fn be_ready(&mut self, conn: ConnId, domain: DomainId) {
        let span = self.buffer.span();
        self.domain = Some(domain);
        self.key = Some(self.fabric.register(domain, span, Access::Local).unwrap());
        let room = self.part(InfoReq::BYTES, INFO_RSP_BYTES);
        self.fabric.post_recv(conn, 1, Some(room)).unwrap();
    }

    /// What the target answers to a connection request.
    fn refusal(&mut self, private_data: &[u8]) -> Option<Errno> {
        let conn = self.connect(private_data);
        let ended = |peer: &Self| peer.closed.iter().position(|(other, _)| *other == conn);
        self.wait(|peer| ended(peer).is_some() || peer.connected.contains(&conn));
        let CloseReason::Rejected(data) = &self.closed[ended(self)?].1 else {
            panic!("closed for {:?}", self.closed);
        };
        match ConRsp::decode(data.as_bytes()).unwrap() {
            ConRsp::Reject(errno) => Some(errno),
            ConRsp::Accept(_) => panic!("rejected with an accept"),
        }
    }

    fn all_closed(&self) -> bool {
        self.closed.len() == self.conns.len()
    }
}

fn con_req(session: u8, cid: u16) -> ConReq {
    ConReq {
        cid,
        cid_num: 2,
        recon_cnt: 1,
        sess_uuid: [session; 16],
        paths_uuid: [session; 16],
        first_conn: true,
        extension: None,
    }
}

/// A good request, but for the bytes from `offset` on.
fn bad_con_req(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut request = con_req(0xb0, 0).to_bytes().to_vec();
    request[offset..offset + bytes.len()].copy_from_slice(bytes);
    request
}

#[test]
fn requests_of_no_known_kind_are_refused() {
    let Some(mut peer) = Peer::new() else { return };
    let reset = Some(Errno::CONNRESET);
    for (what, request) in [
        ("another protocol's magic", bad_con_req(2, &[0xde, 0xad])),
        ("another major version", bad_con_req(4, &[0, 3])),
        ("cid_num 0", bad_con_req(8, &[0, 0])),
        ("cid_num 4097", bad_con_req(8, &4097_u16.to_le_bytes())),
        ("a cid beyond cid_num", bad_con_req(6, &[2, 0])),
        ("nothing but zeroes", vec![0; ConReq::BYTES]),
    ] {
        assert_eq!(peer.refusal(&request), reset, "{what}");
    }
}

#[test]
fn a_further_path_of_no_session_is_refused() {
    let Some(mut peer) = Peer::new() else { return };
    let request = ConReq {
        first_conn: false,
        ..con_req(0xb1, 0)
    };
    assert_eq!(peer.refusal(&request.to_bytes()), Some(Errno::NXIO));
}

#[test]
fn a_path_that_is_there_cannot_come_again() {
    let Some(mut peer) = Peer::new() else { return };
    peer.come_up(0xb2, "stranger");
    assert_eq!(peer.info_responses, 1, "{:?}", peer.closed);
    let again = con_req(0xb2, 0).to_bytes();
    assert!(peer.refusal(&again).is_some());
}

#[test]
fn a_second_info_req_ends_the_path() {
    let Some(mut peer) = Peer::new() else { return };
    peer.come_up(0xb3, "twice");
    assert_eq!(peer.info_responses, 1, "{:?}", peer.closed);
    peer.send_info_req("twice");
    peer.wait(Peer::all_closed);
}

#[test]
fn a_name_in_use_ends_the_path_of_who_came_second() {
    let Some(mut first) = Peer::new() else { return };
    let Some(mut second) = Peer::new() else {
        return;
    };
    first.come_up(0xb4, "namesake");
    assert_eq!(first.info_responses, 1, "{:?}", first.closed);
    second.come_up(0xb5, "namesake");
    second.wait(Peer::all_closed);
    assert_eq!(second.info_responses, 0);
    assert!(first.closed.is_empty());
}
