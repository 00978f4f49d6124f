use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use rnbd_base::{Nanos, Progress};
use rnbd_fabric::slab::Slab;
use rnbd_fabric::{
    Access, Addr, Caps, Completion, ConnId, ConnectParams, DomainId, Event, Fabric, FabricError,
    FabricStats, ListenOptions, ListenerId, MemoryKey, MrId, PostError, PrivateData, QpLimits, Sge,
    WindowId, WindowKind, WorkRequest,
};
use rnbd_mem::Span;
use rustix::io::Errno;

use crate::config::VerbsConfig;
use crate::connection::Connection;
use crate::connections::Connections;
use crate::devices::Devices;
use crate::domains::Domains;
use crate::host::{Inbox, Shared, VerbsHost};
use crate::keys::Keys;
use crate::lifecycle::{Goodbye, VerbsIncoming};
use crate::listeners::Listener;
use crate::sys::{ChainScratch, CmChannel, WcBatch};

const LISTENERS_MAX: u32 = 1024;
/// Connections keep their index in 30 bits of a token.
const CONNECTIONS_MAX: u32 = 1 << 30;

/// A core's connections over RDMA verbs.
///
/// The devices are those that the host has; connections find theirs by address.
#[derive(Debug)]
pub struct VerbsFabric {
    pub(crate) host: Arc<Shared>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) config: VerbsConfig,
    pub(crate) stats: FabricStats,
    pub(crate) caps: Caps,
    pub(crate) connections: Connections,
    pub(crate) listeners: Slab<Listener>,
    pub(crate) goodbyes: Slab<Goodbye>,
    pub(crate) keys: Keys,
    pub(crate) domains: Domains,
    pub(crate) devices: Devices,
    pub(crate) channel: Arc<CmChannel>,
    pub(crate) events: VecDeque<Event>,
    /// Connections that are not up.
    pub(crate) handshakes: Vec<ConnId>,
    /// Connections that are known to be over.
    pub(crate) ending: Vec<ConnId>,
    /// Connections with something to post.
    pub(crate) dirty: Vec<ConnId>,
    pub(crate) scratch: ChainScratch,
    pub(crate) batch: WcBatch,
    /// Which completion queue is asked next.
    pub(crate) next_cq: usize,
    /// Whether the completion channels were told to tell.
    pub(crate) is_armed: bool,
    /// When the connection manager is asked next.
    pub(crate) next_look: Nanos,
    /// Room for the descriptors that are asked then.
    pub(crate) polled: Vec<libc::pollfd>,
    /// Not after the earliest deadline of anything.
    pub(crate) next_expiry: Nanos,
    /// The time of the last call that told it.
    pub(crate) now: Nanos,
}

impl VerbsFabric {
    /// A fabric without connections, with a [`VerbsHost`] of its own.
    ///
    /// # Errors
    /// As [`VerbsHost::start`] and [`VerbsHost::fabric`].
    pub fn new(config: VerbsConfig) -> Result<Self, FabricError> {
        VerbsHost::start(config, |_| {})?.fabric()
    }

    pub(crate) fn of(host: Arc<Shared>) -> Result<Self, FabricError> {
        let channel = CmChannel::new().map_err(cannot_start)?;
        let inbox = Arc::new(Inbox::new().map_err(cannot_start)?);
        let mut devices = Devices::new();
        for opened in host.watch().join(&inbox).map_err(cannot_start)? {
            devices.add(opened);
        }
        let config = host.config.clone();
        Ok(Self {
            host,
            inbox,
            caps: caps(&devices, config.window_per_request),
            connections: Connections::new(config.max_connections.min(CONNECTIONS_MAX)),
            listeners: Slab::new(LISTENERS_MAX),
            goodbyes: Slab::new(config.max_connections.min(CONNECTIONS_MAX)),
            keys: Keys::new(),
            domains: Domains::new(),
            devices,
            channel,
            events: VecDeque::new(),
            handshakes: Vec::new(),
            ending: Vec::new(),
            dirty: Vec::with_capacity(config.max_connections as usize),
            scratch: ChainScratch::new(),
            batch: WcBatch::new(),
            next_cq: 0,
            is_armed: false,
            next_look: Nanos::ZERO,
            polled: Vec::new(),
            next_expiry: Nanos::MAX,
            now: Nanos::ZERO,
            stats: FabricStats::default(),
            config,
        })
    }

    pub(crate) fn connection(&self, conn: ConnId) -> Option<&Connection> {
        self.connections.get(conn)
    }

    pub(crate) fn connection_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.connections.get_mut(conn)
    }
}

impl VerbsFabric {
    /// A member of the domain less.
    pub(crate) fn leave(&mut self, domain: DomainId) {
        let scrap = self.domains.leave(domain);
        self.host.releaser.drop_later(scrap.into_iter().collect());
    }

