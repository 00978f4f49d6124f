//! Completion queues.

use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{
    ibv_ack_cq_events, ibv_comp_channel, ibv_cq, ibv_create_comp_channel, ibv_create_cq,
    ibv_destroy_comp_channel, ibv_destroy_cq, ibv_get_cq_event, ibv_poll_cq, ibv_req_notify_cq,
    ibv_wc, ibv_wc_flags, ibv_wc_opcode, ibv_wc_status,
};
use rustix::io::Errno;

use super::{Device, check_code, check_pointer, set_nonblocking};

/// Most completions that are taken from a queue at once.
const BATCH: usize = 32;

/// Tells of completions to a fabric that sleeps.
pub(crate) struct CompChannel {
    raw: NonNull<ibv_comp_channel>,
    device: Arc<Device>,
}

/// A completion queue.
pub(crate) struct Cq {
    raw: NonNull<ibv_cq>,
    /// Kept so that the channel goes after the queue.
    channel: Arc<CompChannel>,
    entries: u32,
}

// SAFETY: libibverbs may be called from any thread, and the channel has no state of its own.
unsafe impl Send for CompChannel {}
// SAFETY: as for Send.
unsafe impl Sync for CompChannel {}
// SAFETY: as for CompChannel; providers lock the queue.
unsafe impl Send for Cq {}
// SAFETY: as for Send.
unsafe impl Sync for Cq {}

/// Completions taken from a queue and not yet looked at.
pub(crate) struct WcBatch {
    entries: Box<[MaybeUninit<ibv_wc>; BATCH]>,
    next: usize,
    len: usize,
    /// Which flag says that a window was invalidated.
    invalidated: ibv_wc_flags,
}

/// One completion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkCompletion {
    /// As posted.
    pub(crate) wr_id: u64,
    /// How it went.
    pub(crate) status: WcStatus,
    /// What it was; says nothing if it failed.
    pub(crate) kind: WcKind,
}

/// What completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WcKind {
    /// A work request of the send queue.
    Sent,
    /// A receive, by a write with this immediate.
    WriteImm(u32),
    /// A receive, by a send.
    Recv {
        bytes: u32,
        imm: Option<u32>,
        invalidated: Option<u32>,
    },
}

/// How a work request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WcStatus {
    /// Well.
    Success,
    /// Not at all, because the queue pair had stopped before.
    Flushed,
    /// The peer did not answer.
    NoAnswer,
    /// Of a receive: the peer's operation was not allowed. Of the send queue: the peer said so of
    /// ours.
    NotAllowed,
    /// Of a receive: the message is longer. Of the send queue: the request makes no sense.
    TooLong,
    /// A window could not be bound or invalidated.
    BindFailed,
    /// Anything else, by the library's number.
    Failed(u32),
}

impl CompChannel {
    pub(crate) fn new(device: &Arc<Device>) -> Result<Arc<Self>, Errno> {
        // SAFETY: the device is open.
        let raw = check_pointer(unsafe { ibv_create_comp_channel(device.raw()) })?;
        let device = Arc::clone(device);
        let channel = Self { raw, device };
        set_nonblocking(channel.fd())?;
        Ok(Arc::new(channel))
    }

    /// Readable when an armed queue has got a completion.
    pub(crate) fn fd(&self) -> RawFd {
        // SAFETY: the channel is alive.
        unsafe { (*self.raw.as_ptr()).fd }
    }

    /// Takes what it told, so that it can tell again: an event for each of `queues` queues at most,
    /// since each tells once after it was armed.
    pub(crate) fn quieten(&self, queues: usize) {
        for _ in 0..queues {
            let mut cq = std::ptr::null_mut();
            let mut context = std::ptr::null_mut();
            // SAFETY: the channel is alive, its descriptor does not block, both places are valid.
            let code =
                unsafe { ibv_get_cq_event(self.raw.as_ptr(), &raw mut cq, &raw mut context) };
            if code != 0 {
                return;
            }
            // SAFETY: the event was got above; a queue waits for this before it goes.
            unsafe { ibv_ack_cq_events(cq, 1) };
        }
    }
}

impl Cq {
    /// May take milliseconds.
    pub(crate) fn new(channel: &Arc<CompChannel>, entries: u32) -> Result<Arc<Self>, Errno> {
        let wanted = libc::c_int::try_from(entries).map_err(|_| Errno::INVAL)?;
        let context = channel.device.raw();
        let notify = channel.raw.as_ptr();
        // SAFETY: the device and the channel are alive, and kept alive by the result.
        let raw = unsafe { ibv_create_cq(context, wanted, std::ptr::null_mut(), notify, 0) };
        Ok(Arc::new(Self {
            raw: check_pointer(raw)?,
            channel: Arc::clone(channel),
            entries,
        }))
    }

    /// How many completions it holds.
    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// Has the channel tell of the next completion.
    pub(crate) fn arm(&self) -> Result<(), Errno> {
        // SAFETY: the queue is alive.
        check_code(unsafe { ibv_req_notify_cq(self.raw.as_ptr(), 0) })
    }

