//! How connections come, get up and go.

use std::os::fd::OwnedFd;

use rnbd_base::Nanos;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::tcp::connection::{Connection, Handshake, State, Watch};
use crate::tcp::fabric::TcpFabric;
use crate::tcp::hello::{HelloBytes, HelloKind, NotHello, Prefix, VERSION};
use crate::tcp::inbound::close_reason;
use crate::tcp::outbound::Outbound;
use crate::tcp::receives::Receives;
use crate::tcp::socket;
use crate::tcp::watcher::{Source, Watcher};
use crate::types::{
    Addr, CloseReason, ConnId, ConnectParams, DomainId, Event, FabricError, ListenerId,
    PrivateData, QpLimits,
};

/// Connections taken from a listener in one poll.
const ACCEPTS_MAX: usize = 16;
/// How long a listener rests when the process has no descriptors left.
const PAUSE: Nanos = Nanos::from_millis(100);

/// A connection request on its way from one core's fabric to another's.
#[derive(Debug)]
pub struct TcpIncoming {
    socket: OwnedFd,
    handshake: Handshake,
}

/// What a hello turned out to be.
enum Greeting {
    Incomplete,
    Complete(Prefix),
    Not(NotHello),
    Gone(CloseReason),
}

// Coming.

impl TcpFabric {
    pub(super) fn begin_connect(
        &mut self,
        params: &ConnectParams,
        now: Nanos,
    ) -> Result<ConnId, FabricError> {
        self.check_limits(params.limits)?;
        let Addr::Ip(dst) = &params.dst;
        let opened = socket::open(dst, &self.config);
        let socket = opened.map_err(|errno| FabricError::System {
            what: "socket",
            errno,
        })?;
        let src = params.src.as_ref().map(|Addr::Ip(src)| src);
        let started = socket::start_connect(&socket, dst, src);
        let recv_wrs = params.limits.recv_wrs;
        let receives = Receives::new(recv_wrs, recv_wrs);
        let conn = self.add_connection(socket, State::Connecting, connecting(params, now), receives)?;
        if let Err(error) = self.prepare_streams(conn, params) {
            self.forget(conn);
            return Err(error);
        }
        match started {
            Ok(()) => self.watch(conn),
            // Whatever goes wrong from here on is an event, and so is what went wrong at once.
            Err(errno) => self.close(conn, close_reason(errno)),
        }
        Ok(conn)
    }

    fn prepare_streams(&mut self, conn: ConnId, params: &ConnectParams) -> Result<(), FabricError> {
        let domain = match params.domain {
            Some(domain) => Some(self.domains.join(Some(domain))?),
            None => None,
        };
        if let Some(connection) = self.connection_mut(conn) {
            connection.domain = domain;
            connection.outbound = Outbound::new(params.limits.send_wrs);
        }
        Ok(())
    }

    fn check_limits(&self, limits: QpLimits) -> Result<(), FabricError> {
        let most = self.config.max_work_requests;
        if limits.send_wrs > most || limits.recv_wrs > most {
            return Err(FabricError::Limit {
                what: "work requests of a connection",
                limit: u64::from(most),
            });
        }
        Ok(())
    }

    fn add_connection(
        &mut self,
        socket: OwnedFd,
        state: State,
        handshake: Handshake,
        receives: Receives,
    ) -> Result<ConnId, FabricError> {
        let deadline = handshake.deadline;
        let taken = self.connections.insert(|index, generation| {
            let id = ConnId { index, generation };
            Connection::new(id, socket, state, handshake, receives)
        });
        let (index, generation) = taken.map_err(|_| FabricError::Limit {
            what: "connections",
            limit: u64::from(self.config.max_connections),
        })?;
        let conn = ConnId { index, generation };
        self.handshakes.push(conn);
        self.next_expiry = self.next_expiry.min(deadline);
        Ok(conn)
    }

