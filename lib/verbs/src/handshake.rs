//! How connections get up.
//!
//! ```text
//!  connect ──> Resolving ─address─> Routing ─route─> Asking ─response──────────> Up
//!               (device, queue pair)        (asks)          (queue pair ready,
//!                                                            confirms to the peer)
//!
//!  request ──> Requested ──accept──> Accepted ──confirmation, or first message──> Up
//!                  │        (queue pair ready)    (what was posted goes out)
//!                  ├──reject, detach
//!                  └──no answer in time
//!
//!  any of them: rejected, unreachable, deadline, disconnected ──> Closed
//! ```
//!
//! The connection manager tells nothing of a request until it is accepted, not even that its
//! connector left: then accepting fails, or the deadline ends it.

use rnbd_fabric::{CloseReason, ConnId, Event, FabricError, ListenerId, PrivateData, QpLimits};
use rustix::io::Errno;

use crate::connection::{Connection, Link, State, Token};
use crate::devices::DeviceId;
use crate::fabric::VerbsFabric;
use crate::lifecycle::NO_INFINIBAND;
use crate::sys::{CmEvent, CmEventKind, CmId, Qp, QpSizes, QpState};

/// Reasons of a reject that have a meaning here, of InfiniBand's list.
const REJECT_INVALID_SERVICE: i32 = 8;
const REJECT_CONSUMER: i32 = 28;

/// The device ends a queue pair by itself only for what the peer sent, or with an error completion.
/// Soft-RoCE may leave that completion out, as when local work that it repeats fails
/// (`crate::send_queue` keeps it from that).
pub(crate) const STOPPED: CloseReason = CloseReason::Violation(
    "the device stopped the queue pair, as it does when the peer breaks a rule",
);

/// The peer is looked for anew when the path reconnects.
const ADDR_CHANGED: CloseReason =
    CloseReason::Failed("the network interface has another hardware address");

/// Why a step on this side was the last.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure {
    Refused,
    Unreachable,
    Failed(&'static str),
}

const GONE: Failure = Failure::Failed("the connection is gone");

impl VerbsFabric {
    /// Takes note of an event of the connection manager.
    pub(crate) fn handle_cm_event(&mut self, event: CmEvent) {
        match (Token::from_bits(event.token), event.kind) {
            (Token::Listener(listener), CmEventKind::ConnectRequest(cm)) => {
                self.on_request(listener, cm, event.private_data);
            }
            (Token::Listener(listener), CmEventKind::DeviceRemoved) => {
                self.suspend_listener(listener);
            }
            (Token::Listener(_), _) => {}
            (Token::Goodbye { index, generation }, kind) => {
                self.on_goodbye_event(index, generation, &kind);
            }
            (Token::Connection(conn), kind) => {
                self.on_connection_event(conn, &kind, &event.private_data);
            }
        }
    }

    fn on_connection_event(&mut self, conn: ConnId, kind: &CmEventKind, data: &PrivateData) {
        let Some(state) = self.connection(conn).map(|connection| connection.state) else {
            return;
        };
        match (state, kind) {
            (_, CmEventKind::DeviceRemoved) => self.on_device_removed(conn),
            (State::Resolving, CmEventKind::AddrResolved) => self.on_address(conn),
            (State::Resolving | State::Routing, CmEventKind::Unreachable) => self.on_no_way(conn),
            (State::Routing, CmEventKind::RouteResolved) => self.on_route(conn),
            (State::Asking, CmEventKind::ConnectResponse) => self.on_response(conn, data),
            (State::Accepted, CmEventKind::Established) => self.confirm(conn),
            (_, CmEventKind::Disconnected) => self.on_disconnected(conn),
            (_, CmEventKind::AddrChanged) => self.close(conn, ADDR_CHANGED),
            (_, kind) => {
                if let Some(reason) = failure(state, kind, data) {
                    self.close(conn, reason);
                }
            }
        }
    }

    /// The peer left. If our device had stopped the queue pair before, that is why it did, and
    /// not every device says so by itself.
    fn on_disconnected(&mut self, conn: ConnId) {
        let link = self.connection(conn).and_then(|it| it.link.as_ref());
        let reason = match link {
            Some(link) if link.qp.is_stopped() => STOPPED,
            _ => CloseReason::PeerClosed,
        };
        self.end(conn, reason);
    }

    // The connector's side.

    /// The way is known: makes the queue pair on the device that it starts from.
    fn on_address(&mut self, conn: ConnId) {
        match self.prepare_connector(conn) {
            Err(Failure::Unreachable) => self.on_no_way(conn),
            outcome => self.close_if_failed(conn, outcome),
        }
    }

