//! What a user or a peer can get wrong: each ends in an error that names the thing, and nothing
//! else is harmed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rnbd_net_tests::{Daemon, DaemonOptions, EXPORT, Lab, Perf, program, run, wait_until};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);

/// Asserts that a call is refused with `code`, in words that contain each of `words`.
fn refused(daemon: &Daemon, method: &str, params: Value, code: i64, words: &[&str]) -> Result<()> {
    let (got, message) = daemon.refusal(method, params.clone())?;
    ensure!(got == code, "{method} {params}: {got} {message}");
    for word in words {
        ensure!(
            message.contains(word),
            "{method} {params}: {message:?} does not name {word:?}"
        );
    }
    Ok(())
}

fn target() -> Result<Daemon> {
    Daemon::start(DaemonOptions::default())
}

#[test]
fn wrong_calls_are_refused_by_name() -> Result<()> {
    let daemon = target()?;
    let malloc = json!({ "name": "M", "num_blocks": 2048, "block_size": 512 });
    let create = "bdev_malloc_create";
    refused(
        &daemon,
        "no_such_method",
        Value::Null,
        -32601,
        &["Method not found"],
    )?;
    refused(
        &daemon,
        create,
        json!({ "num_blocks": "many", "block_size": 512 }),
        -32602,
        &["num_blocks"],
    )?;
    refused(
        &daemon,
        create,
        json!({ "num_blocks": 8, "block_size": 512, "colour": 1 }),
        -32602,
        &["colour"],
    )?;
    refused(
        &daemon,
        create,
        json!({ "num_blocks": 2048 }),
        -32602,
        &["block_size"],
    )?;
    refused(
        &daemon,
        create,
        json!({ "num_blocks": 8, "block_size": 513 }),
        -22,
        &["513"],
    )?;
    daemon.call(create, malloc.clone())?;
    refused(&daemon, create, malloc, -17, &["M"])?;
    refused(
        &daemon,
        "bdev_malloc_delete",
        json!({ "name": "other" }),
        -19,
        &["other"],
    )?;
    refused(
        &daemon,
        create,
        json!({ "num_blocks": 8, "block_size": 512, "md_size": 8 }),
        -95,
        &["md_size"],
    )
}

#[test]
fn an_oversized_request_costs_only_its_connection() -> Result<()> {
    let daemon = target()?;
    let mut stream = UnixStream::connect(daemon.socket())?;
    let request = format!("{{\"method\":\"{}\"", "x".repeat(300 << 10));
    // The server may close before it has read everything.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    ensure!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    daemon.call("spdk_get_version", Value::Null)?;
    Ok(())
}

#[test]
fn absent_cores_and_taken_sockets_end_the_start() -> Result<()> {
    let daemon = target()?;
    let tgt = program("rnbd_tgt");
    let absent = run(Command::new(&tgt)
        .args(["-m", "[4000]", "-r"])
        .arg(daemon.file("other.sock")))?;
    ensure!(
        !absent.success && absent.text.contains("4000"),
        "{}",
        absent.text
    );
    let taken = run(Command::new(&tgt)
        .args(["-m", "[0]", "--disable-cpumask-locks", "-r"])
        .arg(daemon.socket()))?;
    ensure!(
        !taken.success && taken.text.contains("rpc.sock"),
        "{}",
        taken.text
    );
    let broken = daemon.file("broken.json");
    fs::write(&broken, "{ not json")?;
    let broken = run(Command::new(&tgt)
        .args(["--disable-cpumask-locks", "-r"])
        .arg(daemon.file("b.sock"))
        .arg("-c")
        .arg(&broken))?;
    ensure!(
        !broken.success && broken.text.contains("broken.json"),
        "{}",
        broken.text
    );
    daemon.call("spdk_get_version", Value::Null)?;
    Ok(())
}

