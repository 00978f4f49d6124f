use std::ops::RangeInclusive;

use fastrand::Rng;
use rnbd_base::Nanos;

/// How often something happens: so many times in a million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerMillion(pub u32);

impl PerMillion {
    /// Never.
    pub const NEVER: Self = Self(0);
    /// Each time.
    pub const ALWAYS: Self = Self(1_000_000);

    /// Whether it happens this time.
    pub(super) fn strikes(self, rng: &mut Rng) -> bool {
        self.0 > 0 && rng.u32(0..1_000_000) < self.0
    }
}

/// What goes wrong by itself, and how often. What goes wrong on command is in
/// [`SimNetwork`](super::SimNetwork).
#[derive(Clone, Debug)]
pub struct FaultPlan {
    /// How long a message takes, in nanoseconds. Messages of one connection keep their order.
    pub latency_ns: RangeInclusive<u64>,
    /// How much later than its bytes a completion may show, in nanoseconds.
    pub completion_delay_ns: RangeInclusive<u64>,
    /// Most payload bytes on their way in one direction of a connection; what is posted beyond
    /// waits.
    pub in_flight_bytes_max: usize,
    /// How long a connection sends without any acknowledgement before it fails.
    pub retry_timeout: Nanos,
    /// How long a connection request may stay unanswered.
    pub answer_timeout: Nanos,
    /// Connection requests that the network refuses in the name of the acceptor.
    pub connect_reject: PerMillion,
    /// Connection requests that get lost.
    pub connect_loss: PerMillion,
    /// Messages with which their connection breaks, both ends being told.
    pub reset: PerMillion,
    /// Messages after which nothing passes on their connection any more, nobody being told.
    pub silent_drop: PerMillion,
    /// Messages on their way that die with a sender that crashes or closes; the rest arrives.
    pub loss_at_close: PerMillion,
    /// What the network devices are like. To be the same for the life of a network.
    pub device: Device,
}

/// Properties in which real devices differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Local bytes need the key of their region.
    pub local_keys: bool,
    /// Windows cost next to nothing.
    pub cheap_windows: bool,
    /// They cost, and clients are to use them nevertheless.
    pub prefers_windows: bool,
    /// Invalidating a window needs no work request.
    pub invalidates_at_once: bool,
    /// Of cumulative completions in a row only the last is reported.
    pub merges_completions: bool,
}

impl Device {
    /// A device that is software.
    pub const SOFTWARE: Self = Self {
        local_keys: false,
        cheap_windows: true,
        prefers_windows: false,
        invalidates_at_once: true,
        merges_completions: true,
    };
    /// A device that is not.
    pub const HARDWARE: Self = Self {
        local_keys: true,
        cheap_windows: false,
        prefers_windows: false,
        invalidates_at_once: false,
        merges_completions: false,
    };
}

impl Default for FaultPlan {
    /// A network without faults.
    fn default() -> Self {
        Self {
            latency_ns: 5_000..=15_000,
            completion_delay_ns: 0..=2_000,
            in_flight_bytes_max: usize::MAX,
            retry_timeout: Nanos::from_secs(20),
            answer_timeout: Nanos::from_secs(5),
            connect_reject: PerMillion::NEVER,
            connect_loss: PerMillion::NEVER,
            reset: PerMillion::NEVER,
            silent_drop: PerMillion::NEVER,
            loss_at_close: PerMillion::NEVER,
            device: Device::SOFTWARE,
        }
    }
}
