//! Connection identifiers: the connection manager's side of a connection or listener.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{
    ibv_device, rdma_accept, rdma_bind_addr, rdma_cm_id, rdma_conn_param, rdma_connect,
    rdma_create_id, rdma_destroy_id, rdma_disconnect, rdma_establish, rdma_init_qp_attr,
    rdma_listen, rdma_migrate_id, rdma_reject, rdma_resolve_addr, rdma_resolve_route,
    rdma_set_option,
};
use rnbd_fabric::{Addr, PrivateData};
use rustix::io::Errno;

use super::address::{RawAddr, port_space, read};
use super::{CmChannel, QpAttr, QpState, check, last_errno};

/// From `rdma_cma.h`, where they are an anonymous enum.
const OPTION_ID: libc::c_int = 0;
const OPTION_ID_TOS: libc::c_int = 0;
const OPTION_ID_REUSEADDR: libc::c_int = 1;
const OPTION_ID_AFONLY: libc::c_int = 2;
const OPTION_ID_ACK_TIMEOUT: libc::c_int = 3;

/// A connection or listener in the eyes of the connection manager.
pub(crate) struct CmId {
    raw: NonNull<rdma_cm_id>,
    channel: Arc<CmChannel>,
}

// SAFETY: librdmacm may be called from any thread, and an identifier has one owner.
unsafe impl Send for CmId {}

/// Names a device of the host for as long as somebody has it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceKey(usize);

impl DeviceKey {
    pub(super) fn new(device: *mut ibv_device) -> Self {
        Self(device.addr())
    }
}

impl CmId {
    /// A new identifier whose events come through `channel` and carry `token`, to be bound or
    /// resolved to `addr`.
    pub(crate) fn new(channel: &Arc<CmChannel>, token: u64, addr: &Addr) -> Result<Self, Errno> {
        let mut raw = std::ptr::null_mut();
        let space = port_space(addr);
        let context = std::ptr::without_provenance_mut(token_bits(token));
        // SAFETY: the channel is open and kept by the result; `raw` has room.
        check(unsafe { rdma_create_id(channel.raw(), &raw mut raw, context, space) })?;
        let raw = NonNull::new(raw).ok_or(Errno::NOMEM)?;
        let channel = Arc::clone(channel);
        Ok(Self { raw, channel })
    }

    /// An identifier that the connection manager made for a request.
    ///
    /// # Safety
    /// `raw` is alive, of `channel`, and nobody else's.
    pub(super) unsafe fn of_request(raw: NonNull<rdma_cm_id>, channel: &Arc<CmChannel>) -> Self {
        let channel = Arc::clone(channel);
        Self { raw, channel }
    }

    /// Changes what its events carry.
    pub(crate) fn set_token(&self, token: u64) {
        let context = std::ptr::without_provenance_mut(token_bits(token));
        // SAFETY: the identifier is alive, and librdmacm only hands the context through.
        unsafe { (*self.raw()).context = context };
    }

    /// Takes a local address.
    pub(crate) fn bind(&self, addr: Addr) -> Result<(), Errno> {
        let addr = RawAddr::new(addr);
        // SAFETY: the identifier is alive, and the address is read only.
        check(unsafe { rdma_bind_addr(self.raw(), addr.as_ptr().cast()) })
    }

    pub(crate) fn listen(&self, backlog: u32) -> Result<(), Errno> {
        let backlog = libc::c_int::try_from(backlog).unwrap_or(libc::c_int::MAX);
        // SAFETY: the identifier is alive.
        check(unsafe { rdma_listen(self.raw(), backlog) })
    }