    /// There is no way to the peer. On `RoCE`, which knows GIDs too, a way to one is never found.
    fn on_no_way(&mut self, conn: ConnId) {
        let peer = self.connection(conn).and_then(|it| it.cm.peer_addr());
        let failure = match peer {
            Some(peer) if peer.is_gid() => NO_INFINIBAND,
            _ => Failure::Unreachable,
        };
        self.close_if_failed(conn, Err(failure));
    }

    fn prepare_connector(&mut self, conn: ConnId) -> Result<(), Failure> {
        self.make_link(conn, QpState::Init).map_err(|error| {
            log::warn!("verbs: a queue pair for {conn:?}: {error}");
            Failure::Failed(link_failure(&error))
        })?;
        let connection = self.connection_mut(conn).ok_or(GONE)?;
        connection.state = State::Routing;
        let resolved = connection.cm.resolve_route(ROUTE_TIMEOUT_MS);
        resolved.map_err(|_| Failure::Unreachable)
    }

    fn on_route(&mut self, conn: ConnId) {
        let retries = self.config.retry_count;
        let Some(connection) = self.connection_mut(conn) else {
            return;
        };
        connection.state = State::Asking;
        let number = connection.link.as_ref().map(|link| link.qp.number());
        let data = connection.private_data;
        let asked = number
            .ok_or(Errno::NOTCONN)
            .and_then(|number| connection.cm.connect(number, &data, retries));
        let outcome = asked.map_err(|_| Failure::Failed("the connect call was refused"));
        self.close_if_failed(conn, outcome);
    }

    fn on_response(&mut self, conn: ConnId, data: &PrivateData) {
        let outcome = self.finish_connector(conn, data);
        self.close_if_failed(conn, outcome);
    }

    fn finish_connector(&mut self, conn: ConnId, data: &PrivateData) -> Result<(), Failure> {
        const FAILED: Failure = Failure::Failed("the queue pair could not be made ready");
        let connection = self.connection_mut(conn).ok_or(FAILED)?;
        connection
            .make_ready(&[QpState::ReadyToReceive, QpState::ReadyToSend])
            .and_then(|()| connection.cm.establish())
            .map_err(|_| FAILED)?;
        connection.state = State::Up;
        let src = connection.local_addr().ok_or(FAILED)?;
        let domain = connection.domain.ok_or(FAILED)?;
        let private_data = *data;
        self.note_up(conn);
        self.events.push_back(Event::Connected {
            conn,
            domain,
            private_data,
            src,
        });
        Ok(())
    }

    // The acceptor's side.

    fn on_request(&mut self, listener: ListenerId, cm: CmId, data: PrivateData) {
        let entry = self.listeners.get(listener.index, listener.generation);
        if entry.is_none() {
            return;
        }
        let deadline = self.now + self.config.request_timeout;
        let refused = self.add_request(listener, cm, data, deadline);
        if let Err(error) = refused {
            log::warn!("verbs: a connection request is refused: {error}");
        }
    }

    /// Makes a connection of a request and has the application answer it.
    pub(crate) fn add_request(
        &mut self,
        listener: ListenerId,
        cm: CmId,
        private_data: PrivateData,
        deadline: rnbd_base::Nanos,
    ) -> Result<ConnId, FabricError> {
        let (Some(src), Some(dst)) = (cm.peer_addr(), cm.local_addr()) else {
            return Err(FabricError::Unsupported("an address of an unknown family"));
        };
        let limits = QpLimits {
            send_wrs: 0,
            recv_wrs: self.config.max_work_requests,
        };
        let mut connection = Connection::new(cm, State::Requested, limits, deadline);
        connection.listener = Some(listener);
        connection.private_data = private_data;
        let conn = self.add_connection(connection)?;
        self.events.push_back(Event::ConnectRequest {
            listener,
            conn,
            private_data,
            src,
            dst,
        });
        Ok(conn)
    }

    /// The peer knows that the connection is up: what was posted may go.
    pub(crate) fn confirm(&mut self, conn: ConnId) {
        if let Some(connection) = self.connection_mut(conn) {
            connection.state = State::Up;
            self.note_up(conn);
        }
    }

    fn note_up(&mut self, conn: ConnId) {
        self.handshakes.retain(|&other| other != conn);
        self.mark_dirty(conn);
    }

    // Both.

    /// Makes the queue pair of a connection, on the device and in the domain that it belongs to.
    pub(crate) fn make_link(&mut self, conn: ConnId, state: QpState) -> Result<(), FabricError> {
        let stale = || FabricError::Stale("connection");
        let connection = self.connections.get(conn).ok_or_else(stale)?;
        let device = self.devices.of(&connection.cm)?;
        let (domain, is_new) = match connection.domain {
            Some(domain) => (domain, false),
            None => (self.open_domain(device)?, true),
        };
        let made = self.link_in(conn, device, domain, state);
        if made.is_err() && is_new {
            let scrap = self.domains.close(domain);
            self.host.releaser.drop_later(scrap.into_iter().collect());
        }
        made
    }

