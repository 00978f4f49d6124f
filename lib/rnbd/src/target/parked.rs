//! Answers that wait for work requests, in the order in which they came.

use rnbd_base::Errno;

/// How a request ended whose answer waits, and the next one of its connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parked {
    status: Result<(), Errno>,
    next: Option<u16>,
}

impl Parked {
    pub(super) const NONE: Self = Self {
        status: Ok(()),
        next: None,
    };
}

/// The answers that wait on one connection. They are linked through a table of the path with a
/// place for each chunk, so that a connection takes no memory for them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ParkedQueue {
    /// First and last.
    ends: Option<(u16, u16)>,
}

impl ParkedQueue {
    pub(super) fn is_empty(self) -> bool {
        self.ends.is_none()
    }

    pub(super) fn push(&mut self, table: &mut [Parked], msg_id: u16, status: Result<(), Errno>) {
        table[usize::from(msg_id)] = Parked { status, next: None };
        let first = match self.ends {
            Some((first, last)) => {
                table[usize::from(last)].next = Some(msg_id);
                first
            }
            None => msg_id,
        };
        self.ends = Some((first, msg_id));
    }

    pub(super) fn pop(&mut self, table: &[Parked]) -> Option<(u16, Result<(), Errno>)> {
        let (first, last) = self.ends?;
        let parked = table[usize::from(first)];
        self.ends = parked.next.map(|next| (next, last));
        Some((first, parked.status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_leave_in_the_order_in_which_they_came() {
        let mut table = [Parked::NONE; 4];
        let mut one = ParkedQueue::default();
        let mut other = ParkedQueue::default();
        one.push(&mut table, 3, Ok(()));
        other.push(&mut table, 0, Ok(()));
        one.push(&mut table, 1, Err(Errno::IO));
        one.push(&mut table, 2, Ok(()));
        assert_eq!(one.pop(&table), Some((3, Ok(()))));
        one.push(&mut table, 3, Err(Errno::NOSPC));
        assert_eq!(one.pop(&table), Some((1, Err(Errno::IO))));
        assert_eq!(one.pop(&table), Some((2, Ok(()))));
        assert_eq!(one.pop(&table), Some((3, Err(Errno::NOSPC))));
        assert!(one.is_empty() && one.pop(&table).is_none());
        assert_eq!(other.pop(&table), Some((0, Ok(()))));
    }
}
