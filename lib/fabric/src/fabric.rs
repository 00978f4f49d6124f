use std::fmt;
use std::os::fd::RawFd;

use rnbd_base::{Nanos, Progress};
use rnbd_mem::Span;

use crate::types::{
    Access, Addr, Caps, Completion, ConnId, ConnectParams, DomainId, Event, FabricError,
    FabricStats, ListenOptions, ListenerId, MemoryKey, MrId, PostError, PrivateData, QpLimits, Sge,
    WindowId, WindowKind, WorkRequest,
};

/// A reliable-connection fabric, as one core sees it.
///
/// # Life of a connection
///
/// ```text
///  connect ──> (resolving) ──────────> Connected ──> post, post_recv, completions ──┐
///  ConnectRequest ──> accept ──> (up at once) ──────────────────────────────────────┤
///                 └─> reject, detach                                                │
///  any time: disconnect, peer gone, timeout, violation ──> Closed, exactly once <───┘
/// ```
///
/// # Ordering
///
/// Operations of one connection take effect at the peer in the order posted; a completion for the
/// peer's operation is delivered only when its bytes are in place. Completions of different
/// connections have no order.
///
/// # Memory
///
/// The bytes of a posted operation must stay untouched until the operation is known to be
/// executed: by its own completion, by the completion of a later signalled operation of the same
/// connection, or by the connection's [`Event::Closed`]. The same goes for posted receives.
pub trait Fabric: Send + fmt::Debug + 'static {
    /// A connection request on its way to another core's fabric of the same kind.
    type Incoming: Send + fmt::Debug;

    /// What this fabric can do.
    fn caps(&self) -> Caps;

    /// Counters since the start.
    fn stats(&self) -> FabricStats;

    // Connections.

    /// Listens on `addr`; every request arrives as [`Event::ConnectRequest`].
    ///
    /// # Errors
    /// The address is taken or not ours, or the system refuses.
    fn listen(&mut self, addr: &Addr, options: &ListenOptions) -> Result<ListenerId, FabricError>;

    /// Where a listener really listens: the port that was picked if it was asked for port 0.
    ///
    /// # Errors
    /// No such listener.
    fn listen_addr(&self, listener: ListenerId) -> Result<Addr, FabricError>;

    /// Stops listening. Connections that came in through it stay.
    fn unlisten(&mut self, listener: ListenerId);

    /// Starts to connect; ends in [`Event::Connected`] or [`Event::Closed`].
    ///
    /// # Errors
    /// Only what is known at once (limits, no such domain); the rest comes as an event.
    fn connect(&mut self, params: &ConnectParams, now: Nanos) -> Result<ConnId, FabricError>;

    /// Accepts a request. The connection is up when this returns: receives should be posted
    /// before (they are allowed from [`Event::ConnectRequest`] on), and the peer's first message
    /// may arrive in the same poll. `domain` is that of the path's other connections, or `None`
    /// for a new one.
    ///
    /// # Errors
    /// No such connection or domain, the domain is of another device, or a limit.
    fn accept(
        &mut self,
        conn: ConnId,
        domain: Option<DomainId>,
        limits: QpLimits,
        private_data: &PrivateData,
    ) -> Result<DomainId, FabricError>;

    /// Refuses a request; ends in [`Event::Closed`].
    fn reject(&mut self, conn: ConnId, private_data: &PrivateData);

    /// Closes a connection in whatever state; ends in [`Event::Closed`]. May be repeated.
    fn disconnect(&mut self, conn: ConnId);

    /// Takes a connection request out, for another core to [`Fabric::adopt`]. No event of it
    /// follows here.
    ///
    /// # Errors
    /// Not a pending request.
    fn detach(&mut self, conn: ConnId) -> Result<Self::Incoming, FabricError>;

    /// Takes over a request that another core's fabric detached; goes on as if the
    /// [`Event::ConnectRequest`] had been delivered here.
    ///
    /// # Errors
    /// A limit, or the system refuses; the request is then closed.
    fn adopt(&mut self, incoming: Self::Incoming) -> Result<ConnId, FabricError>;

    // Memory.

    /// Makes `span` usable in the domain. The memory must stay until [`Fabric::deregister`].
    ///
    /// # Errors
    /// A limit, or the system refuses.
    fn register(
        &mut self,
        domain: DomainId,
        span: Span,
        access: Access,
    ) -> Result<MemoryKey, FabricError>;

    /// Ends a registration; after this no peer can reach the memory through it. Windows on it are
    /// invalidated.
    fn deregister(&mut self, mr: MrId);

    /// Makes an unbound window.
    ///
    /// # Errors
    /// A limit, or the kind is not supported.
    fn alloc_window(&mut self, domain: DomainId, kind: WindowKind)
    -> Result<WindowId, FabricError>;

    /// Invalidates and frees a window.
    fn free_window(&mut self, window: WindowId);

    /// Invalidates a window at once, where that is a matter of this side alone: no remote access
    /// through it follows the return. `false`, and nothing was done, where it is not: then
    /// [`crate::WrOp::Invalidate`] is to be posted.
    fn invalidate_now(&mut self, window: WindowId) -> bool {
        let _ = window;
        false
    }

    /// Opens `span`, which lies in the region, for the peer to write; returns the rkey, a new one
    /// each time. Takes effect in order with the operations posted on `conn`.
    ///
    /// # Errors
    /// As for [`Fabric::post`].
    fn bind(
        &mut self,
        conn: ConnId,
        window: WindowId,
        mr: MrId,
        span: Span,
    ) -> Result<u32, PostError>;

    /// Ends a domain when the last connection, region and window of it are gone; until then it
    /// stays usable by those.
    fn close_domain(&mut self, domain: DomainId);

    // Work.

    /// Posts one receive: `None` takes messages without bytes and immediates of writes.
    ///
    /// # Errors
    /// [`PostError`]; nothing was posted.
    fn post_recv(&mut self, conn: ConnId, wr_id: u64, buf: Option<Sge>) -> Result<(), PostError>;

    /// Posts `count` empty receives.
    ///
    /// # Errors
    /// [`PostError`]; nothing was posted.
    fn post_empty_recvs(&mut self, conn: ConnId, count: u32) -> Result<(), PostError> {
        for _ in 0..count {
            self.post_recv(conn, 0, None)?;
        }
        Ok(())
    }

    /// Posts one operation. It is on its way after the next [`Fabric::flush`] or
    /// [`Fabric::poll`]; many posts share one doorbell.
    ///
    /// A fabric whose queues are shorter than the connection's [`QpLimits`] parks what does not
    /// fit and posts it in order as room appears.
    ///
    /// # Errors
    /// [`PostError`]; nothing was posted.
    fn post(&mut self, conn: ConnId, wr: &WorkRequest) -> Result<(), PostError>;

    /// Hands everything posted to the device or the kernel.
    fn flush(&mut self, now: Nanos);

    // Progress.

    /// Flushes, then appends what completed to `completions`, up to its spare capacity: it never
    /// makes the vector grow.
    fn poll(&mut self, now: Nanos, completions: &mut Vec<Completion>) -> Progress;

    /// The next event, if any; to be drained after each poll.
    fn next_event(&mut self) -> Option<Event>;

    /// When `poll` must be called next even if nothing arrives.
    fn next_deadline(&self) -> Option<Nanos> {
        None
    }

    /// As [`rnbd_base::Poll::prepare_sleep`].
    fn prepare_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool;
}
