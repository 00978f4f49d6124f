use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// One of the project's programs, built with the same profile as the test that asks.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path is known");
    let folder = test
        .parent()
        .and_then(|deps| deps.parent())
        .expect("tests lie in deps/");
    let program = folder.join(name);
    assert!(
        program.exists(),
        "{} is not built; scripts/test.sh net builds it",
        program.display()
    );
    program
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Output {
    /// Exit status was zero.
    pub success: bool,
    /// Standard output and standard error, in this order.
    pub text: String,
}

/// Runs a command to its end.
///
/// # Errors
/// If it cannot be started.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
    let text = [output.stdout, output.stderr].concat();
    Ok(Output {
        success: output.status.success(),
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}

/// Asks `ready` again and again until it says yes.
///
/// # Errors
/// If it says no for `limit`; `what` is part of the message.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !ready()? {
        if Instant::now() > deadline {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A run of `rnbd_perf` against a target.
#[derive(Debug)]
pub struct Perf {
    command: Command,
    cores: &'static str,
}

impl Perf {
    /// Attaches to `device` at `port` of this host and runs `workload`; a lost session comes back
    /// quickly.
    #[must_use]
    pub fn new(port: u16, device: &str, workload: &str) -> Self {
        let attach = format!(
            "trtype=TCP,traddr=127.0.0.1,trsvcid={port},device={device},reconnect_delay_sec=1"
        );
        let mut command = Command::new(program("rnbd_perf"));
        command.args(["--attach", &attach, "-w", workload, "--json", "-"]);
        Self {
            command,
            cores: "[1]",
        }
    }

    /// On these cores instead of the second one.
    #[must_use]
    pub fn cores(mut self, cores: &'static str) -> Self {
        self.cores = cores;
        self
    }

    /// More of the command line.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(mut self) -> Result<Running> {
        let child = self
            .command
            .args(["-m", self.cores, "--disable-cpumask-locks"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(Running {
            child: child.spawn()?,
        })
    }

    /// Runs it to its end and gives its report.
    ///
    /// # Errors
    /// If it fails, with what it printed.
    pub fn report(self) -> Result<Value> {
        self.spawn()?.report()
    }
}

/// A run of `rnbd_perf` under way.
#[derive(Debug)]
pub struct Running {
    child: std::process::Child,
}

impl Running {
    /// Ends it as a crash would.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn kill(mut self) -> Result<()> {
        ensure!(
            self.child.try_wait()?.is_none(),
            "rnbd_perf ended before it was killed"
        );
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for the end and gives the report.
    ///
    /// # Errors
    /// If it fails, with what it printed.
    pub fn report(self) -> Result<Value> {
        let output = self.child.wait_with_output()?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "rnbd_perf: {}\n{stdout}\n{stderr}",
            output.status
        );
        let json = stdout
            .find('{')
            .map(|at| &stdout[at..])
            .context("rnbd_perf printed no report")?;
        Ok(serde_json::Deserializer::from_str(json)
            .into_iter()
            .next()
            .context("empty report")??)
    }
}