#[test]
fn a_port_in_use_is_named() -> Result<()> {
    let daemon = target()?;
    daemon.call("rtrs_create_transport", json!({ "trtype": "TCP" }))?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    let address = |traddr: &str, port: &str| json!({ "listen_address": { "trtype": "TCP", "traddr": traddr, "trsvcid": port } });
    refused(
        &daemon,
        "rtrs_add_listener",
        address("127.0.0.1", &port),
        -98,
        &[&port],
    )?;
    refused(
        &daemon,
        "rtrs_add_listener",
        address("192.0.2.1", "1234"),
        -99,
        &["192.0.2.1"],
    )?;
    refused(
        &daemon,
        "rtrs_add_listener",
        address("nonsense", "1234"),
        -22,
        &["nonsense"],
    )?;
    let rdma = json!({ "trtype": "RDMA" });
    let (_, message) = daemon.refusal("rtrs_create_transport", rdma)?;
    ensure!(message.contains("RDMA"), "{message}");
    Ok(())
}

#[test]
fn bad_images_are_refused_and_a_truncated_one_fails_only_its_io() -> Result<()> {
    let mut lab = Lab::new()?;
    let uring = |name: &str, file: &std::path::Path| json!({ "name": name, "filename": file, "block_size": 4096 });
    let missing = lab.target.file("missing.img");
    let (_, message) = lab
        .target
        .refusal("bdev_uring_create", uring("U", &missing))?;
    ensure!(message.contains("missing.img"), "{message}");
    let odd = lab.target.file("odd.img");
    File::create(&odd)?.set_len(4096 * 3 + 1)?;
    let (_, message) = lab.target.refusal("bdev_uring_create", uring("U", &odd))?;
    ensure!(
        message.contains("odd.img") && message.contains("4096"),
        "{message}"
    );

    let image = lab.target.file("disk.img");
    File::create(&image)?.set_len(8 << 20)?;
    lab.target.call("bdev_uring_create", uring("U", &image))?;
    Lab::export(&lab.target, "image", "U")?;
    File::options().write(true).open(&image)?.set_len(0)?;
    let perf = Perf::new(lab.port, "image", "randread")
        .args(&["-o", "4096", "-q", "4", "-t", "1"])
        .report();
    ensure!(perf.is_err(), "reads of a truncated image succeeded");
    ensure!(lab.target.is_running()?, "{}", lab.target.log());
    Perf::new(lab.port, EXPORT, "verify")
        .args(&["-o", "4096", "-q", "4", "-t", "1"])
        .report()?;
    Ok(())
}

#[test]
fn a_search_path_is_no_way_out() -> Result<()> {
    let lab = Lab::new()?;
    let root = lab.target.file("search");
    let inside = root.join("clt");
    fs::create_dir_all(&inside)?;
    File::create(inside.join("good.img"))?.set_len(1 << 20)?;
    let secret = lab.target.file("secret.img");
    File::create(&secret)?.set_len(1 << 20)?;
    symlink(&secret, inside.join("link.img"))?;
    symlink("..", inside.join("up"))?;
    let search = format!("{}/%SESSNAME%", root.display());
    lab.target.call(
        "rnbd_set_options",
        json!({ "dev_search_path": search, "allow_any_host": true }),
    )?;
    lab.initiator
        .call("bdev_rnbd_attach_controller", lab.attach_params("clt"))?;
    let map = |path: &str| json!({ "ctrlr_name": "clt", "device_path": path });
    let secret = secret.display().to_string();
    for (path, errno) in [
        ("../secret.img", -22),
        ("a..b", -22),
        ("link.img", -2),
        ("up/../../secret.img", -22),
        ("up/secret.img", -2),
        ("none.img", -2),
        (secret.as_str(), -2),
    ] {
        let (code, message) = lab.initiator.refusal("bdev_rnbd_map_device", map(path))?;
        ensure!(code == errno, "{path}: {code} {message}");
    }
    lab.initiator
        .call("bdev_rnbd_map_device", map("good.img"))?;
    Ok(())
}

