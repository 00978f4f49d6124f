//! Messages on connection 0 that are an immediate and nothing else: heartbeats and the fence.

use std::collections::VecDeque;

use rnbd_base::Nanos;
use rnbd_fabric::Fabric;
use rnbd_rtrs::srv::{CloseCause, Confirmation, Fence, PathKey, PathState, Violation};
use rnbd_wire::extension::PathToken;
use rnbd_wire::{Imm, limits};

use super::answers::write_imm;
use super::path_io::PathIo;
use super::shard::TargetShard;

/// A heartbeat, its acknowledgement, and a confirmation for each path of a session.
const SIGNALS_MAX: usize = limits::PATHS_PER_SESSION + 2;

/// Immediates that wait to be sent, each once.
#[derive(Debug)]
pub(super) struct Signals {
    waiting: VecDeque<u32>,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            waiting: VecDeque::with_capacity(SIGNALS_MAX),
        }
    }
}

impl Signals {
    /// `false` if there are more than a client can have a use for.
    fn add(&mut self, imm: u32) -> bool {
        if self.waiting.contains(&imm) {
            return true;
        }
        let has_room = self.waiting.len() < SIGNALS_MAX;
        if has_room {
            self.waiting.push_back(imm);
        }
        has_room
    }
}

impl PathIo {
    /// Posts what waits, as far as there are work requests. They are kept from answers that wait
    /// as well: a client that gets no acknowledgement gives the path up.
    pub(super) fn post_signals(&mut self, fabric: &mut impl Fabric) {
        while let Some(imm) = self.next_signal() {
            let Some(con) = self.con_mut(0) else {
                return;
            };
            let write = write_imm(imm, con.charge_last(false), None);
            // A connection that is down reports its end by itself.
            let _ = fabric.post(con.conn, &write);
        }
    }

    fn next_signal(&mut self) -> Option<u32> {
        let may_send = self.con(0).is_some_and(|con| con.may_send());
        if !may_send {
            return None;
        }
        self.signals.waiting.pop_front()
    }
}

impl<F: Fabric> TargetShard<F> {
    /// Sends an immediate on connection 0, at once or when work requests have been executed.
    pub(super) fn signal(&mut self, key: PathKey, imm: u32, now: Nanos) {
        let Some((path, io, fabric)) = self.path_parts(key) else {
            return;
        };
        if path.state() != PathState::Connected {
            return;
        }
        if io.signals.add(imm) {
            io.post_signals(fabric);
        } else {
            self.violate(key, Violation::TooManyFences, now);
        }
    }

    /// The client asks over path `asker` for the end of another one.
    pub(super) fn handle_fence(&mut self, asker: PathKey, token: PathToken, now: Nanos) {
        match self.sessions.handle_fence(asker, token) {
            Fence::Confirmed => self.signal(asker, Imm::fenced(token), now),
            Fence::Awaited(lost) => {
                self.close_path(lost, CloseCause::Fenced);
                self.remove_if_drained(lost, now);
            }
        }
    }

    /// A path is gone: nothing of it is received, written or done any more.
    pub(super) fn confirm_fence(&mut self, confirmation: &Confirmation, now: Nanos) {
        for &asker in &confirmation.askers {
            self.signal(asker, Imm::fenced(confirmation.token), now);
        }
    }

    /// An immediate means nothing here. The first of a path is worth a line.
    pub(super) fn report_ignored(&mut self, key: PathKey, imm: u32, first: bool) {
        let level = if first {
            log::Level::Warn
        } else {
            log::Level::Debug
        };
        if let Some(io) = self.path_io(key) {
            log::log!(level, "path {}: immediate {imm:#010x} ignored", io.name);
        }
    }
}
