//! How connections come and go. What is between is in `handshake`.

use std::os::fd::OwnedFd;

use rnbd_base::Nanos;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use crate::tcp::connection::{Connection, Handshake, State, Watch};
use crate::tcp::fabric::TcpFabric;
use crate::tcp::handshake::say;
use crate::tcp::hello::{HelloBytes, HelloKind};
use crate::tcp::inbound::close_reason;
use crate::tcp::outbound::Outbound;
use crate::tcp::receives::Receives;
use crate::tcp::socket;
use crate::tcp::watcher::{Source, Watcher};
use crate::types::{
    Addr, CloseReason, ConnId, ConnectParams, Event, FabricError, ListenerId, PrivateData, QpLimits,
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

// Coming.

impl TcpFabric {
    pub(super) fn begin_connect(
        &mut self,
        params: &ConnectParams,
        now: Nanos,
    ) -> Result<ConnId, FabricError> {
        self.check_limits(params.limits)?;
        let dst = &params.dst.socket_addr()?;
        let src = params.src.map(|src| src.socket_addr()).transpose()?;
        let opened = socket::open(dst, &self.config);
        let socket = opened.map_err(|errno| FabricError::System {
            what: "socket",
            errno,
        })?;
        let started = socket::start_connect(&socket, dst, src.as_ref());
        let recv_wrs = params.limits.recv_wrs;
        let receives = Receives::new(recv_wrs, recv_wrs);
        let conn =
            self.add_connection(socket, State::Connecting, connecting(params, now), receives)?;
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

    pub(super) fn check_limits(&self, limits: QpLimits) -> Result<(), FabricError> {
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
                let id = ListenerId {
                    index: id.0,
                    generation: id.1,
                };
                let watched = watch_listener(watcher, id, &listener.socket);
                listener.paused_until = watched.err().map(|_| now + PAUSE);
            }
        }
    }

    fn earliest_expiry(&self) -> Nanos {
        let handshakes = self
            .handshakes
            .iter()
            .filter_map(|&conn| self.connection(conn));
        let deadlines = handshakes.map(|connection| connection.handshake.deadline);
        let pauses = self
            .listeners
            .iter()
            .filter_map(|(_, listener)| listener.paused_until);
        deadlines.chain(pauses).min().unwrap_or(Nanos::MAX)
    }

    pub(super) fn drop_stranger(&mut self, conn: ConnId, why: impl std::fmt::Display, now: Nanos) {
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
