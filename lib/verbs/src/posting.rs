//! How work gets to the device: parked when posted, handed over in chains when flushed.

use rnbd_fabric::{
    CloseReason, ConnId, DomainId, FabricError, MrId, PostError, Sge, WindowId, WindowKind,
    WorkRequest, WrOp,
};
use rnbd_mem::Span;
use rustix::io::Errno;

use crate::connection::{Connection, WorkToken};
use crate::fabric::VerbsFabric;
use crate::keys::{Keys, Task};
use crate::probe::BindStyle;
use crate::recv_queue::Receive;
use crate::send_queue::{Entry, SendQueue, Work};
use crate::sys::{Chain, ChainScratch, Qp, RecvChain, RemoteOp};

/// The memory of a zero-length write that is posted for its completion only.
const NO_OP: RemoteOp = RemoteOp::Write(rnbd_fabric::RemoteAddr::NONE);

// Parking.

impl VerbsFabric {
    pub(crate) fn park_receive(
        &mut self,
        conn: ConnId,
        wr_id: u64,
        buffer: Sge,
    ) -> Result<(), PostError> {
        let connection = self.connection_mut(conn);
        let connection = connection.ok_or(PostError::NotConnected)?;
        connection.recvs.push(Receive { wr_id, buffer })?;
        self.stats.recv_wrs += 1;
        self.mark_dirty(conn);
        Ok(())
    }

    pub(crate) fn park_work(&mut self, conn: ConnId, wr: &WorkRequest) -> Result<(), PostError> {
        let domain = self.working_domain(conn, 1)?;
        let work = match wr.op {
            WrOp::Write(remote) => Work::Remote(RemoteOp::Write(remote)),
            WrOp::WriteImm(remote, imm) => Work::Remote(RemoteOp::WriteImm(remote, imm)),
            WrOp::Send => Work::Remote(RemoteOp::Send),
            WrOp::SendImm(imm) => Work::Remote(RemoteOp::SendImm(imm)),
            WrOp::SendInv(rkey) => Work::Remote(RemoteOp::SendInv(rkey)),
            WrOp::Invalidate(window) => self.keys.revoke((conn, domain), window)?,
        };
        let is_invalidate = matches!(wr.op, WrOp::Invalidate(_));
        let entry = Entry {
            work,
            sges: wr.sges,
            wr_id: wr.wr_id,
            signaled: wr.signaled || is_invalidate,
        };
        self.park(conn, entry)
    }

    pub(crate) fn post_bind(
        &mut self,
        conn: ConnId,
        window: WindowId,
        mr: MrId,
        span: Span,
    ) -> Result<u32, PostError> {
        const CLOSE_AND_BIND: usize = 2;
        let domain = self.working_domain(conn, CLOSE_AND_BIND)?;
        if !self.has_exact_windows(domain) {
            let pd = self.domains.pd(domain).ok_or(PostError::NotConnected)?;
            self.keys.separate(mr, span, pd)?;
        }
        let (closing, bind, rkey) = self.keys.bind((conn, domain), window, mr, span)?;
        for work in closing.into_iter().chain([bind]) {
            let entry = Entry {
                work,
                sges: [Sge::EMPTY; 2],
                wr_id: 0,
                signaled: false,
            };
            self.park(conn, entry)?;
        }
        Ok(rkey)
    }

    fn has_exact_windows(&self, domain: DomainId) -> bool {
        let device = self.domains.device(domain).ok();
        let adapter = device.and_then(|device| self.devices.get(device));
        adapter.is_none_or(|adapter| adapter.windows.exact)
    }

    /// The domain of a connection that takes `count` more work requests.
    fn working_domain(&self, conn: ConnId, count: usize) -> Result<DomainId, PostError> {
        let connection = self.connection(conn);
        let connection = connection
            .filter(|connection| connection.takes_work())
            .ok_or(PostError::NotConnected)?;
        if connection.sends.free() < count {
            return Err(PostError::OverLimit);
        }
        connection.domain.ok_or(PostError::NotConnected)
    }

    fn park(&mut self, conn: ConnId, entry: Entry) -> Result<(), PostError> {
        let connection = self.connection_mut(conn);
        let connection = connection.ok_or(PostError::NotConnected)?;
        connection.sends.push(entry)?;
        self.stats.send_wrs += 1;
        self.mark_dirty(conn);
        Ok(())
    }

    pub(crate) fn mark_dirty(&mut self, conn: ConnId) {
        let Some(connection) = self.connection_mut(conn) else {
            return;
        };
        if !connection.is_dirty && connection.is_ready() {
            connection.is_dirty = true;
            self.dirty.push(conn);
        }
    }

