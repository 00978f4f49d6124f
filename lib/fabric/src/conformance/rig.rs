//! Drives a few fabrics and their time, and checks the invariants that hold in every test.

use std::collections::{HashSet, VecDeque};

use rnbd_base::{Nanos, Progress};
use rnbd_mem::{Buffer, Memory, MemoryConfig, Pages, Span};

use super::Testbed;
use crate::{
    Access, CloseReason, Completion, CompletionKind, ConnId, ConnectParams, DomainId, Event,
    Fabric, ListenOptions, ListenerId, MemoryKey, PrivateData, QpLimits, RemoteAddr, Sge, WrOp,
};

/// Queue sizes of the connections that [`Rig::link`] makes.
pub const LIMITS: QpLimits = QpLimits {
    send_wrs: 256,
    recv_wrs: 256,
};

/// Most time that a test waits for one thing.
const PATIENCE: Nanos = Nanos::from_secs(60);
/// Time in which what can happen by itself has happened.
const QUIET: Nanos = Nanos::from_millis(20);

/// One fabric with what came out of it.
#[derive(Debug)]
pub struct Node<F> {
    /// The fabric.
    pub fabric: F,
    /// How many completions one poll may deliver.
    pub batch: usize,
    batch_vec: Vec<Completion>,
    completions: VecDeque<Completion>,
    events: VecDeque<Event>,
    closed: HashSet<ConnId>,
}

impl<F: Fabric> Node<F> {
    fn new(fabric: F) -> Self {
        Self {
            fabric,
            batch: 64,
            batch_vec: Vec::new(),
            completions: VecDeque::new(),
            events: VecDeque::new(),
            closed: HashSet::new(),
        }
    }

    fn poll(&mut self, now: Nanos) -> Progress {
        self.batch_vec = Vec::with_capacity(self.batch);
        let capacity = self.batch_vec.capacity();
        let progress = self.fabric.poll(now, &mut self.batch_vec);
        assert_eq!(self.batch_vec.capacity(), capacity, "the vector grew");
        let mut did_work = !self.batch_vec.is_empty();
        for completion in self.batch_vec.drain(..) {
            let dead = self.closed.contains(&completion.conn);
            assert!(!dead, "{completion:?} after Closed");
            self.completions.push_back(completion);
        }
        while let Some(event) = self.fabric.next_event() {
            self.note(&event);
            self.events.push_back(event);
            did_work = true;
        }
        progress.or(Progress::from_work(did_work))
    }

    fn note(&mut self, event: &Event) {
        let conn = match *event {
            Event::ConnectRequest { conn, .. }
            | Event::Connected { conn, .. }
            | Event::Closed { conn, .. } => conn,
        };
        assert!(!self.closed.contains(&conn), "{event:?} after Closed");
        if matches!(event, Event::Closed { .. }) {
            self.closed.insert(conn);
        }
    }

    fn take_event<R>(&mut self, pick: impl Fn(&Event) -> Option<R>) -> Option<R> {
        let (at, found) = self
            .events
            .iter()
            .enumerate()
            .find_map(|(at, event)| pick(event).map(|found| (at, found)))?;
        self.events.remove(at);
        Some(found)
    }
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Which of the rig's fabrics.
    pub node: usize,
    /// The connection there.
    pub conn: ConnId,
    /// Its domain.
    pub domain: DomainId,
}

/// Both ends of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The side that connected.
    pub client: End,
    /// The side that accepted.
    pub server: End,
}

/// A connection request as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The connection to be.
    pub conn: ConnId,
    /// What the connector sent along.
    pub private_data: PrivateData,
}

/// Registered memory.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// The bytes.
    pub span: Span,
    /// Its keys.
    pub key: MemoryKey,
}

impl Region {
    /// Local bytes of a work request: `len` from `offset` on.
    #[must_use]
    pub fn sge(&self, offset: usize, len: usize) -> Sge {
        let span = self.span.slice(offset, len).expect("the test's range");
        Sge {
            span,
            lkey: self.key.lkey,
        }
    }

    /// What a peer writes to in order to reach `offset`.
    #[must_use]
    pub fn remote(&self, offset: u64) -> RemoteAddr {
        RemoteAddr {
            addr: self.span.addr().wrapping_add(offset),
            rkey: self.key.rkey,
        }
    }

    /// A copy of `len` bytes from `offset` on.
    #[must_use]
    pub fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.span.read_at(offset, &mut bytes);
        bytes
    }
}

/// A few fabrics, what came out of them, and the memory that they use.
#[derive(Debug)]
pub struct Rig<T: Testbed> {
    nodes: Vec<Node<T::Fabric>>,
    bed: T,
    now: Nanos,
    memory: Memory,
    buffers: Vec<Buffer>,
}

impl<T: Testbed> Rig<T> {
    /// A fabric on each of `hosts`, to be named by index.
    #[must_use]
    pub fn new(hosts: &[u8]) -> Self {
        let mut bed = T::new();
        let nodes = hosts
            .iter()
            .map(|&host| Node::new(bed.fabric(host)))
            .collect();
        let memory = Memory::new(MemoryConfig {
            hugepages: false,
            ..MemoryConfig::default()
        });
        Self {
            nodes,
            bed,
            now: Nanos::ZERO,
            memory,
            buffers: Vec::new(),
        }
    }

