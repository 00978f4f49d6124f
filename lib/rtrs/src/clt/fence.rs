//! What the server may still be doing for paths that were lost, and how that ends (docs/fencing.md).
//!
//! ```text
//!                 a path of the same server process is up
//!  path lost ──> Unasked ──────────────────────────────────> Asked
//!                  │  ^          that path is lost             │
//!                  │  └────────────────────────────────────────┤
//!                  │                                           │ confirmed
//!                  v                                           v
//!               Fenced: no request of the path was unanswered; or its connection 0 was accepted
//!               again; or its server process is known to be gone; or, at a server without the
//!               fence, its time is up
//! ```

use rnbd_base::Nanos;
use rnbd_wire::extension::{Agreement, PathToken};

use super::messages::{Attempt, PathIndex, ServerId};
use super::params::PathParams;

/// How a lost path came to be known as finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FencedBy {
    /// None of its requests was unanswered.
    Idle,
    /// The server said so over another path.
    Confirmation,
    /// The server accepted the same path again, which it does only when the old life is over.
    Reconnect,
    /// The server process is gone: another one answers at the address of one of its paths.
    Restart,
    /// The time within which such a server detects the loss is over.
    Timeout,
}

/// Counts of fences since the session began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FenceCounters {
    /// Questions sent.
    pub sent: u64,
    /// Those that were confirmed.
    pub confirmed: u64,
    /// Paths of servers without the fence whose time was up.
    pub timed_out: u64,
}

/// A lost life of a path for which the server may still be doing something.
#[derive(Clone, Copy, Debug)]
struct Lost {
    path: PathIndex,
    attempt: Attempt,
    agreement: Option<Agreement>,
    has_fence: bool,
    /// It is closed in good order: the server is not to break it off.
    is_draining: bool,
    asked_on: Option<PathIndex>,
    deadline: Option<Nanos>,
}

/// A lost life of a path that is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fenced {
    pub(super) path: PathIndex,
    pub(super) attempt: Attempt,
    pub(super) by: FencedBy,
}

/// The lost paths of a session that are not fenced.
#[derive(Debug, Default)]
pub(super) struct Fences {
    lost: Vec<Lost>,
    /// The process that accepted last at each server address. It outlives the paths, which may all
    /// be removed and added again while the process is down.
    processes: Vec<(ServerId, Option<u64>)>,
    done: Vec<Fenced>,
    pub(super) counters: FenceCounters,
}

impl Fences {
    /// A path was lost that requests used, or is closed when nothing is outstanding on it.
    pub(super) fn on_lost(
        &mut self,
        path: PathIndex,
        attempt: Attempt,
        params: &PathParams,
        is_draining: bool,
    ) {
        self.lost.push(Lost {
            is_draining,
            path,
            attempt,
            agreement: params.agreement,
            has_fence: params.has_fence(),
            asked_on: None,
            deadline: None,
        });
    }

    /// The last connection of a lost path is gone, here at least. What was unanswered then is over
    /// after `timeout` at a server that cannot be asked.
    pub(super) fn on_torn_down(
        &mut self,
        attempt: Attempt,
        unanswered: u32,
        now: Nanos,
        timeout: Nanos,
    ) {
        if unanswered == 0 {
            return self.settle(FencedBy::Idle, |lost| lost.attempt == attempt);
        }
        let mut all = self.lost.iter_mut();
        if let Some(lost) = all.find(|lost| lost.attempt == attempt) {
            lost.is_draining = false;
            lost.deadline = (!lost.has_fence).then_some(now + timeout);
        }
        self.on_timer(now);
    }

    /// The server accepted connection 0 of a path, and calls its process `instance`, if it does.
    pub(super) fn on_accepted(&mut self, path: PathIndex, server: ServerId, instance: Option<u64>) {
        self.settle(FencedBy::Reconnect, |lost| lost.path == path);
        let before = self.note_process(server, instance);
        if before.is_some() && before != instance {
            let of_process = |lost: &Lost| lost.instance() == before;
            self.settle(FencedBy::Restart, of_process);
        }
    }

