//! An idle daemon in adaptive mode sleeps, and wakes when there is something to do.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rnbd_net_tests::{Daemon, Lab};

/// Processor time that a process has used, in clock ticks of 10 ms.
fn cpu_ticks(daemon: &Daemon) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid()))?;
    let fields: Vec<_> = stat
        .rsplit(") ")
        .next()
        .context("fields")?
        .split(' ')
        .collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

#[test]
fn an_idle_target_with_a_session_uses_next_to_no_processor_time() -> Result<()> {
    let lab = Lab::new()?;
    lab.attach("idle")?;
    let window = Duration::from_secs(3);
    let (before, started) = (cpu_ticks(&lab.target)?, Instant::now());
    while started.elapsed() < window {
        std::thread::sleep(Duration::from_millis(50));
    }
    let used = cpu_ticks(&lab.target)? - before;
    // A polling core would have used about 300 ticks; a tenth of that is already too much.
    ensure!(
        used < 30,
        "{used} ticks of processor time in {window:?} of idleness"
    );
    Ok(())
}
