use std::collections::VecDeque;
use std::os::fd::{OwnedFd, RawFd};

use rnbd_base::{Nanos, Progress};
use rnbd_mem::Span;

use crate::Fabric;
use crate::domains::Domains;
use crate::slab::Slab;
use crate::tcp::config::TcpConfig;
use crate::tcp::connection::{Connection, State};
use crate::tcp::inbound::STAGING_BYTES;
use crate::tcp::keys::Keys;
use crate::tcp::lifecycle::{TcpIncoming, watch_listener};
use crate::tcp::receives::Receive;
use crate::tcp::socket;
use crate::tcp::strangers::StrangerLog;
use crate::tcp::watcher::Watcher;
use crate::types::{
    Access, Addr, Caps, Completion, ConnId, ConnectParams, DomainId, Event, FabricError,
    FabricStats, ListenOptions, ListenerId, MemoryKey, MrId, PostError, PrivateData, QpLimits, Sge,
    WindowId, WindowKind, WorkRequest, WrOp,
};

const LISTENERS_MAX: u32 = 1024;
const DOMAINS_MAX: u32 = 1 << 20;

/// A core's connections over TCP.
#[derive(Debug)]
pub struct TcpFabric {
    pub(super) config: TcpConfig,
    pub(super) stats: FabricStats,
    pub(super) watcher: Watcher,
    pub(super) listeners: Slab<Listener>,
    pub(super) connections: Slab<Connection>,
    pub(super) domains: Domains,
    pub(super) keys: Keys,
    pub(super) events: VecDeque<Event>,
    /// Connections that are not up, the oldest first.
    pub(super) handshakes: Vec<ConnId>,
    /// Not after the earliest deadline of handshakes and paused listeners.
    pub(super) next_expiry: Nanos,
    /// Connections that are asked in each poll, by index.
    pub(super) hot: Vec<u32>,
    /// Connections with something to send or a completion to report, by index.
    pub(super) dirty: Vec<u32>,
    pub(super) staging: Box<[u8; STAGING_BYTES]>,
    pub(super) stranger_log: StrangerLog,
}

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    /// Set while the process has no descriptors left for what waits to be accepted.
    pub(super) paused_until: Option<Nanos>,
}

impl TcpFabric {
    /// A fabric without connections.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn new(config: TcpConfig) -> Result<Self, FabricError> {
        let watcher = Watcher::new().map_err(|errno| FabricError::System {
            what: "epoll_create",
            errno,
        })?;
        let connections_max = config.max_connections as usize;
        Ok(Self {
            watcher,
            listeners: Slab::new(LISTENERS_MAX),
            connections: Slab::new(config.max_connections),
            domains: Domains::new(DOMAINS_MAX),
            keys: Keys::new(),
            events: VecDeque::new(),
            handshakes: Vec::new(),
            next_expiry: Nanos::MAX,
            hot: Vec::with_capacity(connections_max),
            dirty: Vec::with_capacity(connections_max),
            staging: Box::new([0; STAGING_BYTES]),
            stranger_log: StrangerLog::default(),
            stats: FabricStats::default(),
            config,
        })
    }

    pub(super) fn connection(&self, conn: ConnId) -> Option<&Connection> {
        self.connections.get(conn.index, conn.generation)
    }

    pub(super) fn connection_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.connections.get_mut(conn.index, conn.generation)
    }

    /// The domain of a connection that is up.
    fn domain_of(&self, conn: ConnId) -> Result<DomainId, PostError> {
        self.connection(conn)
            .filter(|connection| connection.state == State::Up)
            .and_then(|connection| connection.domain)
            .ok_or(PostError::NotConnected)
    }
}

impl Fabric for TcpFabric {
    type Incoming = TcpIncoming;

    fn caps(&self) -> Caps {
        Caps {
            trtype: "TCP",
            domain_windows: true,
            connection_windows: true,
            cheap_windows: true,
            prefers_windows: false,
            prefers_hugepages: false,
            needs_local_keys: false,
        }
    }

    fn stats(&self) -> FabricStats {
        self.stats
    }

    fn listen(&mut self, addr: &Addr, options: &ListenOptions) -> Result<ListenerId, FabricError> {
        let socket = socket::listen(addr, options, &self.config)?;
        self.add_listener(socket)
    }

    fn listen_addr(&self, listener: ListenerId) -> Result<Addr, FabricError> {
        let entry = self.listeners.get(listener.index, listener.generation);
        let entry = entry.ok_or(FabricError::Stale("listener"))?;
        socket::local_addr(&entry.socket).map_err(|errno| FabricError::System {
            what: "getsockname",
            errno,
        })
    }

    fn unlisten(&mut self, listener: ListenerId) {
        self.listeners.remove(listener.index, listener.generation);
    }

    fn connect(&mut self, params: &ConnectParams, now: Nanos) -> Result<ConnId, FabricError> {
        self.begin_connect(params, now)
    }

    fn accept(
        &mut self,
        conn: ConnId,
        domain: Option<DomainId>,
        limits: QpLimits,
        private_data: &PrivateData,
    ) -> Result<DomainId, FabricError> {
        self.accept_request(conn, domain, limits, private_data)
    }