    /// Returns the process that accepted at that address before.
    fn note_process(&mut self, server: ServerId, instance: Option<u64>) -> Option<u64> {
        let known = self.processes.iter_mut().find(|(id, _)| *id == server);
        if let Some((_, process)) = known {
            return std::mem::replace(process, instance);
        }
        self.processes.push((server, instance));
        None
    }

    /// The server confirmed over a path that another one is finished.
    pub(super) fn on_confirmed(&mut self, token: PathToken, over: &PathParams) {
        let instance = over.agreement.map(|agreement| agreement.instance);
        let is_meant = |lost: &Lost| {
            lost.instance() == instance && lost.agreement.is_some_and(|of| of.token == token)
        };
        self.settle(FencedBy::Confirmation, is_meant);
    }

    /// What was asked over a path that is down has to be asked again.
    pub(super) fn on_path_down(&mut self, path: PathIndex) {
        for lost in &mut self.lost {
            lost.asked_on.take_if(|on| *on == path);
        }
    }

    pub(super) fn on_timer(&mut self, now: Nanos) {
        let is_over = |lost: &Lost| lost.deadline.is_some_and(|at| at <= now);
        self.settle(FencedBy::Timeout, is_over);
    }

    fn settle(&mut self, by: FencedBy, is_meant: impl Fn(&Lost) -> bool) {
        let (counters, done) = (&mut self.counters, &mut self.done);
        self.lost.retain(|lost| {
            let is_over = is_meant(lost);
            if is_over {
                counters.confirmed += u64::from(by == FencedBy::Confirmation);
                counters.timed_out += u64::from(by == FencedBy::Timeout);
                let (path, attempt) = (lost.path, lost.attempt);
                done.push(Fenced { path, attempt, by });
            }
            !is_over
        });
    }

    /// The next question that a path which is up, with these parameters, can be asked.
    pub(super) fn poll_question(
        &mut self,
        over: PathIndex,
        params: &PathParams,
    ) -> Option<PathToken> {
        let instance = params.agreement.map(|agreement| agreement.instance);
        let mut lost = self.lost.iter_mut();
        let unasked = lost.find(|lost| lost.is_to_be_asked() && lost.instance() == instance)?;
        unasked.asked_on = Some(over);
        self.counters.sent += 1;
        unasked.agreement.map(|agreement| agreement.token)
    }

    /// The next lost path that turned out to be finished.
    pub(super) fn poll_fenced(&mut self) -> Option<Fenced> {
        self.done.pop()
    }

    pub(super) fn next_deadline(&self) -> Option<Nanos> {
        self.lost.iter().filter_map(|lost| lost.deadline).min()
    }

    /// Lost lives that are not fenced.
    pub(super) fn waiting(&self) -> usize {
        self.lost.len()
    }

    /// Whether a path has a lost life that is not fenced.
    pub(super) fn is_waiting_for(&self, path: PathIndex) -> bool {
        self.lost.iter().any(|lost| lost.path == path)
    }
}

impl Lost {
    fn is_to_be_asked(&self) -> bool {
        self.has_fence && self.asked_on.is_none() && !self.is_draining
    }

    fn instance(&self) -> Option<u64> {
        self.agreement.map(|agreement| agreement.instance)
    }
}

#[cfg(test)]
mod tests {
    use rnbd_wire::extension::Features;

    use super::*;

    const A: PathIndex = PathIndex(0);
    const B: PathIndex = PathIndex(1);
    const HERE: ServerId = ServerId(1);
    const ELSEWHERE: ServerId = ServerId(2);

    fn params(token: u32, instance: u64) -> PathParams {
        let agreement = PathToken::new(token).map(|token| Agreement {
            features: Features::FENCE,
            token,
            instance,
        });
        PathParams {
            queue_depth: 16,
            chunk_bytes: 8192,
            max_io_bytes: 4096,
            new_rkey: false,
            agreement,
        }
    }

    fn lost(params: &PathParams) -> Fences {
        let mut fences = Fences::default();
        fences.on_lost(A, Attempt(1), params, false);
        fences.on_torn_down(Attempt(1), 3, Nanos::ZERO, Nanos::from_secs(35));
        assert_eq!(fences.poll_fenced(), None);
        fences
    }

    fn fenced_by(fences: &mut Fences) -> Option<FencedBy> {
        fences.poll_fenced().map(|fenced| fenced.by)
    }

