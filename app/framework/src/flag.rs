use std::cell::RefCell;

use futures_channel::oneshot;

/// Something that happens at most once, seen by all who wait for it.
#[derive(Debug, Default)]
pub(crate) struct Flag {
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    raised: bool,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Flag {
    /// Lets it happen; `false` if it had happened before.
    pub(crate) fn raise(&self) -> bool {
        let mut state = self.state.borrow_mut();
        for waiting in state.waiting.drain(..) {
            // Those who no longer wait need not be told.
            let _ = waiting.send(());
        }
        !std::mem::replace(&mut state.raised, true)
    }

    /// Whether it has happened.
    pub(crate) fn is_raised(&self) -> bool {
        self.state.borrow().raised
    }

    /// Returns when it has happened.
    pub(crate) async fn raised(&self) {
        let receiver = {
            let mut state = self.state.borrow_mut();
            if state.raised {
                return;
            }
            let (sender, receiver) = oneshot::channel();
            state.waiting.push(sender);
            receiver
        };
        // An error means that this value is gone, and the program with it.
        let _ = receiver.await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn all_who_wait_are_told_and_so_is_who_comes_later() {
        let flag = Flag::default();
        let mut first = Box::pin(flag.raised());
        let mut second = Box::pin(flag.raised());
        assert_eq!(first.as_mut().now_or_never(), None);
        assert_eq!(second.as_mut().now_or_never(), None);
        assert!(flag.raise());
        assert_eq!(first.now_or_never(), Some(()));
        assert_eq!(second.now_or_never(), Some(()));
        assert_eq!(flag.raised().now_or_never(), Some(()));
        assert!(!flag.raise());
    }
}
