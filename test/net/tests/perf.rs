//! The load generator as a server: tests when a client asks for them.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rnbd_net_tests::{Daemon, DaemonOptions, wait_until};
use rnbd_rpc::ClientError;
use serde_json::{Value, json};
use tempfile::TempDir;

/// `rnbd_perf -z` with a bdev, logging its RPCs.
struct Waiting {
    daemon: Daemon,
    folder: TempDir,
}

impl Waiting {
    fn start(letters: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("bdevs.json");
        let create = json!({
            "method": "bdev_malloc_create",
            "params": { "name": "Malloc0", "num_blocks": 8192, "block_size": 512 },
        });
        let subsystems = json!([{ "subsystem": "bdev", "config": [create] }]);
        fs::write(&config, json!({ "subsystems": subsystems }).to_string())?;
        let mut options = DaemonOptions {
            program: "rnbd_perf",
            ..DaemonOptions::default()
        };
        let log = folder.path().join("rpc.log");
        let files = [("-c", &config), ("-J", &log)];
        for (letter, path) in files {
            let path = path.to_str().context("a path of ours")?;
            options.args.extend([letter.to_owned(), path.to_owned()]);
        }
        options.args.extend(letters.iter().map(ToString::to_string));
        let daemon = Daemon::start(options)?;
        Ok(Self { daemon, folder })
    }

    fn perform(&self, changes: Value) -> Result<Value, ClientError> {
        self.daemon.call("perform_tests", changes)
    }

    fn rpc_log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.path().join("rpc.log"))?)
    }
}

#[test]
fn tests_run_as_often_as_a_client_asks() -> Result<()> {
    let perf = Waiting::start(&["-z", "-q", "4", "-o", "4k", "-w", "randread", "-t", "1"])?;
    let first = perf.perform(Value::Null)?;
    let job = &first["results"][0];
    ensure!(
        job["workload"] == "randread" && job["status"] == "finished",
        "{first}"
    );
    ensure!(
        job["iops"].as_f64().is_some_and(|iops| iops > 0.0),
        "{first}"
    );

    let second = perf.perform(json!({ "workload_type": "verify", "io_size": "8192" }))?;
    let job = &second["results"][0];
    ensure!(job["verify"]["mismatch_count"] == 0, "{second}");
    ensure!(
        job["io_size"] == 8192 && job["queue_depth"] == 4,
        "{second}"
    );

    let error = perf.perform(json!({ "workload_type": "reset" }));
    let text = error.err().context("reset was taken")?.to_string();
    ensure!(text.contains("no workload \"reset\""), "{text}");
    let third = perf.perform(Value::Null)?;
    ensure!(third["results"][0]["workload"] == "verify", "{third}");

    let log = perf.rpc_log()?;
    for part in ["request: ", "\"perform_tests\"", "response: ", "\"mibps\""] {
        ensure!(log.contains(part), "{part} is missing in {log}");
    }
    Ok(())
}

#[test]
fn tests_do_not_run_twice_at_a_time() -> Result<()> {
    let perf = Waiting::start(&["-z", "-q", "1", "-o", "512", "-w", "read", "-t", "3"])?;
    std::thread::scope(|scope| -> Result<()> {
        let first = scope.spawn(|| perf.perform(Value::Null));
        wait_until("the tests run", Duration::from_secs(10), || {
            let threads = perf.daemon.call("thread_get_stats", Value::Null)?;
            Ok(threads.to_string().contains("\"perf_0\""))
        })?;
        let error = perf.perform(Value::Null).err().context("they ran twice")?;
        ensure!(error.to_string().contains("in progress"), "{error}");
        let first = first.join().ok().context("the caller panicked")??;
        ensure!(first["results"][0]["status"] == "finished", "{first}");
        Ok(())
    })
}

#[test]
fn jobs_of_a_core_can_have_one_thread_in_common() -> Result<()> {
    let letters = ["-z", "-E", "-q", "1", "-o", "512", "-w", "read", "-t", "3"];
    let perf = Waiting::start(&letters)?;
    let second = json!({ "name": "Malloc1", "num_blocks": 8192, "block_size": 512 });
    perf.daemon.call("bdev_malloc_create", second)?;
    std::thread::scope(|scope| -> Result<()> {
        let running = scope.spawn(|| perf.perform(Value::Null));
        wait_until("both jobs run", Duration::from_secs(10), || {
            let pollers = perf.daemon.call("thread_get_pollers", Value::Null)?;
            let threads = pollers["threads"].as_array().context("threads")?.iter();
            let shared = threads.filter(|thread| thread["name"] == "perf_0");
            let names = shared.map(|thread| thread["active_pollers"].to_string());
            Ok(names.collect::<String>().matches("\"Malloc").count() == 2)
        })?;
        let results = running.join().ok().context("the caller panicked")??;
        ensure!(
            results["results"].as_array().map(Vec::len) == Some(2),
            "{results}"
        );
        Ok(())
    })
}
