use rnbd_base::Nanos;

use super::config::ReconnectPolicy;

/// Counts the attempts of one path and says how long to wait before the next.
#[derive(Debug)]
pub(super) struct Reconnect {
    attempts: u32,
    random: fastrand::Rng,
}

impl Reconnect {
    const FIRST_WAIT: Nanos = Nanos::from_secs(1);

    pub(super) fn new(seed: u64) -> Self {
        Self {
            attempts: 0,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// Attempts since the path was last up.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The path is up, or an administrator wants a fresh start.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// How long to wait before the next attempt, which is counted; `None` if there is none left.
    pub(super) fn next_wait(&mut self, policy: &ReconnectPolicy) -> Option<Nanos> {
        if policy.max_attempts.is_some_and(|max| self.attempts >= max) {
            return None;
        }
        let doubled = Self::FIRST_WAIT.0 << self.attempts.min(16);
        let wait = policy.delay.0.min(doubled);
        self.attempts = self.attempts.saturating_add(1);
        Some(Nanos(wait) + Nanos(self.random.u64(0..=policy.jitter.0.min(wait))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(policy: &ReconnectPolicy, seed: u64, count: usize) -> Vec<u64> {
        let mut reconnect = Reconnect::new(seed);
        std::iter::from_fn(|| reconnect.next_wait(policy))
            .take(count)
            .map(|wait| wait.0)
            .collect()
    }

    #[test]
    fn waits_double_up_to_the_delay() {
        let policy = ReconnectPolicy {
            jitter: Nanos::ZERO,
            ..ReconnectPolicy::default()
        };
        let seconds: Vec<_> = [1, 2, 4, 8, 16, 30, 30].map(|s| s * 1_000_000_000).into();
        assert_eq!(waits(&policy, 0, 7), seconds);
    }

    #[test]
    fn jitter_is_seconds_and_differs_by_seed() {
        let policy = ReconnectPolicy::default();
        let last = |seed| waits(&policy, seed, 8)[7];
        let spread: std::collections::BTreeSet<_> = (0..20).map(last).collect();
        assert!(spread.len() > 10);
        let (min, max) = (spread.first().unwrap(), spread.last().unwrap());
        assert!(*min >= 30_000_000_000 && *max <= 33_000_000_000);
        assert!(max - min > 1_000_000_000);
    }

    #[test]
    fn attempts_are_limited_and_start_again_after_success() {
        let policy = ReconnectPolicy {
            max_attempts: Some(2),
            ..ReconnectPolicy::default()
        };
        let mut reconnect = Reconnect::new(1);
        assert!(reconnect.next_wait(&policy).is_some());
        assert!(reconnect.next_wait(&policy).is_some());
        assert_eq!(reconnect.next_wait(&policy), None);
        reconnect.reset();
        assert!(reconnect.next_wait(&policy).is_some());
    }
}
