//! Whoever dies, nothing is lost, nothing stays behind, and the other side goes on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rnbd_net_tests::{Daemon, EXPORT, Lab, Perf, wait_until};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

fn counter(daemon: &Daemon, name: &str) -> Result<u64> {
    let stats = daemon.call("bdev_get_iostat", Value::Null)?;
    stats["bdevs"][0][name]
        .as_u64()
        .with_context(|| format!("{name} in {stats}"))
}

fn sessions(daemon: &Daemon) -> Result<usize> {
    let sessions = daemon.call("rtrs_get_sessions", Value::Null)?;
    sessions
        .as_array()
        .map(Vec::len)
        .context("a list of sessions")
}

/// A target whose content survives a crash: its device is a file.
fn lab_on_a_file() -> Result<Lab> {
    let lab = Lab::new()?;
    let image = lab.target.file("disk.img");
    std::fs::File::create(&image)?.set_len(64 << 20)?;
    let uring = json!({ "name": "Image", "filename": image, "block_size": 4096 });
    lab.target.call("bdev_uring_create", uring)?;
    Lab::export(&lab.target, "image", "Image")?;
    Ok(lab)
}

#[test]
fn a_killed_target_comes_back_and_no_byte_is_wrong() -> Result<()> {
    let mut lab = lab_on_a_file()?;
    let perf = Perf::new(lab.port, "image", "verify")
        .args(&["-o", "4096", "-q", "32", "-t", "12"])
        .spawn()?;
    for _ in 0..3 {
        wait_until("the load is on", SOON, || Ok(sessions(&lab.target)? == 1))?;
        let before = image_writes(&lab.target)?;
        wait_until("writes arrive", SOON, || {
            Ok(image_writes(&lab.target)? > before + 100)
        })?;
        lab.target.crash_and_restart()?;
    }
    let report = perf.report()?;
    ensure!(report["results"][0]["io_failed"] == 0, "{report}");
    Ok(())
}

fn image_writes(daemon: &Daemon) -> Result<u64> {
    let stats = daemon.call("bdev_get_iostat", json!({ "names": ["Image"] }))?;
    stats["bdevs"][0]["num_write_ops"]
        .as_u64()
        .context("a counter")
}

#[test]
fn a_killed_initiator_leaves_nothing_on_the_target() -> Result<()> {
    let lab = Lab::new()?;
    for _ in 0..3 {
        let before = counter(&lab.target, "num_write_ops")?;
        let perf = Perf::new(lab.port, EXPORT, "randwrite")
            .args(&["-o", "4096", "-q", "64", "-t", "60"])
            .spawn()?;
        wait_until("writes arrive", SOON, || {
            Ok(counter(&lab.target, "num_write_ops")? > before + 1000)
        })?;
        perf.kill()?;
        wait_until("the session is gone", SOON, || {
            Ok(sessions(&lab.target)? == 0)
        })?;
        let exports = lab.target.call("rnbd_get_exports", Value::Null)?;
        ensure!(exports[0]["opens"] == json!([]), "{exports}");
    }
    let writer = lab.attach("next")?;
    ensure!(
        writer == "next_disk0",
        "the writer's place was not given back: {writer}"
    );
    Ok(())
}

#[test]
fn io_fails_with_an_errno_when_the_session_stays_down() -> Result<()> {
    let lab = Lab::new()?;
    let mut params = lab.attach_params("short");
    params["devices"] = json!([{ "device_path": EXPORT }]);
    params["ctrlr_loss_timeout_sec"] = json!(30);
    params["fast_io_fail_timeout_sec"] = json!(2);
    lab.initiator.call("bdev_rnbd_attach_controller", params)?;
    let socket = lab.initiator.file("nbd.sock");
    lab.initiator.call(
        "nbd_start_export",
        json!({ "bdev_name": "short_disk0", "address": socket }),
    )?;
    let Lab {
        target, initiator, ..
    } = lab;
    drop(target);
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let mut read = std::process::Command::new("qemu-img");
    let read = rnbd_net_tests::run(
        read.args(["dd", "-f", "raw", "-O", "raw", "bs=4096", "count=1"])
            .arg(format!("if={uri}"))
            .arg(format!("of={}", initiator.file("out").display())),
    )?;
    ensure!(
        !read.success,
        "a read of a dead session succeeded: {}",
        read.text
    );
    Ok(())
}

#[test]
fn a_session_can_be_disconnected_and_returns() -> Result<()> {
    let lab = Lab::new()?;
    lab.attach("kick")?;
    lab.target
        .call("rtrs_disconnect_session", json!({ "sessname": "kick" }))?;
    wait_until("the path is up again", SOON, || {
        let controllers = lab
            .initiator
            .call("bdev_rnbd_get_controllers", Value::Null)?;
        Ok(controllers[0]["state"] == "enabled" && sessions(&lab.target)? == 1)
    })?;
    let notifications = lab.target.call("notify_get_notifications", json!({}))?;
    let text = notifications.to_string();
    for kind in [
        "rtrs_session_connected",
        "rtrs_session_disconnected",
        "rnbd_device_opened",
    ] {
        ensure!(text.contains(kind), "{kind} is not in {text}");
    }
    Ok(())
}

#[test]
fn an_unmapped_device_maps_again() -> Result<()> {
    let lab = Lab::new()?;
    for _ in 0..20 {
        let bdev = lab.attach("again")?;
        lab.initiator
            .call("bdev_rnbd_unmap_device", json!({ "name": bdev }))?;
        lab.initiator
            .call("bdev_rnbd_detach_controller", json!({ "name": "again" }))?;
    }
    wait_until("nothing is left", SOON, || Ok(sessions(&lab.target)? == 0))
}

#[test]
fn a_grown_device_is_seen_after_a_rescan() -> Result<()> {
    let lab = Lab::new()?;
    lab.target.call(
        "bdev_null_create",
        json!({ "name": "Null0", "num_blocks": 2048, "block_size": 512 }),
    )?;
    Lab::export(&lab.target, "null", "Null0")?;
    let mut params = lab.attach_params("grow");
    params["devices"] = json!([{ "device_path": "null" }]);
    lab.initiator.call("bdev_rnbd_attach_controller", params)?;
    lab.target.call(
        "bdev_null_resize",
        json!({ "name": "Null0", "new_size": 2 }),
    )?;
    lab.initiator
        .call("bdev_rnbd_rescan_device", json!({ "name": "grow_null" }))?;
    let bdevs = lab
        .initiator
        .call("bdev_get_bdevs", json!({ "name": "grow_null" }))?;
    ensure!(bdevs[0]["num_blocks"] == 4096, "{bdevs}");
    Ok(())
}
