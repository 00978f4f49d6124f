//! What a device really does, found out by doing it: capability flags alone have been wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rnbd_fabric::{RemoteAddr, Sge};
use rnbd_mem::{Buffer, Memory, MemoryConfig, Pages, Span};
use rustix::io::Errno;

use crate::keys::next_rkey;
use crate::sys::{
    Chain, ChainScratch, CompChannel, Cq, Device, DeviceLimits, Mr, MrAccess, Mw, MwType, Pd, Qp,
    QpAttr, QpSizes, QpState, RemoteOp, WcBatch, WcStatus,
};

/// How windows for a whole domain are bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BindStyle {
    /// As work requests, in one chain with what comes before and after.
    Chained,
    /// By the verb for it, which is a doorbell of its own.
    ByVerb,
}

/// The windows that work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowSupport {
    /// Type 1.
    pub(crate) domain: Option<BindStyle>,
    /// Type 2.
    pub(crate) connection: bool,
    /// A window opens what it is bound to. If not, it opens its whole region, as on soft-RoCE.
    pub(crate) exact: bool,
}

impl WindowSupport {
    pub(crate) const NONE: Self = Self {
        domain: None,
        connection: false,
        exact: false,
    };

    /// What a device says of itself, in the most careful reading, for as long as it could not be
    /// tried out.
    pub(crate) fn claimed(limits: DeviceLimits) -> Self {
        Self {
            domain: limits.has_windows.then_some(BindStyle::ByVerb),
            connection: limits.has_windows && limits.has_type_2_windows,
            exact: false,
        }
    }
}

/// Binds and closes windows of each kind on a queue pair that is its own peer. Takes
/// milliseconds.
///
/// # Errors
/// Nothing can be tried now: `ENETDOWN` if no port is up.
pub(crate) fn windows(device: &Arc<Device>) -> Result<WindowSupport, Errno> {
    let limits = device.limits();
    if !limits.has_windows {
        return Ok(WindowSupport::NONE);
    }
    drop(Bench::new(device)?);
    let styles = [BindStyle::Chained, BindStyle::ByVerb];
    let works = |style: &BindStyle| attempt(device, |bench| bench.try_domain_window(*style));
    let domain = styles.into_iter().find(works);
    let connection = limits.has_type_2_windows && attempt(device, Bench::try_connection_window);
    let (kind, style) = match domain {
        Some(style) => (MwType::Type1, style),
        None => (MwType::Type2, BindStyle::Chained),
    };
    Ok(WindowSupport {
        domain,
        connection,
        exact: attempt(device, |bench| bench.try_beside_window(kind, style)),
    })
}

/// Each attempt gets a queue pair of its own, because one that fails stops its queue pair.
fn attempt(device: &Arc<Device>, run: impl FnOnce(&mut Bench) -> Result<(), Errno>) -> bool {
    let outcome = Bench::new(device).and_then(|mut bench| run(&mut bench));
    if let Err(errno) = outcome {
        log::debug!(
            "verbs: a trial of memory windows on {}: {errno}",
            device.name()
        );
    }
    outcome.is_ok()
}

const BYTES: usize = 4096;
const SIGNALED: (u64, bool) = (1, true);

/// A queue pair to itself, and memory to try things on.
#[derive(Debug)]
struct Bench {
    qp: Qp,
    mr: Mr,
    pd: Arc<Pd>,
    span: Span,
    scratch: ChainScratch,
    batch: WcBatch,
    /// Kept until the region is gone.
    _buffer: Buffer,
}

