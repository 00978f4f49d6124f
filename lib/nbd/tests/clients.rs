//! The clients that people use, against a disk in memory.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use rnbd_nbd::{Address, ExportOptions};
use support::{DISK_BYTES, Setup, output, pattern, run};

/// A file of the disk's size, for most of it with content.
fn image(setup: &Setup, name: &str) -> String {
    let path = setup.path(name);
    let mut content = pattern(7, usize::try_from(DISK_BYTES).unwrap());
    content[1 << 20..9 << 20].fill(0);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn nbdinfo_sees_what_the_export_is() {
    let setup = Setup::new();
    let export = setup.export(ExportOptions {
        description: "a disk in memory".to_owned(),
        ..setup.options("Malloc0")
    });
    let said = run("nbdinfo", &[&export.handle.uri()]);
    for expected in [
        "protocol: newstyle-fixed",
        "using structured packets",
        "export-size: 67108864",
        "description: a disk in memory",
        "can_fua: true",
        "can_flush: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "can_fast_zero: false",
        "is_read_only: false",
        "block_size_minimum: 512",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(
            said.contains(expected),
            "{expected:?} is missing in:\n{said}"
        );
    }
    let list = run("nbdinfo", &["--list", &export.handle.uri()]);
    assert!(list.contains("export=\"Malloc0\""), "{list}");
}

#[test]
fn an_image_comes_back_as_nbdcopy_brought_it() {
    let setup = Setup::new();
    let export = setup.export(setup.options("Malloc0"));
    let (source, uri) = (image(&setup, "source"), export.handle.uri());
    run("nbdcopy", &["--flush", &source, &uri]);
    let copy = setup.path("copy");
    run("nbdcopy", &[&uri, copy.to_str().unwrap()]);
    assert!(std::fs::read(copy).unwrap() == std::fs::read(source).unwrap());
}

#[test]
fn qemu_img_converts_onto_the_export_and_finds_it_identical() {
    let setup = Setup::new();
    let tcp = Address::Tcp("127.0.0.1:0".parse().unwrap());
    let export = setup.export(ExportOptions::new("Malloc0", tcp));
    let (source, uri) = (image(&setup, "source"), export.handle.uri());
    run(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri],
    );
    let said = run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &source, &uri],
    );
    assert!(said.contains("identical"), "{said}");
}

#[test]
fn qemu_io_uses_every_command() {
    let setup = Setup::new();
    let export = setup.export(setup.options("Malloc0"));
    let uri = export.handle.uri();
    let io = |commands: &[&str]| {
        let mut arguments = vec!["-f", "raw"];
        commands
            .iter()
            .for_each(|command| arguments.extend(["-c", command]));
        arguments.push(&uri);
        run("qemu-io", &arguments)
    };
    io(&["write -f -P 0xa5 0 1M", "read -P 0xa5 0 1M", "flush"]);
    io(&[
        "write -z -f 64k 64k",
        "read -P 0 64k 64k",
        "read -P 0xa5 128k 64k",
    ]);
    io(&["write -z -u 256k 64k", "read -P 0 256k 64k"]);
    io(&[
        "discard 512k 128k",
        "read -P 0 512k 128k",
        "read -P 0xa5 640k 384k",
    ]);
    // 40 MiB is more than one request may carry.
    io(&["write -P 0x5a 1M 40M", "read -P 0x5a 1M 40M"]);
}

#[test]
fn a_read_only_export_cannot_be_written_to() {
    let setup = Setup::new();
    let export = setup.export(ExportOptions {
        read_only: true,
        ..setup.options("Malloc0")
    });
    let uri = export.handle.uri();
    assert!(run("nbdinfo", &[&uri]).contains("is_read_only: true"));
    let written = output("qemu-io", &["-f", "raw", "-c", "write 0 4k", &uri]);
    assert!(!written.status.success());
    let said = run(
        "qemu-io",
        &["-r", "-f", "raw", "-c", "read -P 0 0 4k", &uri],
    );
    assert!(said.contains("4096/4096"), "{said}");
}

#[test]
fn a_server_that_sleeps_misses_nothing() {
    let setup = Setup::new();
    let export = setup.sleeping_export(setup.options("Malloc0"));
    let (source, uri) = (image(&setup, "source"), export.handle.uri());
    run("nbdcopy", &["--requests=256", &source, &uri]);
    run("nbdcopy", &["--synchronous", &uri, "null:"]);
    let said = run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &source, &uri],
    );
    assert!(said.contains("identical"), "{said}");
}

#[test]
fn fio_verifies_what_it_wrote_in_many_sizes_with_many_in_flight() {
    let setup = Setup::new();
    let export = setup.export(setup.options("Malloc0"));
    let uri = format!("--uri={}", export.handle.uri());
    let said = run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=512-256k",
            "--blockalign=512",
            "--iodepth=64",
            "--size=48m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--fsync=100",
            "--randseed=5",
        ],
    );
    assert!(said.contains("err= 0"), "{said}");
}