    /// Finds the device and the way to `dst`.
    pub(crate) fn resolve_addr(
        &self,
        src: Option<Addr>,
        dst: Addr,
        timeout_ms: u32,
    ) -> Result<(), Errno> {
        let src = src.map(RawAddr::new);
        let src = src.as_ref().map_or(std::ptr::null_mut(), RawAddr::as_ptr);
        let dst = RawAddr::new(dst);
        let dst = dst.as_ptr();
        let timeout = libc::c_int::try_from(timeout_ms).unwrap_or(libc::c_int::MAX);
        // SAFETY: the identifier is alive, and the addresses are read only.
        check(unsafe { rdma_resolve_addr(self.raw(), src.cast(), dst.cast(), timeout) })
    }

    /// Finds the route. Where the service `ibacm` runs, it is asked, which may take a while.
    pub(crate) fn resolve_route(&self, timeout_ms: u32) -> Result<(), Errno> {
        let timeout = libc::c_int::try_from(timeout_ms).unwrap_or(libc::c_int::MAX);
        // SAFETY: the identifier is alive.
        check(unsafe { rdma_resolve_route(self.raw(), timeout) })
    }

    /// Asks the peer, for queue pair `qp_number`. What is not acknowledged is sent again `retries`
    /// times, at most 7.
    pub(crate) fn connect(
        &self,
        qp_number: u32,
        data: &PrivateData,
        retries: u8,
    ) -> Result<(), Errno> {
        let mut param = conn_param(qp_number, data, retries.min(RETRIES_MAX))?;
        // SAFETY: the identifier is alive, and the private data outlive the call.
        check(unsafe { rdma_connect(self.raw(), &raw mut param) })
    }

    /// Answers yes, for queue pair `qp_number`.
    pub(crate) fn accept(&self, qp_number: u32, data: &PrivateData) -> Result<(), Errno> {
        let mut param = conn_param(qp_number, data, 0)?;
        // SAFETY: as in `connect`.
        check(unsafe { rdma_accept(self.raw(), &raw mut param) })
    }

    /// Answers no.
    pub(crate) fn reject(&self, data: &PrivateData) -> Result<(), Errno> {
        let (start, len) = parts(data, REJECT_BYTES)?;
        // SAFETY: as in `connect`.
        check(unsafe { rdma_reject(self.raw(), start, len) })
    }

    /// Tells the peer who accepted that its answer arrived.
    pub(crate) fn establish(&self) -> Result<(), Errno> {
        // SAFETY: the identifier is alive.
        check(unsafe { rdma_establish(self.raw()) })
    }

    /// Tells the peer that the connection ends.
    pub(crate) fn disconnect(&self) -> Result<(), Errno> {
        // SAFETY: the identifier is alive.
        check(unsafe { rdma_disconnect(self.raw()) })
    }

    /// What the queue pair's change to `state` is to set.
    pub(crate) fn qp_attr(&self, state: QpState) -> Result<QpAttr, Errno> {
        let mut to = QpAttr::blank(state);
        let (attr, mask) = to.parts_mut();
        // SAFETY: the identifier is alive, and both places are valid.
        check(unsafe { rdma_init_qp_attr(self.raw(), attr, mask) })?;
        Ok(to.finished())
    }

    /// Has its events come through another channel. Events of it that were got before have to be
    /// acknowledged, as [`CmChannel::next`] does at once, or this waits.
    pub(crate) fn migrate(&mut self, channel: &Arc<CmChannel>) -> Result<(), Errno> {
        // SAFETY: the identifier is alive and both channels are open.
        check(unsafe { rdma_migrate_id(self.raw(), channel.raw()) })?;
        self.channel = Arc::clone(channel);
        Ok(())
    }

    /// The device that it is on, if that is known.
    pub(crate) fn device_key(&self) -> Option<DeviceKey> {
        self.device_pointer().map(DeviceKey::new)
    }

    pub(super) fn device_pointer(&self) -> Option<*mut ibv_device> {
        // SAFETY: the identifier is alive.
        let verbs = NonNull::new(unsafe { (*self.raw()).verbs })?;
        // SAFETY: librdmacm keeps the context open for the identifier.
        Some(unsafe { (*verbs.as_ptr()).device })
    }

