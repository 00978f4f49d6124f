//! How a connection gets up.
//!
//! ```text
//!  connect ───> Connecting ──────> Asking ────────────────────> Up
//!               the kernel's       our hello is sent,           ^
//!               handshake          the answer awaited           │
//!                                                               │
//!  somebody ──> Greeting ────────> Requested ─────────accept────┘
//!  comes in     his hello          the application's
//!               is awaited         answer is awaited
//!
//!  any state ──> closed: the connection is taken out of the table, and the application is told
//!                if it knew of it, which it does from all states but Greeting
//! ```
//!
//! Whatever takes too long is closed by the clock.

use std::os::fd::OwnedFd;

use rnbd_base::Nanos;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::tcp::connection::{Connection, State};
use crate::tcp::fabric::TcpFabric;
use crate::tcp::hello::{HelloBytes, HelloKind, NotHello, Prefix, VERSION};
use crate::tcp::inbound::close_reason;
use crate::tcp::outbound::Outbound;
use crate::tcp::socket;
use crate::types::{
    Addr, CloseReason, ConnId, DomainId, Event, FabricError, PrivateData, QpLimits,
};

/// What a hello turned out to be.
enum Greeting {
    Incomplete,
    Complete(Prefix),
    Not(NotHello),
    Gone(CloseReason),
}

impl TcpFabric {
    /// Goes on with a connection that is not up and of which the kernel says that something
    /// happened.
    pub(super) fn step_handshake(&mut self, conn: ConnId, now: Nanos) {
        match self.connection(conn).map(|connection| connection.state) {
            Some(State::Connecting) => self.on_connected(conn),
            Some(State::Asking) => self.on_answer(conn),
            Some(State::Greeting) => self.on_greeting(conn, now),
            Some(State::Requested) => self.on_impatience(conn),
            Some(State::Up) | None => {}
        }
    }

    fn on_connected(&mut self, conn: ConnId) {
        let Some(connection) = self.connection_mut(conn) else {
            return;
        };
        let private_data = connection.handshake.private_data;
        let outcome = socket::take_error(&connection.socket)
            .and_then(|()| say(&connection.socket, HelloKind::Connect, &private_data));
        match outcome {
            Ok(()) => {
                connection.state = State::Asking;
                self.watch(conn);
            }
            Err(errno) => self.close(conn, close_reason(errno)),
        }
    }

    fn on_answer(&mut self, conn: ConnId) {
        let reason = match self.hear(conn) {
            Greeting::Incomplete => return,
            Greeting::Complete(Prefix { kind, .. }) => {
                let private_data = self.private_data_of(conn);
                match kind {
                    HelloKind::Accept => return self.connected(conn, private_data),
                    HelloKind::Reject => CloseReason::Rejected(private_data),
                    _ => CloseReason::Violation("an answer that is none"),
                }
            }
            Greeting::Not(NotHello::Version(_)) => {
                CloseReason::Failed("the peer speaks another version of the TCP frames")
            }
            Greeting::Not(_) => CloseReason::Violation("the peer does not speak the TCP frames"),
            Greeting::Gone(reason) => reason,
        };
        self.close(conn, reason);
    }

    fn connected(&mut self, conn: ConnId, private_data: PrivateData) {
        match self.bring_up(conn) {
            Ok((domain, src)) => self.events.push_back(Event::Connected {
                conn,
                domain,
                private_data,
                src,
            }),
            Err(_) => self.close(conn, CloseReason::Failed("no room for the connection")),
        }
    }

    fn on_greeting(&mut self, conn: ConnId, now: Nanos) {
        match self.hear(conn) {
            Greeting::Incomplete => {}
            Greeting::Complete(prefix) if prefix.kind == HelloKind::Connect => {
                self.announce(conn, now);
            }
            Greeting::Complete(_) | Greeting::Not(NotHello::Malformed) => {
                self.drop_stranger(conn, "a malformed hello", now);
            }
            Greeting::Not(NotHello::Stranger) => {
                self.drop_stranger(conn, "it does not speak the TCP frames", now);
            }
            Greeting::Not(NotHello::Version(version)) => self.refuse_version(conn, version, now),
            Greeting::Gone(_) => self.drop_stranger(conn, "it left without a hello", now),
        }
    }

    fn refuse_version(&mut self, conn: ConnId, version: u16, now: Nanos) {
        if let Some(connection) = self.connection(conn) {
            // If the answer cannot be sent, the end of the connection says the same.
            let _outcome = say(&connection.socket, HelloKind::Version, &PrivateData::EMPTY);
        }
        let why = format!("it speaks version {version} of the TCP frames, and we {VERSION}");
        self.drop_stranger(conn, why, now);
    }

