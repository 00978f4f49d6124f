//! The connection manager's events.

use std::fmt;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{
    rdma_ack_cm_event, rdma_cm_event, rdma_cm_event_type, rdma_create_event_channel,
    rdma_destroy_event_channel, rdma_event_channel, rdma_get_cm_event,
};
use rnbd_fabric::PrivateData;
use rustix::io::Errno;

use super::{CmId, check, check_pointer, set_nonblocking};

/// Where events of connections and listeners come out.
pub(crate) struct CmChannel {
    raw: NonNull<rdma_event_channel>,
}

// SAFETY: librdmacm may be called from any thread, and the channel is only a descriptor.
unsafe impl Send for CmChannel {}
// SAFETY: as for Send.
unsafe impl Sync for CmChannel {}

/// What happened to a connection or listener.
#[derive(Debug)]
pub(crate) struct CmEvent {
    /// Of the connection; of the listener for a request.
    pub(crate) token: u64,
    /// What.
    pub(crate) kind: CmEventKind,
    /// What the peer sent along.
    pub(crate) private_data: PrivateData,
}

/// Kinds of event.
#[derive(Debug)]
pub(crate) enum CmEventKind {
    AddrResolved,
    RouteResolved,
    /// Somebody asks to connect.
    ConnectRequest(CmId),
    /// The peer said yes.
    ConnectResponse,
    /// The peer knows that we said yes.
    Established,
    /// The peer, or its connection manager, said no; the reason is of InfiniBand's list.
    Rejected(i32),
    /// It could not be connected.
    Unreachable,
    /// Nobody answered.
    TimedOut,
    /// The connection manager gave up.
    Failed,
    Disconnected,
    DeviceRemoved,
    /// The network interface of a connection got another hardware address.
    AddrChanged,
    /// Of no interest.
    Other,
}

impl CmChannel {
    /// May take a while the first time, when the library looks for devices.
    ///
    /// # Errors
    /// `ENODEV` if the host has no RDMA device.
    pub(crate) fn new() -> Result<Arc<Self>, Errno> {
        // SAFETY: no obligation.
        let raw = check_pointer(unsafe { rdma_create_event_channel() })?;
        let channel = Self { raw };
        set_nonblocking(channel.fd())?;
        Ok(Arc::new(channel))
    }

    /// Readable when there is an event.
    pub(crate) fn fd(&self) -> RawFd {
        // SAFETY: the channel is open.
        unsafe { (*self.raw()).fd }
    }

    /// The next event, without waiting. It is acknowledged here, so that no identifier's end
    /// waits for that.
    pub(crate) fn next(self: &Arc<Self>) -> Option<CmEvent> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the channel is open and its descriptor does not block; `event` has room.
        check(unsafe { rdma_get_cm_event(self.raw(), &raw mut event) }).ok()?;
        let event = NonNull::new(event)?;
        // SAFETY: the event is ours until it is acknowledged.
        let told = self.read(unsafe { event.as_ref() });
        // SAFETY: the event was got above and is acknowledged once.
        unsafe { rdma_ack_cm_event(event.as_ptr()) };
        told
    }

    fn read(self: &Arc<Self>, event: &rdma_cm_event) -> Option<CmEvent> {
        let id = NonNull::new(event.id)?;
        let is_request = event.event == rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_REQUEST;
        let kind = if is_request {
            // SAFETY: the request's identifier is alive, came through this channel, and is
            // handed out by this event only.
            CmEventKind::ConnectRequest(unsafe { CmId::of_request(id, self) })
        } else {
            kind(event)
        };
        // SAFETY: an identifier is alive while an event of it is not acknowledged. That of a
        // request has the context of its listener.
        let context = unsafe { (*id.as_ptr()).context };
        Some(CmEvent {
            token: context.addr() as u64,
            kind,
            private_data: private_data(event),
        })
    }

    pub(super) fn raw(&self) -> *mut rdma_event_channel {
        self.raw.as_ptr()
    }
}

fn kind(event: &rdma_cm_event) -> CmEventKind {
    use rdma_cm_event_type as is;
    match event.event {
        is::RDMA_CM_EVENT_ADDR_RESOLVED => CmEventKind::AddrResolved,
        is::RDMA_CM_EVENT_ROUTE_RESOLVED => CmEventKind::RouteResolved,
        is::RDMA_CM_EVENT_CONNECT_RESPONSE => CmEventKind::ConnectResponse,
        is::RDMA_CM_EVENT_ESTABLISHED => CmEventKind::Established,
        is::RDMA_CM_EVENT_REJECTED => CmEventKind::Rejected(event.status),
        is::RDMA_CM_EVENT_UNREACHABLE if event.status == -libc::ETIMEDOUT => CmEventKind::TimedOut,
        is::RDMA_CM_EVENT_ADDR_ERROR
        | is::RDMA_CM_EVENT_ROUTE_ERROR
        | is::RDMA_CM_EVENT_UNREACHABLE => CmEventKind::Unreachable,
        is::RDMA_CM_EVENT_CONNECT_ERROR => CmEventKind::Failed,
        is::RDMA_CM_EVENT_DISCONNECTED => CmEventKind::Disconnected,
        is::RDMA_CM_EVENT_DEVICE_REMOVAL => CmEventKind::DeviceRemoved,
        is::RDMA_CM_EVENT_ADDR_CHANGE => CmEventKind::AddrChanged,
        _ => CmEventKind::Other,
    }
}

/// The bytes that came along; events without any have a length of zero.
fn private_data(event: &rdma_cm_event) -> PrivateData {
    // SAFETY: identifiers here are for reliable connections, for which this member is set; it is
    // zeroed for events that have nothing to say.
    let conn = unsafe { event.param.conn };
    if conn.private_data.is_null() {
        return PrivateData::EMPTY;
    }
    let len = usize::from(conn.private_data_len).min(PrivateData::MAX);
    let mut bytes = [0; PrivateData::MAX];
    let from = conn.private_data.cast::<u8>();
    // SAFETY: the event owns as many bytes as it says, and `bytes` has room for them.
    unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len) };
    PrivateData::new(&bytes[..len]).unwrap_or(PrivateData::EMPTY)
}

impl Drop for CmChannel {
    fn drop(&mut self) {
        // SAFETY: identifiers of the channel keep it alive, so there is none.
        unsafe { rdma_destroy_event_channel(self.raw.as_ptr()) };
    }
}

impl fmt::Debug for CmChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CmChannel({})", self.fd())
    }
}