    /// Our address.
    pub(crate) fn local_addr(&self) -> Option<Addr> {
        // SAFETY: the identifier is alive.
        let addr = unsafe { &(*self.raw()).route.addr.src_addr_union };
        // SAFETY: a storage may be read whatever it holds.
        read(unsafe { &addr.src_storage })
    }

    /// The peer's address.
    pub(crate) fn peer_addr(&self) -> Option<Addr> {
        // SAFETY: the identifier is alive.
        let addr = unsafe { &(*self.raw()).route.addr.dst_addr_union };
        // SAFETY: as in `local_addr`.
        read(unsafe { &addr.dst_storage })
    }

    /// Sets the type of service of what it sends.
    pub(crate) fn set_type_of_service(&self, tos: u8) -> Result<(), Errno> {
        self.set_option(OPTION_ID_TOS, tos)
    }

    /// Sets after how long without an acknowledgement a packet is sent again: 4.096 µs · 2^n.
    pub(crate) fn set_ack_timeout(&self, exponent: u8) -> Result<(), Errno> {
        self.set_option(OPTION_ID_ACK_TIMEOUT, exponent)
    }

    /// Lets several connections share a local address.
    pub(crate) fn share_addr(&self) -> Result<(), Errno> {
        self.set_option(OPTION_ID_REUSEADDR, libc::c_int::from(true))
    }

    /// Keeps an IPv6 listener from taking IPv4 connections.
    pub(crate) fn take_own_family_only(&self) -> Result<(), Errno> {
        self.set_option(OPTION_ID_AFONLY, libc::c_int::from(true))
    }

    fn set_option<T>(&self, option: libc::c_int, mut value: T) -> Result<(), Errno> {
        let start = (&raw mut value).cast();
        let len = size_of::<T>();
        // SAFETY: the identifier is alive, and the value outlives the call.
        check(unsafe { rdma_set_option(self.raw(), OPTION_ID, option, start, len) })
    }

    fn raw(&self) -> *mut rdma_cm_id {
        self.raw.as_ptr()
    }
}

/// What an event's context carries. Only 64-bit hosts have RDMA devices worth the name.
fn token_bits(token: u64) -> usize {
    const { assert!(size_of::<usize>() == size_of::<u64>()) };
    usize::try_from(token).expect("as wide as an address")
}

/// Private data that a connect or accept may carry, and a reject (protocol.md 3.1).
const CONNECT_BYTES: usize = PrivateData::MAX;
const REJECT_BYTES: usize = 148;

fn parts(data: &PrivateData, most: usize) -> Result<(*const libc::c_void, u8), Errno> {
    let bytes = data.as_bytes();
    if bytes.len() > most {
        return Err(Errno::MSGSIZE);
    }
    let len = u8::try_from(bytes.len()).map_err(|_| Errno::MSGSIZE)?;
    Ok((bytes.as_ptr().cast(), len))
}

const RETRIES_MAX: u8 = 7;

fn conn_param(qp_number: u32, data: &PrivateData, retries: u8) -> Result<rdma_conn_param, Errno> {
    const FOR_EVER: u8 = 7;
    let (private_data, private_data_len) = parts(data, CONNECT_BYTES)?;
    Ok(rdma_conn_param {
        private_data,
        private_data_len,
        responder_resources: 0,
        initiator_depth: 0,
        flow_control: 0,
        retry_count: retries,
        rnr_retry_count: FOR_EVER,
        srq: 0,
        qp_num: qp_number,
    })
}

impl Drop for CmId {
    fn drop(&mut self) {
        // SAFETY: this is the only owner, and all events of it are acknowledged.
        if unsafe { rdma_destroy_id(self.raw.as_ptr()) } != 0 {
            log::warn!("verbs: letting a connection go: {}", last_errno());
        }
    }
}

impl fmt::Debug for CmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CmId({:?} -> {:?})", self.local_addr(), self.peer_addr())
    }
}
