//! A path that comes up while others are up must lead to where their devices are open.
//!
//! A server closes the devices of a session when its last path is lost, and serves the session anew
//! from the next one that comes up. If the server has noticed the loss of the other paths and the
//! client has not, that is another service than the one in which the client opened its devices. So
//! a path is used only if one of these holds:
//!
//! - The server says that it belongs to the same service as a path that is up. One that says that
//!   it belongs to a later service shows that the others are dead.
//! - The server does not say it, as a kernel, and answers a heartbeat on a path that is up which
//!   was sent after the new one came up: then it had both at once, and so the same service.
//! - No other path is up any more: then devices are opened again before any I/O.

use rnbd_base::Nanos;
use rnbd_wire::extension::ServiceId;

use super::Session;
use crate::clt::error::PathError;
use crate::clt::messages::{Attempt, PathIndex};
use crate::clt::path::Path;

/// What is to be done about a path that joins.
enum Next {
    /// It can be used.
    Admit(PathIndex),
    /// Its server serves the session anew: the paths that are up are dead.
    Replace(PathIndex),
    /// It belongs to what the server served before: it is dead itself.
    Dead(PathIndex),
    /// Nobody else is up.
    Hurry(PathIndex),
    /// It is to be known by this heartbeat of a path that is up.
    Witness(PathIndex, (Attempt, u64)),
    /// A path that is up is to send its next heartbeat.
    Ask(PathIndex),
}

/// How two paths stand to each other at the server.
enum Relation {
    Same,
    Later,
    Earlier,
    Unknown,
}

impl Session {
    /// Decides about all paths that join, as far as can be.
    pub(super) fn run_joins(&mut self, now: Nanos) {
        while let Some(next) = self.next_of_joins() {
            match next {
                Next::Admit(path) => self.tell_path(path, now, Path::admit),
                Next::Replace(path) => self.lose_all_up(path, now),
                Next::Dead(path) => {
                    let error = PathError::SessionUnknown;
                    self.tell_path(path, now, |path, cx| path.fail(error, cx));
                }
                Next::Hurry(path) => self.tell_path(path, now, |path, cx| path.hurry(cx.now)),
                Next::Witness(path, witness) => {
                    self.tell_path(path, now, |path, _| path.add_witness(witness));
                }
                Next::Ask(path) => self.tell_path(path, now, Path::ask),
            }
        }
    }

    fn lose_all_up(&mut self, than: PathIndex, now: Nanos) {
        let others = self.paths.iter().flatten();
        let others = others.filter(|path| path.index != than && path.is_up());
        let others: Vec<_> = others.map(|path| path.index).collect();
        for other in others {
            let error = PathError::SessionUnknown;
            self.tell_path(other, now, |path, cx| path.fail(error, cx));
        }
    }

    fn next_of_joins(&self) -> Option<Next> {
        let paths = self.paths.iter().flatten();
        paths
            .filter(|path| path.is_joining())
            .find_map(|path| self.next_of_join(path))
    }

    fn next_of_join(&self, joining: &Path) -> Option<Next> {
        let path = joining.index;
        if !self.is_up() {
            return (!joining.is_hurried()).then_some(Next::Hurry(path));
        }
        let mut up = self.paths.iter().flatten().filter(|path| path.is_up());
        up.find_map(|up| match relation(joining.service(), up.service()) {
            Relation::Same => Some(Next::Admit(path)),
            Relation::Later => Some(Next::Replace(path)),
            Relation::Earlier => Some(Next::Dead(path)),
            Relation::Unknown => match joining.witness_in(up.attempt()) {
                None => Some(Next::Witness(path, up.next_witness()?)),
                Some(nth) if up.has_answered(nth) => Some(Next::Admit(path)),
                Some(nth) => up.is_to_ask(nth).then_some(Next::Ask(up.index)),
            },
        })
    }
}

/// Numbers of different processes say nothing about each other.
fn relation(joining: Option<(u64, ServiceId)>, up: Option<(u64, ServiceId)>) -> Relation {
    match (joining, up) {
        (Some((process, joining)), Some((of, up))) if process == of => {
            if joining == up {
                Relation::Same
            } else if joining.is_after(up) {
                Relation::Later
            } else {
                Relation::Earlier
            }
        }
        _ => Relation::Unknown,
    }
}
