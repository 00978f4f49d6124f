//! The heartbeat of a path, one instance on each side (protocol.md section 6).

use rnbd_base::Nanos;

/// How often to beat and how much silence to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatConfig {
    /// Time between two looks at the peer.
    pub interval: Nanos,
    /// Looks without a word from the peer, after the one that asked, before it is dead.
    pub missed_max: u32,
}

impl HeartbeatConfig {
    /// For a peer of this project: dead 8 to 10 s after its last word.
    pub const PEER: Self = Self {
        interval: Nanos::from_secs(2),
        missed_max: 3,
    };
}

impl Default for HeartbeatConfig {
    /// What the kernel does and expects: a peer is dead 30 to 35 s after its last word.
    fn default() -> Self {
        Self {
            interval: Nanos::from_secs(5),
            missed_max: 5,
        }
    }
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Nothing.
    Rest,
    /// Send a heartbeat message on the service connection.
    Send,
    /// The peer is dead: give the path up.
    Dead,
}

/// Watches one peer.
///
/// ```text
///            on_timer, missed = 0: Send          on_timer, 0 < missed <= max: Rest
///  (heard) ───────────────────────────> (asked) ──────────────────────────────┐
///     ^                                    │  on_timer, missed > max: Dead <───┘
///     └──────────── on_receive ────────────┘
/// ```
#[derive(Clone, Debug)]
pub struct Heartbeat {
    config: HeartbeatConfig,
    missed: u32,
    deadline: Nanos,
    asked_at: Option<Nanos>,
    last_rtt: Option<Nanos>,
    asked: u64,
    answered: u64,
}

impl Heartbeat {
    /// Starts watching; the first beat is one interval away.
    #[must_use]
    pub fn start(config: HeartbeatConfig, now: Nanos) -> Self {
        let deadline = now + config.interval;
        Self {
            config,
            missed: 0,
            deadline,
            asked_at: None,
            last_rtt: None,
            asked: 0,
            answered: 0,
        }
    }

    /// Anything arrived from the peer, on any connection of the path.
    pub fn on_receive(&mut self) {
        self.missed = 0;
    }

    /// The answer to our message arrived.
    pub fn on_ack(&mut self, now: Nanos) {
        self.missed = 0;
        self.answered = self.asked.min(self.answered + 1);
        if let Some(asked_at) = self.asked_at.take() {
            self.last_rtt = Some(now.since(asked_at));
        }
    }

    /// To be called at [`Heartbeat::deadline`] or later; earlier calls do nothing.
    pub fn on_timer(&mut self, now: Nanos) -> Beat {
        if now < self.deadline {
            return Beat::Rest;
        }
        if self.missed > self.config.missed_max {
            return Beat::Dead;
        }
        self.deadline = now + self.config.interval;
        self.missed += 1;
        if self.missed > 1 {
            return Beat::Rest;
        }
        self.asked_at = Some(now);
        self.asked += 1;
        Beat::Send
    }

    /// The owner sends a heartbeat message out of turn.
    pub fn ask(&mut self, now: Nanos) {
        self.asked_at.get_or_insert(now);
        self.asked += 1;
    }

    /// Messages sent. They are answered in their order.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked
    }

    /// How many of them were answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// When to call [`Heartbeat::on_timer`].
    #[must_use]
    pub fn deadline(&self) -> Nanos {
        self.deadline
    }

    /// Looks since the peer was last heard.
    #[must_use]
    pub fn missed(&self) -> u32 {
        self.missed
    }

    /// Round trip of the last answered message.
    #[must_use]
    pub fn last_rtt(&self) -> Option<Nanos> {
        self.last_rtt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = Nanos::from_secs(1);

    fn watch() -> Heartbeat {
        Heartbeat::start(HeartbeatConfig::default(), Nanos::ZERO)
    }

    fn run(beat: &mut Heartbeat, from: u64, to: u64) -> Vec<(u64, Beat)> {
        (from..=to)
            .map(|at| (at, beat.on_timer(Nanos::from_secs(at))))
            .filter(|(_, what)| *what != Beat::Rest)
            .collect()
    }

    #[test]
    fn a_silent_peer_is_dead_thirty_seconds_after_the_question() {
        let mut beat = watch();
        assert_eq!(run(&mut beat, 0, 35), [(5, Beat::Send), (35, Beat::Dead)]);
    }

    #[test]
    fn any_traffic_keeps_the_peer_alive() {
        let mut beat = watch();
        for at in (0..1000).step_by(4) {
            assert_ne!(beat.on_timer(Nanos::from_secs(at)), Beat::Dead);
            beat.on_receive();
        }
    }

    #[test]
    fn an_acknowledgement_measures_the_round_trip_once() {
        let mut beat = watch();
        assert_eq!(beat.on_timer(Nanos::from_secs(5)), Beat::Send);
        beat.on_ack(Nanos::from_secs(6));
        assert_eq!(beat.last_rtt(), Some(SECOND));
        beat.on_ack(Nanos::from_secs(9));
        assert_eq!(beat.last_rtt(), Some(SECOND));
    }

    #[test]
    fn answers_are_counted_and_nobody_answers_more_than_was_asked() {
        let mut beat = watch();
        beat.on_timer(Nanos::from_secs(5));
        beat.ask(Nanos::from_secs(6));
        assert_eq!((beat.asked(), beat.answered()), (2, 0));
        beat.on_ack(Nanos::from_secs(7));
        assert_eq!(beat.last_rtt(), Some(Nanos::from_secs(2)));
        assert_eq!(beat.answered(), 1);
        beat.on_ack(Nanos::from_secs(7));
        beat.on_ack(Nanos::from_secs(7));
        assert_eq!(beat.answered(), 2);
    }
}