    /// Takes what waits on a listener.
    pub(super) fn take_connections(&mut self, id: ListenerId, now: Nanos) {
        for _ in 0..ACCEPTS_MAX {
            let Some(listener) = self.listeners.get(id.index, id.generation) else {
                return;
            };
            match socket::accept(&listener.socket, &self.config) {
                Ok((socket, peer)) => self.greet(socket, peer, id, now),
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    return self.pause_listener(id, now);
                }
                Err(Errno::AGAIN) => return,
                // The connection was gone before it was taken; there may be another.
                Err(_) => {}
            }
        }
    }

    fn greet(&mut self, socket: OwnedFd, peer: Addr, listener: ListenerId, now: Nanos) {
        self.make_room_for_stranger(now);
        let handshake = Handshake {
            deadline: now + self.config.handshake_timeout,
            hello: HelloBytes::EMPTY,
            private_data: PrivateData::EMPTY,
            listener: Some(listener),
            peer,
        };
        let receives = Receives::new(self.config.max_work_requests, 0);
        match self.add_connection(socket, State::Greeting, handshake, receives) {
            Ok(conn) => self.watch(conn),
            Err(error) => {
                self.stranger_log.dropped(peer, error, now);
            }
        }
    }

    /// Keeps the number of those who have not said hello within its limit.
    fn make_room_for_stranger(&mut self, now: Nanos) {
        let connections = &self.connections;
        let greeting = |conn: &&ConnId| {
            let connection = connections.get(conn.index, conn.generation);
            connection.is_some_and(|connection| connection.state == State::Greeting)
        };
        let mut strangers = self.handshakes.iter().filter(greeting);
        let oldest = strangers.next().copied();
        if let Some(oldest) = oldest
            && strangers.count() + 1 >= self.config.max_pending_handshakes as usize
        {
            self.drop_stranger(oldest, "too many connections that say nothing", now);
        }
    }

    fn pause_listener(&mut self, id: ListenerId, now: Nanos) {
        log::warn!("tcp: no descriptors left for connections that come in");
        let until = now + PAUSE;
        let Some(listener) = self.listeners.get_mut(id.index, id.generation) else {
            return;
        };
        self.watcher.remove(&listener.socket);
        listener.paused_until = Some(until);
        self.next_expiry = self.next_expiry.min(until);
    }
}

fn connecting(params: &ConnectParams, now: Nanos) -> Handshake {
    Handshake {
        deadline: now + Nanos(params.timeout_ns),
        hello: HelloBytes::EMPTY,
        private_data: params.private_data,
        listener: None,
        peer: params.dst,
    }
}

// Getting up.

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
        let outcome = socket::connect_result(&connection.socket)
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
        let (Ok(dst), Some(listener)) = (
            socket::local_addr(&connection.socket),
            handshake.listener,
        ) else {
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
        self.connection(conn).map_or(PrivateData::EMPTY, |connection| {
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
            connection.send_failure = Some(close_reason(errno));
        }
        Ok(domain)
    }

    /// A connection that waits for the application's answer.
    fn requested(&mut self, conn: ConnId) -> Result<&mut Connection, FabricError> {
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
fn say(socket: &OwnedFd, kind: HelloKind, private_data: &PrivateData) -> Result<(), Errno> {
    let hello = HelloBytes::encode(kind, private_data);
    let bytes = hello.as_bytes();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match rustix::net::send(socket, bytes, flags) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) | Err(Errno::AGAIN) => Err(Errno::NOBUFS),
        Err(errno) => Err(errno),
    }
}

// Going.

impl TcpFabric {
    pub(super) fn reject_request(&mut self, conn: ConnId, private_data: &PrivateData) {
        if let Ok(connection) = self.requested(conn) {
            // If the answer cannot be sent, the end of the connection says the same.
            let _outcome = say(&connection.socket, HelloKind::Reject, private_data);
            self.close(conn, CloseReason::Local);
        }
    }

    pub(super) fn close_locally(&mut self, conn: ConnId) {
        let Some(connection) = self.connection_mut(conn) else {
            return;
        };
        if connection.state == State::Up {
            // What was posted goes out as far as the kernel has room; nobody waits for the rest.
            let _outcome = connection.outbound.transmit(&connection.socket);
        }
        self.close(conn, CloseReason::Local);
    }

