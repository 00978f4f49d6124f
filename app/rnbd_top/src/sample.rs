use std::time::Instant;

use anyhow::Result;
use rnbd_console::server::Server;
use serde::Deserialize;

/// A server's counters at one moment.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) taken: Instant,
    pub(crate) reactors: Vec<Reactor>,
    pub(crate) threads: Vec<Thread>,
    pub(crate) pollers: Vec<ThreadPollers>,
    pub(crate) bdevs: Vec<Bdev>,
    /// In nanoseconds, as the server's ticks of a bdev's latency are.
    pub(crate) latency_tick_rate: f64,
    pub(crate) sessions: Vec<Paths>,
    pub(crate) controllers: Vec<Paths>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Reactor {
    pub(crate) lcore: u32,
    pub(crate) busy: u64,
    pub(crate) idle: u64,
    pub(crate) in_interrupt: bool,
    pub(crate) lw_threads: Vec<ThreadOnCore>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ThreadOnCore {
    pub(crate) id: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Thread {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) busy: u64,
    pub(crate) idle: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ThreadPollers {
    pub(crate) name: String,
    pub(crate) active_pollers: Vec<Poller>,
    pub(crate) timed_pollers: Vec<Poller>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Poller {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) run_count: u64,
    pub(crate) busy_count: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Bdev {
    pub(crate) name: String,
    pub(crate) num_read_ops: u64,
    pub(crate) num_write_ops: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
    pub(crate) read_latency_ticks: u64,
    pub(crate) write_latency_ticks: u64,
}

/// A session of a target, or a controller of an initiator.
#[derive(Debug, Deserialize)]
pub(crate) struct Paths {
    #[serde(alias = "sessname")]
    pub(crate) name: String,
    pub(crate) paths: Vec<Path>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Path {
    pub(crate) path: String,
    pub(crate) read_count: u64,
    pub(crate) write_count: u64,
    pub(crate) read_total_size: u64,
    pub(crate) write_total_size: u64,
    pub(crate) inflights: u64,
}

#[derive(Deserialize)]
struct Reactors {
    reactors: Vec<Reactor>,
}

#[derive(Deserialize)]
struct Threads<T> {
    threads: Vec<T>,
}

#[derive(Deserialize)]
struct Iostat {
    tick_rate: f64,
    bdevs: Vec<Bdev>,
}

#[derive(Deserialize)]
struct Sessions {
    sessions: Vec<Paths>,
}

#[derive(Deserialize)]
struct Controllers {
    controllers: Vec<Paths>,
}

impl Sample {
    /// Asks for all counters.
    pub(crate) fn take(server: &mut Server) -> Result<Self> {
        let taken = Instant::now();
        let iostat: Iostat = server.read("bdev_get_iostat")?;
        Ok(Self {
            taken,
            reactors: server.read::<Reactors>("framework_get_reactors")?.reactors,
            threads: server.read::<Threads<_>>("thread_get_stats")?.threads,
            pollers: server.read::<Threads<_>>("thread_get_pollers")?.threads,
            bdevs: iostat.bdevs,
            latency_tick_rate: iostat.tick_rate,
            sessions: server.read::<Sessions>("rtrs_get_stats")?.sessions,
            controllers: server
                .read::<Controllers>("bdev_rnbd_get_path_stats")?
                .controllers,
        })
    }
}
