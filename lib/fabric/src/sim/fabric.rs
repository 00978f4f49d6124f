use std::os::fd::RawFd;

use rnbd_base::{Nanos, Progress};
use rnbd_mem::Span;

use super::conn::{Core, Listener, put};
use super::net::{FabricId, Net};
use super::network::{Crash, SimNetwork};
use super::wire::WireId;
use crate::fabric::Fabric;
use crate::types::{
    Access, Addr, Caps, CloseReason, Completion, ConnId, ConnectParams, DomainId, Event,
    FabricError, FabricStats, ListenOptions, ListenerId, MemoryKey, MrId, PostError, PrivateData,
    QpLimits, Sge, WindowId, WindowKind, WorkRequest,
};

/// One core's fabric on a [`SimNetwork`]. Dropping it ends its connections.
#[derive(Debug)]
pub struct SimFabric {
    network: SimNetwork,
    id: FabricId,
}

/// A connection request between two fabrics of a host.
#[derive(Debug)]
pub struct SimIncoming {
    network: SimNetwork,
    wire: WireId,
}

impl Drop for SimIncoming {
    fn drop(&mut self) {
        self.network.lock().abandon(self.wire);
    }
}

impl Drop for SimFabric {
    fn drop(&mut self) {
        self.network.lock().end_fabric(self.id, Crash::Process);
    }
}

impl SimFabric {
    pub(super) fn new(network: SimNetwork, id: FabricId) -> Self {
        Self { network, id }
    }

    /// Does something with what the fabric has, if its host has not crashed.
    fn with<R>(&self, act: impl FnOnce(&mut Core) -> R) -> Option<R> {
        self.network.lock().cores.get_mut(&self.id).map(act)
    }
}

impl Net {
    fn listen(
        &mut self,
        fabric: FabricId,
        addr: &Addr,
        options: &ListenOptions,
    ) -> Result<ListenerId, FabricError> {
        addr.socket_addr()?;
        let host = self.cores.get(&fabric).map(|core| core.host);
        if host != Some(self.owner(addr.ip())) {
            return Err(FabricError::AddrNotAvailable(addr.to_string()));
        }
        let addr = self.with_port(*addr);
        if self.is_listened(addr) {
            return Err(FabricError::AddrInUse(addr.to_string()));
        }
        let core = self
            .cores
            .get_mut(&fabric)
            .ok_or(FabricError::Stale("fabric"))?;
        let backlog = options.backlog;
        let (index, generation) = put(&mut core.listeners, Listener { addr, backlog });
        Ok(ListenerId { index, generation })
    }

    fn with_port(&self, addr: Addr) -> Addr {
        if addr.port() != 0 {
            return addr;
        }
        (1024..=u16::MAX)
            .map(|port| Addr::Ip((addr.ip(), port).into()))
            .find(|addr| !self.is_listened(*addr))
            .unwrap_or(addr)
    }

    fn is_listened(&self, addr: Addr) -> bool {
        self.cores
            .values()
            .any(|core| core.listener_at(addr).is_some())
    }

    fn poll(
        &mut self,
        fabric: FabricId,
        now: Nanos,
        completions: &mut Vec<Completion>,
    ) -> Progress {
        self.flush(fabric);
        self.run_until(now);
        let (now, first) = (self.now, self.rng.u32(..));
        let Some(core) = self.cores.get_mut(&fabric) else {
            return Progress::Idle;
        };
        let before = completions.len();
        core.take_completions(now, first, completions);
        let taken = (completions.len() - before) as u64;
        core.stats.polls += 1;
        core.stats.recv_doorbells += 1;
        core.stats.completions += taken;
        core.stats.idle_polls += u64::from(taken == 0);
        Progress::from_work(taken > 0)
    }
}

impl Core {
    /// Moves what is ready, one connection after the other, beginning with any.
    fn take_completions(&mut self, now: Nanos, first: u32, completions: &mut Vec<Completion>) {
        let mut conns = self.conn_ids();
        if !conns.is_empty() {
            let at = first as usize % conns.len();
            conns.rotate_left(at);
        }
        for id in conns {
            while completions.len() < completions.capacity()
                && let Some(conn) = self.conn_mut(id)
                && let Some(completion) = conn.take_ready(now)
            {
                completions.push(completion);
            }
        }
    }
}

impl Fabric for SimFabric {
    type Incoming = SimIncoming;

    fn caps(&self) -> Caps {
        let device = self.network.lock().plan.device;
        Caps {
            trtype: "TCP",
            domain_windows: true,
            connection_windows: true,
            cheap_windows: device.cheap_windows,
            prefers_windows: device.prefers_windows,
            prefers_hugepages: false,
            needs_local_keys: device.local_keys,
        }
    }

    fn stats(&self) -> FabricStats {
        self.with(|core| core.stats).unwrap_or_default()
    }

    fn listen(&mut self, addr: &Addr, options: &ListenOptions) -> Result<ListenerId, FabricError> {
        self.network.lock().listen(self.id, addr, options)
    }

