//! Answers that several cores contribute to.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::control::Reply;

/// Collects one contribution from each of several cores and answers with all of them. A part that
/// is dropped counts as a contribution of nothing.
pub(crate) struct Gather<T> {
    shared: Arc<Mutex<State<T>>>,
}

struct State<T> {
    items: Vec<T>,
    parts: usize,
    reply: Option<Reply<Vec<T>>>,
}

impl<T> Gather<T> {
    /// `parts` handles, one for each contributor; answers at once if there are none.
    pub(crate) fn new(parts: usize, reply: Reply<Vec<T>>) -> Vec<Self> {
        if parts == 0 {
            reply(Ok(Vec::new()));
            return Vec::new();
        }
        let shared = Arc::new(Mutex::new(State {
            items: Vec::new(),
            parts,
            reply: Some(reply),
        }));
        let part = || Self {
            shared: Arc::clone(&shared),
        };
        std::iter::repeat_with(part).take(parts).collect()
    }

    pub(crate) fn add(&self, items: impl IntoIterator<Item = T>) {
        let mut state = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        state.items.extend(items);
    }
}

impl<T> Drop for Gather<T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        state.parts -= 1;
        if state.parts > 0 {
            return;
        }
        let items = std::mem::take(&mut state.items);
        let reply = state.reply.take();
        drop(state);
        if let Some(reply) = reply {
            reply(Ok(items));
        }
    }
}

impl<T> fmt::Debug for Gather<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gather")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_comes_once_when_the_last_part_is_in() {
        let (tx, rx) = std::sync::mpsc::channel();
        let mut parts = Gather::new(3, Box::new(move |all| tx.send(all).unwrap()));
        parts.pop().unwrap().add([1, 2]);
        drop(parts.pop());
        assert!(rx.try_recv().is_err());
        parts.pop().unwrap().add([3]);
        assert_eq!(rx.try_recv().unwrap().unwrap(), [1, 2, 3]);
        assert!(rx.try_recv().is_err());
    }
}
