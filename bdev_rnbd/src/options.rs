use rnbd_base::Nanos;
use rnbd_rtrs::HeartbeatConfig;
use rnbd_rtrs::clt::{ReconnectPolicy, SessionConfig};

use crate::control::ControlError;
use crate::message::Late;

/// What happens when a controller's last path is lost, in SPDK's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Attempts to reconnect: -1 for ever, 0 none, at most 9999.
    pub max_reconnect_attempts: i32,
    /// Longest wait between two attempts, in seconds.
    pub reconnect_delay_sec: u32,
    /// Seconds after which the controller is given up; -1 for never, 0 at once.
    pub ctrlr_loss_timeout_sec: i32,
    /// Seconds after which waiting I/O fails; 0 leaves that to the loss timeout.
    pub fast_io_fail_timeout_sec: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            max_reconnect_attempts: -1,
            reconnect_delay_sec: 30,
            ctrlr_loss_timeout_sec: -1,
            fast_io_fail_timeout_sec: 0,
        }
    }
}

impl Timeouts {
    /// Checks the combination, by SPDK's rules.
    ///
    /// # Errors
    /// `EINVAL`, naming the rule.
    pub fn check(&self) -> Result<(), ControlError> {
        let delay = i64::from(self.reconnect_delay_sec);
        let fast = i64::from(self.fast_io_fail_timeout_sec);
        let loss = i64::from(self.ctrlr_loss_timeout_sec);
        if !(-1..=9999).contains(&self.max_reconnect_attempts) {
            return invalid("max_reconnect_attempts must be within -1 and 9999");
        }
        if loss < -1 {
            return invalid("ctrlr_loss_timeout_sec must be -1 or more");
        }
        if loss == 0 && (delay != 0 || fast != 0) {
            return invalid(
                "ctrlr_loss_timeout_sec 0 needs reconnect_delay_sec and fast_io_fail_timeout_sec 0",
            );
        }
        if loss != 0 && delay == 0 {
            return invalid(
                "reconnect_delay_sec must be above 0 unless ctrlr_loss_timeout_sec is 0",
            );
        }
        if loss > 0 && delay > loss {
            return invalid("reconnect_delay_sec must not exceed ctrlr_loss_timeout_sec");
        }
        if fast != 0 && fast < delay {
            return invalid("fast_io_fail_timeout_sec must not be below reconnect_delay_sec");
        }
        if loss > 0 && fast > loss {
            return invalid("fast_io_fail_timeout_sec must not exceed ctrlr_loss_timeout_sec");
        }
        Ok(())
    }

    pub(crate) fn policy(&self, jitter: Nanos) -> ReconnectPolicy {
        let seconds = |value: u32| Nanos::from_secs(value.into());
        let attempts = u32::try_from(self.max_reconnect_attempts).ok();
        let loss = u32::try_from(self.ctrlr_loss_timeout_sec).ok();
        ReconnectPolicy {
            delay: seconds(self.reconnect_delay_sec),
            jitter,
            max_attempts: if loss == Some(0) { Some(0) } else { attempts },
            fast_io_fail: (self.fast_io_fail_timeout_sec != 0)
                .then(|| seconds(self.fast_io_fail_timeout_sec)),
            loss_timeout: loss.map(seconds),
        }
    }
}

fn invalid(message: &str) -> Result<(), ControlError> {
    Err(ControlError::invalid(message))
}

/// What holds for all controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// What controllers get that were attached without their own.
    pub timeouts: Timeouts,
    /// Most random seconds added to each wait before reconnecting.
    pub reconnect_jitter_sec: u32,
    /// Times that an I/O is sent again after its path was lost; -1 for any number.
    pub bdev_retry_count: i32,
    /// Milliseconds that a request may stay unanswered; 0 leaves that to the heartbeat, which does
    /// not notice that a server drops a single request.
    pub io_timeout_ms: u32,
    /// What is done about a request that stayed unanswered for longer.
    pub action_on_timeout: TimeoutAction,
    /// Milliseconds between two looks at a server that is none of our own.
    pub hb_interval_ms: u32,
    /// Looks without a word, after the one that asked, after which such a server is dead.
    pub hb_missed_max: u32,
    /// Milliseconds between two looks at a server of our own.
    pub peer_hb_interval_ms: u32,
    /// Looks without a word, after the one that asked, after which such a server is dead.
    pub peer_hb_missed_max: u32,
    /// Offer servers the fence (docs/fencing.md); without it our own are treated as others are.
    pub fence: bool,
    /// Milliseconds that writes of a lost path wait at a server without the fence; 0 not at all,
    /// as Linux does, at the risk that one lands after a newer one.
    pub fence_timeout_ms: u32,
}

