//! OPEN requests that wait: until an earlier life of the device has ended, and, if the options say
//! so, until the device is there.
//!
//! ```text
//!          granted
//!  OPEN ─────────────────────────────> answered
//!   │ ^                                   ^
//!   │ └──────────────┐ after a while      │ its time is up
//!   └─────────────> waits ────────────────┤
//!     not now, missing                    │ the path closes: dropped
//! ```

use rnbd_base::{Errno, Nanos};
use rnbd_fabric::Fabric;
use rnbd_rtrs::srv::{Path, PathKey, PathState};
use rnbd_wire::rnbd::{Open, OpenRsp};

use super::shard::TargetShard;

/// How soon to try again what is being opened or closed.
const BUSY_INTERVAL: Nanos = Nanos::from_millis(1);
/// How often to look for what is missing.
const MISSING_INTERVAL: Nanos = Nanos::from_millis(100);

/// An OPEN request, and how long it may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenAttempt {
    pub(super) path: PathKey,
    pub(super) msg_id: u16,
    pub(super) open: Open,
    deadline: Nanos,
}

/// One that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct LateOpen {
    attempt: OpenAttempt,
    pub(super) retry_at: Nanos,
}

impl<F: Fabric> TargetShard<F> {
    pub(super) fn open_device(&mut self, path: PathKey, msg_id: u16, open: &Open, now: Nanos) {
        let attempt = OpenAttempt {
            path,
            msg_id,
            open: *open,
            deadline: now + self.services.exports.options().open_timeout,
        };
        self.attempt_open(attempt, now);
    }

    fn attempt_open(&mut self, attempt: OpenAttempt, now: Nanos) {
        match self.try_open_for(attempt) {
            Ok(Some(rsp)) => self.respond(attempt.path, attempt.msg_id, &rsp.to_bytes(), now),
            Ok(None) => (),
            Err(errno) => self.postpone_or_fail(attempt, errno, now),
        }
    }

    /// Nothing is opened for a path that closes: its answers are dropped.
    fn try_open_for(&mut self, attempt: OpenAttempt) -> Result<Option<OpenRsp>, Errno> {
        let path = self.sessions.path(attempt.path);
        match path.map(Path::state) {
            Some(PathState::Connected) => self.try_open(attempt),
            _ => Err(Errno::NOTCONN),
        }
    }

    pub(super) fn postpone_or_fail(&mut self, attempt: OpenAttempt, errno: Errno, now: Nanos) {
        match self.wait_after(errno) {
            Some(wait) if now < attempt.deadline => {
                let retry_at = (now + wait).min(attempt.deadline);
                self.late_opens.push(LateOpen { attempt, retry_at });
                self.timer_at = self.timer_at.min(retry_at);
            }
            _ => self.fail_attempt(attempt, errno, now),
        }
    }

    /// How long to wait before another try; `None` if there is no sense in one.
    fn wait_after(&self, errno: Errno) -> Option<Nanos> {
        match errno {
            Errno::AGAIN => Some(BUSY_INTERVAL),
            Errno::NOENT | Errno::NODEV => {
                let waits = self.services.exports.options().wait_for_missing;
                waits.then_some(MISSING_INTERVAL)
            }
            _ => None,
        }
    }

    fn fail_attempt(&mut self, attempt: OpenAttempt, errno: Errno, now: Nanos) {
        let errno = match errno {
            Errno::AGAIN => Errno::BUSY,
            other => other,
        };
        log::warn!("device {} was not opened: {errno}", attempt.open.dev_name);
        self.finish(attempt.path, attempt.msg_id, Err(errno), now);
    }

    pub(super) fn retry_opens(&mut self, now: Nanos) {
        for late in std::mem::take(&mut self.late_opens) {
            if now >= late.retry_at {
                self.attempt_open(late.attempt, now);
            } else {
                self.late_opens.push(late);
            }
        }
    }
}
