//! Queue pairs and their way to work.

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{
    ibv_access_flags, ibv_bind_mw, ibv_create_qp, ibv_destroy_qp, ibv_modify_qp, ibv_mw_bind,
    ibv_mw_bind_info, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_cap, ibv_qp_init_attr,
    ibv_qp_state, ibv_qp_type, ibv_query_qp, ibv_send_flags,
};
use rnbd_mem::Span;
use rustix::io::Errno;

use super::{Cq, Mr, Mw, Pd, Port, check_code, check_pointer};

/// A reliable-connection queue pair.
pub(crate) struct Qp {
    raw: NonNull<ibv_qp>,
    /// Kept so that the domain goes after the queue pair.
    _pd: Arc<Pd>,
    /// Kept so that the queue goes after the queue pair.
    cq: Arc<Cq>,
    sizes: QpSizes,
}

// SAFETY: libibverbs may be called from any thread, and a queue pair has one owner.
unsafe impl Send for Qp {}

/// How much a queue pair takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QpSizes {
    /// Work requests of the send queue.
    pub(crate) send_wrs: u32,
    /// Receives.
    pub(crate) recv_wrs: u32,
    /// Bytes that may travel inside a work request.
    pub(crate) inline_bytes: u32,
}

/// The states that a queue pair is led through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QpState {
    /// Receives may be posted.
    Init,
    /// Messages are received.
    ReadyToReceive,
    /// Messages are sent.
    ReadyToSend,
}

/// What a change of state sets.
pub(crate) struct QpAttr {
    attr: ibv_qp_attr,
    mask: libc::c_int,
}

impl Qp {
    /// A queue pair for both directions of which completions go to `cq`. May take milliseconds.
    pub(crate) fn new(pd: &Arc<Pd>, cq: &Arc<Cq>, sizes: QpSizes) -> Result<Self, Errno> {
        let mut attr = init_attr(cq, sizes);
        // SAFETY: the domain and the queue are alive, and kept alive by the result.
        let raw = check_pointer(unsafe { ibv_create_qp(pd.raw(), &raw mut attr) })?;
        Ok(Self {
            raw,
            _pd: Arc::clone(pd),
            cq: Arc::clone(cq),
            sizes: QpSizes {
                inline_bytes: attr.cap.max_inline_data,
                ..sizes
            },
        })
    }

    /// What it takes: as asked for, and as many inline bytes as the device gives.
    pub(crate) fn sizes(&self) -> QpSizes {
        self.sizes
    }

    /// Where its completions go.
    pub(crate) fn cq(&self) -> &Arc<Cq> {
        &self.cq
    }

    /// As the peer and the device name it.
    pub(crate) fn number(&self) -> u32 {
        // SAFETY: the queue pair is alive.
        unsafe { (*self.raw.as_ptr()).qp_num }
    }

    /// Whether the device has stopped it.
    pub(crate) fn is_stopped(&self) -> bool {
        let mut attr = MaybeUninit::<ibv_qp_attr>::zeroed();
        let mut init = MaybeUninit::<ibv_qp_init_attr>::zeroed();
        let mask = ibv_qp_attr_mask::IBV_QP_STATE.0.cast_signed();
        let (to, beside) = (attr.as_mut_ptr(), init.as_mut_ptr());
        // SAFETY: the queue pair is alive, and both places have room.
        let code = unsafe { ibv_query_qp(self.raw(), to, mask, beside) };
        // SAFETY: zeroed, then filled; every field is an integer or made of integers.
        let attr = unsafe { attr.assume_init() };
        code == 0 && attr.qp_state == ibv_qp_state::IBV_QPS_ERR
    }

    /// Changes its state.
    pub(crate) fn modify(&self, mut to: QpAttr) -> Result<(), Errno> {
        let attr = &raw mut to.attr;
        // SAFETY: the queue pair is alive, and the attributes that the mask names are set.
        check_code(unsafe { ibv_modify_qp(self.raw(), attr, to.mask) })
    }

    /// Posts the bind of a window of type 1, or its closing if `span` is empty, by the verb for
    /// it; returns the window's new key.
    pub(crate) fn bind_window(
        &self,
        mw: &Mw,
        mr: &Mr,
        span: Span,
        (wr_id, signaled): (u64, bool),
    ) -> Result<u32, Errno> {
        let signaled = if signaled {
            ibv_send_flags::IBV_SEND_SIGNALED.0
        } else {
            0
        };
        let mut bind = ibv_mw_bind {
            wr_id,
            send_flags: signaled,
            bind_info: bind_info(mr, span),
        };
        // SAFETY: queue pair, window and region are alive; providers copy what they need.
        check_code(unsafe { ibv_bind_mw(self.raw(), mw.raw(), &raw mut bind) })?;
        Ok(mw.rkey())
    }

    pub(super) fn raw(&self) -> *mut ibv_qp {
        self.raw.as_ptr()
    }
}

fn init_attr(cq: &Cq, sizes: QpSizes) -> ibv_qp_init_attr {
    ibv_qp_init_attr {
        qp_context: std::ptr::null_mut(),
        send_cq: cq.raw(),
        recv_cq: cq.raw(),
        srq: std::ptr::null_mut(),
        cap: ibv_qp_cap {
            max_send_wr: sizes.send_wrs,
            max_recv_wr: sizes.recv_wrs,
            max_send_sge: 2,
            max_recv_sge: 1,
            max_inline_data: sizes.inline_bytes,
        },
        qp_type: ibv_qp_type::IBV_QPT_RC,
        sq_sig_all: 0,
    }
}

