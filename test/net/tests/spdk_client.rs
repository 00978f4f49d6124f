//! SPDK's own client, from PyPI, drives us unchanged.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rnbd_net_tests::{Daemon, DaemonOptions, Lab, run};
use serde_json::{Value, json};

fn repo() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Runs `spdk-rpc` from the environment that scripts/test.sh makes.
fn spdk_rpc(daemon: &Daemon, args: &[&str]) -> Result<String> {
    let program = repo().join(".cache/venv/bin/spdk-rpc");
    ensure!(
        program.exists(),
        "{} is missing; scripts/test.sh net installs it",
        program.display()
    );
    let mut command = Command::new(program);
    command
        .arg("-s")
        .arg(daemon.socket())
        .args(args)
        .env("PYTHONPATH", repo().join("scripts"));
    let output = run(&mut command)?;
    ensure!(output.success, "spdk-rpc {args:?}: {}", output.text);
    Ok(output.text)
}

#[test]
fn its_bdev_commands_work() -> Result<()> {
    let daemon = Daemon::start(DaemonOptions::default())?;
    ensure!(spdk_rpc(&daemon, &["bdev_malloc_create", "-b", "M0", "64", "512"])?.trim() == "M0");
    spdk_rpc(&daemon, &["bdev_null_create", "N0", "64", "4096"])?;
    spdk_rpc(
        &daemon,
        &[
            "bdev_delay_create",
            "-b",
            "M0",
            "-d",
            "D0",
            "-r",
            "10",
            "-t",
            "20",
            "-w",
            "10",
            "-n",
            "20",
        ],
    )?;
    let listed: Value = serde_json::from_str(&spdk_rpc(&daemon, &["bdev_get_bdevs"])?)?;
    let names: Vec<_> = listed
        .as_array()
        .context("a list")?
        .iter()
        .map(|bdev| &bdev["name"])
        .collect();
    ensure!(
        names.contains(&&json!("M0")) && names.contains(&&json!("D0")),
        "{names:?}"
    );
    for command in [
        "framework_get_reactors",
        "thread_get_stats",
        "thread_get_pollers",
        "framework_get_subsystems",
        "log_get_flags",
        "notify_get_types",
        "bdev_get_iostat",
        "rpc_get_methods",
        "spdk_get_version",
    ] {
        spdk_rpc(&daemon, &[command])?;
    }
    Ok(())
}

#[test]
fn limits_sampling_histograms_and_waiting_bdevs_work() -> Result<()> {
    let daemon = Daemon::start(DaemonOptions::default())?;
    let commands = [
        "bdev_error_create N0",
        "bdev_null_create N0 64 512",
        "bdev_set_qos_limit EE_N0 --rw-ios-per-sec 5000 --w-mbytes-per-sec 7",
        "bdev_set_qd_sampling_period N0 1000",
        "bdev_get_iostat --names N0",
        "bdev_enable_histogram N0 --histogram",
        "bdev_get_histogram N0",
        "bdev_wait_for_examine",
    ];
    for command in commands {
        spdk_rpc(&daemon, &command.split(' ').collect::<Vec<_>>())?;
    }
    let bdevs = daemon.call("bdev_get_bdevs", json!({ "name": "EE_N0" }))?;
    let limits = &bdevs[0]["assigned_rate_limits"];
    ensure!(
        limits["rw_ios_per_sec"] == 5000 && limits["w_mbytes_per_sec"] == 7,
        "{limits}"
    );
    for refused in ["bdev_malloc_create 4 512 -m 8", "bdev_set_qos_limit N0"] {
        let arguments: Vec<_> = refused.split(' ').collect();
        ensure!(
            spdk_rpc(&daemon, &arguments).is_err(),
            "{refused} was taken"
        );
    }
    Ok(())
}

#[test]
fn its_plugin_option_brings_our_methods() -> Result<()> {
    let lab = Lab::new()?;
    let port = lab.port.to_string();
    let plugin = |args: &[&str]| {
        spdk_rpc(
            &lab.initiator,
            &[&["--plugin", "rnbd_plugin"], args].concat(),
        )
    };
    plugin(&[
        "bdev_rnbd_attach_controller",
        "--name",
        "c0",
        "--sessname",
        "s0",
        "--traddr",
        "127.0.0.1",
        "--trsvcid",
        &port,
    ])?;
    plugin(&[
        "bdev_rnbd_map_device",
        "--ctrlr-name",
        "c0",
        "--device-path",
        "disk0",
    ])?;
    let controllers: Value = serde_json::from_str(&plugin(&["bdev_rnbd_get_controllers"])?)?;
    ensure!(
        controllers[0]["bdevs"] == json!(["c0_disk0"]),
        "{controllers}"
    );
    Ok(())
}

#[test]
fn what_it_saves_it_loads_and_saves_again_byte_for_byte() -> Result<()> {
    let mut lab = Lab::new()?;
    let image = lab.target.file("disk.img");
    std::fs::File::create(&image)?.set_len(8 << 20)?;
    lab.target.call(
        "bdev_uring_create",
        json!({ "name": "U0", "filename": image, "block_size": 512 }),
    )?;
    lab.target.call(
        "bdev_null_create",
        json!({ "name": "N0", "num_blocks": 8, "block_size": 512 }),
    )?;
    lab.target
        .call("bdev_error_create", json!({ "base_name": "N0" }))?;
    Lab::export(&lab.target, "image", "U0")?;
    lab.target.call(
        "rnbd_export_add_host",
        json!({ "device_path": "image", "host": "clt*", "traddr": "127.0.0.0/8" }),
    )?;
    lab.attach("clt")?;
    let socket = lab.initiator.file("nbd.sock");
    lab.initiator.call(
        "nbd_start_export",
        json!({ "bdev_name": "clt_disk0", "address": socket }),
    )?;

    let initiator = spdk_rpc(&lab.initiator, &["save_config"])?;
    ensure!(
        initiator.contains("bdev_rnbd_attach_controller"),
        "{initiator}"
    );
    let target = spdk_rpc(&lab.target, &["save_config"])?;
    reload(&mut lab.target, &target)?;
    reload(&mut lab.initiator, &initiator)
}

/// Starts the daemon anew without a configuration, loads the saved one, and saves again.
fn reload(daemon: &mut Daemon, saved: &str) -> Result<()> {
    let file = daemon.file("saved.json");
    std::fs::write(&file, saved)?;
    daemon.crash_and_start(&["--wait-for-rpc"])?;
    spdk_rpc(daemon, &["load_config", "-j", &file.display().to_string()])?;
    let again = spdk_rpc(daemon, &["save_config"])?;
    ensure!(
        again == saved,
        "saved:\n{saved}\nafter loading it:\n{again}"
    );
    Ok(())
}
