//! What every layer speaks of: time, progress, the poll contract, mailboxes, hosts, errno.
//!
//! Everything that lives on a core (a fabric, a target shard, an initiator shard, an NBD server)
//! is one value with [`Poll::poll`] and [`Poll::next_deadline`]. The native reactor, an SPDK
//! poller and the simulator call the same functions, so nothing above this crate knows which of
//! them it runs under. Such a value is `Send` and not shared: the runtime may move it to another
//! thread between two polls, so it keeps no thread-locals and no `Rc`.
//!
//! This crate is the lowest layer: it knows no clock, thread or file descriptor of its own.

#![forbid(unsafe_code)]

mod errno;
mod host;
mod mailbox;
mod time;

pub use errno::Errno;
pub use host::{Gid, Host};
pub use mailbox::{Full, NoWake, Receiver, Sender, Wake, mailbox};
pub use time::Nanos;

use std::os::fd::RawFd;

/// Which runtime core something is polled on: the reactor's index, dense from zero, not the CPU
/// number. Per-core halves of one thing (a bdev's channels and the session that serves them) find
/// each other by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreIndex(pub u16);

/// What one call of [`Poll::poll`] achieved; feeds busy/idle accounting and adaptive sleeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing was done.
    Idle,
    /// At least one unit of work was done.
    Busy,
}

impl Progress {
    /// `Busy` if `did_work`, else `Idle`.
    #[must_use]
    pub fn from_work(did_work: bool) -> Self {
        if did_work { Self::Busy } else { Self::Idle }
    }

    /// `Busy` if either is.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if self == Self::Busy {
            Self::Busy
        } else {
            other
        }
    }

    /// Whether work was done.
    #[must_use]
    pub fn is_busy(self) -> bool {
        self == Self::Busy
    }
}

/// What a core owns: polled for ever, never blocking.
pub trait Poll: Send {
    /// Does a bounded amount of work and returns. `now` never goes backwards between calls.
    ///
    /// On the data path this allocates nothing, takes no lock and makes no syscall that the
    /// fabric or bdev beneath does not need.
    fn poll(&mut self, now: Nanos) -> Progress;

    /// When `poll` must be called next even if nothing arrives from outside; `None` for never.
    fn next_deadline(&self) -> Option<Nanos> {
        None
    }

    /// Called before the runtime goes to sleep: adds the descriptors that become readable when
    /// there is work. Returning `false` means that there is work that no descriptor announces,
    /// and the runtime polls again instead of sleeping.
    ///
    /// A value that is driven by mailboxes alone adds nothing and returns `true`: a mailbox wakes
    /// its reactor itself.
    fn prepare_sleep(&mut self, fds: &mut Vec<RawFd>) -> bool {
        let _ = fds;
        true
    }
}
