//! Data goes where it should, over real sockets, in every mode.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rnbd_net_tests::{Daemon, DaemonOptions, EXPORT, Lab, Perf, run};
use serde_json::{Value, json};

fn verify(perf: Perf) -> Result<Value> {
    let report = perf.report()?;
    let job = report["results"][0].clone();
    ensure!(
        job["iops"].as_f64().is_some_and(|iops| iops > 0.0),
        "no I/O was done: {report}"
    );
    ensure!(job["io_failed"] == 0, "I/O failed: {report}");
    Ok(job)
}

#[test]
fn every_block_size_verifies_in_both_key_modes() -> Result<()> {
    for always_invalidate in [false, true] {
        let lab = Lab::with_transport(json!({
            "trtype": "TCP", "always_invalidate": always_invalidate,
        }))?;
        for (size, depth) in [
            ("512", "64"),
            ("4096", "32"),
            ("126976", "8"),
            ("1048576", "4"),
        ] {
            let args = ["-o", size, "-q", depth, "-t", "1"];
            verify(Perf::new(lab.port, EXPORT, "verify").args(&args))?;
        }
    }
    Ok(())
}

#[test]
fn a_session_of_two_cores_verifies() -> Result<()> {
    let lab = Lab::new()?;
    verify(
        Perf::new(lab.port, EXPORT, "verify")
            .cores("[0,1]")
            .args(&["-C", "-o", "4096", "-q", "16", "-t", "2"]),
    )
    .map(drop)
}

#[test]
fn a_small_queue_depth_is_enough() -> Result<()> {
    let lab = Lab::with_transport(json!({ "trtype": "TCP", "sess_queue_depth": 2 }))?;
    verify(Perf::new(lab.port, EXPORT, "verify").args(&["-o", "4096", "-q", "32", "-t", "1"]))
        .map(drop)
}

#[test]
fn ipv6_serves_as_well() -> Result<()> {
    let lab = Lab::new()?;
    let port = Lab::listen(&lab.target, "::1")?;
    let mut params = lab.attach_params("six");
    params["traddr"] = json!("::1");
    params["trsvcid"] = json!(port.to_string());
    params["devices"] = json!([{ "device_path": EXPORT }]);
    let bdevs = lab.initiator.call("bdev_rnbd_attach_controller", params)?;
    ensure!(bdevs == json!(["six_disk0"]), "{bdevs}");
    Ok(())
}

#[test]
fn an_attached_device_can_be_exported_on() -> Result<()> {
    let lab = Lab::new()?;
    let bdev = lab.attach("first")?;
    lab.initiator
        .call("rtrs_create_transport", json!({ "trtype": "TCP" }))?;
    let port = Lab::listen(&lab.initiator, "127.0.0.1")?;
    Lab::export(&lab.initiator, EXPORT, &bdev)?;
    verify(
        Perf::new(port, EXPORT, "verify")
            .cores("[0]")
            .args(&["-o", "4096", "-q", "16", "-t", "2"]),
    )
    .map(drop)
}

#[test]
fn an_image_comes_across_byte_for_byte_and_back() -> Result<()> {
    let lab = Lab::new()?;
    let image = lab.target.file("disk.img");
    let content: Vec<u8> = (0..8_u32 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    File::create(&image)?.write_all(&content)?;
    let uring = json!({ "name": "Image", "filename": image, "block_size": 512 });
    lab.target.call("bdev_uring_create", uring)?;
    Lab::export(&lab.target, "image", "Image")?;
    let mut params = lab.attach_params("img");
    params["devices"] = json!([{ "device_path": "image" }]);
    lab.initiator.call("bdev_rnbd_attach_controller", params)?;
    let socket = lab.initiator.file("nbd.sock");
    let export = json!({ "bdev_name": "img_image", "address": socket });
    lab.initiator.call("nbd_start_export", export)?;
    let uri = format!("nbd+unix:///?socket={}", socket.display());

    let compared = run(Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw"])
        .arg(&image)
        .arg(&uri))?;
    ensure!(compared.success, "{}", compared.text);

    let changed = lab.initiator.file("changed.img");
    std::fs::copy(&image, &changed)?;
    File::options()
        .write(true)
        .open(&changed)?
        .write_all_at(b"changed", 3 << 20)?;
    let copied = run(Command::new("nbdcopy")
        .arg("--flush")
        .arg(&changed)
        .arg(&uri))?;
    ensure!(copied.success, "{}", copied.text);
    let written = std::fs::read(&image)?;
    ensure!(
        written == std::fs::read(&changed)?,
        "the image on the target's side is another"
    );
    Ok(())
}

#[test]
fn trim_zeroes_and_flush_reach_the_device() -> Result<()> {
    let lab = Lab::new()?;
    for workload in ["write", "flush", "write_zeroes", "unmap"] {
        let report = Perf::new(lab.port, EXPORT, workload)
            .args(&["-o", "65536", "-q", "8", "-t", "1"])
            .report()?;
        ensure!(
            report["results"][0]["io_failed"] == 0,
            "{workload}: {report}"
        );
    }
    let stats = lab.target.call("bdev_get_iostat", Value::Null)?;
    let device = &stats["bdevs"][0];
    for counter in ["num_write_ops", "num_unmap_ops"] {
        ensure!(
            device[counter].as_u64().context("a counter")? > 0,
            "{counter}: {device}"
        );
    }
    Ok(())
}

#[test]
fn two_sessions_and_two_devices_do_not_disturb_each_other() -> Result<()> {
    let lab = Lab::new()?;
    let second = json!({ "name": "Malloc1", "num_blocks": 65_536, "block_size": 4096 });
    lab.target.call("bdev_malloc_create", second)?;
    Lab::export(&lab.target, "disk1", "Malloc1")?;
    let args = ["-o", "4096", "-q", "8", "-t", "2"];
    let first = Perf::new(lab.port, EXPORT, "verify").args(&args).spawn()?;
    let second = Perf::new(lab.port, "disk1", "verify").args(&args).spawn()?;
    for report in [first.report()?, second.report()?] {
        ensure!(report["results"][0]["io_failed"] == 0, "{report}");
    }
    Ok(())
}

#[test]
fn a_session_is_resident_only_as_far_as_it_is_used() -> Result<()> {
    let target = Daemon::start(DaemonOptions::default())?;
    let malloc = json!({ "name": "Malloc0", "num_blocks": 8192, "block_size": 512 });
    target.call("bdev_malloc_create", malloc)?;
    target.call(
        "rtrs_create_transport",
        json!({ "trtype": "TCP", "always_invalidate": false }),
    )?;
    let port = Lab::listen(&target, "127.0.0.1")?;
    Lab::export(&target, EXPORT, "Malloc0")?;
    let before = resident_kib(&target)?;
    let perf = Perf::new(port, EXPORT, "randrw")
        .args(&["-o", "4096", "-q", "32", "-t", "2"])
        .spawn()?;
    rnbd_net_tests::wait_until(
        "a session is there",
        std::time::Duration::from_secs(10),
        || {
            let sessions = target.call("rtrs_get_sessions", Value::Null)?;
            Ok(sessions.as_array().is_some_and(|all| !all.is_empty()))
        },
    )?;
    perf.report()?;
    let grown = resident_kib(&target)?.saturating_sub(before);
    ensure!(
        grown < 16 << 10,
        "a session of depth 512 made the target grow by {grown} KiB"
    );
    Ok(())
}

fn resident_kib(daemon: &Daemon) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
