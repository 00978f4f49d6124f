use std::fs;
use std::io;

/// How often the kernel gave a thread's CPU to another thread, since the thread began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContextSwitches {
    /// Because the thread slept.
    pub voluntary: u64,
    /// Because another one had its turn.
    pub involuntary: u64,
}

impl ContextSwitches {
    /// Those of thread `tid` of this process. Reads a file: for the control thread only.
    ///
    /// # Errors
    /// If there is no such thread, or the kernel does not count.
    pub fn read(tid: i32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/self/task/{tid}/status"))?;
        Self::parse(&text).ok_or_else(|| {
            let message = format!("the kernel counts no context switches of thread {tid}");
            io::Error::new(io::ErrorKind::NotFound, message)
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let count = |name: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        };
        Some(Self {
            voluntary: count("voluntary_ctxt_switches:")?,
            involuntary: count("nonvoluntary_ctxt_switches:")?,
        })
    }

    /// What was added since `start`.
    #[must_use]
    pub fn since(self, start: Self) -> Self {
        Self {
            voluntary: self.voluntary.saturating_sub(start.voluntary),
            involuntary: self.involuntary.saturating_sub(start.involuntary),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn both_counters_are_found() {
        let text = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n";
        let expected = ContextSwitches {
            voluntary: 12,
            involuntary: 3,
        };
        assert_eq!(ContextSwitches::parse(text), Some(expected));
        assert_eq!(ContextSwitches::parse("Name:\tx\n"), None);
    }

    #[test]
    fn a_sleep_is_a_voluntary_switch() {
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        let before = ContextSwitches::read(tid).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        let since = ContextSwitches::read(tid).unwrap().since(before);
        assert!(since.voluntary >= 1);
        assert!(ContextSwitches::read(i32::MAX).is_err());
    }
}