    #[test]
    fn a_server_is_asked_once_on_each_path_that_is_up_and_believed() {
        let mut fences = lost(&params(7, 1));
        let over = params(8, 1);
        assert_eq!(fences.poll_question(B, &over), PathToken::new(7));
        assert_eq!(fences.poll_question(B, &over), None);
        fences.on_path_down(B);
        assert_eq!(fences.poll_question(B, &over), PathToken::new(7));
        fences.on_confirmed(PathToken::FIRST, &over);
        assert_eq!(fenced_by(&mut fences), None);
        fences.on_confirmed(PathToken::new(7).unwrap(), &over);
        assert_eq!(fenced_by(&mut fences), Some(FencedBy::Confirmation));
    }

    #[test]
    fn a_server_is_not_asked_for_the_end_of_a_path_that_finishes_its_requests() {
        let mut fences = Fences::default();
        fences.on_lost(A, Attempt(1), &params(7, 1), true);
        assert_eq!(fences.poll_question(B, &params(8, 1)), None);
        fences.on_torn_down(Attempt(1), 1, Nanos::ZERO, Nanos::ZERO);
        assert!(fences.poll_question(B, &params(8, 1)).is_some());
    }

    #[test]
    fn another_process_is_neither_asked_nor_believed() {
        let mut fences = lost(&params(7, 1));
        let over = params(8, 2);
        assert_eq!(fences.poll_question(B, &over), None);
        fences.on_confirmed(PathToken::new(7).unwrap(), &over);
        assert_eq!(fenced_by(&mut fences), None);
    }

    #[test]
    fn a_server_that_has_the_fence_is_never_given_up_by_time() {
        let mut fences = lost(&params(7, 1));
        assert_eq!(fences.next_deadline(), None);
        fences.on_timer(Nanos::from_secs(1_000_000));
        assert_eq!(fenced_by(&mut fences), None);
    }

    #[test]
    fn a_server_without_the_fence_has_its_time() {
        let mut fences = lost(&params(0, 0));
        assert_eq!(fences.next_deadline(), Some(Nanos::from_secs(35)));
        fences.on_timer(Nanos::from_secs(34));
        assert_eq!(fenced_by(&mut fences), None);
        fences.on_timer(Nanos::from_secs(35));
        assert_eq!(fenced_by(&mut fences), Some(FencedBy::Timeout));
    }

    #[test]
    fn the_same_path_again_is_a_fence_and_so_is_another_process_in_its_place() {
        let mut fences = lost(&params(7, 1));
        fences.on_accepted(A, HERE, Some(1));
        assert_eq!(fenced_by(&mut fences), Some(FencedBy::Reconnect));
        let mut fences = lost(&params(7, 1));
        fences.on_accepted(B, HERE, Some(1));
        assert_eq!(fenced_by(&mut fences), None);
        fences.on_accepted(B, ELSEWHERE, Some(9));
        fences.on_accepted(B, ELSEWHERE, Some(2));
        assert_eq!(
            fenced_by(&mut fences),
            None,
            "that process was never at the address"
        );
        fences.on_accepted(B, HERE, Some(2));
        assert_eq!(fenced_by(&mut fences), Some(FencedBy::Restart));
    }

    #[test]
    fn another_process_is_noticed_by_a_path_that_is_new_to_the_address() {
        let mut fences = Fences::default();
        fences.on_accepted(A, HERE, Some(1));
        fences.on_lost(A, Attempt(1), &params(7, 1), false);
        fences.on_torn_down(Attempt(1), 3, Nanos::ZERO, Nanos::from_secs(35));
        fences.on_accepted(B, HERE, Some(2));
        assert_eq!(fenced_by(&mut fences), Some(FencedBy::Restart));
    }

    #[test]
    fn where_nothing_was_unanswered_nothing_has_to_be_fenced() {
        let mut fences = Fences::default();
        fences.on_lost(A, Attempt(1), &params(0, 0), false);
        fences.on_torn_down(Attempt(1), 0, Nanos::ZERO, Nanos::from_secs(35));
        assert_eq!(fenced_by(&mut fences), Some(FencedBy::Idle));
    }
}
