//! A fabric that is driven by hand, and raw sockets that talk to it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rnbd_base::Nanos;
use rnbd_mem::{Buffer, Memory, MemoryConfig, Pages};

use crate::Fabric;
use crate::tcp::frame::{FrameKind, Header};
use crate::tcp::hello::{HelloBytes, HelloKind, PREFIX_BYTES};
use crate::tcp::{TcpConfig, TcpFabric};
use crate::types::{
    Access, Addr, CloseReason, Completion, ConnId, DomainId, Event, ListenOptions, ListenerId,
    MemoryKey, PrivateData, QpLimits, Sge,
};

pub(super) const LIMITS: QpLimits = QpLimits {
    send_wrs: 64,
    recv_wrs: 64,
};
/// Polls after which something that was to happen did not. A poll of an idle fabric takes a
/// microsecond or so, what the kernel does on loopback not much more.
const POLLS_MAX: usize = 1_000_000;

/// A listening fabric.
pub(super) struct Host {
    pub(super) fabric: TcpFabric,
    pub(super) addr: SocketAddr,
    pub(super) listener: ListenerId,
    pub(super) now: Nanos,
    pub(super) completions: Vec<Completion>,
    pub(super) events: Vec<Event>,
}

impl Host {
    pub(super) fn new(config: TcpConfig) -> Self {
        let mut fabric = TcpFabric::new(config).unwrap();
        let any = Addr::Ip("127.0.0.1:0".parse().unwrap());
        let listener = fabric.listen(&any, &ListenOptions::default()).unwrap();
        let addr = fabric.listen_addr(listener).unwrap().socket_addr().unwrap();
        Self {
            fabric,
            addr,
            listener,
            now: Nanos::from_secs(1),
            completions: Vec::with_capacity(64),
            events: Vec::new(),
        }
    }

    pub(super) fn poll(&mut self) {
        self.fabric.poll(self.now, &mut self.completions);
        while let Some(event) = self.fabric.next_event() {
            self.events.push(event);
        }
    }

    /// Polls until `done` says so.
    pub(super) fn poll_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..POLLS_MAX {
            self.poll();
            if done(self) {
                return;
            }
        }
        panic!("{what} did not happen");
    }

    /// The next connection request.
    pub(super) fn request(&mut self) -> ConnId {
        let mut request = None;
        self.poll_until("a connection request", |host| {
            request = host.events.iter().find_map(|event| match event {
                Event::ConnectRequest { conn, .. } => Some(*conn),
                _ => None,
            });
            request.is_some()
        });
        self.events.clear();
        request.unwrap()
    }

    /// A raw connection that is up, with receives of 100 bytes each.
    pub(super) fn raw_connection(&mut self, receives: usize) -> Raw {
        let mut stream = RawPeer::connect(self.addr);
        stream.say_hello(HelloKind::Connect);
        let conn = self.request();
        let buffer = buffer(1 << 16);
        for nth in 0..receives {
            let span = buffer.span().slice(nth * 100, 100).unwrap();
            let sge = Sge { span, lkey: 0 };
            self.fabric.post_recv(conn, nth as u64, Some(sge)).unwrap();
        }
        let accepted = self.fabric.accept(conn, None, LIMITS, &PrivateData::EMPTY);
        let domain = accepted.unwrap();
        let target = buffer.span().slice(8192, 4096).unwrap();
        let key = self.fabric.register(domain, target, Access::RemoteWrite);
        assert_eq!(stream.hear_hello(), Some(2));
        Raw {
            stream,
            conn,
            domain,
            buffer,
            key: key.unwrap(),
        }
    }

    /// Polls until the connection is closed; returns why.
    pub(super) fn closed(&mut self, conn: ConnId) -> CloseReason {
        let mut reason = None;
        self.poll_until("the end of the connection", |host| {
            reason = host.events.iter().find_map(|event| match event {
                Event::Closed {
                    conn: closed,
                    reason,
                } if *closed == conn => Some(*reason),
                _ => None,
            });
            reason.is_some()
        });
        reason.unwrap()
    }
}

/// A connection of which one end is a fabric's and the other a socket.
pub(super) struct Raw {
    pub(super) stream: RawPeer,
    pub(super) conn: ConnId,
    pub(super) domain: DomainId,
    /// Receives in the first 8 KiB, then 4 KiB that the peer may write.
    pub(super) buffer: Buffer,
    pub(super) key: MemoryKey,
}

impl Raw {
    /// The address that the peer may write at.
    pub(super) fn target(&self) -> u64 {
        self.buffer.span().addr() + 8192
    }
}

pub(super) fn buffer(bytes: usize) -> Buffer {
    let memory = Memory::new(MemoryConfig::default());
    memory.alloc("test", bytes, Pages::Small).unwrap()
}

/// A socket that speaks as it likes.
pub(super) struct RawPeer(pub(super) TcpStream);

impl RawPeer {
    pub(super) fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Self(stream)
    }

    pub(super) fn say_hello(&mut self, kind: HelloKind) {
        let hello = HelloBytes::encode(kind, &PrivateData::EMPTY);
        self.send(hello.as_bytes());
    }

    /// Sends bytes; that the other side has closed is none of the sender's business here.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        let _outcome = self.0.write_all(bytes);
    }

    /// The kind of the hello that arrives; `None` if the connection ends.
    pub(super) fn hear_hello(&mut self) -> Option<u8> {
        let mut prefix = [0; PREFIX_BYTES];
        self.0.read_exact(&mut prefix).ok()?;
        assert_eq!(prefix[..10], *b"RNBDFRM\n\x01\0");
        Some(prefix[10])
    }

    /// Whether something has arrived.
    pub(super) fn has_bytes(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let peeked = self.0.peek(&mut [0]);
        self.0.set_nonblocking(false).unwrap();
        peeked.is_ok_and(|bytes| bytes > 0)
    }

    pub(super) fn receive(&mut self, bytes: usize) -> Vec<u8> {
        let mut received = vec![0; bytes];
        self.0.read_exact(&mut received).unwrap();
        received
    }

    /// Waits for the other side to close.
    pub(super) fn expect_end(&mut self) {
        let mut rest = Vec::new();
        let outcome = self.0.read_to_end(&mut rest);
        let timed_out = outcome.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        assert!(!timed_out, "the connection was left open");
    }
}

/// A frame in one piece.
pub(super) fn frame(header: Header, payload: &[u8]) -> Vec<u8> {
    [header.encode().as_slice(), payload].concat()
}

/// A header with a length and nothing else.
pub(super) fn header(kind: FrameKind, length: u32) -> Header {
    Header {
        kind,
        length,
        ..Header::default()
    }
}