    fn announce(&mut self, conn: ConnId, now: Nanos) {
        let deadline = now + self.config.handshake_timeout;
        let Some(connection) = self.connection_mut(conn) else {
            return;
        };
        let handshake = &mut connection.handshake;
        let (Ok(dst), Some(listener)) =
            (socket::local_addr(&connection.socket), handshake.listener)
        else {
            return self.drop_stranger(conn, "it left with its hello", now);
        };
        connection.state = State::Requested;
        handshake.deadline = deadline;
        let event = Event::ConnectRequest {
            listener,
            conn,
            private_data: handshake.hello.private_data(),
            src: handshake.peer,
            dst,
        };
        self.next_expiry = self.next_expiry.min(deadline);
        self.events.push_back(event);
    }

    /// The peer has to wait for our answer: if anything comes, it is its end or a violation.
    fn on_impatience(&mut self, conn: ConnId) {
        let Some(connection) = self.connection(conn) else {
            return;
        };
        let mut byte = [0];
        let reason = match rustix::net::recv(&connection.socket, &mut byte, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(errno) => close_reason(errno),
            Ok((_, 0)) => CloseReason::PeerClosed,
            Ok(_) => CloseReason::Violation("frames before the connection is accepted"),
        };
        self.close(conn, reason);
    }

    /// Reads what is there of the peer's hello.
    fn hear(&mut self, conn: ConnId) -> Greeting {
        let Some(connection) = self.connection_mut(conn) else {
            return Greeting::Incomplete;
        };
        let hello = &mut connection.handshake.hello;
        loop {
            let room = hello.missing();
            let received = rustix::net::recv(&connection.socket, room, RecvFlags::DONTWAIT);
            let bytes = match received {
                Ok((_, 0)) => return Greeting::Gone(CloseReason::PeerClosed),
                Ok((_, bytes)) => bytes,
                Err(Errno::AGAIN | Errno::INTR) => return Greeting::Incomplete,
                Err(errno) => return Greeting::Gone(close_reason(errno)),
            };
            match hello.arrived(bytes) {
                Ok(None) => {}
                Ok(Some(prefix)) => return Greeting::Complete(prefix),
                Err(not) => return Greeting::Not(not),
            }
        }
    }

    fn private_data_of(&self, conn: ConnId) -> PrivateData {
        self.connection(conn)
            .map_or(PrivateData::EMPTY, |connection| {
                connection.handshake.hello.private_data()
            })
    }

    pub(super) fn accept_request(
        &mut self,
        conn: ConnId,
        domain: Option<DomainId>,
        limits: QpLimits,
        private_data: &PrivateData,
    ) -> Result<DomainId, FabricError> {
        self.check_limits(limits)?;
        let connection = self.requested(conn)?;
        connection.outbound = Outbound::new(limits.send_wrs);
        connection.inbound.receives.set_limit(limits.recv_wrs);
        if let Some(domain) = domain {
            let domain = self.domains.join(Some(domain))?;
            self.requested(conn)?.domain = Some(domain);
        }
        let (domain, _) = self.bring_up(conn)?;
        if let Some(connection) = self.connection_mut(conn)
            && let Err(errno) = say(&connection.socket, HelloKind::Accept, private_data)
        {
            connection.send_failure = Some(errno);
        }
        Ok(domain)
    }

    /// A connection that waits for the application's answer.
    pub(super) fn requested(&mut self, conn: ConnId) -> Result<&mut Connection, FabricError> {
        self.connection_mut(conn)
            .filter(|connection| connection.state == State::Requested)
            .ok_or(FabricError::Stale("connection request"))
    }

    /// From now on there are frames.
    fn bring_up(&mut self, conn: ConnId) -> Result<(DomainId, Addr), FabricError> {
        let stale = FabricError::Stale("connection");
        let connection = self.connections.get_mut(conn.index, conn.generation);
        let connection = connection.ok_or(stale)?;
        let src = socket::local_addr(&connection.socket).unwrap_or(connection.handshake.peer);
        let domain = match connection.domain {
            Some(domain) => domain,
            None => self.domains.join(None)?,
        };
        connection.domain = Some(domain);
        connection.inbound.open();
        connection.state = State::Up;
        self.handshakes.retain(|&other| other != conn);
        self.warm(conn.index);
        Ok((domain, src))
    }
}

/// Sends a hello whole. A new socket has room for it, unless the host is out of memory.
pub(super) fn say(
    socket: &OwnedFd,
    kind: HelloKind,
    private_data: &PrivateData,
) -> Result<(), Errno> {
    let hello = HelloBytes::encode(kind, private_data);
    let bytes = hello.as_bytes();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match rustix::net::send(socket, bytes, flags) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) | Err(Errno::AGAIN) => Err(Errno::NOBUFS),
        Err(errno) => Err(errno),
    }
}