/// What is done about a request that is not answered in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeoutAction {
    /// It is told in the log.
    None,
    /// Its path is given up and reconnected, and the request is sent again.
    #[default]
    Reset,
    /// Its path is given up and reconnected, and the request fails with `ETIMEDOUT`.
    Abort,
}

impl TimeoutAction {
    /// As in RPC.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Reset => "reset",
            Self::Abort => "abort",
        }
    }

    pub(crate) fn late(self) -> Late {
        match self {
            Self::Abort => Late::Fails,
            Self::None | Self::Reset => Late::Again,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            reconnect_jitter_sec: 3,
            bdev_retry_count: 3,
            io_timeout_ms: 60_000,
            action_on_timeout: TimeoutAction::default(),
            hb_interval_ms: 5000,
            hb_missed_max: 5,
            peer_hb_interval_ms: 2000,
            peer_hb_missed_max: 3,
            fence: true,
            fence_timeout_ms: 35_000,
        }
    }
}

impl Options {
    /// Checks each value and their combination.
    ///
    /// # Errors
    /// `EINVAL`, naming the rule.
    pub fn check(&self) -> Result<(), ControlError> {
        if self.bdev_retry_count < -1 {
            return invalid("bdev_retry_count must be -1 or more");
        }
        if self.hb_interval_ms == 0 || self.peer_hb_interval_ms == 0 {
            return invalid("hb_interval_ms and peer_hb_interval_ms must be above 0");
        }
        self.timeouts.check()
    }

    pub(crate) fn session(
        &self,
        timeouts: &Timeouts,
        channels: u16,
        queue_depth: u16,
    ) -> SessionConfig {
        let millis = |value: u32| Nanos::from_millis(value.into());
        SessionConfig {
            channels,
            queue_depth,
            request_timeout: (self.io_timeout_ms != 0).then(|| millis(self.io_timeout_ms)),
            timeout_costs_path: self.action_on_timeout != TimeoutAction::None,
            heartbeat: HeartbeatConfig {
                interval: millis(self.hb_interval_ms),
                missed_max: self.hb_missed_max,
            },
            peer_heartbeat: HeartbeatConfig {
                interval: millis(self.peer_hb_interval_ms),
                missed_max: self.peer_hb_missed_max,
            },
            offer_fence: self.fence,
            fence_timeout: millis(self.fence_timeout_ms),
            reconnect: timeouts.policy(self.jitter()),
            ..SessionConfig::default()
        }
    }

    pub(crate) fn jitter(&self) -> Nanos {
        Nanos::from_secs(self.reconnect_jitter_sec.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(delay: u32, fast: u32, loss: i32) -> Result<(), ControlError> {
        Timeouts {
            reconnect_delay_sec: delay,
            fast_io_fail_timeout_sec: fast,
            ctrlr_loss_timeout_sec: loss,
            ..Timeouts::default()
        }
        .check()
    }

    #[test]
    fn time_limits_obey_the_same_rules_as_spdks() {
        for (delay, fast, loss) in [(30, 0, -1), (1, 1, -1), (2, 0, 10), (2, 5, 10), (0, 0, 0)] {
            assert!(check(delay, fast, loss).is_ok(), "{delay} {fast} {loss}");
        }
        let bad = [
            (0, 0, -1),
            (5, 4, -1),
            (0, 0, 10),
            (11, 0, 10),
            (2, 1, 10),
            (2, 11, 10),
            (1, 0, 0),
            (0, 1, 0),
            (1, 0, -2),
        ];
        for (delay, fast, loss) in bad {
            assert!(check(delay, fast, loss).is_err(), "{delay} {fast} {loss}");
        }
    }

    #[test]
    fn no_loss_timeout_means_no_attempt() {
        let timeouts = Timeouts {
            reconnect_delay_sec: 0,
            ctrlr_loss_timeout_sec: 0,
            ..Timeouts::default()
        };
        assert_eq!(timeouts.policy(Nanos::ZERO).max_attempts, Some(0));
    }
}
