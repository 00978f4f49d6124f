//! I/O allocates nothing: neither `submit` nor `poll` of any module that carries data.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use rnbd_base::{CoreIndex, Nanos};
use rnbd_bdev::{
    BdevIo, Channel, DelayBdev, DelayOptions, ErrorBdev, ErrorOptions, IoDone, IoOp, MallocBdev,
    MallocOptions, NullBdev, NullOptions, RateLimits, Registry, UringBdev, UringOptions,
};
use rnbd_mem::{Memory, MemoryConfig, Pages, Span};

const DEPTH: u32 = 8;

/// Keeps the channel full until `rounds` I/Os of each kind have ended.
fn work(channel: &mut Channel, done: &mut Vec<IoDone>, buf: Span, rounds: u64) {
    let ops = [
        IoOp::Write { fua: false },
        IoOp::Read,
        IoOp::WriteZeroes { no_unmap: true },
        IoOp::Write { fua: true },
        IoOp::Unmap,
        IoOp::Flush,
    ];
    let mut now = Nanos(1);
    let mut ended = 0;
    let mut started = 0;
    let all = rounds * ops.len() as u64;
    while ended < all {
        while started < all && channel.outstanding() < channel.depth() {
            let op = ops[usize::try_from(started).unwrap() % ops.len()];
            let io = BdevIo {
                tag: started,
                op,
                offset_blocks: (started % 8) * 8,
                num_blocks: 8,
                buf: if op.has_data() { buf } else { Span::EMPTY },
                prio: 0,
            };
            channel.submit(&io, now).unwrap();
            started += 1;
        }
        now += Nanos::from_micros(1);
        channel.poll(now, done);
        for done in done.drain(..) {
            assert_eq!(done.result, Ok(()));
            ended += 1;
        }
    }
}

fn make_devices(registry: &Registry, memory: &Memory, image: &std::path::Path) -> Vec<String> {
    let malloc = MallocOptions {
        num_blocks: 64,
        block_size: 512,
        ..MallocOptions::default()
    };
    let null = NullOptions {
        name: "N0".to_owned(),
        num_blocks: 64,
        block_size: 512,
        ..NullOptions::default()
    };
    let uring = UringOptions {
        name: "U0".to_owned(),
        filename: image.to_owned(),
        ..UringOptions::default()
    };
    let malloc = MallocBdev::create(registry, memory, malloc).unwrap();
    let error = ErrorOptions {
        base_name: malloc,
        uuid: None,
    };
    let delay = DelayOptions {
        name: "D0".to_owned(),
        base_bdev_name: NullBdev::create(registry, null).unwrap(),
        avg_read_latency: 3,
        p99_read_latency: 9,
        ..DelayOptions::default()
    };
    vec![
        ErrorBdev::create(registry, error).unwrap(),
        DelayBdev::create(registry, delay).unwrap(),
        UringBdev::create(registry, memory, uring).unwrap(),
    ]
}

/// The stacks cover malloc and null too.
#[test]
fn nothing_is_allocated_per_io() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(64 * 512).unwrap();
    let memory = Memory::new(MemoryConfig::default());
    let registry = Registry::new(memory.clone());
    let buffer = memory.alloc("test", 8192, Pages::Small).unwrap();
    let aligned = buffer.span().slice(0, 4096).unwrap();
    let misaligned = buffer.span().slice(1, 4096).unwrap();
    for name in make_devices(&registry, &memory, image.path()) {
        let desc = registry.open(&name, true).unwrap();
        let mut channel = desc.open_channel(CoreIndex(0), DEPTH).unwrap();
        let mut done = Vec::with_capacity(DEPTH as usize);
        for buf in [aligned, misaligned] {
            let counted = allocation_counter::measure(|| work(&mut channel, &mut done, buf, 50));
            assert_eq!(counted.count_total, 0, "{name}");
        }
        let limits = RateLimits {
            rw_ios_per_sec: 100_000,
            ..RateLimits::default()
        };
        registry.set_limits(&name, limits).unwrap();
        let counted = allocation_counter::measure(|| work(&mut channel, &mut done, aligned, 50));
        assert_eq!(counted.count_total, 0, "{name} with a limit");
    }
}