impl Bench {
    fn new(device: &Arc<Device>) -> Result<Self, Errno> {
        const SIZES: QpSizes = QpSizes {
            send_wrs: 16,
            recv_wrs: 1,
            inline_bytes: 0,
        };
        let port = device.active_port().ok_or(Errno::NETDOWN)?;
        let pd = Pd::new(device)?;
        let cq = Cq::new(&CompChannel::new(device)?, 64)?;
        let qp = Qp::new(&pd, &cq, SIZES)?;
        for state in [QpState::Init, QpState::ReadyToReceive, QpState::ReadyToSend] {
            qp.modify(QpAttr::to_itself(state, &qp, &port))?;
        }
        let memory = Memory::new(MemoryConfig {
            hugepages: false,
            ..MemoryConfig::default()
        });
        let buffer = memory.alloc("verbs-probe", BYTES, Pages::Small);
        let buffer = buffer.map_err(|_| Errno::NOMEM)?;
        let access = MrAccess {
            remote_write: false,
            windows: true,
        };
        Ok(Self {
            mr: Mr::new(&pd, buffer.span(), access)?,
            span: buffer.span(),
            qp,
            pd,
            scratch: ChainScratch::new(),
            batch: WcBatch::new(),
            _buffer: buffer,
        })
    }

    /// Opens, closes and opens again.
    fn try_domain_window(&mut self, style: BindStyle) -> Result<(), Errno> {
        let mw = Mw::new(&self.pd, MwType::Type1)?;
        for span in [self.span, Span::EMPTY, self.span] {
            let expected = next_rkey(mw.rkey());
            self.bind(&mw, span, style)?;
            if mw.rkey() != expected {
                return Err(Errno::BADMSG);
            }
        }
        Ok(())
    }

    fn try_connection_window(&mut self) -> Result<(), Errno> {
        let mw = Mw::new(&self.pd, MwType::Type2)?;
        for _ in 0..2 {
            let rkey = next_rkey(mw.rkey());
            self.bind_chained(&mw, self.span, rkey)?;
            self.expect_completion()?;
            let mut chain = Chain::new(&mut self.scratch);
            chain.push_invalidate(rkey, SIGNALED);
            chain.post(&self.qp)?;
            self.expect_completion()?;
        }
        Ok(())
    }

    /// Writes beside an open window, which has to fail.
    fn try_beside_window(&mut self, kind: MwType, style: BindStyle) -> Result<(), Errno> {
        let mw = Mw::new(&self.pd, kind)?;
        let (open, beside) = (BYTES / 2, BYTES / 4);
        let part = |from| self.span.slice(from, beside).ok_or(Errno::INVAL);
        let (opened, source) = (part(open)?, part(0)?);
        self.bind(&mw, opened, style)?;
        let addr = self.span.addr();
        let rkey = mw.rkey();
        let source = Sge {
            span: source,
            lkey: self.mr.lkey(),
        };
        let mut chain = Chain::new(&mut self.scratch);
        let op = RemoteOp::Write(RemoteAddr { addr, rkey });
        chain.push_remote(op, &[source], SIGNALED, false);
        chain.post(&self.qp)?;
        match self.completion()? {
            WcStatus::NotAllowed => Ok(()),
            _ => Err(Errno::RANGE),
        }
    }

    fn bind(&mut self, mw: &Mw, span: Span, style: BindStyle) -> Result<(), Errno> {
        match style {
            BindStyle::Chained => self.bind_chained(mw, span, next_rkey(mw.rkey()))?,
            BindStyle::ByVerb => {
                self.qp.bind_window(mw, &self.mr, span, SIGNALED)?;
            }
        }
        self.expect_completion()
    }

    fn bind_chained(&mut self, mw: &Mw, span: Span, rkey: u32) -> Result<(), Errno> {
        let mut chain = Chain::new(&mut self.scratch);
        chain.push_bind(mw, &self.mr, span, rkey, SIGNALED);
        chain.post(&self.qp)
    }

    fn expect_completion(&mut self) -> Result<(), Errno> {
        match self.completion()? {
            WcStatus::Success => Ok(()),
            _ => Err(Errno::IO),
        }
    }

    fn completion(&mut self) -> Result<WcStatus, Errno> {
        const PATIENCE: Duration = Duration::from_millis(500);
        let started = Instant::now();
        while !self.batch.fill(self.qp.cq())? {
            if started.elapsed() > PATIENCE {
                return Err(Errno::TIMEDOUT);
            }
            std::thread::yield_now();
        }
        let completion = self.batch.next().ok_or(Errno::IO)?;
        Ok(completion.status)
    }
}
