use thiserror::Error;

/// The permits of one user: the chunk indices from `first` on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PermitRange {
    /// Lowest index.
    pub first: u16,
    /// How many.
    pub count: u16,
}

impl PermitRange {
    /// Position of a chunk index in the range.
    #[must_use]
    pub fn position(self, msg_id: u32) -> Option<usize> {
        let offset = msg_id.checked_sub(u32::from(self.first))?;
        (offset < u32::from(self.count)).then_some(offset as usize)
    }
}

/// The server's queue is too short for the cores that want to use it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "a queue depth of {depth} is too small for {channels} I/O queues: at least {} is needed, one \
     for control messages and one for each queue (use fewer queues, or raise the target's \
     sess_queue_depth)",
    u32::from(*.channels) + 1
)]
pub struct QueueTooShallow {
    /// Chunks that the session may use.
    pub depth: u16,
    /// Channels of the session.
    pub channels: u16,
}

/// How a session's permits are split: the first for control messages, so that I/O can never keep
/// a control message waiting, the rest in equal shares for the channels.
///
/// Permits belong to the session and not to a path: the same split holds on each of its paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermitPlan {
    depth: u16,
    channels: u16,
}

impl PermitPlan {
    /// The permits of control messages.
    pub const CONTROL: PermitRange = PermitRange { first: 0, count: 1 };

    /// The split of `depth` permits among `channels` channels.
    ///
    /// # Errors
    /// [`QueueTooShallow`] if a share would be empty.
    pub fn new(depth: u16, channels: u16) -> Result<Self, QueueTooShallow> {
        if u32::from(depth) < u32::from(channels) + u32::from(Self::CONTROL.count) {
            return Err(QueueTooShallow { depth, channels });
        }
        Ok(Self { depth, channels })
    }

    /// The permits of one channel; the first ones get what is left over.
    #[must_use]
    pub fn channel(self, index: u16) -> PermitRange {
        let shared = self.depth - Self::CONTROL.count;
        let (share, left) = (shared / self.channels, shared % self.channels);
        PermitRange {
            first: Self::CONTROL.count + share * index + index.min(left),
            count: share + u16::from(index < left),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_permit_has_exactly_one_user(depth in 1_u16.., channels in 1_u16..64) {
            let Ok(plan) = PermitPlan::new(depth, channels) else {
                prop_assert!(depth <= channels);
                return Ok(());
            };
            let mut next = PermitPlan::CONTROL.count;
            for index in 0..channels {
                let range = plan.channel(index);
                prop_assert_eq!(range.first, next);
                prop_assert!(range.count >= 1);
                next += range.count;
            }
            prop_assert_eq!(next, depth);
        }
    }

    #[test]
    fn a_queue_that_is_too_short_is_named_with_what_would_do() {
        let error = PermitPlan::new(4, 4).unwrap_err().to_string();
        assert!(error.contains("queue depth of 4"), "{error}");
        assert!(error.contains("at least 5"), "{error}");
    }
}
