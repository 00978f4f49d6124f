use std::io::{Read, Write};
use std::path::Path;

use rnbd_mem::{MemoryConfig, Pages};

use super::ring::Request;
use super::*;
use crate::testing::{Driver, Rig, flush, io, read, write};
use crate::{Desc, IoKind, IoOp};

/// A directory on a file system on disk.
fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn image(path: &Path, bytes: u64) {
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
}

fn options(path: &Path) -> UringOptions {
    UringOptions {
        name: "U0".to_owned(),
        filename: path.to_owned(),
        ..UringOptions::default()
    }
}

fn create(rig: &Rig, path: &Path) -> Result<String, CreateError> {
    UringBdev::create(&rig.registry, &rig.memory, options(path))
}

fn open(rig: &Rig, path: &Path, depth: u32) -> (Desc, Driver) {
    create(rig, path).unwrap();
    rig.open("U0", depth)
}

#[test]
fn what_is_no_image_is_refused_with_the_reason() {
    let rig = Rig::new();
    let directory = on_disk();
    let error = |path: &Path| create(&rig, path).unwrap_err();

    let missing = error(&directory.path().join("missing"));
    assert_eq!(missing.errno(), Errno::NOENT);
    assert!(missing.to_string().contains("cannot open"), "{missing}");

    let no_file = error(directory.path());
    assert!(
        no_file
            .to_string()
            .contains("neither a file nor a block device"),
        "{no_file}"
    );

    let odd = directory.path().join("odd");
    image(&odd, 1000);
    assert!(error(&odd).to_string().contains("1000 bytes"));
    image(&odd, 0);
    assert_eq!(error(&odd).errno(), Errno::INVAL);
    assert!(rig.registry.list().is_empty());
}

#[test]
fn a_fifo_is_refused_without_waiting_for_its_other_end() {
    let rig = Rig::new();
    let directory = on_disk();
    let fifo = directory.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert_eq!(create(&rig, &fifo).unwrap_err().errno(), Errno::INVAL);
}

#[test]
fn data_reaches_the_file_and_comes_back() {
    let rig = Rig::new();
    let directory = on_disk();
    let path = directory.path().join("image");
    image(&path, 64 * 512);
    let (_desc, mut driver) = open(&rig, &path, 4);
    let buffer = rig.buffer(4096);
    let part = buffer.span().slice(0, 4096).unwrap();
    part.fill(0x5a);
    driver
        .run(&io(IoOp::Write { fua: true }, 8, 8, part))
        .unwrap();
    driver.run(&flush()).unwrap();
    let content = std::fs::read(&path).unwrap();
    assert!(content[4096..8192].iter().all(|&byte| byte == 0x5a));
    assert!(content[8192..].iter().all(|&byte| byte == 0));
}

#[test]
fn buffers_may_lie_anywhere() {
    let rig = Rig::new();
    let directory = on_disk();
    let path = directory.path().join("image");
    let bytes = 8 * 300 * 512;
    image(&path, bytes);
    let bdev = UringBdev::open(&rig.memory, Options::Uring(options(&path))).unwrap();
    assert_eq!(bdev.file.is_direct(), bdev.features().buf_align > 1);
    assert!(
        bdev.features().write_cache,
        "a file is not durable by itself"
    );
    let (_desc, mut driver) = open(&rig, &path, 8);
    let buffer = rig.buffer(4 << 20);
    let parts = [1, 2 << 20].map(|at| buffer.span().slice(at, 8 * 300 * 512).unwrap());
    let data: Vec<u8> = (0..bytes).map(|at| (at / 512 % 251) as u8).collect();
    parts[0].write_at(0, &data);
    for (op, part) in [(IoOp::Write { fua: false }, 0), (IoOp::Read, 1)] {
        // All at the same time, so that some wait for an aligned buffer.
        for index in 0..8_usize {
            let place = parts[part].slice(index * 300 * 512, 300 * 512).unwrap();
            let place_on_disk = index as u64 * 300;
            driver.submit(&io(op, place_on_disk, 300, place)).unwrap();
        }
        let ended = driver.finish();
        assert!(ended.iter().all(|done| done.result == Ok(())) && ended.len() == 8);
    }
    assert!(
        std::fs::read(&path).unwrap() == data,
        "other bytes than written"
    );
    let mut found = vec![0; data.len()];
    parts[1].read_at(0, &mut found);
    assert!(found == data, "other bytes read than are there");
}

