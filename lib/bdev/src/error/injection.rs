//! Which I/O shall meet which fate. Set by the control plane, looked at by every core.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use rnbd_base::Errno;
use serde::{Deserialize, Serialize};

use crate::io::IoKind;

/// Which I/O an injection is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InjectIoType {
    /// Ends all injections, and fails what they hold back.
    Clear,
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Unmaps.
    Unmap,
    /// Flushes.
    Flush,
    /// Everything.
    All,
}

impl InjectIoType {
    fn covers(self, kind: IoKind) -> bool {
        match self {
            Self::Clear => false,
            Self::Read => kind == IoKind::Read,
            Self::Write => kind == IoKind::Write,
            Self::Unmap => kind == IoKind::Unmap,
            Self::Flush => kind == IoKind::Flush,
            Self::All => true,
        }
    }
}

/// What happens to an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorType {
    /// It fails with `EIO`.
    Failure,
    /// It is held back.
    Pending,
    /// One byte of its data is changed.
    CorruptData,
    /// It fails with `ENOMEM`.
    Nomem,
}

/// Parameters of `bdev_error_inject_error`, without the name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InjectError {
    /// Which I/O.
    pub io_type: InjectIoType,
    /// What happens to it.
    pub error_type: ErrorType,
    /// To how many of each kind.
    #[serde(default = "one")]
    pub num: u32,
    /// Only while at least so many others are outstanding at the base.
    #[serde(default)]
    pub queue_depth: u64,
    /// Which byte of the data is changed.
    #[serde(default)]
    pub corrupt_offset: u64,
    /// What it is exclusive-ored with, 1 to 255; by default, or for 0, a random value.
    #[serde(default)]
    pub corrupt_value: u8,
}

fn one() -> u32 {
    1
}

/// What shall happen to one I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    PassOn,
    Fail(Errno),
    Hold,
    Corrupt { offset: u64, value: u8 },
}

/// All injections of a device.
#[derive(Debug, Default)]
pub(super) struct Injections {
    kinds: [Injection; IoKind::ALL.len()],
    resumes: AtomicU32,
    clears: AtomicU32,
}

/// The injection for one kind. `left` is stored last and taken first, so that a core that sees
/// some left sees what they are.
#[derive(Debug, Default)]
struct Injection {
    left: AtomicU32,
    error_type: AtomicU8,
    queue_depth: AtomicU64,
    corrupt_offset: AtomicU64,
    corrupt_value: AtomicU8,
}

impl Injections {
    /// # Errors
    /// What is wrong with it.
    pub(super) fn set(&self, error: &InjectError) -> Result<(), &'static str> {
        if error.io_type == InjectIoType::Clear {
            self.clear();
            return Ok(());
        }
        let covered = |kind: &IoKind| error.io_type.covers(*kind);
        let corrupts = error.error_type == ErrorType::CorruptData;
        let kinds = IoKind::ALL.into_iter().filter(covered);
        let with_fitting_data = |kind: &IoKind| !corrupts || super::carries_data(*kind);
        let fitting: Vec<IoKind> = kinds.filter(with_fitting_data).collect();
        if fitting.is_empty() {
            return Err("only reads and writes carry data that can be corrupted");
        }
        for kind in fitting {
            self.kinds[kind as usize].set(error);
        }
        Ok(())
    }

    fn clear(&self) {
        for injection in &self.kinds {
            injection.left.store(0, Ordering::Relaxed);
        }
        self.clears.fetch_add(1, Ordering::Release);
    }

    pub(super) fn resume_held(&self) {
        self.resumes.fetch_add(1, Ordering::Release);
    }

    pub(super) fn resumes(&self) -> u32 {
        self.resumes.load(Ordering::Acquire)
    }

    pub(super) fn clears(&self) -> u32 {
        self.clears.load(Ordering::Acquire)
    }

    /// Decides on an I/O that is submitted while `outstanding` others are at the base.
    pub(super) fn fate_of(&self, kind: IoKind, outstanding: usize) -> Fate {
        self.kinds[kind as usize].fate(outstanding as u64)
    }
}

impl Injection {
    fn set(&self, error: &InjectError) {
        self.left.store(0, Ordering::Release);
        let value = match error.corrupt_value {
            0 => fastrand::u8(1..),
            value => value,
        };
        self.error_type
            .store(error.error_type as u8, Ordering::Relaxed);
        self.queue_depth.store(error.queue_depth, Ordering::Relaxed);
        self.corrupt_offset
            .store(error.corrupt_offset, Ordering::Relaxed);
        self.corrupt_value.store(value, Ordering::Relaxed);
        self.left.store(error.num, Ordering::Release);
    }

    fn fate(&self, outstanding: u64) -> Fate {
        if self.left.load(Ordering::Acquire) == 0
            || outstanding < self.queue_depth.load(Ordering::Relaxed)
            || !self.take_one()
        {
            return Fate::PassOn;
        }
        const PENDING: u8 = ErrorType::Pending as u8;
        const CORRUPT: u8 = ErrorType::CorruptData as u8;
        const NOMEM: u8 = ErrorType::Nomem as u8;
        match self.error_type.load(Ordering::Relaxed) {
            PENDING => Fate::Hold,
            NOMEM => Fate::Fail(Errno::NOMEM),
            CORRUPT => Fate::Corrupt {
                offset: self.corrupt_offset.load(Ordering::Relaxed),
                value: self.corrupt_value.load(Ordering::Relaxed),
            },
            _ => Fate::Fail(Errno::IO),
        }
    }

    fn take_one(&self) -> bool {
        let one_less = |left: u32| left.checked_sub(1);
        self.left
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, one_less)
            .is_ok()
    }
}
