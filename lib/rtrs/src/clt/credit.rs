/// Room in a connection's send queue, which is known to move only by completions.
///
/// Operations have serial numbers, which count up and wrap. A completion says that everything up to
/// its operation was executed.
#[derive(Debug, Default)]
pub(super) struct Credit {
    /// Requests begin while fewer operations than this are outstanding.
    limit: u32,
    /// The last operation.
    posted: u32,
    /// The last one that is known to be executed.
    executed: u32,
}

/// Whether operation `serial` is `last`, or before it.
pub(super) fn is_up_to(serial: u32, last: u32) -> bool {
    last.wrapping_sub(serial) <= u32::MAX / 2
}

impl Credit {
    /// The room of a new connection for this many permits: of its queue of four operations per
    /// permit, the last quarter is kept for invalidations.
    pub(super) fn reset(&mut self, permits: u16) {
        *self = Self {
            limit: 3 * u32::from(permits) + 1,
            ..Self::default()
        };
    }

    pub(super) fn has_room(&self) -> bool {
        self.posted.wrapping_sub(self.executed) < self.limit
    }

    /// The serial number of the operation that is posted next.
    pub(super) fn next_serial(&self) -> u32 {
        self.posted.wrapping_add(1)
    }

    pub(super) fn on_post(&mut self) {
        self.posted = self.next_serial();
    }

    /// The last operation that is known to be executed.
    pub(super) fn executed(&self) -> u32 {
        self.executed
    }

    pub(super) fn on_executed(&mut self, serial: u32) {
        if is_up_to(self.executed, serial) && is_up_to(serial, self.posted) {
            self.executed = serial;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_comes_back_only_with_the_completion_that_covers_it() {
        let mut credit = Credit::default();
        credit.reset(1);
        let serials = [(); 4].map(|()| {
            assert!(credit.has_room());
            credit.on_post();
            credit.posted
        });
        assert!(!credit.has_room());
        credit.on_executed(serials[2]);
        credit.on_executed(serials[0]);
        assert_eq!(credit.executed, serials[2], "it never goes back");
        credit.on_executed(serials[3] + 1);
        assert_eq!(credit.executed, serials[2], "nor to what was never posted");
        credit.on_executed(serials[3]);
        assert_eq!(credit.executed, credit.posted);
    }

    #[test]
    fn serial_numbers_wrap() {
        let mut credit = Credit {
            limit: 4,
            posted: u32::MAX - 1,
            executed: u32::MAX - 1,
        };
        let serials = [(); 4].map(|()| {
            credit.on_post();
            credit.posted
        });
        assert_eq!(serials, [u32::MAX, 0, 1, 2]);
        assert!(!credit.has_room());
        assert!(!is_up_to(serials[0], credit.executed));
        credit.on_executed(serials[1]);
        assert!(credit.has_room());
        let known = serials.map(|serial| is_up_to(serial, credit.executed));
        assert_eq!(known, [true, true, false, false]);
    }
}
