use rnbd_base::Nanos;

use super::params::PathParams;
use super::policy::PathPolicy;
use crate::HeartbeatConfig;

/// When a lost path is tried again, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReconnectPolicy {
    /// Longest wait between two attempts. The first wait is a second, each further one twice as
    /// long as the one before, up to this.
    pub delay: Nanos,
    /// Up to this much is added to each wait at random, so that the clients of a restarted server
    /// do not all come at once; never more than the wait itself.
    pub jitter: Nanos,
    /// Attempts after which the path is given up; `None` for never.
    pub max_attempts: Option<u32>,
    /// How long the session may be without a path before its I/O fails instead of waiting.
    pub fast_io_fail: Option<Nanos>,
    /// How long the session may be without a path before it is given up.
    pub loss_timeout: Option<Nanos>,
}

impl Default for ReconnectPolicy {
    /// For ever, at most 30 s apart.
    fn default() -> Self {
        Self {
            delay: Nanos::from_secs(30),
            jitter: Nanos::from_secs(3),
            max_attempts: None,
            fast_io_fail: None,
            loss_timeout: None,
        }
    }
}

/// Everything that a session is told at its creation, but its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// Channels, at least one.
    pub channels: u16,
    /// Most permits to use; zero for all that the server has.
    pub queue_depth: u16,
    /// How long each connection and the `INFO_RSP` may take. The first connection of an attempt to
    /// get a lost path back has a second, then twice as long with each attempt, up to this.
    pub connect_timeout: Nanos,
    /// How long a request may stay unanswered before something is done about it; `None` leaves it
    /// to the heartbeat.
    pub request_timeout: Option<Nanos>,
    /// Whether a request that is overdue costs its path, or is only talked of in the log.
    pub timeout_costs_path: bool,
    /// How a server is watched that agreed to nothing beside the kernel's protocol.
    pub heartbeat: HeartbeatConfig,
    /// How one of our own is watched.
    pub peer_heartbeat: HeartbeatConfig,
    /// Whether to offer servers the fence.
    pub offer_fence: bool,
    /// How long after its loss a path of a server without the fence may still be doing something,
    /// unless it comes back before; zero not to wait at all.
    pub fence_timeout: Nanos,
    /// How paths share the requests.
    pub policy: PathPolicy,
    /// What happens when a path is lost.
    pub reconnect: ReconnectPolicy,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            channels: 1,
            queue_depth: 0,
            connect_timeout: Nanos::from_secs(30),
            request_timeout: None,
            timeout_costs_path: true,
            heartbeat: HeartbeatConfig::default(),
            peer_heartbeat: HeartbeatConfig::PEER,
            offer_fence: true,
            fence_timeout: Nanos::from_secs(35),
            policy: PathPolicy::default(),
            reconnect: ReconnectPolicy::default(),
        }
    }
}

impl SessionConfig {
    /// How the server of a path is watched, once it said its parameters.
    #[must_use]
    pub fn heartbeat_of(&self, params: Option<&PathParams>) -> HeartbeatConfig {
        match params.and_then(|params| params.agreement) {
            Some(_) => self.peer_heartbeat,
            None => self.heartbeat,
        }
    }

    /// How many of a server's chunks the session uses.
    pub(super) fn usable_depth(&self, server: u16) -> u16 {
        match self.queue_depth {
            0 => server,
            limit => limit.min(server),
        }
    }
}