    fn link_in(
        &mut self,
        conn: ConnId,
        device: DeviceId,
        domain: rnbd_fabric::DomainId,
        state: QpState,
    ) -> Result<(), FabricError> {
        if self.domains.device(domain)? != device {
            return Err(FabricError::Unsupported("a domain of another device"));
        }
        let limits = self.connection(conn).map(|connection| connection.limits);
        let limits = limits.ok_or(FabricError::Stale("connection"))?;
        let is_member = self.connection(conn).is_some_and(|it| it.domain.is_some());
        let pd = self.domains.join(domain)?;
        if is_member {
            self.leave(domain);
        }
        let qp = self.make_qp(device, &pd, limits);
        if qp.is_err() && !is_member {
            self.leave(domain);
        }
        let qp = qp?;
        let sizes = qp.sizes();
        let adapter = self.devices.get(device);
        let is_soft_roce = adapter.is_some_and(|it| it.device.limits().is_soft_roce);
        let connection = self
            .connection_mut(conn)
            .ok_or(FabricError::Stale("connection"))?;
        connection.domain = Some(domain);
        connection.link = Some(Link { qp, device });
        connection.sends.set_room(sizes.send_wrs, is_soft_roce);
        let fits = connection.recvs.set_sizes(limits.recv_wrs, sizes.recv_wrs);
        fits.map_err(|_| FabricError::Limit {
            what: "receives of the connection",
            limit: u64::from(limits.recv_wrs),
        })?;
        connection
            .make_ready(&[state])
            .map_err(|errno| FabricError::System {
                what: "preparing a queue pair",
                errno,
            })
    }

    fn make_qp(
        &mut self,
        device: DeviceId,
        pd: &std::sync::Arc<crate::sys::Pd>,
        limits: QpLimits,
    ) -> Result<Qp, FabricError> {
        let cq_entries = self.config.cq_entries;
        let wanted = QpSizes {
            send_wrs: limits.send_wrs,
            recv_wrs: limits.recv_wrs,
            inline_bytes: self.config.inline_bytes,
        };
        let sizes = self.devices.cut(device, wanted, cq_entries);
        let cq = self.devices.reserve(device, sizes, cq_entries);
        let cq = cq.map_err(|errno| FabricError::System {
            what: "making a completion queue",
            errno,
        })?;
        let without_inline = QpSizes {
            inline_bytes: 0,
            ..sizes
        };
        let made = Qp::new(pd, &cq, sizes).or_else(|_| Qp::new(pd, &cq, without_inline));
        made.map_err(|errno| {
            self.devices.release(device, &cq, sizes);
            FabricError::System {
                what: "making a queue pair",
                errno,
            }
        })
    }

    pub(crate) fn close_if_failed(&mut self, conn: ConnId, outcome: Result<(), Failure>) {
        match outcome {
            Ok(()) => {}
            Err(Failure::Refused) => self.close(conn, CloseReason::Refused),
            Err(Failure::Unreachable) => self.close(conn, CloseReason::Unreachable),
            Err(Failure::Failed(what)) => self.close(conn, CloseReason::Failed(what)),
        }
    }
}

/// The kernel gives up sooner than this on its own; the deadline of the attempt is beside it.
const ROUTE_TIMEOUT_MS: u32 = 30_000;

impl Connection {
    /// Leads the queue pair through these states.
    pub(crate) fn make_ready(&self, states: &[QpState]) -> Result<(), Errno> {
        let link = self.link.as_ref().ok_or(Errno::NOTCONN)?;
        for &state in states {
            link.qp.modify(self.cm.qp_attr(state)?)?;
        }
        Ok(())
    }
}

/// Why an attempt in this state failed, if the event says so.
fn failure(state: State, kind: &CmEventKind, data: &PrivateData) -> Option<CloseReason> {
    let is_accepted = matches!(state, State::Accepted | State::Up);
    Some(match kind {
        CmEventKind::Rejected(_) if is_accepted => CloseReason::PeerClosed,
        CmEventKind::Rejected(REJECT_CONSUMER) => CloseReason::Rejected(*data),
        CmEventKind::Rejected(REJECT_INVALID_SERVICE) => CloseReason::Refused,
        CmEventKind::Rejected(status) if *status == -libc::ECONNREFUSED => {
            CloseReason::Rejected(*data)
        }
        CmEventKind::Rejected(_) => CloseReason::Failed("the peer's connection manager refused"),
        CmEventKind::TimedOut => CloseReason::TimedOut,
        CmEventKind::Unreachable => CloseReason::Unreachable,
        CmEventKind::Failed => CloseReason::Failed("the connection manager gave up"),
        _ => return None,
    })
}

fn link_failure(error: &FabricError) -> &'static str {
    match error {
        FabricError::Unsupported(_) => "the way to the peer is over another device",
        _ => "the device has no room for the connection",
    }
}