/// What a bind opens to the peer: the span for writing, or nothing if it is empty.
///
/// The region is named in both cases, because the soft-RoCE provider looks into it without asking.
pub(super) fn bind_info(mr: &Mr, span: Span) -> ibv_mw_bind_info {
    let is_open = !span.is_empty();
    let access = ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
    ibv_mw_bind_info {
        mr: mr.raw(),
        addr: if is_open { span.addr() } else { 0 },
        length: span.len() as u64,
        mw_access_flags: if is_open { access } else { 0 },
    }
}

impl QpAttr {
    /// Attributes for a change to `state`, to be filled by the connection manager.
    pub(super) fn blank(state: QpState) -> Self {
        // SAFETY: every field is an integer or made of integers, so zero is a value.
        let mut attr = unsafe { MaybeUninit::<ibv_qp_attr>::zeroed().assume_init() };
        attr.qp_state = match state {
            QpState::Init => ibv_qp_state::IBV_QPS_INIT,
            QpState::ReadyToReceive => ibv_qp_state::IBV_QPS_RTR,
            QpState::ReadyToSend => ibv_qp_state::IBV_QPS_RTS,
        };
        Self { attr, mask: 0 }
    }

    pub(super) fn parts_mut(&mut self) -> (&mut ibv_qp_attr, &mut libc::c_int) {
        (&mut self.attr, &mut self.mask)
    }

    /// Finishes what the connection manager filled in. Keeps the attributes that programs may set,
    /// since the kernel also names some of its own. Lets the peer write, and nothing else, which
    /// the connection manager leaves out before it knows the peer. Has a peer that finds no
    /// receive try again soon; the connection manager would have it wait for 655 ms.
    pub(super) fn finished(mut self) -> Self {
        const OF_PROGRAMS: libc::c_int = 0x001f_ffff;
        const TEN_MICROSECONDS: u8 = 1;
        self.mask &= OF_PROGRAMS;
        self.attr.qp_access_flags = ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
        self.attr.min_rnr_timer = TEN_MICROSECONDS;
        self
    }

    /// Attributes for a queue pair that is to do nothing any more.
    fn stop() -> Self {
        let mut to = Self::blank(QpState::Init);
        to.attr.qp_state = ibv_qp_state::IBV_QPS_ERR;
        to.mask = ibv_qp_attr_mask::IBV_QP_STATE.0.cast_signed();
        to
    }

    /// Attributes for a queue pair that is its own peer, through `port`.
    pub(crate) fn to_itself(state: QpState, qp: &Qp, port: &Port) -> Self {
        let mut to = Self::blank(state);
        to.attr.port_num = port.number;
        to.attr.qp_access_flags = ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
        to.attr.path_mtu = port.attr.active_mtu;
        to.attr.dest_qp_num = qp.number();
        to.attr.min_rnr_timer = 1;
        to.attr.timeout = 14;
        to.attr.retry_cnt = 7;
        to.attr.rnr_retry = 7;
        to.attr.ah_attr.port_num = port.number;
        to.attr.ah_attr.dlid = port.attr.lid;
        to.attr.ah_attr.is_global = 1;
        to.attr.ah_attr.grh.dgid = port.gid;
        to.attr.ah_attr.grh.hop_limit = 1;
        to.mask = mask_to_itself(state).0.cast_signed();
        to
    }
}

fn mask_to_itself(state: QpState) -> ibv_qp_attr_mask {
    type Mask = ibv_qp_attr_mask;
    match state {
        QpState::Init => {
            Mask::IBV_QP_STATE
                | Mask::IBV_QP_PKEY_INDEX
                | Mask::IBV_QP_PORT
                | Mask::IBV_QP_ACCESS_FLAGS
        }
        QpState::ReadyToReceive => {
            Mask::IBV_QP_STATE
                | Mask::IBV_QP_AV
                | Mask::IBV_QP_PATH_MTU
                | Mask::IBV_QP_DEST_QPN
                | Mask::IBV_QP_RQ_PSN
                | Mask::IBV_QP_MAX_DEST_RD_ATOMIC
                | Mask::IBV_QP_MIN_RNR_TIMER
        }
        QpState::ReadyToSend => {
            Mask::IBV_QP_STATE
                | Mask::IBV_QP_TIMEOUT
                | Mask::IBV_QP_RETRY_CNT
                | Mask::IBV_QP_RNR_RETRY
                | Mask::IBV_QP_SQ_PSN
                | Mask::IBV_QP_MAX_QP_RD_ATOMIC
        }
    }
}

impl Drop for Qp {
    fn drop(&mut self) {
        // SAFETY: this is the only owner. When the call returns the device touches no memory on
        // behalf of the queue pair any more.
        let code = unsafe { ibv_destroy_qp(self.raw.as_ptr()) };
        if code != 0 {
            let errno = Errno::from_raw_os_error(code);
            log::error!("verbs: letting a queue pair go: {errno}");
            // It stays, but takes and sends nothing any more, as far as the device obeys.
            if let Err(errno) = self.modify(QpAttr::stop()) {
                log::error!("verbs: stopping that queue pair: {errno}");
            }
        }
    }
}

impl fmt::Debug for Qp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qp({:#x})", self.number())
    }
}
