//! Work requests on their way to a queue: built in a row, handed over with one doorbell.

use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use rdma_sys::{
    bind_mw_t, bind_mw_tso_union_t, ibv_post_recv, ibv_post_send, ibv_recv_wr, ibv_send_flags,
    ibv_send_wr, ibv_sge, ibv_wr_opcode, imm_data_invalidated_rkey_union_t, rdma_t, wr_t,
};
use rnbd_fabric::{RemoteAddr, Sge};
use rnbd_mem::Span;
use rustix::io::Errno;

use super::queue_pair::bind_info;
use super::{Mr, Mw, Qp, check_code};

/// Most work requests that are handed over at once.
pub(crate) const CHAIN_MAX: usize = 64;
const SGES_MAX: usize = 2;
const NO_SGE: ibv_sge = ibv_sge {
    addr: 0,
    length: 0,
    lkey: 0,
};

/// Room for chains, used again for each.
pub(crate) struct ChainScratch {
    sends: Box<[MaybeUninit<ibv_send_wr>; CHAIN_MAX]>,
    recvs: Box<[MaybeUninit<ibv_recv_wr>; CHAIN_MAX]>,
    sges: Box<[[ibv_sge; SGES_MAX]; CHAIN_MAX]>,
}

// SAFETY: the pointers inside are written and used within one chain, which borrows the scratch.
unsafe impl Send for ChainScratch {}

/// Work requests for the send queue of one queue pair. What they refer to stays borrowed until
/// they are posted.
pub(crate) struct Chain<'a> {
    scratch: &'a mut ChainScratch,
    len: usize,
    objects: PhantomData<&'a Mw>,
}

/// Receives for one queue pair.
pub(crate) struct RecvChain<'a> {
    scratch: &'a mut ChainScratch,
    len: usize,
}

/// What a work request does to the peer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RemoteOp {
    Write(RemoteAddr),
    WriteImm(RemoteAddr, u32),
    Send,
    SendImm(u32),
    SendInv(u32),
}

impl ChainScratch {
    pub(crate) fn new() -> Self {
        Self {
            sends: Box::new([const { MaybeUninit::uninit() }; CHAIN_MAX]),
            recvs: Box::new([const { MaybeUninit::uninit() }; CHAIN_MAX]),
            sges: Box::new([[NO_SGE; SGES_MAX]; CHAIN_MAX]),
        }
    }

    /// Sets the local bytes of entry `at`; returns how many pieces there are. Empty pieces are
    /// left out, since a length of zero means something else to some devices.
    fn set_sges(&mut self, at: usize, sges: &[Sge]) -> libc::c_int {
        let mut count = 0;
        for sge in sges.iter().filter(|sge| !sge.span.is_empty()) {
            self.sges[at][count] = ibv_sge {
                addr: sge.span.addr(),
                length: u32::try_from(sge.span.len()).expect("a message is shorter than 4 GiB"),
                lkey: sge.lkey,
            };
            count += 1;
        }
        libc::c_int::try_from(count).expect("at most two")
    }

    fn sge_pointer(&mut self, at: usize) -> *mut ibv_sge {
        self.sges[at].as_mut_ptr()
    }
}

