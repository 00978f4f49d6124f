use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rnbd_rpc::{Client, ClientError};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::tools::{program, wait_until};

const START: Duration = Duration::from_secs(20);

/// How to start a daemon.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// Which of the project's programs.
    pub program: &'static str,
    /// As `-m` takes it.
    pub cpumask: &'static str,
    /// More of the command line.
    pub args: Vec<String>,
}

impl Default for DaemonOptions {
    /// The first core, sleeping when there is nothing to do: tests share the machine.
    fn default() -> Self {
        let args = ["--reactor-mode", "adaptive", "--disable-cpumask-locks"];
        Self {
            program: "rnbd_tgt",
            cpumask: "[0]",
            args: args.map(str::to_owned).to_vec(),
        }
    }
}

/// A running `rnbd_tgt`, or another program that serves RPC.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    folder: TempDir,
    options: DaemonOptions,
}

impl Daemon {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// If it does not come up; its log is part of the message.
    pub fn start(options: DaemonOptions) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let child = Self::spawn(folder.path(), &options)?;
        let mut daemon = Self {
            child,
            folder,
            options,
        };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    fn spawn(folder: &Path, options: &DaemonOptions) -> Result<Child> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join("log"))?;
        Command::new(program(options.program))
            .args(["-m", options.cpumask, "-r"])
            .arg(folder.join("rpc.sock"))
            .args(&options.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} cannot be started", options.program))
    }

    fn wait_ready(&mut self) -> Result<()> {
        let program = self.options.program;
        let waited = wait_until(&format!("{program} answers"), START, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("{program} ended with {status}:\n{}", self.log());
            }
            Ok(self.call("spdk_get_version", Value::Null).is_ok())
        });
        waited.with_context(|| self.log())
    }

    /// Its RPC socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("rpc.sock")
    }

    /// A file in its folder, which goes when the daemon does.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// All it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Calls an RPC method; no parameters if `params` is null.
    ///
    /// # Errors
    /// What the server answered, or that it could not be reached.
    pub fn call(&self, method: &str, params: Value) -> Result<Value, ClientError> {
        let mut client = Client::connect(&self.socket()).map_err(ClientError::Io)?;
        client
            .set_timeout(Some(Duration::from_secs(60)))
            .map_err(ClientError::Io)?;
        client.call(method, (!params.is_null()).then_some(params))
    }

    /// Calls a method that is to fail.
    ///
    /// # Errors
    /// If it succeeds, or the server cannot be reached.
    pub fn refusal(&self, method: &str, params: Value) -> Result<(i64, String)> {
        match self.call(method, params) {
            Err(ClientError::Rpc(error)) => Ok((error.code, error.message)),
            Err(other) => Err(other).context(method.to_owned()),
            Ok(result) => bail!("{method} succeeded: {result}"),
        }
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Ends it as a crash would, and starts it again with the configuration that it had.
    ///
    /// # Errors
    /// If it does not come up again.
    pub fn crash_and_restart(&mut self) -> Result<()> {
        let saved = self.save_config()?;
        let config = self.file("saved.json");
        fs::write(&config, saved.to_string())?;
        self.crash_and_start(&["-c", &config.display().to_string()])
    }

    /// Ends it as a crash would, and starts it again with these options more and nothing else of
    /// what it knew.
    ///
    /// # Errors
    /// If it does not come up again.
    pub fn crash_and_start(&mut self, args: &[&str]) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        let mut options = self.options.clone();
        options.args.extend(args.iter().map(ToString::to_string));
        self.child = Self::spawn(self.folder.path(), &options)?;
        self.wait_ready()
    }

    /// What `spdk-rpc save_config` puts together.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub fn save_config(&self) -> Result<Value> {
        let mut subsystems = Vec::new();
        let listed = self.call("framework_get_subsystems", Value::Null)?;
        for entry in listed.as_array().context("a list of subsystems")? {
            let name = &entry["subsystem"];
            let config = self.call("framework_get_config", json!({ "name": name }))?;
            subsystems.push(json!({ "subsystem": name, "config": config }));
        }
        Ok(json!({ "subsystems": subsystems }))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of rnbd_tgt:\n{}", self.log());
        }
        // It may have ended already; there is nothing more to do then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