#[test]
fn unmapping_gives_the_space_back() {
    use std::os::unix::fs::MetadataExt;
    let rig = Rig::new();
    let directory = on_disk();
    let path = directory.path().join("image");
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    let (desc, mut driver) = open(&rig, &path, 1);
    assert!(desc.bdev().features().unmap);
    driver.run(&flush()).unwrap();
    let before = std::fs::metadata(&path).unwrap().blocks();
    driver
        .run(&io(IoOp::Unmap, 0, 2048, rnbd_mem::Span::EMPTY))
        .unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.blocks() < before);
    assert_eq!(metadata.len(), 1 << 20);
}

#[test]
fn an_image_cut_short_gives_errors_beyond_its_end() {
    let rig = Rig::new();
    let directory = on_disk();
    let path = directory.path().join("image");
    image(&path, 64 * 512);
    let (_desc, mut driver) = open(&rig, &path, 1);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(8 * 512).unwrap();
    let buffer = rig.buffer(4096);
    let part = buffer.span().slice(0, 4096).unwrap();
    driver.run(&read(0, 8, part)).unwrap();
    assert_eq!(driver.run(&read(4, 8, part)), Err(Errno::IO));
    assert_eq!(driver.run(&read(32, 8, part)), Err(Errno::IO));
    let shrunk = rig
        .registry
        .find::<UringBdev, _>("U0", UringBdev::rescan)
        .unwrap();
    assert!(
        shrunk
            .unwrap_err()
            .to_string()
            .contains("shrunk from 64 blocks to 8")
    );
    let stats = rig.registry.stats("U0").unwrap().total;
    assert_eq!(stats.errors().collect::<Vec<_>>(), [(Errno::IO, 2)]);
    assert_eq!(stats.kind(IoKind::Read).ops, 1);
}

#[test]
fn growth_is_seen_at_a_rescan() {
    let rig = Rig::new();
    let directory = on_disk();
    let path = directory.path().join("image");
    image(&path, 64 * 512);
    let (desc, mut driver) = open(&rig, &path, 1);
    let rescan = || {
        rig.registry
            .find::<UringBdev, _>("U0", UringBdev::rescan)
            .unwrap()
            .unwrap()
    };
    assert!(!rescan());
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(128 * 512).unwrap();
    let buffer = rig.buffer(512);
    let block = buffer.span().slice(0, 512).unwrap();
    assert_eq!(driver.submit(&read(100, 1, block)), Err(Errno::INVAL));
    assert!(rescan());
    assert_eq!(desc.geometry().num_blocks, 128);
    driver.run(&read(100, 1, block)).unwrap();
}

#[test]
fn a_read_only_disk_opens_for_reading_only() {
    let rig = Rig::new();
    let directory = on_disk();
    let path = directory.path().join("image");
    image(&path, 8 * 512);
    let options = AioOptions {
        name: "A0".to_owned(),
        filename: path,
        readonly: true,
        ..AioOptions::default()
    };
    UringBdev::create_aio(&rig.registry, &rig.memory, options).unwrap();
    let info = rig.registry.get("A0").unwrap().to_json();
    assert_eq!(info["product_name"], "AIO disk");
    assert_eq!(info["supported_io_types"]["write"], false);
    assert_eq!(
        rig.registry.open("A0", true).unwrap_err().errno(),
        Errno::ROFS
    );
    rig.registry.open("A0", false).unwrap();
}

/// Lets this thread use files as a user that owns none of them, also when the test runs as root.
#[allow(unsafe_code)]
fn become_nobody() {
    const NOBODY: libc::uid_t = 65534;
    // SAFETY: it changes only whom this thread's file accesses are checked against.
    unsafe { libc::setfsuid(NOBODY) };
}

