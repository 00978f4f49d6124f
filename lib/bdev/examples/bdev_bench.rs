//! How many random reads of 4 KiB a core gets from the native devices.
//!
//! `cargo run --release -p rnbd-bdev --example bdev_bench [DIRECTORY]` prints IOPS for a disk in
//! memory, a null disk, and a file that it makes in the directory (by default the one for
//! temporary files).

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rnbd_base::{CoreIndex, Nanos};
use rnbd_bdev::{
    BdevIo, IoOp, MallocBdev, MallocOptions, NullBdev, NullOptions, Registry, UringBdev,
    UringOptions,
};
use rnbd_mem::{Memory, MemoryConfig, Pages};

const IO_BYTES: usize = 4096;
const DISK_BYTES: u64 = 512 << 20;
const RUN_TIME: Duration = Duration::from_secs(3);
/// How often the clock is read: once in so many polls.
const POLLS_PER_CLOCK: u32 = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let memory = Memory::new(MemoryConfig::default());
    let registry = Registry::new(memory.clone());
    let file = image_in(&directory)?;
    for name in make_devices(&registry, &memory, file.path())? {
        for depth in [1, 32, 128] {
            let iops = measure(&registry, &memory, &name, depth)?;
            println!("{name:8} randread 4096 depth {depth:3}: {:9.0} IOPS", iops);
        }
    }
    Ok(())
}

fn image_in(directory: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    let chunk = vec![0x5a; 1 << 20];
    for _ in 0..DISK_BYTES >> 20 {
        file.write_all(&chunk)?;
    }
    file.as_file().sync_all()?;
    Ok(file)
}

fn make_devices(
    registry: &Registry,
    memory: &Memory,
    file: &Path,
) -> Result<Vec<String>, Box<dyn Error>> {
    let num_blocks = DISK_BYTES / 512;
    let malloc = MallocOptions {
        num_blocks,
        block_size: 512,
        ..MallocOptions::default()
    };
    let null = NullOptions {
        name: "Null0".to_owned(),
        num_blocks,
        block_size: 512,
        ..NullOptions::default()
    };
    let uring = UringOptions {
        name: "Uring0".to_owned(),
        filename: file.to_owned(),
        ..UringOptions::default()
    };
    Ok(vec![
        MallocBdev::create(registry, memory, malloc)?,
        NullBdev::create(registry, null)?,
        UringBdev::create(registry, memory, uring)?,
    ])
}

/// Keeps `depth` reads outstanding and returns how many ended per second.
fn measure(
    registry: &Registry,
    memory: &Memory,
    name: &str,
    depth: u32,
) -> Result<f64, Box<dyn Error>> {
    let desc = registry.open(name, true)?;
    fault_in(&desc);
    let mut channel = desc.open_channel(CoreIndex(0), depth)?;
    let buffer = memory.alloc("bench", depth as usize * IO_BYTES, Pages::PreferHuge)?;
    let blocks_per_io = (IO_BYTES / 512) as u64;
    let mut random = fastrand::Rng::with_seed(1);
    let mut next = |tag: u64| BdevIo {
        tag,
        op: IoOp::Read,
        offset_blocks: random.u64(..DISK_BYTES / IO_BYTES as u64) * blocks_per_io,
        num_blocks: blocks_per_io,
        buf: buffer
            .span()
            .slice(usize::try_from(tag).unwrap_or(0) * IO_BYTES, IO_BYTES)
            .expect("the buffer has room for every tag"),
        prio: 0,
    };
    let start = Instant::now();
    let mut now = Nanos::ZERO;
    let mut done = Vec::with_capacity(depth as usize);
    for tag in 0..u64::from(depth) {
        channel.submit(&next(tag), now)?;
    }
    let mut ended = 0_u64;
    let mut polls = 0_u32;
    while now.as_duration() < RUN_TIME {
        channel.poll(now, &mut done);
        for io in done.drain(..) {
            io.result?;
            ended += 1;
            channel.submit(&next(io.tag), now)?;
        }
        polls = polls.wrapping_add(1);
        if polls.is_multiple_of(POLLS_PER_CLOCK) {
            now = Nanos::from(start.elapsed());
        }
    }
    while channel.outstanding() > 0 {
        channel.poll(now, &mut done);
        done.clear();
    }
    Ok(ended as f64 / now.as_duration().as_secs_f64())
}

/// Makes a disk in memory resident, which reading alone would not.
fn fault_in(desc: &rnbd_bdev::Desc) {
    if let Some(content) = desc.bdev().memory() {
        content.fill(0x5a);
    }
}
