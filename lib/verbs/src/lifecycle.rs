//! How connections come and go. What is between is in `handshake`.

use std::sync::Arc;

use rnbd_base::Nanos;
use rnbd_fabric::{
    CloseReason, ConnId, ConnectParams, DomainId, Event, FabricError, ListenerId, PrivateData,
    QpLimits,
};
use rustix::io::Errno;

use crate::connection::{Connection, State, Token};
use crate::devices::DeviceId;
use crate::fabric::VerbsFabric;
use crate::handshake::Failure;
use crate::host::Scrap;
use crate::sys::{CmChannel, CmEventKind, CmId, Pd, QpState};

/// A connection request on its way from one core's fabric to another's.
///
/// Events of it wait in a channel of its own meanwhile.
#[derive(Debug)]
pub struct VerbsIncoming {
    cm: CmId,
    listener: ListenerId,
    private_data: PrivateData,
    deadline: Nanos,
}

/// A connection that is closed here, and whose peer may still have to be told again.
#[derive(Debug)]
pub(crate) struct Goodbye {
    pub(crate) cm: CmId,
    deadline: Nanos,
}

pub(crate) const REMOVED: CloseReason = CloseReason::Failed("the RDMA device was removed");

// Coming.

impl VerbsFabric {
    pub(crate) fn begin_connect(&mut self, params: &ConnectParams) -> Result<ConnId, FabricError> {
        self.check_limits(params.limits)?;
        if let Some(domain) = params.domain {
            self.domains.check(domain)?;
        }
        let cm = CmId::new(&self.channel, 0, &params.dst).map_err(|errno| FabricError::System {
            what: "making a connection",
            errno,
        })?;
        let deadline = self.now + Nanos(params.timeout_ns);
        let mut connection = Connection::new(cm, State::Resolving, params.limits, deadline);
        connection.private_data = params.private_data;
        let conn = self.add_connection(connection)?;
        if let Some(domain) = params.domain {
            self.domains.join(domain)?;
            if let Some(connection) = self.connection_mut(conn) {
                connection.domain = Some(domain);
            }
        }
        // Whatever goes wrong from here on is an event, and so is what goes wrong at once.
        let outcome = self.resolve(conn, params);
        self.close_if_failed(conn, outcome);
        Ok(conn)
    }

