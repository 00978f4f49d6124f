//! The log lines about whoever connects and does not speak the protocol.

use std::fmt;

use rnbd_base::Nanos;

use crate::types::Addr;

const LINES_MAX: u32 = 5;
const WINDOW: Nanos = Nanos::from_secs(10);

/// Writes one line per stranger, but not more than a few in ten seconds.
#[derive(Debug, Default)]
pub(super) struct StrangerLog {
    window_start: Nanos,
    lines: u32,
    suppressed: u64,
}

impl StrangerLog {
    /// Says that `from` was dropped, and why. Returns whether a line was written.
    pub(super) fn dropped(&mut self, from: Addr, why: impl fmt::Display, now: Nanos) -> bool {
        if now.since(self.window_start) >= WINDOW {
            self.start_window(now);
        }
        if self.lines == LINES_MAX {
            self.suppressed += 1;
            return false;
        }
        self.lines += 1;
        log::warn!("tcp: dropped {from} port {}: {why}", from.port());
        true
    }

    fn start_window(&mut self, now: Nanos) {
        if self.suppressed > 0 {
            log::warn!("tcp: dropped {} more before", self.suppressed);
        }
        *self = Self {
            window_start: now,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_strangers_makes_few_lines() {
        let from = Addr::Ip("127.0.0.1:9".parse().unwrap());
        let mut log = StrangerLog::default();
        let start = Nanos::from_secs(100);
        let written = (0..100)
            .filter(|_| log.dropped(from, "noise", start))
            .count();
        assert_eq!(written, LINES_MAX as usize);
        assert!(log.dropped(from, "noise", start + WINDOW));
        assert_eq!(log.suppressed, 0);
    }
}