    /// Lets go of a member of the domain that is out of use. Where a queue pair could still reach
    /// it, it is gone when this returns; else no remote access is possible, and there is time.
    fn let_go(&mut self, domain: Option<DomainId>) {
        let scraps = self.keys.take_scraps();
        let Some(domain) = domain else {
            return;
        };
        if self.connections.reach(domain) {
            drop(scraps);
        } else {
            self.host.releaser.drop_later(scraps);
        }
        self.leave(domain);
    }
}

/// What all devices can do, so that a target may count on it whichever a session comes over.
fn caps(devices: &Devices, window_per_request: bool) -> Caps {
    let all = |works: &dyn Fn(&crate::devices::Adapter) -> bool| {
        let mut found = devices.iter().peekable();
        found.peek().is_some() && found.all(|(_, adapter)| works(adapter))
    };
    let connection_windows = all(&|adapter| adapter.windows.connection);
    Caps {
        trtype: "RDMA",
        domain_windows: all(&|adapter| adapter.windows.domain.is_some()),
        connection_windows,
        cheap_windows: false,
        prefers_windows: connection_windows && window_per_request,
        prefers_hugepages: true,
        needs_local_keys: true,
    }
}

fn cannot_start(errno: Errno) -> FabricError {
    let what = match errno {
        Errno::NODEV | Errno::NOENT | Errno::NOSYS => {
            "looking for RDMA devices: this host has none"
        }
        Errno::ACCESS | Errno::PERM => "opening RDMA devices: not allowed",
        _ => "opening RDMA devices",
    };
    FabricError::System { what, errno }
}

impl Fabric for VerbsFabric {
    type Incoming = VerbsIncoming;

    fn caps(&self) -> Caps {
        self.caps
    }

    fn stats(&self) -> FabricStats {
        self.stats
    }

    fn listen(&mut self, addr: &Addr, options: &ListenOptions) -> Result<ListenerId, FabricError> {
        self.add_listener(addr, options)
    }

    fn listen_addr(&self, listener: ListenerId) -> Result<Addr, FabricError> {
        let entry = self.listeners.get(listener.index, listener.generation);
        let entry = entry.ok_or(FabricError::Stale("listener"))?;
        Ok(entry.addr)
    }

    fn unlisten(&mut self, listener: ListenerId) {
        self.listeners.remove(listener.index, listener.generation);
    }

    fn connect(&mut self, params: &ConnectParams, now: Nanos) -> Result<ConnId, FabricError> {
        self.now = now;
        self.begin_connect(params)
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
        let pd = self.domains.join(domain)?;
        let key = self.keys.register(domain, &pd, span, access);
        if key.is_err() {
            self.leave(domain);
        }
        key
    }

    fn deregister(&mut self, mr: MrId) {
        let domain = self.keys.deregister(mr);
        self.let_go(domain);
    }

    fn alloc_window(
        &mut self,
        domain: DomainId,
        kind: WindowKind,
    ) -> Result<WindowId, FabricError> {
        self.check_windows(domain, kind)?;
        let pd = self.domains.join(domain)?;
        let window = self.keys.alloc_window(domain, &pd, kind);
        if window.is_err() {
            self.leave(domain);
        }
        window
    }

    fn free_window(&mut self, window: WindowId) {
        let domain = self.keys.free_window(window);
        self.let_go(domain);
    }

    fn bind(
        &mut self,
        conn: ConnId,
        window: WindowId,
        mr: MrId,
        span: Span,
    ) -> Result<u32, PostError> {
        self.post_bind(conn, window, mr, span)
    }

    fn close_domain(&mut self, domain: DomainId) {
        let scrap = self.domains.close(domain);
        self.host.releaser.drop_later(scrap.into_iter().collect());
    }

    fn post_recv(&mut self, conn: ConnId, wr_id: u64, buf: Option<Sge>) -> Result<(), PostError> {
        self.park_receive(conn, wr_id, buf.unwrap_or(Sge::EMPTY))
    }

    fn post_empty_recvs(&mut self, conn: ConnId, count: u32) -> Result<(), PostError> {
        let connection = self.connection(conn).ok_or(PostError::NotConnected)?;
        if connection.recvs.free() < count as usize {
            return Err(PostError::OverLimit);
        }
        for _ in 0..count {
            self.park_receive(conn, 0, Sge::EMPTY)?;
        }
        Ok(())
    }

    fn post(&mut self, conn: ConnId, wr: &WorkRequest) -> Result<(), PostError> {
        self.park_work(conn, wr)
    }

    fn flush(&mut self, now: Nanos) {
        self.now = now;
        self.transmit();
    }

    fn poll(&mut self, now: Nanos, completions: &mut Vec<Completion>) -> Progress {
        self.now = now;
        self.poll_once(completions)
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
