//! I/O that is neither in its ring nor in flight.
//!
//! ```text
//!                     its path was lost
//!  in flight ──────────────┬──────────────> waiting ── path, permit, gate ──> in flight
//!                          │ it changes data   ^
//!                          └────> held ────────┘ the path is fenced
//!  ring ── a write, while the gate is closed ──> waiting
//! ```
//!
//! A held write was sent and may still be executed. If its user has to be told that it failed, no
//! newer write may go out before its path is fenced: that is what the gate is for.

use rnbd_base::{Errno, Nanos, Progress};
use rnbd_fabric::Fabric;
use rnbd_rtrs::clt::{Attempt, Ended, PathIndex};

use super::{CoreChannel, Gate, IoRequest, Usable, Waiting};
use crate::message::{Late, Message};
use crate::shard::Core;

/// What becomes of one that waits.
enum Verdict {
    Stay,
    Send(Usable),
    Fail(Errno),
}

impl CoreChannel {
    /// Most I/Os in flight and waiting together.
    pub(super) fn most_taken(&self) -> usize {
        2 * usize::from(self.machine.permits().count)
    }

    /// Whether another I/O may be taken out of its ring.
    pub(super) fn may_take(&self) -> bool {
        self.waiting.is_empty() || self.waiting.len() + self.machine.in_flight() < self.most_taken()
    }

    pub(super) fn wait(&mut self, request: IoRequest, held: Option<Attempt>, now: Nanos) {
        let since = now;
        self.waiting.push_back(Waiting {
            request,
            since,
            held,
        });
    }

    // Lost paths.

    /// Answers what was answered, and keeps the rest to be sent again, as often as the options say.
    pub(super) fn settle_ended(&mut self, path: PathIndex, is_late: bool, now: Nanos) {
        let attempt = self.machine.attempt(path);
        let is_fenced = self.machine.is_fenced(attempt);
        while let Some((mut request, how)) = self.ended.pop() {
            if let Ended::Answered(result) = how {
                self.finish(&request, result);
                continue;
            }
            let held = (request.changes_data() && !is_fenced).then_some(attempt);
            if held.is_some() {
                self.setup.writes.hold();
            }
            match self.failure(&request, is_late, now) {
                Some(errno) => self.give_up(&request, held, errno),
                None => {
                    request.retries += 1;
                    self.wait(request, held, now);
                }
            }
        }
    }

    /// Why a request that was lost is not sent again.
    fn failure(&self, request: &IoRequest, is_late: bool, now: Nanos) -> Option<Errno> {
        if is_late && self.is_overdue(request, now) {
            return Some(Errno::TIMEDOUT);
        }
        let limit = u32::try_from(self.setup.retry_count).unwrap_or(u32::MAX);
        (request.retries >= limit).then_some(Errno::CONNABORTED)
    }

    fn is_overdue(&self, request: &IoRequest, now: Nanos) -> bool {
        self.late_at(request).is_some_and(|at| at <= now)
    }

    /// When a request that was sent once fails because of its age.
    fn late_at(&self, request: &IoRequest) -> Option<Nanos> {
        let limit = self.setup.config.request_timeout;
        let limit = limit.filter(|_| self.setup.late == Late::Fails)?;
        Some(request.begun + limit)
    }

    /// Fails a request. One that may still be executed closes the gate first.
    fn give_up(&mut self, request: &IoRequest, held: Option<Attempt>, errno: Errno) {
        if let Some(attempt) = held {
            self.setup.writes.release();
            if !self.abandoned.contains(&attempt) {
                self.abandoned.push(attempt);
                self.setup.writes.close();
            }
        }
        self.finish(request, Err(errno));
    }

    /// Nothing is done any more for that lost life of a path.
    pub(super) fn on_fenced<F: Fabric>(&mut self, attempt: Attempt, core: &mut Core<F>) {
        for waiting in &mut self.waiting {
            if waiting.held.take_if(|held| *held == attempt).is_some() {
                self.setup.writes.release();
            }
        }
        let before = self.abandoned.len();
        self.abandoned.retain(|abandoned| *abandoned != attempt);
        if self.abandoned.len() < before && self.setup.writes.open() {
            let message = Message::WritesFree(self.setup.session);
            core.send(self.setup.home, message);
        }
    }

    // Those that wait.

    pub(super) fn submit_waiting<F: Fabric>(&mut self, core: &mut Core<F>) -> Progress {
        let mut progress = Progress::Idle;
        for _ in 0..self.waiting.len() {
            let Some(mut waiting) = self.waiting.pop_front() else {
                break;
            };
            let verdict = match self.verdict(&waiting, core.now) {
                Verdict::Send(device) => match self.machine.choose(core.now) {
                    Some(path) => {
                        self.send(&mut waiting.request, path, &device, core);
                        progress = Progress::Busy;
                        continue;
                    }
                    // There is no room; each of those that wait has a time of its own.
                    None => self.stay(&waiting, core.now),
                },
                other => other,
            };
            if let Verdict::Fail(errno) = verdict {
                self.give_up(&waiting.request, waiting.held, errno);
                progress = Progress::Busy;
            } else {
                self.waiting.push_back(waiting);
            }
        }
        progress
    }

    fn verdict(&self, waiting: &Waiting, now: Nanos) -> Verdict {
        let request = &waiting.request;
        match self.gate(request.device) {
            Gate::Fail(errno) => Verdict::Fail(errno),
            Gate::Wait => self.stay(waiting, now),
            Gate::Open(_) if waiting.held.is_some() || self.is_kept_back(request) => {
                self.stay(waiting, now)
            }
            Gate::Open(device) => Verdict::Send(device),
        }
    }

    /// It goes on waiting, unless its time is up.
    fn stay(&self, waiting: &Waiting, now: Nanos) -> Verdict {
        match self.expires_at(waiting) {
            Some(at) if at <= now => Verdict::Fail(Errno::TIMEDOUT),
            _ => Verdict::Stay,
        }
    }

    /// Whether a write has to wait because one that was given up may still be executed.
    pub(super) fn is_kept_back(&self, request: &IoRequest) -> bool {
        self.setup.writes.is_closed() && request.changes_data()
    }

    /// When one that waits fails by its own time.
    fn expires_at(&self, waiting: &Waiting) -> Option<Nanos> {
        let patience = self.setup.config.reconnect.fast_io_fail;
        let patience = patience.map(|span| waiting.since + span);
        let late = self.late_at(&waiting.request);
        let late = late.filter(|_| waiting.request.retries > 0);
        [patience, late].into_iter().flatten().min()
    }

    pub(super) fn waiting_deadline(&self) -> Option<Nanos> {
        let waiting = self.waiting.iter();
        waiting.filter_map(|one| self.expires_at(one)).min()
    }
}
