//! Whether paths go only from state to state as protocol.md 7.1 allows.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bdev_rnbd::{Notification, NotificationKind};

/// What an initiator told of its paths. Clones are handles to the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct PathStates(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// The last state of each path, by its number.
    last: BTreeMap<u16, String>,
    illegal: Option<String>,
    /// How often a path that was up was lost.
    lost: u64,
}

impl PathStates {
    /// Takes what the initiator says.
    pub(crate) fn note(&self, notification: &Notification) {
        if notification.kind != NotificationKind::PathState {
            return;
        }
        let mut parts = notification.ctx.rsplitn(3, ':');
        let (state, path) = (
            parts.next(),
            parts.next().and_then(|path| path.parse().ok()),
        );
        if let (Some(state), Some(path)) = (state, path) {
            self.lock().enter(path, state);
        }
    }

    /// Forgets all paths, whose controller is gone.
    pub(crate) fn clear(&self) {
        self.lock().last.clear();
    }

    /// Paths that are closed until somebody reconnects them.
    pub(crate) fn closed(&self) -> Vec<u16> {
        let inner = self.lock();
        let closed = inner.last.iter().filter(|(_, state)| *state == CLOSED);
        closed.map(|(path, _)| *path).collect()
    }

    /// How often a path that was up was lost.
    pub(crate) fn lost(&self) -> u64 {
        self.lock().lost
    }

    /// The first step that is not allowed.
    pub(crate) fn illegal(&self) -> Option<String> {
        self.lock().illegal.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const CLOSED: &str = "disconnected";
const REMOVED: &str = "removed";

impl Inner {
    fn enter(&mut self, path: u16, state: &str) {
        let last = self.last.insert(path, state.to_owned());
        let last = last.as_deref();
        self.lost += u64::from(last == Some("connected"));
        if !may_follow(last, state) {
            let what = format!("path {path} went from {last:?} to {state}");
            self.illegal.get_or_insert(what);
        }
        if state == REMOVED {
            self.last.remove(&path);
        }
    }
}

/// The table of protocol.md 7.1; `CONNECTING_ERR` and `RECONNECTING` have one name here.
fn may_follow(last: Option<&str>, state: &str) -> bool {
    let Some(last) = last else {
        return true;
    };
    match state {
        "connecting" => last == "reconnecting",
        "connected" => last == "connecting",
        "reconnecting" => matches!(last, "connected" | "connecting" | "reconnecting" | CLOSED),
        "closing" => matches!(last, "connecting" | "reconnecting" | "connected"),
        CLOSED => last == "closing",
        REMOVED => last == CLOSED,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn illegal(steps: &[&str]) -> Option<String> {
        let mut inner = Inner::default();
        for step in steps {
            inner.enter(0, step);
        }
        inner.illegal
    }

    #[test]
    fn a_step_that_leaves_out_another_is_illegal() {
        assert_eq!(illegal(&["connecting", "connected", "reconnecting"]), None);
        assert!(illegal(&["connecting", "reconnecting", "connected"]).is_some());
        assert!(illegal(&["connected", CLOSED]).is_some());
        assert!(illegal(&["closing", CLOSED, "connected"]).is_some());
    }
}