    /// The network.
    pub fn bed(&mut self) -> &mut T {
        &mut self.bed
    }

    /// Fabric `node` with its harvest.
    pub fn node(&mut self, node: usize) -> &mut Node<T::Fabric> {
        &mut self.nodes[node]
    }

    /// Fabric `node`.
    pub fn fabric(&mut self, node: usize) -> &mut T::Fabric {
        &mut self.nodes[node].fabric
    }

    /// Lets the last fabric go, with all that it holds.
    pub fn drop_last_node(&mut self) {
        self.nodes.pop();
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Polls every fabric once; lets time pass if there was nothing to do.
    pub fn turn(&mut self) {
        let mut progress = Progress::Idle;
        for node in &mut self.nodes {
            progress = progress.or(node.poll(self.now));
        }
        if !progress.is_busy() {
            let deadline = self
                .nodes
                .iter()
                .filter_map(|node| node.fabric.next_deadline())
                .min();
            let later = self.bed.pass_time(self.now, deadline);
            assert!(later > self.now, "the testbed's time stands still");
            self.now = later;
        }
    }

    /// Takes turns until `ready` has a result.
    ///
    /// # Panics
    /// If `what` has not come for too long.
    pub fn until<R>(&mut self, what: &str, mut ready: impl FnMut(&mut Self) -> Option<R>) -> R {
        let deadline = self.now + PATIENCE;
        loop {
            if let Some(result) = ready(self) {
                return result;
            }
            assert!(self.now < deadline, "waited too long for {what}");
            self.turn();
        }
    }

    /// Takes turns until what can happen by itself has happened.
    pub fn settle(&mut self) {
        let deadline = self.now + QUIET;
        while self.now < deadline {
            self.turn();
        }
    }

    /// The next event of `node` that `pick` takes; others stay.
    pub fn event<R>(&mut self, node: usize, pick: impl Fn(&Event) -> Option<R>) -> R {
        self.until("an event", |rig| rig.nodes[node].take_event(&pick))
    }

    /// The next connection request at `node`.
    pub fn request(&mut self, node: usize) -> Request {
        self.event(node, |event| match *event {
            Event::ConnectRequest {
                conn, private_data, ..
            } => Some(Request { conn, private_data }),
            _ => None,
        })
    }

    /// Waits for `conn` to come up; returns its domain and what the accept carried.
    pub fn connected(&mut self, node: usize, conn: ConnId) -> (DomainId, PrivateData) {
        self.event(node, |event| match *event {
            Event::Connected {
                conn: up,
                domain,
                private_data,
                ..
            } if up == conn => Some((domain, private_data)),
            _ => None,
        })
    }

    /// Waits for the end of `conn`; returns why.
    pub fn closed(&mut self, node: usize, conn: ConnId) -> CloseReason {
        self.event(node, |event| match *event {
            Event::Closed { conn: gone, reason } if gone == conn => Some(reason),
            _ => None,
        })
    }

    /// The next completion of `node`, of whichever connection.
    pub fn completion(&mut self, node: usize) -> Completion {
        self.until("a completion", |rig| {
            rig.nodes[node].completions.pop_front()
        })
    }

    /// The next completion of the connection, passing over none.
    pub fn completion_of(&mut self, end: End) -> Completion {
        let completion = self.completion(end.node);
        assert_eq!(completion.conn, end.conn);
        completion
    }

    /// Waits for a message and returns the immediate of the write that announced it.
    pub fn write_imm(&mut self, end: End) -> u32 {
        match self.completion_of(end).kind {
            CompletionKind::WriteImm(imm) => imm,
            other => panic!("{other:?} instead of a write"),
        }
    }

    /// How many completions of `node` have not been looked at.
    #[must_use]
    pub fn completions_waiting(&self, node: usize) -> usize {
        self.nodes[node].completions.len()
    }

    /// Whether nothing at all came out of `node` that was not looked at.
    #[must_use]
    pub fn is_silent(&self, node: usize) -> bool {
        self.nodes[node].completions.is_empty() && self.nodes[node].events.is_empty()
    }

    /// Listens at `node`, which is on `host`.
    pub fn listen(&mut self, node: usize, host: u8) -> (ListenerId, crate::Addr) {
        let addr = self.bed.listen_addr(host);
        let fabric = self.fabric(node);
        let listener = fabric
            .listen(&addr, &ListenOptions::default())
            .expect("the testbed's address can be listened on");
        let addr = fabric.listen_addr(listener).expect("it listens");
        (listener, addr)
    }

    /// Starts to connect from `node` to `dst`.
    pub fn connect(&mut self, node: usize, dst: crate::Addr, data: &[u8]) -> ConnId {
        let params = connect_params(dst, data);
        self.connect_with(node, &params)
    }

    /// Starts to connect from `node`.
    pub fn connect_with(&mut self, node: usize, params: &ConnectParams) -> ConnId {
        let now = self.now;
        self.fabric(node)
            .connect(params, now)
            .expect("connecting can start")
    }

    /// Accepts a request at `node`.
    pub fn accept(&mut self, node: usize, conn: ConnId, domain: Option<DomainId>) -> DomainId {
        self.fabric(node)
            .accept(conn, domain, LIMITS, &PrivateData::EMPTY)
            .expect("the request waits")
    }

    /// A connection from fabric 0 to a listener of fabric 1 at `addr`.
    pub fn link(&mut self, addr: crate::Addr) -> Link {
        self.link_in(addr, None)
    }

    /// The same, in the domains of an earlier connection between the two.
    pub fn link_beside(&mut self, addr: crate::Addr, first: &Link) -> Link {
        self.link_in(addr, Some(first))
    }

    fn link_in(&mut self, addr: crate::Addr, first: Option<&Link>) -> Link {
        let params = ConnectParams {
            domain: first.map(|link| link.client.domain),
            ..connect_params(addr, b"")
        };
        let client = self.connect_with(0, &params);
        let request = self.request(1);
        let domain = first.map(|link| link.server.domain);
        let server_domain = self.accept(1, request.conn, domain);
        let (client_domain, _) = self.connected(0, client);
        Link {
            client: End {
                node: 0,
                conn: client,
                domain: client_domain,
            },
            server: End {
                node: 1,
                conn: request.conn,
                domain: server_domain,
            },
        }
    }

    /// `len` bytes registered at `end`.
    pub fn region(&mut self, end: End, len: usize, access: Access) -> Region {
        let buffer = self
            .memory
            .alloc("conformance", len, Pages::Small)
            .expect("there is memory");
        let span = buffer.span().slice(0, len).expect("it has that many bytes");
        self.buffers.push(buffer);
        let key = self
            .fabric(end.node)
            .register(end.domain, span, access)
            .expect("the span can be registered");
        Region { span, key }
    }

    /// Registered bytes of `end` with this content, to be sent from.
    pub fn source(&mut self, end: End, bytes: &[u8]) -> Region {
        let region = self.region(end, bytes.len().max(1), Access::Local);
        region.span.write_at(0, bytes);
        region
    }

    /// Posts an operation without local bytes.
    pub fn post(&mut self, end: End, op: WrOp) {
        self.post_wr(end, &crate::WorkRequest::new(op));
    }

    /// Posts an operation.
    pub fn post_wr(&mut self, end: End, wr: &crate::WorkRequest) {
        self.fabric(end.node)
            .post(end.conn, wr)
            .expect("the connection is up and has room");
    }

    /// Posts empty receives.
    pub fn post_empty_recvs(&mut self, end: End, count: u32) {
        self.fabric(end.node)
            .post_empty_recvs(end.conn, count)
            .expect("the connection is up and has room");
    }

    /// Posts a receive of `buf`.
    pub fn post_recv(&mut self, end: End, wr_id: u64, buf: Sge) {
        self.fabric(end.node)
            .post_recv(end.conn, wr_id, Some(buf))
            .expect("the connection is up and has room");
    }

    /// Shows that the connection works in both directions.
    pub fn assert_alive(&mut self, link: &Link) {
        for (from, to) in [(link.client, link.server), (link.server, link.client)] {
            self.post_empty_recvs(to, 1);
            self.post(from, WrOp::WriteImm(RemoteAddr::NONE, 0xA11CE));
            assert_eq!(self.write_imm(to), 0xA11CE);
        }
    }

    /// Waits for both ends to close and returns why the server's did.
    pub fn both_closed(&mut self, link: &Link) -> CloseReason {
        let reason = self.closed(link.server.node, link.server.conn);
        self.closed(link.client.node, link.client.conn);
        reason
    }

    /// Waits until the server has closed the link because the client broke a rule.
    pub fn assert_violated(&mut self, link: &Link) {
        let before = self.fabric(link.server.node).stats().violations;
        let reason = self.both_closed(link);
        assert!(matches!(reason, CloseReason::Violation(_)), "{reason:?}");
        let after = self.fabric(link.server.node).stats().violations;
        assert!(after > 0 && after >= before, "violations are counted");
    }
}

/// Two fabrics on two hosts with one connection, from the first to the second.
#[must_use]
pub fn linked<T: Testbed>() -> (Rig<T>, Link) {
    let (rig, link, _) = linked_at();
    (rig, link)
}

/// The same, with the address for more connections.
#[must_use]
pub fn linked_at<T: Testbed>() -> (Rig<T>, Link, crate::Addr) {
    let mut rig = Rig::new(&[0, 1]);
    let (_, addr) = rig.listen(1, 1);
    let link = rig.link(addr);
    (rig, link, addr)
}

/// Ordinary parameters of a connection to `dst`.
///
/// # Panics
/// If `data` is longer than private data can be.
#[must_use]
pub fn connect_params(dst: crate::Addr, data: &[u8]) -> ConnectParams {
    ConnectParams {
        dst,
        src: None,
        private_data: PrivateData::new(data).expect("short enough"),
        domain: None,
        limits: LIMITS,
        timeout_ns: Nanos::from_secs(30).0,
    }
}
