//! One answer from the answers of all shards.

use std::sync::{Arc, Mutex, PoisonError};

use super::command::Reply;

/// Collects one value from each of several shards and replies with all.
pub(super) struct Gather<T> {
    state: Arc<Mutex<State<T>>>,
}

struct State<T> {
    missing: usize,
    values: Vec<T>,
    reply: Option<Reply<Vec<T>>>,
}

impl<T> Clone for Gather<T> {
    fn clone(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
        }
    }
}

impl<T: Send + 'static> Gather<T> {
    /// Replies when `count` values are there.
    pub(super) fn new(count: usize, reply: Reply<Vec<T>>) -> Self {
        let state = State {
            missing: count,
            values: Vec::new(),
            reply: Some(reply),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Something to be called once with a value.
    pub(super) fn part(&self) -> Reply<T> {
        let gather = self.clone();
        Box::new(move |value| gather.add(value))
    }

    fn add(&self, value: T) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.values.push(value);
        state.missing = state.missing.saturating_sub(1);
        if state.missing > 0 {
            return;
        }
        let values = std::mem::take(&mut state.values);
        let reply = state.reply.take();
        drop(state);
        if let Some(reply) = reply {
            reply(values);
        }
    }
}