#[test]
fn nothing_is_exported_that_was_not_named() -> Result<()> {
    let lab = Lab::new()?;
    let hidden = json!({ "device_path": "hidden", "bdev_name": "Malloc1" });
    lab.target.call(
        "bdev_malloc_create",
        json!({ "name": "Malloc1", "num_blocks": 2048, "block_size": 512 }),
    )?;
    lab.target.call("rnbd_create_export", hidden)?;
    lab.initiator
        .call("bdev_rnbd_attach_controller", lab.attach_params("clt"))?;
    for path in ["Malloc0", "Malloc1", "hidden", "/etc/passwd", "/dev/vda"] {
        let map = json!({ "ctrlr_name": "clt", "device_path": path });
        let (code, message) = lab.initiator.refusal("bdev_rnbd_map_device", map)?;
        ensure!([-2, -13, -1].contains(&code), "{path}: {code} {message}");
    }
    lab.target.call(
        "rnbd_export_add_host",
        json!({ "device_path": "hidden", "host": "cl*" }),
    )?;
    lab.initiator.call(
        "bdev_rnbd_map_device",
        json!({ "ctrlr_name": "clt", "device_path": "hidden" }),
    )?;
    Ok(())
}

#[test]
fn writers_are_counted_and_read_only_is_kept() -> Result<()> {
    let lab = Lab::new()?;
    lab.attach("first")?;
    lab.initiator
        .call("bdev_rnbd_attach_controller", lab.attach_params("second"))?;
    let map =
        |mode: &str| json!({ "ctrlr_name": "second", "device_path": EXPORT, "access_mode": mode });
    refused(
        &lab.initiator,
        "bdev_rnbd_map_device",
        map("rw"),
        -1,
        &[EXPORT],
    )?;
    let bdev = lab.initiator.call("bdev_rnbd_map_device", map("ro"))?;
    let socket = lab.initiator.file("ro.sock");
    let export = json!({ "bdev_name": bdev, "address": socket, "read_only": true });
    lab.initiator.call("nbd_start_export", export)?;
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let info = run(Command::new("nbdinfo")
        .args(["--json", "--no-content"])
        .arg(&uri))?;
    ensure!(
        info.success && info.text.contains("\"is_read_only\": true"),
        "{}",
        info.text
    );
    let image = lab.initiator.file("zero.img");
    File::create(&image)?.set_len(4096)?;
    let write = run(Command::new("nbdcopy").arg(&image).arg(&uri))?;
    ensure!(!write.success, "a read-only device was written to");
    lab.initiator
        .call("bdev_rnbd_attach_controller", lab.attach_params("third"))?;
    let migration =
        json!({ "ctrlr_name": "third", "device_path": EXPORT, "access_mode": "migration" });
    lab.initiator.call("bdev_rnbd_map_device", migration)?;
    Ok(())
}

#[test]
fn an_export_in_use_stays_unless_forced() -> Result<()> {
    let lab = Lab::new()?;
    lab.attach("user")?;
    let export = |force: bool| json!({ "device_path": EXPORT, "force": force });
    refused(
        &lab.target,
        "rnbd_delete_export",
        export(false),
        -16,
        &[EXPORT],
    )?;
    lab.target.call("rnbd_delete_export", export(true))?;
    wait_until("the export is gone", SOON, || {
        Ok(lab.target.call("rnbd_get_exports", Value::Null)? == json!([]))
    })?;
    let (code, message) = lab.initiator.refusal(
        "bdev_rnbd_map_device",
        json!({ "ctrlr_name": "user", "device_path": EXPORT, "bdev_name": "x" }),
    )?;
    ensure!([-17, -2].contains(&code), "{code} {message}");
    Ok(())
}

#[test]
fn a_device_removed_under_load_ends_its_io_and_nothing_else() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.target.call(
        "bdev_malloc_create",
        json!({ "name": "Malloc1", "num_blocks": 65_536, "block_size": 512 }),
    )?;
    Lab::export(&lab.target, "doomed", "Malloc1")?;
    let perf = Perf::new(lab.port, "doomed", "randwrite")
        .args(&["-o", "4096", "-q", "16", "-t", "20"])
        .spawn()?;
    wait_until("writes arrive", SOON, || {
        let stats = lab
            .target
            .call("bdev_get_iostat", json!({ "names": ["Malloc1"] }))?;
        Ok(stats["bdevs"][0]["num_write_ops"].as_u64() > Some(100))
    })?;
    lab.target
        .call("bdev_malloc_delete", json!({ "name": "Malloc1" }))?;
    ensure!(perf.report().is_err(), "writes to a removed device went on");
    ensure!(lab.target.is_running()?, "{}", lab.target.log());
    Perf::new(lab.port, EXPORT, "verify")
        .args(&["-o", "4096", "-q", "4", "-t", "1"])
        .report()?;
    Ok(())
}