    fn resolve(&mut self, conn: ConnId, params: &ConnectParams) -> Result<(), Failure> {
        let timeout_ms = params.timeout_ns.div_ceil(1_000_000);
        let timeout_ms = u32::try_from(timeout_ms).unwrap_or(u32::MAX);
        let connection = self.connections.get(conn);
        let cm = &connection.ok_or(Failure::Unreachable)?.cm;
        set_options(cm, &self.config);
        let started = cm.resolve_addr(params.src, params.dst, timeout_ms);
        started.map_err(|errno| {
            log::debug!("verbs: looking for the way to {}: {errno}", params.dst);
            match errno {
                Errno::CONNREFUSED => Failure::Refused,
                _ if params.dst.is_gid() => NO_INFINIBAND,
                _ => Failure::Unreachable,
            }
        })
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

    /// Gives the connection a handle. Its events carry it from now on.
    pub(crate) fn add_connection(&mut self, connection: Connection) -> Result<ConnId, FabricError> {
        let deadline = connection.deadline;
        let taken = self.connections.insert(|conn| {
            connection.cm.set_token(Token::Connection(conn).to_bits());
            connection
        });
        let conn = taken.map_err(|_| FabricError::Limit {
            what: "connections",
            limit: u64::from(self.config.max_connections),
        })?;
        self.handshakes.push(conn);
        self.next_expiry = self.next_expiry.min(deadline);
        Ok(conn)
    }

    pub(crate) fn accept_request(
        &mut self,
        conn: ConnId,
        domain: Option<DomainId>,
        limits: QpLimits,
        private_data: &PrivateData,
    ) -> Result<DomainId, FabricError> {
        self.requested(conn)?;
        self.check_limits(limits)?;
        if let Some(domain) = domain {
            self.domains.join(domain)?;
        }
        let deadline = self.now + self.config.request_timeout;
        if let Some(connection) = self.connection_mut(conn) {
            connection.accept_as(domain, limits, deadline);
        }
        let accepted = self
            .make_link(conn, QpState::Init)
            .and_then(|()| self.answer(conn, private_data));
        if let Err(error) = accepted {
            self.close(
                conn,
                CloseReason::Failed("the request could not be accepted"),
            );
            return Err(error);
        }
        self.next_expiry = self.next_expiry.min(deadline);
        let domain = self
            .connection(conn)
            .and_then(|connection| connection.domain);
        domain.ok_or(FabricError::Stale("connection request"))
    }

    /// Posts the receives that wait, makes the queue pair ready, and says yes.
    fn answer(&mut self, conn: ConnId, private_data: &PrivateData) -> Result<(), FabricError> {
        self.transmit_one(conn);
        let connection = self.connection_mut(conn);
        let connection = connection.ok_or(FabricError::Stale("connection request"))?;
        let number = connection.link.as_ref().map(|link| link.qp.number());
        let number = number.ok_or(FabricError::Stale("queue pair"))?;
        connection
            .make_ready(&[QpState::ReadyToReceive, QpState::ReadyToSend])
            .and_then(|()| connection.cm.accept(number, private_data))
            .map_err(|errno| FabricError::System {
                what: "accepting a connection",
                errno,
            })?;
        connection.state = State::Accepted;
        Ok(())
    }

    fn requested(&self, conn: ConnId) -> Result<&Connection, FabricError> {
        self.connection(conn)
            .filter(|connection| connection.state == State::Requested)
            .ok_or(FabricError::Stale("connection request"))
    }

    pub(crate) fn open_domain(&mut self, device: DeviceId) -> Result<DomainId, FabricError> {
        let adapter = self.devices.get(device);
        let adapter = adapter.ok_or(FabricError::Stale("device"))?;
        let pd = Pd::new(&adapter.device).map_err(|errno| FabricError::System {
            what: "making a protection domain",
            errno,
        })?;
        self.domains.open(device, pd)
    }

    pub(crate) fn detach_request(&mut self, conn: ConnId) -> Result<VerbsIncoming, FabricError> {
        let listener = self.requested(conn)?.listener;
        let moving = |errno| FabricError::System {
            what: "handing a connection over",
            errno,
        };
        let limbo = CmChannel::new().map_err(moving)?;
        let stale = FabricError::Stale("connection request");
        let mut connection = self.forget(conn).ok_or(stale.clone())?;
        self.connections.free(conn);
        connection.cm.migrate(&limbo).map_err(moving)?;
        Ok(VerbsIncoming {
            cm: connection.cm,
            listener: listener.ok_or(stale)?,
            private_data: connection.private_data,
            deadline: connection.deadline,
        })
    }

    pub(crate) fn adopt_request(&mut self, incoming: VerbsIncoming) -> Result<ConnId, FabricError> {
        let mut connection = Connection::new(
            incoming.cm,
            State::Requested,
            QpLimits {
                send_wrs: 0,
                recv_wrs: self.config.max_work_requests,
            },
            incoming.deadline,
        );
        connection.listener = Some(incoming.listener);
        connection.private_data = incoming.private_data;
        let migrated = connection.cm.migrate(&self.channel);
        migrated.map_err(|errno| FabricError::System {
            what: "taking a connection over",
            errno,
        })?;
        self.add_connection(connection)
    }
}

impl Connection {
    fn accept_as(&mut self, domain: Option<DomainId>, limits: QpLimits, deadline: Nanos) {
        self.domain = domain;
        self.limits = limits;
        self.sends = crate::send_queue::SendQueue::new(limits.send_wrs);
        self.deadline = deadline;
    }
}

pub(crate) const NO_INFINIBAND: Failure =
    Failure::Failed("no InfiniBand device of this host has or reaches this GID");

/// Options are wishes: a device without them is used without.
fn set_options(cm: &CmId, config: &crate::VerbsConfig) {
    let wishes = [
        config
            .type_of_service
            .map(|tos| cm.set_type_of_service(tos)),
        config
            .ack_timeout
            .map(|exponent| cm.set_ack_timeout(exponent)),
        Some(cm.share_addr()),
    ];
    for errno in wishes.into_iter().flatten().filter_map(Result::err) {
        log::debug!("verbs: an option of a connection: {errno}");
    }
}

// Going.

impl VerbsFabric {
    pub(crate) fn reject_request(&mut self, conn: ConnId, private_data: &PrivateData) {
        if let Ok(connection) = self.requested(conn) {
            // If the answer cannot be sent, the end of the request says the same.
            let _outcome = connection.cm.reject(private_data);
            self.close(conn, CloseReason::Local);
        }
    }

    pub(crate) fn close_locally(&mut self, conn: ConnId) {
        self.close(conn, CloseReason::Local);
    }

    /// Ends a connection as soon as the completions that came before are delivered.
    pub(crate) fn end(&mut self, conn: ConnId, reason: CloseReason) {
        let Some(connection) = self.connection_mut(conn) else {
            return;
        };
        if connection.ending.is_none() {
            connection.ending = Some(reason);
            self.ending.push(conn);
        }
    }

    /// Ends a connection. That is told when the device touches none of its memory any more, which
    /// may take the driver a while.
    pub(crate) fn close(&mut self, conn: ConnId, reason: CloseReason) {
        let Some(connection) = self.forget(conn) else {
            return;
        };
        if matches!(reason, CloseReason::Violation(_)) {
            self.stats.violations += 1;
        }
        let has_queue_pair = connection.link.is_some();
        let scraps = self.take_apart(connection, reason);
        if has_queue_pair {
            let releaser = &self.host.releaser;
            releaser.close(scraps, &self.inbox, conn, reason);
        } else {
            self.host.releaser.drop_later(scraps);
            self.on_released(conn, reason);
        }
    }