    pub(super) fn detach_request(&mut self, conn: ConnId) -> Result<TcpIncoming, FabricError> {
        self.requested(conn)?;
        let stale = FabricError::Stale("connection request");
        let Connection {
            socket, handshake, ..
        } = self.forget(conn).ok_or(stale)?;
        self.watcher.remove(&socket);
        Ok(TcpIncoming { socket, handshake })
    }

    pub(super) fn adopt_request(&mut self, incoming: TcpIncoming) -> Result<ConnId, FabricError> {
        let TcpIncoming { socket, handshake } = incoming;
        let receives = Receives::new(self.config.max_work_requests, 0);
        let conn = self.add_connection(socket, State::Requested, handshake, receives)?;
        self.watch(conn);
        Ok(conn)
    }

    /// Ends what has taken too long.
    pub(super) fn expire(&mut self, now: Nanos) {
        if now < self.next_expiry {
            return;
        }
        let handshakes = self.handshakes.iter();
        let connections = handshakes.filter_map(|&conn| self.connection(conn));
        let late: Vec<_> = connections
            .filter(|connection| connection.handshake.deadline <= now)
            .map(|connection| (connection.id, connection.state))
            .collect();
        for (conn, state) in late {
            if state == State::Greeting {
                self.drop_stranger(conn, "no hello in time", now);
            } else {
                self.close(conn, CloseReason::TimedOut);
            }
        }
        self.resume_listeners(now);
        self.next_expiry = self.earliest_expiry();
    }

    fn resume_listeners(&mut self, now: Nanos) {
        let watcher = &self.watcher;
        for (id, listener) in self.listeners.iter_mut() {
            if listener.paused_until.is_some_and(|until| until <= now) {
                let id = ListenerId { index: id.0, generation: id.1 };
                let watched = watch_listener(watcher, id, &listener.socket);
                listener.paused_until = watched.err().map(|_| now + PAUSE);
            }
        }
    }

    fn earliest_expiry(&self) -> Nanos {
        let handshakes = self.handshakes.iter().filter_map(|&conn| self.connection(conn));
        let deadlines = handshakes.map(|connection| connection.handshake.deadline);
        let pauses = self.listeners.iter().filter_map(|(_, listener)| listener.paused_until);
        deadlines.chain(pauses).min().unwrap_or(Nanos::MAX)
    }

    fn drop_stranger(&mut self, conn: ConnId, why: impl std::fmt::Display, now: Nanos) {
        if let Some(connection) = self.forget(conn) {
            self.stranger_log
                .dropped(connection.handshake.peer, why, now);
        }
    }

    /// Ends a connection, and says so.
    pub(super) fn close(&mut self, conn: ConnId, reason: CloseReason) {
        if self.forget(conn).is_some() {
            if matches!(reason, CloseReason::Violation(_)) {
                self.stats.violations += 1;
            }
            self.events.push_back(Event::Closed { conn, reason });
        }
    }

    /// Takes a connection out of every list.
    fn forget(&mut self, conn: ConnId) -> Option<Connection> {
        let connection = self.connections.remove(conn.index, conn.generation)?;
        if connection.state != State::Up {
            self.handshakes.retain(|&other| other != conn);
        }
        if connection.watch == Watch::Hot {
            self.hot.retain(|&index| index != conn.index);
        }
        if connection.is_dirty {
            self.dirty.retain(|&index| index != conn.index);
        }
        if let Some(domain) = connection.domain {
            self.domains.leave(domain);
        }
        Some(connection)
    }
}

/// Has the kernel tell when a connection waits on a listener.
pub(super) fn watch_listener(
    watcher: &Watcher,
    id: ListenerId,
    socket: &OwnedFd,
) -> Result<(), Errno> {
    watcher.add(socket, Source::Listener(id), EventFlags::IN)
}
