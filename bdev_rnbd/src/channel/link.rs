//! What belongs to one incarnation of a channel's connection.

use rnbd_fabric::{
    Access, ConnId, DomainId, Fabric, FabricError, PostError, Sge, WindowId, WindowKind,
};
use rnbd_mem::{Pages, Span};
use rnbd_rtrs::clt::{PermitRange, QueueSizes, WrId};
use rnbd_wire::rtrs::RkeyRsp;

use crate::memory::{Arena, Registrations};
use crate::shard::Core;

/// A connection and its resources: memory for headers and small receives, windows, registrations.
/// All of it ends with the connection.
#[derive(Debug)]
pub(super) struct Link {
    conn: ConnId,
    /// Whether receives have buffers, or are empty.
    receives_bytes: bool,
    resources: Option<Resources>,
}

#[derive(Debug)]
struct Resources {
    domain: DomainId,
    arena: Arena,
    /// Where the receive buffers start in the arena.
    receives_at: usize,
    registrations: Registrations,
    /// Windows that are not open; empty on fabrics where windows are not worth it.
    windows: Vec<WindowId>,
}

/// The memory budget does not allow for another connection.
const NO_MEMORY: FabricError = FabricError::Unsupported("a connection without memory");

impl Link {
    /// Room for an I/O message and an RTRS header.
    const HEADER_BYTES: usize = 64;

    pub(super) fn new(conn: ConnId) -> Self {
        Self {
            conn,
            receives_bytes: false,
            resources: None,
        }
    }

    pub(super) fn conn(&self) -> ConnId {
        self.conn
    }

    pub(super) fn set_up<F: Fabric>(
        &mut self,
        domain: DomainId,
        permits: PermitRange,
        core: &mut Core<F>,
    ) -> Result<(), FabricError> {
        let count = usize::from(permits.count);
        let receives_at = count * Self::HEADER_BYTES;
        let receives = QueueSizes::for_requests(permits.count).recv as usize;
        let bytes = receives_at + receives * RkeyRsp::BYTES;
        let buffer = match core
            .memory
            .alloc("an initiator's headers", bytes, Pages::Small)
        {
            Ok(buffer) => buffer,
            Err(error) => {
                log::warn!("{error}");
                core.fabric.close_domain(domain);
                return Err(NO_MEMORY);
            }
        };
        let arena = Arena::new(&mut core.fabric, domain, buffer, Access::Local)?;
        let by_window = core.caps.opens_by_window();
        let access = if by_window {
            Access::Local
        } else {
            Access::RemoteWrite
        };
        let mut resources = Resources {
            domain,
            arena,
            receives_at,
            registrations: Registrations::new(core.memory.clone(), domain, access),
            windows: Vec::with_capacity(count),
        };
        let made = resources.make_windows(if by_window { count } else { 0 }, core);
        self.resources = Some(resources);
        made
    }

    /// Posts receives of `bytes` each; `false` if the fabric takes them not.
    pub(super) fn post_receives<F: Fabric>(
        &mut self,
        count: u32,
        bytes: u32,
        core: &mut Core<F>,
    ) -> bool {
        self.receives_bytes = bytes > 0;
        if !self.receives_bytes {
            return core.fabric.post_empty_recvs(self.conn, count).is_ok();
        }
        (0..count).all(|index| self.post_receive(index, core).is_ok())
    }

    fn post_receive<F: Fabric>(&self, index: u32, core: &mut Core<F>) -> Result<(), PostError> {
        let resources = self.resources.as_ref().ok_or(PostError::NotConnected)?;
        let offset = resources.receives_at + index as usize * RkeyRsp::BYTES;
        let sge = resources.arena.sge(offset, RkeyRsp::BYTES);
        let wr_id = WrId::Receive(index).encode();
        core.fabric.post_recv(self.conn, wr_id, Some(sge))
    }

    /// Posts a receive that completed again.
    pub(super) fn repost<F: Fabric>(
        &self,
        index: u32,
        core: &mut Core<F>,
    ) -> Result<(), PostError> {
        if self.receives_bytes {
            self.post_receive(index, core)
        } else {
            core.fabric.post_recv(self.conn, 0, None)
        }
    }

    /// The memory of a receive, if it has some.
    pub(super) fn receive_buffer(&self, index: u32) -> Option<Span> {
        let resources = self.resources.as_ref().filter(|_| self.receives_bytes)?;
        let offset = resources.receives_at + index as usize * RkeyRsp::BYTES;
        Some(resources.arena.span(offset, RkeyRsp::BYTES))
    }

    /// The place of a request's headers, by position of its permit.
    pub(super) fn header(&self, position: usize, bytes: usize) -> Option<Sge> {
        let resources = self.resources.as_ref()?;
        Some(resources.arena.sge(position * Self::HEADER_BYTES, bytes))
    }

    pub(super) fn registrations(&mut self) -> Option<&mut Registrations> {
        Some(&mut self.resources.as_mut()?.registrations)
    }

    pub(super) fn take_window(&mut self) -> Option<WindowId> {
        self.resources.as_mut()?.windows.pop()
    }

    pub(super) fn give_window(&mut self, window: WindowId) {
        if let Some(resources) = &mut self.resources {
            resources.windows.push(window);
        }
    }

    /// The connection is gone: frees what it had.
    pub(super) fn release<F: Fabric>(self, core: &mut Core<F>) {
        let Some(resources) = self.resources else {
            return;
        };
        for window in resources.windows {
            core.fabric.free_window(window);
        }
        resources.registrations.release(&mut core.fabric);
        resources.arena.release(&mut core.fabric);
        core.fabric.close_domain(resources.domain);
    }
}

impl Resources {
    fn make_windows<F: Fabric>(
        &mut self,
        count: usize,
        core: &mut Core<F>,
    ) -> Result<(), FabricError> {
        for _ in 0..count {
            let window = core
                .fabric
                .alloc_window(self.domain, WindowKind::Connection)?;
            self.windows.push(window);
        }
        Ok(())
    }
}
