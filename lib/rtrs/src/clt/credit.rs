use std::collections::VecDeque;

/// Room in a connection's send queue, which is known to move only by completions.
///
/// A completion says that everything posted up to its operation was executed; operations that ask
/// for none are counted with the next one that does.
#[derive(Debug, Default)]
pub(super) struct Credit {
    /// Requests begin while fewer operations than this are outstanding.
    limit: u32,
    used: u32,
    /// Posted since the last operation that asked for a completion.
    uncovered: u32,
    /// How many operations each awaited completion covers.
    covered: VecDeque<u32>,
}

impl Credit {
    /// The room of a new connection for this many permits: of its queue of four operations per
    /// permit, the last quarter is kept for invalidations.
    pub(super) fn reset(&mut self, permits: u16) {
        self.limit = 3 * u32::from(permits) + 1;
        self.used = 0;
        self.uncovered = 0;
        self.covered.clear();
        self.covered.reserve(4 * usize::from(permits) + 1);
    }

    pub(super) fn has_room(&self) -> bool {
        self.used < self.limit
    }

    pub(super) fn on_post(&mut self, signaled: bool) {
        self.used += 1;
        self.uncovered += 1;
        if signaled {
            self.covered.push_back(std::mem::take(&mut self.uncovered));
        }
    }

    pub(super) fn on_sent(&mut self) {
        self.used -= self.covered.pop_front().unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_comes_back_only_with_the_completion_that_covers_it() {
        let mut credit = Credit::default();
        credit.reset(1);
        for signaled in [false, false, true, true] {
            assert!(credit.has_room());
            credit.on_post(signaled);
        }
        assert!(!credit.has_room());
        credit.on_sent();
        assert_eq!(credit.used, 1);
        credit.on_sent();
        credit.on_sent();
        assert_eq!(credit.used, 0);
    }
}
