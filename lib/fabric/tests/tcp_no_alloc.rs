//! Once connections are up, work on them allocates nothing.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use rnbd_base::Nanos;
use rnbd_fabric::tcp::{TcpConfig, TcpFabric};
use rnbd_fabric::{
    Access, Addr, Completion, CompletionKind, ConnId, ConnectParams, DomainId, Event, Fabric,
    ListenOptions, MrId, PrivateData, QpLimits, RemoteAddr, Sge, WindowId, WindowKind, WorkRequest,
    WrOp,
};
use rnbd_mem::{Buffer, Memory, MemoryConfig, Pages};

const LIMITS: QpLimits = QpLimits {
    send_wrs: 16,
    recv_wrs: 16,
};

/// One side: a fabric with a connection, and memory of which a window opens a part.
struct Side {
    fabric: TcpFabric,
    conn: ConnId,
    mr: MrId,
    window: WindowId,
    buffer: Buffer,
    completions: Vec<Completion>,
}

impl Side {
    fn new(mut fabric: TcpFabric, conn: ConnId, domain: DomainId, buffer: Buffer) -> Self {
        let region = fabric.register(domain, buffer.span(), Access::Local);
        let window = fabric.alloc_window(domain, WindowKind::Connection);
        Self {
            conn,
            mr: region.unwrap().mr,
            window: window.unwrap(),
            buffer,
            completions: Vec::with_capacity(8),
            fabric,
        }
    }

    fn open(&mut self) -> RemoteAddr {
        let span = self.buffer.span();
        let bound = self.fabric.bind(self.conn, self.window, self.mr, span);
        RemoteAddr {
            addr: span.addr(),
            rkey: bound.unwrap(),
        }
    }

    fn poll(&mut self, now: Nanos) -> usize {
        self.completions.clear();
        self.fabric.poll(now, &mut self.completions);
        self.completions.len()
    }

    fn post(&mut self, op: WrOp, bytes: usize) {
        let span = self.buffer.span().slice(0, bytes).unwrap();
        let wr = WorkRequest::new(op).with_sge(Sge { span, lkey: 0 });
        self.fabric.post(self.conn, &wr.signaled(1)).unwrap();
    }
}

fn buffer() -> Buffer {
    let memory = Memory::new(MemoryConfig::default());
    memory.alloc("test", 1 << 20, Pages::Small).unwrap()
}

fn pair() -> (Side, Side) {
    let fabric = || TcpFabric::new(TcpConfig::default()).unwrap();
    let (mut near, mut far) = (fabric(), fabric());
    let any = Addr::Ip("127.0.0.1:0".parse().unwrap());
    let listener = far.listen(&any, &ListenOptions::default()).unwrap();
    let params = ConnectParams {
        dst: far.listen_addr(listener).unwrap(),
        src: None,
        private_data: PrivateData::EMPTY,
        domain: None,
        limits: LIMITS,
        timeout_ns: 1_000_000_000,
    };
    let near_conn = near.connect(&params, Nanos(1)).unwrap();
    let mut accepted = None;
    loop {
        near.poll(Nanos(1), &mut Vec::new());
        far.poll(Nanos(1), &mut Vec::new());
        if let Some(Event::ConnectRequest { conn, .. }) = far.next_event() {
            let domain = far.accept(conn, None, LIMITS, &PrivateData::EMPTY);
            accepted = Some((conn, domain.unwrap()));
        }
        if let Some(Event::Connected { domain, .. }) = near.next_event() {
            let (far_conn, far_domain) = accepted.unwrap();
            let near = Side::new(near, near_conn, domain, buffer());
            return (near, Side::new(far, far_conn, far_domain, buffer()));
        }
    }
}

/// A message and a write of `bytes` with immediate, through a window that is opened for it.
fn round(near: &mut Side, far: &mut Side, bytes: usize, now: Nanos) {
    let remote = far.open();
    let span = far.buffer.span().slice(0, 100).unwrap();
    let sge = Sge { span, lkey: 0 };
    far.fabric.post_recv(far.conn, 1, Some(sge)).unwrap();
    far.fabric.post_recv(far.conn, 2, None).unwrap();
    near.post(WrOp::Send, 100);
    near.post(WrOp::WriteImm(remote, 7), bytes);
    let (mut sent, mut arrived) = (0, 0);
    while sent < 2 || arrived < 2 {
        sent += near.poll(now);
        arrived += far.poll(now);
    }
    assert_eq!(
        far.completions.last().unwrap().kind,
        CompletionKind::WriteImm(7)
    );
    far.post(WrOp::Invalidate(far.window), 0);
    while far.poll(now) == 0 {}
}

#[test]
fn work_on_a_connection_allocates_nothing() {
    let (mut near, mut far) = pair();
    let rounds = |near: &mut Side, far: &mut Side, count: u64| {
        for nth in 0..count {
            let bytes = [0, 100, 4096, 1 << 20][usize::try_from(nth % 4).unwrap()];
            round(near, far, bytes, Nanos(2 + nth));
            round(far, near, bytes, Nanos(2 + nth));
        }
    };
    rounds(&mut near, &mut far, 4);
    let counted = allocation_counter::measure(|| {
        rounds(&mut near, &mut far, 400);
        // Long enough for the connections to be left to epoll, and once more from there.
        for _ in 0..20_000 {
            near.poll(Nanos::from_secs(1));
            far.poll(Nanos::from_secs(1));
        }
        rounds(&mut near, &mut far, 4);
    });
    assert_eq!(counted.count_total, 0);
}
