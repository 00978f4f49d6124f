use rnbd_mem::{Memory, MemoryConfig};

/// The memory of the simulated hosts. Address space is never given back to the system, so one
/// bench serves all seeds of a process.
#[derive(Debug)]
pub struct Bench {
    /// Of the target.
    pub(crate) target: Memory,
    /// Of each initiator.
    pub(crate) initiators: Vec<Memory>,
}

impl Bench {
    /// Most initiators of a scenario.
    pub(crate) const INITIATORS_MAX: usize = 3;

    /// Memory for all hosts.
    #[must_use]
    pub fn new() -> Self {
        let memory = || {
            Memory::new(MemoryConfig {
                hugepages: false,
                ..MemoryConfig::default()
            })
        };
        Self {
            target: memory(),
            initiators: (0..Self::INITIATORS_MAX).map(|_| memory()).collect(),
        }
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}
