//! The live view, of a program that does I/O.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rnbd_net_tests::{Daemon, DaemonOptions, EXPORT, Lab, Perf, program, run, wait_until};
use serde_json::{Value, json};

fn top(daemon: &Daemon, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program("rnbd_top"));
    command.arg("-r").arg(daemon.socket()).args(arguments);
    let output = run(&mut command)?;
    ensure!(output.success, "rnbd_top: {}", output.text);
    Ok(output.text)
}

fn element<'a>(rates: &'a Value, list: &str, name: &str) -> Result<&'a Value> {
    let all = rates[list].as_array().context("a list")?;
    let found = all.iter().find(|one| one["name"] == name);
    found.with_context(|| format!("{name} is not among the {list}: {rates}"))
}

#[test]
fn rates_of_a_target_under_load_are_shown() -> Result<()> {
    let lab = Lab::new()?;
    let perf = Perf::new(lab.port, EXPORT, "randread");
    let running = perf.args(&["-o", "4096", "-q", "8", "-t", "20"]).spawn()?;
    wait_until("the session is up", Duration::from_secs(20), || {
        let sessions = lab.target.call("rtrs_get_sessions", Value::Null)?;
        Ok(sessions[0]["devices"] == 1)
    })?;
    let rates: Value =
        serde_json::from_str(&top(&lab.target, &["--once", "--json", "-i", "0.5"])?)?;
    let tables = top(&lab.target, &["--once", "--pollers", "-i", "0.1"])?;
    running.kill()?;

    let session = &rates["sessions"][0];
    let is_positive = |value: &Value| value.as_f64().is_some_and(|value| value > 0.0);
    ensure!(is_positive(&session["read"]["iops"]), "{rates}");
    ensure!(is_positive(&session["read"]["mibps"]), "{rates}");
    ensure!(session["write"]["iops"] == json!(0.0), "{rates}");
    ensure!(is_positive(&rates["cores"][0]["busy_percent"]), "{rates}");
    let thread = element(&rates, "threads", "poll_group_000")?;
    ensure!(thread["lcore"] == 0, "{thread}");
    for heading in ["CORE", "THREAD", "POLLER", "BDEV", "SESSION"] {
        ensure!(tables.contains(heading), "{heading} is missing:\n{tables}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_looked_at_is_named() -> Result<()> {
    let daemon = Daemon::start(DaemonOptions::default())?;
    let missing = daemon.file("missing.sock");
    let mut command = Command::new(program("rnbd_top"));
    let output = run(command.arg("--once").arg("-r").arg(&missing))?;
    ensure!(
        !output.success && output.text.contains("there is no socket"),
        "{}",
        output.text
    );
    Ok(())
}