    /// Whether the kernel emulates the device: what it is given waits until the kernel has a
    /// processor for it, which one that is polled does not leave it.
    pub(crate) fn needs_processor(&self) -> bool {
        self.channel.device.limits().is_soft_roce
    }

    /// Soft-RoCE shows programs the kernel's own flags, of which this one has another value: the
    /// one that means checksums to programs, and that nobody else sets for reliable connections.
    fn invalidated_flag(&self) -> ibv_wc_flags {
        if self.needs_processor() {
            ibv_wc_flags::IBV_WC_IP_CSUM_OK | ibv_wc_flags::IBV_WC_WITH_INV
        } else {
            ibv_wc_flags::IBV_WC_WITH_INV
        }
    }

    pub(super) fn raw(&self) -> *mut ibv_cq {
        self.raw.as_ptr()
    }
}

impl WcBatch {
    pub(crate) fn new() -> Self {
        Self {
            entries: Box::new([const { MaybeUninit::uninit() }; BATCH]),
            next: 0,
            len: 0,
            invalidated: ibv_wc_flags::IBV_WC_WITH_INV,
        }
    }

    /// Whether everything that was taken has been looked at.
    pub(crate) fn is_empty(&self) -> bool {
        self.next == self.len
    }

    /// Takes what `cq` has; returns whether there was anything. To be called when empty.
    pub(crate) fn fill(&mut self, cq: &Cq) -> Result<bool, Errno> {
        self.next = 0;
        self.len = 0;
        self.invalidated = cq.invalidated_flag();
        let room = libc::c_int::try_from(BATCH).expect("a small number");
        let into = self.entries.as_mut_ptr().cast();
        // SAFETY: the queue is alive and there is room for as many entries as are asked for.
        let taken = unsafe { ibv_poll_cq(cq.raw(), room, into) };
        self.len = usize::try_from(taken).map_err(|_| Errno::IO)?;
        Ok(self.len > 0)
    }

    /// The next one.
    pub(crate) fn next(&mut self) -> Option<WorkCompletion> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: the last fill initialised the first `len` entries.
        let wc = unsafe { self.entries[self.next].assume_init_ref() };
        self.next += 1;
        Some(WorkCompletion {
            wr_id: wc.wr_id,
            status: status(wc.status),
            kind: kind(wc, self.invalidated),
        })
    }
}

fn status(status: ibv_wc_status::Type) -> WcStatus {
    match status {
        ibv_wc_status::IBV_WC_SUCCESS => WcStatus::Success,
        ibv_wc_status::IBV_WC_WR_FLUSH_ERR => WcStatus::Flushed,
        ibv_wc_status::IBV_WC_RETRY_EXC_ERR | ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR => {
            WcStatus::NoAnswer
        }
        ibv_wc_status::IBV_WC_REM_ACCESS_ERR
        | ibv_wc_status::IBV_WC_REM_INV_REQ_ERR
        | ibv_wc_status::IBV_WC_REM_OP_ERR
        | ibv_wc_status::IBV_WC_LOC_ACCESS_ERR => WcStatus::NotAllowed,
        // Soft-RoCE finds fault with the receive's own list of pieces when they are too short.
        ibv_wc_status::IBV_WC_LOC_LEN_ERR | ibv_wc_status::IBV_WC_LOC_QP_OP_ERR => {
            WcStatus::TooLong
        }
        ibv_wc_status::IBV_WC_MW_BIND_ERR => WcStatus::BindFailed,
        other => WcStatus::Failed(other),
    }
}

fn kind(wc: &ibv_wc, invalidated: ibv_wc_flags) -> WcKind {
    let has = |flag: ibv_wc_flags| wc.wc_flags & flag.0 != 0;
    // SAFETY: both members of the union are 32-bit numbers, so either may be read.
    let word = unsafe { wc.imm_data_invalidated_rkey_union.imm_data };
    match wc.opcode {
        ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM => WcKind::WriteImm(u32::from_be(word)),
        ibv_wc_opcode::IBV_WC_RECV => WcKind::Recv {
            bytes: wc.byte_len,
            imm: has(ibv_wc_flags::IBV_WC_WITH_IMM).then_some(u32::from_be(word)),
            invalidated: has(invalidated).then_some(word),
        },
        _ => WcKind::Sent,
    }
}

impl Drop for CompChannel {
    fn drop(&mut self) {
        // SAFETY: queues that use the channel keep it alive, so none does.
        unsafe { ibv_destroy_comp_channel(self.raw.as_ptr()) };
    }
}

impl Drop for Cq {
    fn drop(&mut self) {
        self.channel.quieten(usize::MAX);
        // SAFETY: queue pairs that use the queue keep it alive, and no event of it is left.
        unsafe { ibv_destroy_cq(self.raw.as_ptr()) };
    }
}

impl fmt::Debug for CompChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompChannel({})", self.fd())
    }
}

impl fmt::Debug for Cq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cq({} entries)", self.entries)
    }
}

impl fmt::Debug for WcBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WcBatch({} of {})", self.next, self.len)
    }
}
