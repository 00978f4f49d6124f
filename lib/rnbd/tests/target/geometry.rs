//! Devices that change while they are exported: larger, cut short, with holes, replaced.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rnbd_base::Errno;
use rnbd_bdev::{NullBdev, NullOptions, UringBdev, UringOptions};
use rnbd_fabric::tcp::TcpFabric;
use rnbd_proto::srv::Export;
use rnbd_wire::rnbd::{AccessMode, Op};
use rustix::fs::FallocateFlags;
use tempfile::TempDir;

use crate::client::{Client, io};
use crate::rig::{BLOCK, DEPTH, Loopback, Options, Rig, World};

const IMAGE_BLOCKS: u64 = 2048;
const IMAGE_BYTES: u64 = IMAGE_BLOCKS * BLOCK as u64;

fn export<W: World>(rig: &Rig<W>, bdev_name: &str) {
    let export = Export {
        allow_any_host: true,
        ..Export::new("export", bdev_name)
    };
    rig.services.exports.create(export).unwrap();
}

#[test]
fn a_device_that_grows_tells_its_size_at_the_next_open() {
    let mut rig = Rig::sim(Options::default());
    let null = NullOptions {
        name: "Null0".to_owned(),
        num_blocks: 2048,
        block_size: 512,
        ..NullOptions::default()
    };
    NullBdev::create(&rig.services.registry, null).unwrap();
    export(&rig, "Null0");
    let (mut client, id) = rig.up_with("export");
    let beyond = io(id, Op::Write, 2048, BLOCK).to_bytes();
    let registry = rig.services.registry.clone();
    registry
        .find::<NullBdev, _>("Null0", |null| null.resize(2))
        .unwrap()
        .unwrap();
    registry.notify_resized("Null0").unwrap();
    client.write(1, 0, &[1; BLOCK], &beyond);
    rig.expect(&mut client, Ok(()));
    let further = io(id, Op::Write, 4096, BLOCK).to_bytes();
    client.write(1, 0, &[1; BLOCK], &further);
    rig.expect(&mut client, Err(Errno::NOSPC));
    let again = rig.open(&mut client, "export", AccessMode::ReadWrite);
    let again = again.unwrap();
    assert_eq!((again.device_id, again.nsectors), (id, 4096));
}

/// A target over TCP that exports a file whose blocks tell their numbers, and a client of it.
struct Image {
    rig: Rig<Loopback>,
    client: Client<TcpFabric>,
    id: u32,
    directory: TempDir,
    random: fastrand::Rng,
    /// Blocks whose content or existence somebody else has changed.
    damaged: Range<u64>,
}

fn content(block: u64) -> [u8; BLOCK] {
    let mut bytes = [0xa5; BLOCK];
    bytes[..8].copy_from_slice(&block.to_le_bytes());
    bytes
}

