//! Which of the paths that are up the next request takes (protocol.md 7.3).

use rnbd_base::Nanos;

use super::messages::PathIndex;

/// How paths share the requests of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Each in turn.
    RoundRobin,
    /// The one with the fewest requests outstanding; the first of equals.
    #[default]
    MinInflight,
    /// The one with the shortest heartbeat round trip; the first of equals.
    MinLatency,
    /// One for all requests, the others only when it is down.
    ActivePassive,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::RoundRobin,
        Self::MinInflight,
        Self::MinLatency,
        Self::ActivePassive,
    ];

    /// As in RPC.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::MinInflight => "min_inflight",
            Self::MinLatency => "min_latency",
            Self::ActivePassive => "active_passive",
        }
    }
}

/// A policy and what it may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathPolicy {
    /// How to choose.
    pub policy: Policy,
    /// Requests that a path gets before it is the next one's turn, at least one; only round-robin
    /// asks.
    pub min_io: u32,
    /// The path that [`Policy::ActivePassive`] takes while it is up.
    pub preferred: Option<PathIndex>,
}

impl Default for PathPolicy {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            min_io: 1,
            preferred: None,
        }
    }
}

/// What a policy sees of a path that is up and has room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) path: PathIndex,
    pub(super) in_flight: u16,
    pub(super) latency: Option<Nanos>,
    /// It has requests outstanding and has answered none for a while, or holds its share of the
    /// permits: it gets no more as long as another path is better off.
    pub(super) is_slow: bool,
}

/// A policy at work.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chooser {
    pub(super) config: PathPolicy,
    /// The path that got the last request.
    current: Option<PathIndex>,
    /// Requests that it got in a row.
    in_a_row: u32,
}

impl Chooser {
    pub(super) fn current(&self) -> Option<PathIndex> {
        self.current
    }

    /// A request begins on the path.
    pub(super) fn on_begin(&mut self, path: PathIndex) {
        let goes_on = self.current == Some(path) && self.in_a_row < self.config.min_io;
        self.in_a_row = if goes_on { self.in_a_row + 1 } else { 1 };
        self.current = Some(path);
    }

    /// The path for the next request, of those that are up, in the order of their indexes.
    pub(super) fn choose(
        &self,
        candidates: impl Iterator<Item = Candidate> + Clone,
    ) -> Option<PathIndex> {
        if self.config.policy == Policy::ActivePassive {
            return self.active(candidates);
        }
        let good = candidates.clone().filter(|candidate| !candidate.is_slow);
        self.spread(good).or_else(|| self.spread(candidates))
    }

    fn spread(&self, mut candidates: impl Iterator<Item = Candidate> + Clone) -> Option<PathIndex> {
        let chosen = match self.config.policy {
            Policy::RoundRobin => {
                let due = candidates.clone().find(|candidate| self.is_due(candidate));
                due.or_else(|| candidates.next())
            }
            Policy::MinLatency => candidates.min_by_key(|candidate| candidate.latency),
            _ => candidates.min_by_key(|candidate| candidate.in_flight),
        };
        chosen.map(|candidate| candidate.path)
    }

    /// Whether it is a path's turn, unless an earlier one in the order is asked first.
    fn is_due(&self, candidate: &Candidate) -> bool {
        match self.current {
            Some(current) if self.in_a_row < self.config.min_io => candidate.path >= current,
            Some(current) => candidate.path > current,
            None => true,
        }
    }

    /// The preferred path, else the one that is in use, else the first.
    fn active(&self, candidates: impl Iterator<Item = Candidate> + Clone) -> Option<PathIndex> {
        let is_up = |wanted: &PathIndex| {
            let mut all = candidates.clone();
            all.any(|candidate| candidate.path == *wanted)
        };
        let preferred = self.config.preferred.filter(is_up);
        let wanted = preferred.or_else(|| self.current.filter(is_up));
        wanted.or_else(|| candidates.clone().next().map(|first| first.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(path: u16, in_flight: u16, latency_us: u64) -> Candidate {
        Candidate {
            path: PathIndex(path),
            in_flight,
            latency: Some(Nanos(latency_us * 1000)),
            is_slow: false,
        }
    }

    fn chooser(policy: Policy) -> Chooser {
        let config = PathPolicy {
            policy,
            ..PathPolicy::default()
        };
        Chooser {
            config,
            ..Chooser::default()
        }
    }

    fn choices(chooser: &mut Chooser, candidates: &[Candidate], count: usize) -> Vec<u16> {
        let choose = || {
            let path = chooser.choose(candidates.iter().copied())?;
            chooser.on_begin(path);
            Some(path.0)
        };
        std::iter::from_fn(choose).take(count).collect()
    }

    #[test]
    fn round_robin_gives_each_path_its_turn() {
        let three = [0, 2, 5].map(|path| candidate(path, 9, 9));
        let mut rr = chooser(Policy::RoundRobin);
        assert_eq!(choices(&mut rr, &three, 5), [0, 2, 5, 0, 2]);
        rr.config.min_io = 2;
        assert_eq!(choices(&mut rr, &three, 6), [2, 5, 5, 0, 0, 2]);
        assert_eq!(choices(&mut rr, &three[..1], 2), [0, 0]);
    }

    #[test]
    fn the_least_loaded_and_the_fastest_win_and_the_first_of_equals() {
        let paths = [
            candidate(0, 3, 40),
            candidate(1, 2, 70),
            candidate(2, 2, 40),
        ];
        assert_eq!(choices(&mut chooser(Policy::MinInflight), &paths, 1), [1]);
        assert_eq!(choices(&mut chooser(Policy::MinLatency), &paths, 1), [0]);
    }

    #[test]
    fn one_path_is_active_until_it_is_down_or_another_is_preferred() {
        let paths = [0, 1, 2].map(|path| candidate(path, 0, 0));
        let mut active = chooser(Policy::ActivePassive);
        assert_eq!(choices(&mut active, &paths, 3), [0, 0, 0]);
        assert_eq!(choices(&mut active, &paths[1..], 2), [1, 1]);
        assert_eq!(
            choices(&mut active, &paths, 2),
            [1, 1],
            "not back by itself"
        );
        active.config.preferred = Some(PathIndex(2));
        assert_eq!(choices(&mut active, &paths, 1), [2]);
        assert_eq!(choices(&mut active, &paths[..2], 1), [0]);
        assert_eq!(choices(&mut active, &paths, 1), [2]);
    }

    #[test]
    fn a_slow_path_gets_nothing_while_another_is_better_off() {
        for policy in [Policy::RoundRobin, Policy::MinInflight, Policy::MinLatency] {
            let mut paths = [candidate(0, 0, 0), candidate(1, 7, 90)];
            paths[0].is_slow = true;
            assert_eq!(choices(&mut chooser(policy), &paths, 3), [1, 1, 1]);
            paths[1].is_slow = true;
            assert!(chooser(policy).choose(paths.iter().copied()).is_some());
        }
    }
}