    fn reject(&mut self, conn: ConnId, private_data: &PrivateData) {
        self.reject_request(conn, private_data);
    }

    fn disconnect(&mut self, conn: ConnId) {
        self.close_locally(conn);
    }

    fn detach(&mut self, conn: ConnId) -> Result<Self::Incoming, FabricError> {
        self.detach_request(conn)
    }

    fn adopt(&mut self, incoming: Self::Incoming) -> Result<ConnId, FabricError> {
        self.adopt_request(incoming)
    }

    fn register(
        &mut self,
        domain: DomainId,
        span: Span,
        access: Access,
    ) -> Result<MemoryKey, FabricError> {
        self.domains.join(Some(domain))?;
        let key = self.keys.register(domain, span, access);
        if key.is_err() {
            self.domains.leave(domain);
        }
        key
    }

    fn deregister(&mut self, mr: MrId) {
        if let Some(domain) = self.keys.deregister(mr) {
            self.domains.leave(domain);
        }
    }

    fn alloc_window(
        &mut self,
        domain: DomainId,
        kind: WindowKind,
    ) -> Result<WindowId, FabricError> {
        self.domains.join(Some(domain))?;
        let window = self.keys.alloc_window(domain, kind);
        if window.is_err() {
            self.domains.leave(domain);
        }
        window
    }

    fn invalidate_now(&mut self, window: WindowId) -> bool {
        self.keys.invalidate(window).is_ok()
    }

    fn free_window(&mut self, window: WindowId) {
        if let Some(domain) = self.keys.free_window(window) {
            self.domains.leave(domain);
        }
    }

    fn bind(
        &mut self,
        conn: ConnId,
        window: WindowId,
        mr: MrId,
        span: Span,
    ) -> Result<u32, PostError> {
        let domain = self.domain_of(conn)?;
        let holder = self.keys.holder_of(window);
        if holder.is_some_and(|holder| holder != conn && self.connection(holder).is_some()) {
            return Err(PostError::NoWindow);
        }
        self.keys.bind(conn, domain, window, mr, span)
    }

    fn close_domain(&mut self, domain: DomainId) {
        self.domains.close(domain);
    }

    fn post_recv(&mut self, conn: ConnId, wr_id: u64, buf: Option<Sge>) -> Result<(), PostError> {
        let connection = self
            .connections
            .get_mut(conn.index, conn.generation)
            .ok_or(PostError::NotConnected)?;
        let was_starved = connection.inbound.is_starved();
        let span = buf.map_or(Span::EMPTY, |sge| sge.span);
        connection.inbound.receives.post(Receive { wr_id, span })?;
        self.stats.recv_wrs += 1;
        if was_starved {
            self.warm(conn.index);
        }
        Ok(())
    }

    fn post_empty_recvs(&mut self, conn: ConnId, count: u32) -> Result<(), PostError> {
        let connection = self.connection(conn).ok_or(PostError::NotConnected)?;
        if !connection.inbound.receives.has_room(count) {
            return Err(PostError::OverLimit);
        }
        for _ in 0..count {
            self.post_recv(conn, 0, None)?;
        }
        Ok(())
    }

    fn post(&mut self, conn: ConnId, wr: &WorkRequest) -> Result<(), PostError> {
        let connection = self
            .connections
            .get_mut(conn.index, conn.generation)
            .filter(|connection| connection.state == State::Up)
            .filter(|connection| connection.send_failure.is_none())
            .ok_or(PostError::NotConnected)?;
        if let WrOp::Invalidate(window) = wr.op {
            if connection.outbound.is_full() {
                return Err(PostError::OverLimit);
            }
            self.keys.invalidate(window)?;
        }
        connection.outbound.post(wr)?;
        self.stats.send_wrs += 1;
        if !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push(conn.index);
        }
        Ok(())
    }

    fn flush(&mut self, _now: Nanos) {
        self.transmit();
    }

    fn poll(&mut self, now: Nanos, completions: &mut Vec<Completion>) -> Progress {
        self.poll_once(now, completions)
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn next_deadline(&self) -> Option<Nanos> {
        Some(self.next_expiry).filter(|&expiry| expiry != Nanos::MAX)
    }

    fn prepare_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool {
        self.go_to_sleep(fds)
    }
}

impl TcpFabric {
    fn add_listener(&mut self, socket: OwnedFd) -> Result<ListenerId, FabricError> {
        let watcher = &self.watcher;
        let mut watched = Ok(());
        let taken = self.listeners.insert(|index, generation| {
            watched = watch_listener(watcher, ListenerId { index, generation }, &socket);
            Listener {
                socket,
                paused_until: None,
            }
        });
        let (index, generation) = taken.map_err(|_| FabricError::Limit {
            what: "listeners",
            limit: u64::from(LISTENERS_MAX),
        })?;
        if let Err(errno) = watched {
            self.listeners.remove(index, generation);
            let what = "epoll_ctl";
            return Err(FabricError::System { what, errno });
        }
        Ok(ListenerId { index, generation })
    }
}