impl Image {
    fn new() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("image");
        let bytes: Vec<u8> = (0..IMAGE_BLOCKS).flat_map(content).collect();
        std::fs::write(&path, bytes).unwrap();
        let mut rig = Rig::new(Loopback::new(), Options::default());
        let uring = UringOptions {
            name: "Uring0".to_owned(),
            filename: path,
            block_size: Some(512),
            ..UringOptions::default()
        };
        UringBdev::create(&rig.services.registry, &rig.services.memory, uring).unwrap();
        export(&rig, "Uring0");
        let (client, id) = rig.up_with("export");
        Self {
            rig,
            client,
            id,
            directory,
            random: fastrand::Rng::with_seed(1),
            damaged: 0..0,
        }
    }

    fn file(&self) -> File {
        let path = self.directory.path().join("image");
        OpenOptions::new().write(true).open(path).unwrap()
    }

    /// Reads random blocks while `change` is made in the middle of it. Every answer is the right
    /// data or an error, and what nobody touched is right.
    fn read_while(&mut self, change: impl FnOnce(&Self)) {
        let mut change = Some(change);
        for round in 0..40 {
            let blocks: Vec<u64> = (0..DEPTH)
                .map(|_| self.random.u64(0..IMAGE_BLOCKS))
                .collect();
            for (msg_id, &block) in (0..).zip(&blocks) {
                let message = io(self.id, Op::Read, block, BLOCK).to_bytes();
                self.client.read(1, msg_id, BLOCK, &message);
            }
            if round == 20 {
                self.rig.step(&mut [&mut self.client]);
                change.take().unwrap()(self);
            }
            for _ in 0..DEPTH {
                let answer = self.rig.answer(&mut self.client);
                let msg_id = u16::try_from(answer.msg_id).unwrap();
                self.check(blocks[usize::from(msg_id)], msg_id, answer.status);
            }
        }
    }

    fn check(&self, block: u64, msg_id: u16, status: Result<(), Errno>) {
        let damaged = self.damaged.contains(&block);
        match status {
            Ok(()) => {
                let data = self.client.data(msg_id, BLOCK);
                let is_hole = damaged && data.iter().all(|&byte| byte == 0);
                assert!(data == content(block) || is_hole, "block {block}");
            }
            Err(errno) => assert!(damaged && errno == Errno::IO, "block {block}: {errno}"),
        }
    }

    fn write(&mut self, block: u64) -> Result<(), Errno> {
        let message = io(self.id, Op::Write, block, BLOCK).to_bytes();
        self.client.write(1, 0, &content(block), &message);
        self.rig.answer(&mut self.client).status
    }
}

#[test]
fn a_file_cut_short_under_load_gives_errors_behind_its_end() {
    let mut image = Image::new();
    let half = IMAGE_BLOCKS / 2;
    image.damaged = half..IMAGE_BLOCKS;
    image.read_while(|image| image.file().set_len(IMAGE_BYTES / 2).unwrap());
    let message = io(image.id, Op::Read, half, BLOCK).to_bytes();
    image.client.read(1, 0, BLOCK, &message);
    image.rig.expect(&mut image.client, Err(Errno::IO));
    assert_eq!(image.write(half + 8), Ok(()), "a write makes it grow again");
    image.read_while(|image| image.file().set_len(IMAGE_BYTES).unwrap());
    assert!(image.rig.sessions()[0].connected);
}

#[test]
fn a_file_with_holes_punched_under_load_reads_as_zeroes_there() {
    let mut image = Image::new();
    image.damaged = 0..IMAGE_BLOCKS / 2;
    image.read_while(|image| {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(image.file(), flags, 0, IMAGE_BYTES / 2).unwrap();
    });
    assert_eq!(image.write(8), Ok(()));
    image.read_while(|_| ());
}

#[test]
fn a_file_replaced_or_removed_under_load_is_served_as_it_was() {
    let mut image = Image::new();
    image.read_while(|image| {
        let other = image.directory.path().join("other");
        let file = File::create(&other).unwrap();
        file.write_all_at(&[0xee; 8 * BLOCK], 0).unwrap();
        std::fs::rename(other, image.directory.path().join("image")).unwrap();
    });
    image.read_while(|image| {
        std::fs::remove_file(image.directory.path().join("image")).unwrap();
    });
    assert_eq!(image.write(8), Ok(()));
}

#[test]
fn a_file_that_has_grown_is_larger_after_a_rescan_and_an_open() {
    let mut image = Image::new();
    image.file().set_len(2 * IMAGE_BYTES).unwrap();
    let registry = image.rig.services.registry.clone();
    let grown = registry
        .find::<UringBdev, _>("Uring0", UringBdev::rescan)
        .unwrap();
    assert!(grown.unwrap());
    registry.notify_resized("Uring0").unwrap();
    let opened = image
        .rig
        .open(&mut image.client, "export", AccessMode::ReadWrite);
    assert_eq!(opened.unwrap().nsectors, 2 * IMAGE_BLOCKS);
    assert_eq!(image.write(2 * IMAGE_BLOCKS - 1), Ok(()));
}