    /// Whether windows of this kind work on the domain's device.
    pub(crate) fn check_windows(
        &self,
        domain: DomainId,
        kind: WindowKind,
    ) -> Result<(), FabricError> {
        let device = self.domains.device(domain)?;
        let adapter = self.devices.get(device);
        let windows = adapter.ok_or(FabricError::Stale("domain"))?.windows;
        let works = match kind {
            WindowKind::Domain => windows.domain.is_some(),
            WindowKind::Connection => windows.connection,
        };
        works
            .then_some(())
            .ok_or(FabricError::Unsupported("this kind of memory window"))
    }
}

// Handing over.

impl VerbsFabric {
    /// Hands over what is parked, as far as the devices have room.
    pub(crate) fn transmit(&mut self) {
        while let Some(conn) = self.dirty.pop() {
            if let Some(connection) = self.connection_mut(conn) {
                connection.is_dirty = false;
            }
            self.transmit_one(conn);
        }
    }

    pub(crate) fn transmit_one(&mut self, conn: ConnId) {
        let Self {
            connections,
            keys,
            scratch,
            devices,
            stats,
            ..
        } = self;
        let Some(connection) = connections.get_mut(conn) else {
            return;
        };
        let Some(device) = connection.link.as_ref().map(|link| link.device) else {
            return;
        };
        let style = devices
            .get(device)
            .and_then(|adapter| adapter.windows.domain)
            .unwrap_or(BindStyle::ByVerb);
        let mut hand_over = HandOver {
            conn,
            keys,
            scratch,
            style,
            doorbells: 0,
        };
        let outcome = hand_over.all(connection);
        stats.send_doorbells += hand_over.doorbells;
        if let Err(errno) = outcome {
            log::warn!("verbs: the device refused work of {conn:?}: {errno}");
            self.end(conn, CloseReason::Failed("the device refused work"));
        }
    }
}

/// One connection's turn to hand its work over.
struct HandOver<'a> {
    conn: ConnId,
    keys: &'a Keys,
    scratch: &'a mut ChainScratch,
    /// How windows of type 1 are bound.
    style: BindStyle,
    doorbells: u64,
}

impl HandOver<'_> {
    fn all(&mut self, connection: &mut Connection) -> Result<(), Errno> {
        let is_up = connection.is_up();
        let Connection {
            link, sends, recvs, ..
        } = connection;
        let Some(link) = link else { return Ok(()) };
        let recv_id = self.work_id(true);
        while recvs.is_ready() {
            let mut chain = RecvChain::new(self.scratch);
            while !chain.is_full()
                && let Some(receive) = recvs.post_next()
            {
                chain.push(recv_id, receive.buffer);
            }
            chain.post(&link.qp)?;
        }
        while is_up && sends.is_ready() {
            self.chain(&link.qp, sends)?;
            self.doorbells += 1;
        }
        Ok(())
    }

    fn work_id(&self, is_recv: bool) -> u64 {
        let conn = self.conn;
        WorkToken { conn, is_recv }.to_bits()
    }

    /// Hands over as much as one doorbell can.
    fn chain(&mut self, qp: &Qp, sends: &mut SendQueue) -> Result<(), Errno> {
        let wr_id = self.work_id(false);
        let inline_bytes = qp.sizes().inline_bytes as usize;
        let mut chain = Chain::new(self.scratch);
        while !chain.is_full()
            && let Some(entry) = sends.first()
        {
            let id = (wr_id, sends.first_is_signaled());
            let task = match entry.work {
                Work::Remote(op) => {
                    let bytes: usize = entry.sges.iter().map(|sge| sge.span.len()).sum();
                    chain.push_remote(op, &entry.sges, id, bytes <= inline_bytes);
                    sends.note_posted();
                    continue;
                }
                ref work => self.keys.task(work),
            };
            match task {
                Task::Nothing => chain.push_remote(NO_OP, &[], id, false),
                Task::Invalidate(rkey) => chain.push_invalidate(rkey, id),
                Task::Bind {
                    mw,
                    mr,
                    span,
                    rkey,
                    is_type_1,
                } => {
                    let by_verb = is_type_1 && self.style == BindStyle::ByVerb;
                    if chain.len() > 0 && (by_verb || chain.binds(mw)) {
                        break;
                    }
                    if by_verb {
                        let got = qp.bind_window(mw, mr, span, id)?;
                        sends.note_posted();
                        return (got == rkey).then_some(()).ok_or(Errno::BADMSG);
                    }
                    chain.push_bind(mw, mr, span, rkey, id);
                }
            }
            sends.note_posted();
        }
        chain.post(qp)
    }
}