    fn listen_addr(&self, listener: ListenerId) -> Result<Addr, FabricError> {
        let find = |core: &mut Core| {
            let found = core.listeners.get(listener.index, listener.generation);
            found.map(|listener| listener.addr)
        };
        self.with(find)
            .flatten()
            .ok_or(FabricError::Stale("listener"))
    }

    fn unlisten(&mut self, listener: ListenerId) {
        self.with(|core| core.listeners.remove(listener.index, listener.generation));
    }

    fn connect(&mut self, params: &ConnectParams, now: Nanos) -> Result<ConnId, FabricError> {
        let mut net = self.network.lock();
        net.run_until(now);
        net.connect(self.id, params)
    }

    fn accept(
        &mut self,
        conn: ConnId,
        domain: Option<DomainId>,
        limits: QpLimits,
        private_data: &PrivateData,
    ) -> Result<DomainId, FabricError> {
        self.network
            .lock()
            .accept(self.id, conn, domain, limits, private_data)
    }

    fn reject(&mut self, conn: ConnId, private_data: &PrivateData) {
        self.network.lock().reject(self.id, conn, private_data);
    }

    fn disconnect(&mut self, conn: ConnId) {
        self.network.lock().close(self.id, conn, CloseReason::Local);
    }

    fn detach(&mut self, conn: ConnId) -> Result<SimIncoming, FabricError> {
        let wire = self.network.lock().detach(self.id, conn)?;
        Ok(SimIncoming {
            network: self.network.clone(),
            wire,
        })
    }

    fn adopt(&mut self, incoming: SimIncoming) -> Result<ConnId, FabricError> {
        self.network.lock().adopt(self.id, incoming.wire)
    }

    fn register(
        &mut self,
        domain: DomainId,
        span: Span,
        access: Access,
    ) -> Result<MemoryKey, FabricError> {
        let net = &mut *self.network.lock();
        let core = net
            .cores
            .get_mut(&self.id)
            .ok_or(FabricError::Stale("fabric"))?;
        core.domains.join(Some(domain))?;
        Ok(core.keys.register(&mut net.rng, domain, span, access))
    }

    fn deregister(&mut self, mr: MrId) {
        self.with(|core| {
            if let Some(domain) = core.keys.deregister(mr) {
                core.domains.leave(domain);
            }
        });
    }

    fn alloc_window(
        &mut self,
        domain: DomainId,
        kind: WindowKind,
    ) -> Result<WindowId, FabricError> {
        self.with(|core| {
            core.domains.join(Some(domain))?;
            Ok(core.keys.alloc_window(domain, kind))
        })
        .unwrap_or(Err(FabricError::Stale("fabric")))
    }

    fn free_window(&mut self, window: WindowId) {
        self.with(|core| {
            if let Some(domain) = core.keys.free_window(window) {
                core.domains.leave(domain);
            }
        });
    }

    fn invalidate_now(&mut self, window: WindowId) -> bool {
        let is_possible = self.network.lock().plan.device.invalidates_at_once;
        is_possible && self.with(|core| core.keys.invalidate_now(window)) == Some(true)
    }

    fn bind(
        &mut self,
        conn: ConnId,
        window: WindowId,
        mr: MrId,
        span: Span,
    ) -> Result<u32, PostError> {
        let net = &mut *self.network.lock();
        let core = net.cores.get_mut(&self.id).ok_or(PostError::NotConnected)?;
        let up = core.conn_in(conn, super::conn::State::Up);
        let domain = up.and_then(|conn| conn.domain);
        let domain = domain.ok_or(PostError::NotConnected)?;
        core.keys
            .bind(&mut net.rng, (conn, domain), window, mr, span)
    }

    fn close_domain(&mut self, domain: DomainId) {
        self.with(|core| core.domains.close(domain));
    }

    fn post_recv(&mut self, conn: ConnId, wr_id: u64, buf: Option<Sge>) -> Result<(), PostError> {
        self.network.lock().post_recv(self.id, conn, wr_id, buf)
    }

    fn post(&mut self, conn: ConnId, wr: &WorkRequest) -> Result<(), PostError> {
        self.network.lock().post(self.id, conn, wr)
    }

    fn flush(&mut self, now: Nanos) {
        let mut net = self.network.lock();
        net.run_until(now);
        net.flush(self.id);
    }

    fn poll(&mut self, now: Nanos, completions: &mut Vec<Completion>) -> Progress {
        self.network.lock().poll(self.id, now, completions)
    }

    fn next_event(&mut self) -> Option<Event> {
        self.with(Core::take_event).flatten()
    }

    fn next_deadline(&self) -> Option<Nanos> {
        let net = self.network.lock();
        let core = net.cores.get(&self.id)?;
        if core.has_work(net.now) {
            return Some(net.now);
        }
        net.next_event()
    }

    fn prepare_sleep(&mut self, _fds: &mut Vec<RawFd>) -> bool {
        let mut net = self.network.lock();
        let now = net.now;
        net.cores
            .get_mut(&self.id)
            .is_none_or(|core| !core.has_work(now))
    }
}