#[test]
fn an_image_that_is_not_writable_becomes_a_read_only_disk() {
    use std::os::unix::fs::PermissionsExt;

    let directory = on_disk();
    let path = directory.path().join("image");
    image(&path, 8 * 512);
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(directory.path(), mode(0o755)).unwrap();
    std::fs::set_permissions(&path, mode(0o444)).unwrap();
    let test = move || {
        become_nobody();
        let rig = Rig::new();
        create(&rig, &path).unwrap();
        let desc = rig.registry.open("U0", false).unwrap();
        let mut driver = Driver::new(desc.open_channel(rnbd_base::CoreIndex(0), 2).unwrap());
        let buffer = rig.buffer(512);
        let block = buffer.span().slice(0, 512).unwrap();
        driver.run(&read(0, 1, block)).unwrap();
        let refused = rig.registry.open("U0", true).unwrap_err();
        assert_eq!(refused.errno(), Errno::ROFS);
        let info = rig.registry.get("U0").unwrap().to_json();
        assert_eq!(info["supported_io_types"]["write"], false);
    };
    // A thread of its own: the identity must not stay with the test runner's.
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn a_priority_that_is_not_allowed_is_dropped_and_not_an_error() {
    let rig = Rig::new();
    let directory = on_disk();
    let path = directory.path().join("image");
    image(&path, 8 * 512);
    let (_desc, mut driver) = open(&rig, &path, 2);
    let buffer = rig.buffer(512);
    let block = buffer.span().slice(0, 512).unwrap();
    const NO_SUCH_CLASS: u16 = 7 << 13;
    for prio in [NO_SUCH_CLASS, 2 << 13 | 4] {
        for mut io in [write(1, 1, block), read(1, 1, block)] {
            io.prio = prio;
            driver.run(&io).unwrap();
        }
    }
}

#[test]
fn registered_hugepages_or_not_the_data_is_the_same() {
    let memory = Memory::new(MemoryConfig::default());
    let rig = Rig {
        registry: Registry::new(memory.clone()),
        memory,
    };
    let buffer = rig
        .memory
        .alloc("test", 2 << 20, Pages::PreferHuge)
        .unwrap();
    let directory = on_disk();
    let path = directory.path().join("image");
    image(&path, 64 * 512);
    let (_desc, mut driver) = open(&rig, &path, 4);
    let one = buffer.span().slice(0, 4096).unwrap();
    let two = buffer.span().slice(1 << 20, 4096).unwrap();
    one.fill(0x77);
    driver.run(&write(8, 8, one)).unwrap();
    driver.run(&read(8, 8, two)).unwrap();
    let mut found = [0; 4096];
    two.read_at(0, &mut found);
    assert_eq!(found, [0x77; 4096]);
}

#[test]
fn dropping_a_ring_takes_back_what_has_not_happened() {
    let rig = Rig::new();
    let buffer = rig.buffer(512);
    let block = buffer.span().slice(0, 512).unwrap();
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let end = std::os::fd::OwnedFd::from(reader.try_clone().unwrap());
    let file = Arc::new(DiskFile::of_pipe(end.into()));
    let mut ring = Ring::new(&file, 2, Vec::new()).unwrap();
    let request = Request::Read {
        offset: 0,
        buf: block,
        prio: 0,
    };
    ring.push(0, request);
    assert!(ring.submit());
    ring.push(1, request);
    drop(ring);
    writer.write_all(&[9; 512]).unwrap();
    let mut found = [0; 512];
    reader.read_exact(&mut found).unwrap();
    assert_eq!(found, [9; 512]);
    assert!(block.is_zeroed());
}

#[test]
fn dropping_a_channel_waits_for_what_has_begun() {
    let rig = Rig::new();
    let directory = on_disk();
    let path = directory.path().join("image");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let buffer = rig.buffer(1 << 20);
    for _ in 0..20 {
        let rig = Rig::new();
        let (_desc, mut driver) = open(&rig, &path, 16);
        for at in 0..16 {
            let part = buffer.span().slice(at << 16, 1 << 16).unwrap();
            driver.submit(&read(at as u64 * 128, 128, part)).unwrap();
        }
        driver.poll();
        drop(driver);
        buffer.span().fill(0);
        assert!(buffer.span().is_zeroed());
    }
}
