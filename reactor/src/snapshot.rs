use rnbd_base::CoreIndex;

/// What one reactor did since it started. All times are in ticks of [`crate::Clock`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReactorSnapshot {
    /// Its index.
    pub core: CoreIndex,
    /// The CPU it is pinned to.
    pub lcore: u32,
    /// That CPU's NUMA node.
    pub numa_id: i32,
    /// The OS thread.
    pub tid: i32,
    /// Time in rounds in which a poller or a command did work.
    pub busy: u64,
    /// All other time, sleep included.
    pub idle: u64,
    /// Whether it may sleep on events.
    pub in_interrupt: bool,
    /// How often it slept.
    pub sleeps: u64,
    /// Its light threads, in the order in which they were created.
    pub threads: Vec<ThreadSnapshot>,
}

/// What one light thread did since it was created. Times are in ticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadSnapshot {
    /// Unique in the process, from 1.
    pub id: u64,
    /// As given.
    pub name: String,
    /// The cores it may run on, hexadecimal without `0x`.
    pub cpumask: String,
    /// Time since it was created.
    pub elapsed: u64,
    /// Time in which one of its pollers did work.
    pub busy: u64,
    /// Time in which none did, and the reactor's sleep.
    pub idle: u64,
    /// Its pollers, in the order in which they are polled.
    pub pollers: Vec<PollerSnapshot>,
}

/// What one poller did since it was added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollerSnapshot {
    /// Unique in the process, from 1.
    pub id: u64,
    /// As given.
    pub name: String,
    /// How often it was polled.
    pub run_count: u64,
    /// How often it then did work.
    pub busy_count: u64,
    /// For a timed poller, the ticks between two polls.
    pub period_ticks: Option<u64>,
}