impl<'a> Chain<'a> {
    pub(crate) fn new(scratch: &'a mut ChainScratch) -> Self {
        Self {
            scratch,
            len: 0,
            objects: PhantomData,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len == CHAIN_MAX
    }

    /// Appends an operation on the peer. With `inline` the local bytes travel in the request.
    pub(crate) fn push_remote(
        &mut self,
        op: RemoteOp,
        sges: &[Sge],
        (wr_id, signaled): (u64, bool),
        inline: bool,
    ) {
        let count = self.scratch.set_sges(self.len, sges);
        let (opcode, word, remote) = match op {
            RemoteOp::Write(remote) => (ibv_wr_opcode::IBV_WR_RDMA_WRITE, 0, remote),
            RemoteOp::WriteImm(remote, imm) => {
                let opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
                (opcode, imm.to_be(), remote)
            }
            RemoteOp::Send => (ibv_wr_opcode::IBV_WR_SEND, 0, RemoteAddr::NONE),
            RemoteOp::SendImm(imm) => {
                let opcode = ibv_wr_opcode::IBV_WR_SEND_WITH_IMM;
                (opcode, imm.to_be(), RemoteAddr::NONE)
            }
            RemoteOp::SendInv(rkey) => {
                let opcode = ibv_wr_opcode::IBV_WR_SEND_WITH_INV;
                (opcode, rkey, RemoteAddr::NONE)
            }
        };
        let wr = self.push(opcode, word, (wr_id, signaled));
        wr.num_sge = count;
        wr.wr.rdma = rdma_t {
            remote_addr: remote.addr,
            rkey: remote.rkey,
        };
        if inline && count > 0 {
            wr.send_flags |= ibv_send_flags::IBV_SEND_INLINE.0;
        }
    }

    /// Appends the invalidation of the window of type 2 that has this key.
    pub(crate) fn push_invalidate(&mut self, rkey: u32, id: (u64, bool)) {
        self.push(ibv_wr_opcode::IBV_WR_LOCAL_INV, rkey, id);
    }

    /// Appends the bind of a window, or the closing of one of type 1 if `span` is empty.
    pub(crate) fn push_bind(
        &mut self,
        mw: &'a Mw,
        mr: &'a Mr,
        span: Span,
        rkey: u32,
        id: (u64, bool),
    ) {
        let wr = self.push(ibv_wr_opcode::IBV_WR_BIND_MW, 0, id);
        wr.bind_mw_tso_union.bind_mw = bind_mw_t {
            mw: mw.raw(),
            rkey,
            bind_info: bind_info(mr, span),
        };
    }

    /// Whether a bind of the window is in the chain already: a second one has to wait for the
    /// next chain, because the provider reads the window's key of before when it posts.
    pub(crate) fn binds(&self, mw: &Mw) -> bool {
        (0..self.len).any(|at| self.bound_at(at).is_some_and(|bind| bind.mw == mw.raw()))
    }

    fn bound_at(&self, at: usize) -> Option<bind_mw_t> {
        // SAFETY: the first `len` entries are initialised.
        let wr = unsafe { self.scratch.sends[at].assume_init_ref() };
        if wr.opcode != ibv_wr_opcode::IBV_WR_BIND_MW {
            return None;
        }
        // SAFETY: the opcode says that this member of the union is set.
        Some(unsafe { wr.bind_mw_tso_union.bind_mw })
    }

    fn push(
        &mut self,
        opcode: ibv_wr_opcode::Type,
        word: u32,
        (wr_id, signaled): (u64, bool),
    ) -> &mut ibv_send_wr {
        let at = self.len;
        self.len += 1;
        let mut flags = 0;
        if signaled {
            flags |= ibv_send_flags::IBV_SEND_SIGNALED.0;
        }
        let sg_list = self.scratch.sge_pointer(at);
        self.scratch.sends[at].write(ibv_send_wr {
            wr_id,
            next: std::ptr::null_mut(),
            sg_list,
            num_sge: 0,
            opcode,
            send_flags: flags,
            imm_data_invalidated_rkey_union: imm_data_invalidated_rkey_union_t { imm_data: word },
            wr: wr_t {
                rdma: rdma_t {
                    remote_addr: 0,
                    rkey: 0,
                },
            },
            qp_type: rdma_sys::qp_type_t {
                xrc: rdma_sys::xrc_t { remote_srqn: 0 },
            },
            bind_mw_tso_union: NO_BIND,
        })
    }

    /// Hands the chain to the device.
    ///
    /// # Errors
    /// The device refused one of the work requests; those before it may have been executed.
    pub(crate) fn post(self, qp: &Qp) -> Result<(), Errno> {
        if self.len == 0 {
            return Ok(());
        }
        let first = self.scratch.sends.as_mut_ptr().cast::<ibv_send_wr>();
        for at in 1..self.len {
            // SAFETY: `at` is below `len`, which is within the array.
            let next = unsafe { first.add(at) };
            // SAFETY: the entries below `len` are initialised.
            let previous = unsafe { self.scratch.sends[at - 1].assume_init_mut() };
            previous.next = next;
        }
        let mut refused = std::ptr::null_mut();
        // SAFETY: the list is linked and ends with NULL. Its windows and regions are borrowed for
        // the chain's life, and the memory it names stays mapped (`rnbd_mem`).
        check_code(unsafe { ibv_post_send(qp.raw(), first, &raw mut refused) })?;
        self.note_keys();
        Ok(())
    }

    /// Writes the keys of binds into their windows, as the bind verb does.
    fn note_keys(&self) {
        for bind in (0..self.len).filter_map(|at| self.bound_at(at)) {
            // SAFETY: the window is borrowed for the chain's life, and nothing else looks at its
            // key meanwhile.
            unsafe { (*bind.mw).rkey = bind.rkey };
        }
    }
}

const NO_BIND: bind_mw_tso_union_t = bind_mw_tso_union_t {
    bind_mw: bind_mw_t {
        mw: std::ptr::null_mut(),
        rkey: 0,
        bind_info: rdma_sys::ibv_mw_bind_info {
            mr: std::ptr::null_mut(),
            addr: 0,
            length: 0,
            mw_access_flags: 0,
        },
    },
};

impl<'a> RecvChain<'a> {
    pub(crate) fn new(scratch: &'a mut ChainScratch) -> Self {
        Self { scratch, len: 0 }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len == CHAIN_MAX
    }

    /// Appends a receive.
    pub(crate) fn push(&mut self, wr_id: u64, buffer: Sge) {
        let at = self.len;
        self.len += 1;
        let num_sge = self.scratch.set_sges(at, &[buffer]);
        let sg_list = self.scratch.sge_pointer(at);
        self.scratch.recvs[at].write(ibv_recv_wr {
            wr_id,
            next: std::ptr::null_mut(),
            sg_list,
            num_sge,
        });
    }

    /// Hands the receives to the device.
    ///
    /// # Errors
    /// As for [`Chain::post`].
    pub(crate) fn post(self, qp: &Qp) -> Result<(), Errno> {
        if self.len == 0 {
            return Ok(());
        }
        let first = self.scratch.recvs.as_mut_ptr().cast::<ibv_recv_wr>();
        for at in 1..self.len {
            // SAFETY: `at` is below `len`, which is within the array.
            let next = unsafe { first.add(at) };
            // SAFETY: the entries below `len` are initialised.
            let previous = unsafe { self.scratch.recvs[at - 1].assume_init_mut() };
            previous.next = next;
        }
        let mut refused = std::ptr::null_mut();
        // SAFETY: the list is linked and ends with NULL; the memory it names stays mapped.
        check_code(unsafe { ibv_post_recv(qp.raw(), first, &raw mut refused) })
    }
}

impl fmt::Debug for ChainScratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainScratch({CHAIN_MAX})")
    }
}
