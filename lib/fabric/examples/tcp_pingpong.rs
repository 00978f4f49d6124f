//! Measures the TCP fabric alone, in the pattern of RTRS: a server on CPU 0 and a client on CPU 1,
//! both polling without a pause, over loopback.
//!
//! ```text
//! cargo run --release -p rnbd-fabric --example tcp_pingpong -- [SECONDS] [REPEATS] [DEPTH]
//! ```
//!
//! A read is a request of 100 bytes, written with an immediate, and an answer of a write of the
//! data and an empty write with an immediate. A write carries the data in front of the request,
//! and its answer is the empty write alone. Each line is the median run of the repeats.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a tool for developers"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rnbd_base::Nanos;
use rnbd_fabric::tcp::{TcpConfig, TcpFabric};
use rnbd_fabric::{
    Access, Addr, Completion, CompletionKind, ConnId, ConnectParams, Event, Fabric, FabricStats,
    ListenOptions, MemoryKey, PostError, PrivateData, QpLimits, RemoteAddr, Sge, WorkRequest, WrOp,
};
use rnbd_mem::{Buffer, Memory, MemoryConfig, Pages, Span};

const REQUEST_BYTES: usize = 100;
const COMPLETIONS: usize = 256;
const SLOTS: u32 = 512;
const LIMITS: QpLimits = QpLimits {
    send_wrs: 2 * SLOTS,
    recv_wrs: 2 * SLOTS,
};

#[derive(Clone, Copy)]
struct Workload {
    name: &'static str,
    is_read: bool,
    bytes: usize,
    depth: u32,
}

impl Workload {
    fn chunk_bytes(&self) -> usize {
        (self.bytes + REQUEST_BYTES).next_multiple_of(4096)
    }
}

struct Outcome {
    ops_per_second: f64,
    p50: Duration,
    p99: Duration,
    client: FabricStats,
    server: FabricStats,
    ops: u64,
}

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse().unwrap());
    let (seconds, repeats) = (args.next().unwrap_or(2), args.next().unwrap_or(3));
    let only_depth = args.next();
    println!("workload        depth      ops/s   p50 us   p99 us | per op: sends c/s");
    for workload in workloads() {
        if only_depth.is_some_and(|depth| depth != u64::from(workload.depth)) {
            continue;
        }
        let mut outcomes: Vec<_> = (0..repeats).map(|_| run(workload, seconds)).collect();
        outcomes.sort_by(|a, b| a.ops_per_second.total_cmp(&b.ops_per_second));
        print(workload, &outcomes[outcomes.len() / 2]);
    }
}

fn workloads() -> Vec<Workload> {
    let mut list = Vec::new();
    for (name, is_read, bytes) in [
        ("read 4K", true, 4096),
        ("write 4K", false, 4096),
        ("read 128K", true, 128 << 10),
        ("write 128K", false, 128 << 10),
    ] {
        let depths: &[u32] = if bytes == 4096 { &[1, 32, 128] } else { &[32] };
        list.extend(depths.iter().map(|&depth| Workload {
            name,
            is_read,
            bytes,
            depth,
        }));
    }
    list
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn print(workload: Workload, outcome: &Outcome) {
    let per_op = |count: u64| count as f64 / outcome.ops as f64;
    let micros = |time: Duration| time.as_nanos() as f64 / 1000.0;
    println!(
        "{:<14} {:>6} {:>10.0} {:>8.1} {:>8.1} | {:.3}/{:.3}",
        workload.name,
        workload.depth,
        outcome.ops_per_second,
        micros(outcome.p50),
        micros(outcome.p99),
        per_op(outcome.client.send_doorbells),
        per_op(outcome.server.send_doorbells),
    );
}

fn run(workload: Workload, seconds: u64) -> Outcome {
    let stop = Arc::new(AtomicBool::new(false));
    let mut fabric = TcpFabric::new(config()).unwrap();
    let any = Addr::Ip("127.0.0.1:0".parse().unwrap());
    let listener = fabric.listen(&any, &ListenOptions::default()).unwrap();
    let addr = fabric.listen_addr(listener).unwrap();
    let server_stop = Arc::clone(&stop);
    let server = std::thread::spawn(move || {
        pin(0);
        serve(fabric, workload, &server_stop)
    });
    let client = std::thread::spawn(move || {
        pin(1);
        Client::connect(addr, workload).measure(Duration::from_secs(seconds))
    });
    let mut outcome = client.join().unwrap();
    stop.store(true, Ordering::Relaxed);
    outcome.server = server.join().unwrap();
    outcome
}

/// The buffer sizes of sockets may be set by `SNDBUF` and `RCVBUF`, in KiB.
fn config() -> TcpConfig {
    let kib = |name| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<usize>().unwrap() << 10)
    };
    TcpConfig {
        send_buffer_bytes: kib("SNDBUF"),
        recv_buffer_bytes: kib("RCVBUF"),
        ..TcpConfig::default()
    }
}

fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

struct Clock(Instant);

impl Clock {
    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

fn buffer(bytes: usize) -> Buffer {
    let memory = Memory::new(MemoryConfig::default());
    memory.alloc("pingpong", bytes, Pages::PreferHuge).unwrap()
}

fn serve(mut fabric: TcpFabric, workload: Workload, stop: &AtomicBool) -> FabricStats {
    let clock = Clock(Instant::now());
    let chunks = buffer(SLOTS as usize * workload.chunk_bytes());
    chunks.span().fill(1);
    let mut completions = Vec::with_capacity(COMPLETIONS);
    while !stop.load(Ordering::Relaxed) {
        fabric.poll(clock.now(), &mut completions);
        for completion in completions.drain(..) {
            if let CompletionKind::WriteImm(slot) = completion.kind {
                // The client may have left before its last answers.
                let _outcome = answer(&mut fabric, completion.conn, slot, workload, chunks.span());
            }
        }
        fabric.flush(clock.now());
        if let Some(Event::ConnectRequest { conn, .. }) = fabric.next_event() {
            accept(&mut fabric, conn, chunks.span());
        }
    }
    fabric.stats()
}

fn accept(fabric: &mut TcpFabric, conn: ConnId, chunks: Span) {
    fabric.post_empty_recvs(conn, SLOTS).unwrap();
    // The key is sent right after: it needs the domain, which the accept makes.
    let domain = fabric
        .accept(conn, None, LIMITS, &PrivateData::EMPTY)
        .unwrap();
    let key = fabric
        .register(domain, chunks, Access::RemoteWrite)
        .unwrap();
    let [low, high] = [0, 32].map(|shift| chunks.addr() >> shift & 0xffff_ffff);
    for imm in [low, high, key.rkey.into()] {
        let imm = u32::try_from(imm).unwrap();
        let wr = WorkRequest::new(WrOp::WriteImm(RemoteAddr::NONE, imm));
        fabric.post(conn, &wr).unwrap();
    }
}

fn answer(
    fabric: &mut TcpFabric,
    conn: ConnId,
    slot: u32,
    workload: Workload,
    chunks: Span,
) -> Result<(), PostError> {
    let chunk_bytes = workload.chunk_bytes();
    let chunk = chunks
        .slice(slot as usize * chunk_bytes, chunk_bytes)
        .unwrap();
    let mut request = [0; REQUEST_BYTES];
    chunk.read_at(workload.bytes, &mut request);
    if workload.is_read {
        let remote = RemoteAddr {
            addr: u64::from_le_bytes(*request[..8].first_chunk().unwrap()),
            rkey: u32::from_le_bytes(*request[8..].first_chunk().unwrap()),
        };
        let data = chunk.slice(0, workload.bytes).unwrap();
        let wr = WorkRequest::new(WrOp::Write(remote)).with_sge(sge(data));
        fabric.post(conn, &wr)?;
    }
    let wr = WorkRequest::new(WrOp::WriteImm(RemoteAddr::NONE, slot));
    fabric.post(conn, &wr)?;
    fabric.post_recv(conn, 0, None)
}

fn sge(span: Span) -> Sge {
    Sge { span, lkey: 0 }
}

struct Client {
    fabric: TcpFabric,
    clock: Clock,
    conn: ConnId,
    workload: Workload,
    buffer: Buffer,
    key: MemoryKey,
    remote: RemoteAddr,
    completions: Vec<Completion>,
    started: Vec<Nanos>,
    latencies: Vec<u32>,
}

impl Client {
    fn connect(dst: Addr, workload: Workload) -> Self {
        let mut fabric = TcpFabric::new(config()).unwrap();
        let clock = Clock(Instant::now());
        let params = ConnectParams {
            dst,
            src: None,
            private_data: PrivateData::EMPTY,
            domain: None,
            limits: LIMITS,
            timeout_ns: 5_000_000_000,
        };
        let conn = fabric.connect(&params, clock.now()).unwrap();
        fabric.post_empty_recvs(conn, SLOTS).unwrap();
        let mut completions = Vec::with_capacity(COMPLETIONS);
        let mut words = Vec::new();
        let mut domain = None;
        while words.len() < 3 {
            fabric.poll(clock.now(), &mut completions);
            words.extend(completions.drain(..).map(|completion| completion.kind));
            if let Some(Event::Connected { domain: made, .. }) = fabric.next_event() {
                domain = Some(made);
            }
        }
        let word = |at: usize| match words[at] {
            CompletionKind::WriteImm(word) => word,
            other => panic!("{other:?}"),
        };
        let remote = RemoteAddr {
            addr: u64::from(word(0)) | u64::from(word(1)) << 32,
            rkey: word(2),
        };
        let buffer = buffer(SLOTS as usize * workload.chunk_bytes());
        let key = fabric
            .register(domain.unwrap(), buffer.span(), Access::RemoteWrite)
            .unwrap();
        Self {
            fabric,
            clock,
            conn,
            workload,
            buffer,
            key,
            remote,
            completions,
            started: vec![Nanos::ZERO; SLOTS as usize],
            latencies: Vec::with_capacity(20_000_000),
        }
    }