#[test]
fn a_session_beyond_the_memory_budget_is_refused_with_the_reason() -> Result<()> {
    let mut options = DaemonOptions::default();
    options.args.extend(["-s", "64"].map(str::to_owned));
    let target = Daemon::start(options)?;
    target.call(
        "bdev_malloc_create",
        json!({ "name": "Malloc0", "num_blocks": 65_536, "block_size": 512 }),
    )?;
    target.call("rtrs_create_transport", json!({ "trtype": "TCP" }))?;
    let port = Lab::listen(&target, "127.0.0.1")?;
    Lab::export(&target, EXPORT, "Malloc0")?;
    let perf = Perf::new(port, EXPORT, "randread")
        .args(&["-o", "4096", "-q", "1", "-t", "1"])
        .report();
    ensure!(perf.is_err(), "64 MiB of chunks fitted beside 32 MiB of 64");
    wait_until("the log names the limit", SOON, || {
        Ok(target.log().contains("memory budget of 67108864 bytes"))
    })?;
    let (_, message) = target.refusal(
        "bdev_malloc_create",
        json!({ "name": "M2", "num_blocks": 131_072, "block_size": 512 }),
    )?;
    ensure!(message.contains("budget"), "{message}");
    Ok(())
}

#[test]
fn strangers_at_the_port_harm_nobody() -> Result<()> {
    let lab = Lab::new()?;
    let perf = Perf::new(lab.port, EXPORT, "verify")
        .args(&["-o", "4096", "-q", "8", "-t", "4"])
        .spawn()?;
    let strangers: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        &[0; 4096],
        &[0xff; 8192],
    ];
    for _ in 0..20 {
        for bytes in strangers {
            let mut stream = TcpStream::connect(("127.0.0.1", lab.port))?;
            stream.set_read_timeout(Some(SOON))?;
            let _ = stream.write_all(bytes);
            let mut answer = [0; 64];
            // Closed by the target, politely or not; what counts is that it does not hang.
            if let Err(error) = stream.read(&mut answer) {
                ensure!(
                    error.kind() != std::io::ErrorKind::WouldBlock,
                    "a stranger was kept"
                );
            }
        }
    }
    let report = perf.report()?;
    ensure!(report["results"][0]["io_failed"] == 0, "{report}");
    Ok(())
}

#[test]
fn attaching_to_nobody_says_so_in_time() -> Result<()> {
    let lab = Lab::new()?;
    let mut params = lab.attach_params("nobody");
    params["trsvcid"] = json!("1");
    refused(
        &lab.initiator,
        "bdev_rnbd_attach_controller",
        params,
        -111,
        &["127.0.0.1"],
    )?;
    let controllers = lab
        .initiator
        .call("bdev_rnbd_get_controllers", Value::Null)?;
    ensure!(controllers == json!([]), "{controllers}");
    let mut long = lab.attach_params("long");
    long["sessname"] = json!("x".repeat(255));
    let (_, message) = lab.initiator.refusal("bdev_rnbd_attach_controller", long)?;
    ensure!(message.contains("sessname"), "{message}");
    lab.attach("once")?;
    let (code, message) = lab
        .initiator
        .refusal("bdev_rnbd_attach_controller", lab.attach_params("once"))?;
    ensure!(code == -114, "{code} {message}");
    Ok(())
}

#[test]
fn misaligned_and_distant_io_is_refused_over_nbd() -> Result<()> {
    let lab = Lab::new()?;
    lab.attach("clt")?;
    let socket = lab.initiator.file("nbd.sock");
    lab.initiator.call(
        "nbd_start_export",
        json!({ "bdev_name": "clt_disk0", "address": socket }),
    )?;
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let info = run(Command::new("nbdinfo")
        .args(["--json", "--no-content"])
        .arg(&uri))?;
    let info: Value = serde_json::from_str(&info.text).context("nbdinfo's report")?;
    let export = &info["exports"][0];
    ensure!(
        export["export-size"] == 64 << 20 && export["block_size_minimum"] == 512,
        "{export}"
    );
    Ok(())
}