    /// Nothing of a connection touches memory any more.
    pub(crate) fn on_released(&mut self, conn: ConnId, reason: CloseReason) {
        self.connections.free(conn);
        self.events.push_back(Event::Closed { conn, reason });
    }

    /// Tells the peer; returns what is to be let go of: windows that are bound on the queue pair
    /// first, because soft-RoCE waits for them when the queue pair goes.
    fn take_apart(&mut self, connection: Connection, reason: CloseReason) -> Vec<Scrap> {
        let Connection {
            state, link, cm, ..
        } = connection;
        // Where the device is gone, so is the way to the peer.
        let may_tell = matches!(state, State::Accepted | State::Up) && reason != REMOVED;
        // Where this fails the connection manager is past it already.
        let told = may_tell && cm.disconnect().is_ok();
        let mut scraps = self.keys.take_scraps();
        if let Some(link) = link {
            let (cq, sizes) = (Arc::clone(link.qp.cq()), link.qp.sizes());
            self.devices.release(link.device, &cq, sizes);
            scraps.push(Scrap::Qp(link.qp));
        }
        if told && reason != CloseReason::PeerClosed {
            self.say_goodbye(cm);
        } else {
            scraps.push(Scrap::Cm(cm));
        }
        scraps
    }

    /// Keeps the identifier until the peer has heard that the connection is over.
    fn say_goodbye(&mut self, cm: CmId) {
        let deadline = self.now + self.config.goodbye_timeout;
        let goodbye = |index, generation| {
            cm.set_token(Token::Goodbye { index, generation }.to_bits());
            Goodbye { cm, deadline }
        };
        if self.goodbyes.insert(goodbye).is_ok() {
            self.next_expiry = self.next_expiry.min(deadline);
        }
    }

    pub(crate) fn end_goodbye(&mut self, index: u32, generation: u32) {
        let ended = self.goodbyes.remove(index, generation);
        let scraps = ended.map(|goodbye| Scrap::Cm(goodbye.cm));
        self.host.releaser.drop_later(scraps.into_iter().collect());
    }

    /// A connection that is closed here heard from its peer, or cannot any more.
    pub(crate) fn on_goodbye_event(&mut self, index: u32, generation: u32, kind: &CmEventKind) {
        if matches!(kind, CmEventKind::DeviceRemoved) {
            self.on_goodbye_device_removed(index, generation);
        }
        if !matches!(
            kind,
            CmEventKind::Established | CmEventKind::ConnectRequest(_)
        ) {
            self.end_goodbye(index, generation);
        }
    }

    /// Takes a connection out of every list. Its handle stays taken.
    fn forget(&mut self, conn: ConnId) -> Option<Connection> {
        self.keys.close_windows_of(conn);
        let connection = self.connections.take(conn)?;
        if !connection.is_up() {
            self.handshakes.retain(|&other| other != conn);
        }
        if connection.is_dirty {
            self.dirty.retain(|&other| other != conn);
        }
        if connection.ending.is_some() {
            self.ending.retain(|&other| other != conn);
        }
        if let Some(domain) = connection.domain {
            self.leave(domain);
        }
        Some(connection)
    }

    /// Ends what has taken too long.
    pub(crate) fn expire(&mut self) {
        let now = self.now;
        if now < self.next_expiry {
            return;
        }
        let is_late = |conn: &ConnId| {
            let connection = self.connection(*conn);
            connection.is_some_and(|connection| connection.deadline <= now)
        };
        let late: Vec<_> = self.handshakes.iter().copied().filter(is_late).collect();
        for conn in late {
            self.close(conn, CloseReason::TimedOut);
        }
        let silent = self.goodbyes.iter();
        let silent: Vec<_> = silent
            .filter(|(_, goodbye)| goodbye.deadline <= now)
            .map(|(id, _)| id)
            .collect();
        for (index, generation) in silent {
            self.end_goodbye(index, generation);
        }
        self.resume_listeners();
        self.next_expiry = self.earliest_expiry();
    }

    fn earliest_expiry(&self) -> Nanos {
        let handshakes = self.handshakes.iter();
        let handshakes = handshakes
            .filter_map(|&conn| self.connection(conn))
            .map(|connection| connection.deadline);
        let goodbyes = self.goodbyes.iter().map(|(_, goodbye)| goodbye.deadline);
        let listeners = self.listeners.iter().map(|(_, listener)| listener.retry_at);
        let all = handshakes.chain(goodbyes).chain(listeners);
        all.min().unwrap_or(Nanos::MAX)
    }
}

impl Drop for VerbsFabric {
    /// Waits for the driver, so that the memory may be used for something else afterwards.
    fn drop(&mut self) {
        let all: Vec<_> = self.connections.iter().map(|(conn, _)| conn).collect();
        for conn in all {
            self.close(conn, CloseReason::Local);
        }
        self.host.releaser.wait();
    }
}