    fn measure(mut self, time: Duration) -> Outcome {
        for slot in 0..self.workload.depth {
            self.request(slot);
        }
        let warm = self.clock.now() + Nanos::from_millis(200);
        self.turn_until(warm);
        self.latencies.clear();
        let (start, before) = (self.clock.now(), self.fabric.stats());
        self.turn_until(start + time.into());
        let elapsed = self.clock.now().since(start).as_duration().as_secs_f64();
        let mut client = self.fabric.stats();
        client.send_doorbells -= before.send_doorbells;
        self.latencies.sort_unstable();
        let at = |percent: usize| self.latencies[self.latencies.len() * percent / 100];
        Outcome {
            #[expect(clippy::cast_precision_loss, reason = "figures for people")]
            ops_per_second: self.latencies.len() as f64 / elapsed,
            p50: Duration::from_nanos(at(50).into()),
            p99: Duration::from_nanos(at(99).into()),
            client,
            server: FabricStats::default(),
            ops: self.latencies.len() as u64,
        }
    }

    fn turn_until(&mut self, end: Nanos) {
        while self.clock.now() < end {
            let mut completions = std::mem::take(&mut self.completions);
            self.fabric.poll(self.clock.now(), &mut completions);
            for completion in completions.drain(..) {
                if let CompletionKind::WriteImm(slot) = completion.kind {
                    let took = self.clock.now().since(self.started[slot as usize]);
                    self.latencies.push(u32::try_from(took.0).unwrap());
                    self.fabric.post_recv(self.conn, 0, None).unwrap();
                    self.request(slot);
                }
            }
            self.completions = completions;
            self.fabric.flush(Nanos::ZERO);
        }
    }

    fn request(&mut self, slot: u32) {
        let Workload { is_read, bytes, .. } = self.workload;
        let chunk_bytes = self.workload.chunk_bytes();
        let offset = slot as usize * chunk_bytes;
        let chunk = self.buffer.span().slice(offset, chunk_bytes).unwrap();
        let (data, head) = (
            chunk.slice(0, bytes).unwrap(),
            chunk.slice(bytes, REQUEST_BYTES),
        );
        let head = head.unwrap();
        head.write_at(0, &data.addr().to_le_bytes());
        head.write_at(8, &self.key.rkey.to_le_bytes());
        let skipped = if is_read { bytes } else { 0 };
        let remote = RemoteAddr {
            addr: self.remote.addr + (offset + skipped) as u64,
            ..self.remote
        };
        let wr = WorkRequest::new(WrOp::WriteImm(remote, slot));
        let wr = if is_read {
            wr.with_sge(sge(head))
        } else {
            wr.with_sges(sge(data), sge(head))
        };
        self.started[slot as usize] = self.clock.now();
        self.fabric.post(self.conn, &wr).unwrap();
    }
}
