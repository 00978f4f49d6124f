use std::sync::Mutex;

use rnbd_base::CoreIndex;
use uuid::Uuid;

use super::*;
use crate::completions::Completions;
use crate::testing::{Driver, Rig, flush, io, read, write};
use crate::{Geometry, IoKind, RateLimits, Registry};

/// A device that can do little, and notes what it is asked for.
#[derive(Debug)]
struct Modest {
    features: Features,
    seen: Arc<Mutex<Vec<BdevIo>>>,
    /// The first block that cannot be reached.
    fails_from: u64,
}

impl Bdev for Modest {
    fn name(&self) -> &str {
        "modest"
    }

    fn product_name(&self) -> &'static str {
        "modest"
    }

    fn uuid(&self) -> Uuid {
        Uuid::from_u128(1)
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: 512,
            physical_block_size: 512,
            num_blocks: 1 << 20,
        }
    }

    fn features(&self) -> Features {
        self.features
    }

    fn open_channel(&self, _core: CoreIndex, depth: u32) -> Result<Box<dyn IoChannel>, Errno> {
        Ok(Box::new(ModestChannel {
            seen: Arc::clone(&self.seen),
            fails_from: self.fails_from,
            ended: Completions::new(depth),
        }))
    }
}

#[derive(Debug)]
struct ModestChannel {
    seen: Arc<Mutex<Vec<BdevIo>>>,
    fails_from: u64,
    ended: Completions,
}

impl IoChannel for ModestChannel {
    fn submit(&mut self, io: &BdevIo, _now: Nanos) {
        self.seen.lock().unwrap().push(*io);
        let end = io.offset_blocks + io.num_blocks;
        let result = if end > self.fails_from {
            Err(Errno::IO)
        } else {
            Ok(())
        };
        self.ended.push(io.tag, result);
    }

    fn poll(&mut self, _now: Nanos, done: &mut Vec<IoDone>) -> Progress {
        self.ended.drain_to(done)
    }

    fn prepare_sleep(&mut self, _fds: &mut Vec<RawFd>) -> bool {
        self.ended.is_empty()
    }
}

struct ModestRig {
    rig: Rig,
    driver: Driver,
    seen: Arc<Mutex<Vec<BdevIo>>>,
}

fn modest(features: Features, fails_from: u64) -> ModestRig {
    let rig = Rig::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let bdev = Modest {
        features,
        seen: Arc::clone(&seen),
        fails_from,
    };
    rig.registry.register(Arc::new(bdev)).unwrap();
    let (_desc, driver) = rig.open("modest", 2);
    ModestRig { rig, driver, seen }
}

fn ranges(seen: &Mutex<Vec<BdevIo>>) -> Vec<(u64, u64)> {
    let seen = seen.lock().unwrap();
    seen.iter()
        .map(|io| (io.offset_blocks, io.num_blocks))
        .collect()
}

fn open_malloc(rig: &Rig, registry: &Registry, write: bool) -> Driver {
    rig.malloc("M0", 16);
    let desc = registry.open("M0", write).unwrap();
    Driver::new(desc.open_channel(CoreIndex(0), 2).unwrap())
}

#[test]
fn senseless_io_is_refused_and_nothing_follows() {
    let rig = Rig::new();
    let mut driver = open_malloc(&rig, &rig.registry, true);
    let buffer = rig.buffer(1024);
    let block = buffer.span().slice(0, 512).unwrap();
    for bad in [
        read(0, 0, Span::EMPTY),
        read(16, 1, block),
        read(15, 2, buffer.span().slice(0, 1024).unwrap()),
        read(u64::MAX, 2, buffer.span().slice(0, 1024).unwrap()),
        read(0, 2, block),
        write(0, 1, Span::EMPTY),
        io(IoOp::Unmap, 1, u64::MAX, Span::EMPTY),
        io(IoOp::WriteZeroes { no_unmap: false }, 0, 0, Span::EMPTY),
    ] {
        assert_eq!(driver.submit(&bad), Err(Errno::INVAL), "{bad:?}");
    }
    assert_eq!(driver.channel.outstanding(), 0);
    assert!(driver.poll().is_empty());
}

#[test]
fn a_read_only_descriptor_reads_and_flushes_only() {
    let rig = Rig::new();
    let mut driver = open_malloc(&rig, &rig.registry, false);
    let buffer = rig.buffer(512);
    let block = buffer.span().slice(0, 512).unwrap();
    for change in [
        write(0, 1, block),
        io(IoOp::Unmap, 0, 1, Span::EMPTY),
        io(IoOp::WriteZeroes { no_unmap: true }, 0, 1, Span::EMPTY),
    ] {
        assert_eq!(driver.submit(&change), Err(Errno::ROFS), "{change:?}");
    }
    driver.run(&read(0, 1, block)).unwrap();
    driver.run(&flush()).unwrap();
}

#[test]
fn no_more_is_outstanding_than_the_depth() {
    let rig = Rig::new();
    let mut driver = open_malloc(&rig, &rig.registry, true);
    assert_eq!(driver.channel.depth(), 2);
    driver.submit(&flush()).unwrap();
    driver.submit(&flush()).unwrap();
    assert_eq!(driver.submit(&flush()), Err(Errno::NOMEM));
    assert_eq!(driver.finish().len(), 2);
    driver.submit(&flush()).unwrap();
}

#[test]
fn completions_wait_for_room_and_the_vector_never_grows() {
    let rig = Rig::new();
    let mut driver = open_malloc(&rig, &rig.registry, true);
    let desc = rig.registry.open("M0", false).unwrap();
    assert_eq!(
        desc.open_channel(CoreIndex(0), 0).unwrap_err(),
        Errno::INVAL
    );
    driver.done = Vec::with_capacity(1);
    let room = driver.done.capacity();
    driver.submit(&flush()).unwrap();
    driver.submit(&flush()).unwrap();
    driver.channel.poll(driver.now, &mut driver.done);
    assert_eq!((driver.done.len(), driver.done.capacity()), (room, room));
    assert_eq!(driver.channel.outstanding(), 2 - room);
}

#[test]
fn what_is_too_large_is_done_in_pieces_and_counted_once() {
    let features = Features {
        max_rw_blocks: 3,
        ..Features::default()
    };
    let mut modest = modest(features, u64::MAX);
    let buffer = modest.rig.buffer(8 * 512);
    let whole = buffer.span().slice(0, 8 * 512).unwrap();
    modest.driver.run(&write(10, 8, whole)).unwrap();
    assert_eq!(ranges(&modest.seen), [(10, 3), (13, 3), (16, 2)]);
    let bytes: Vec<usize> = modest
        .seen
        .lock()
        .unwrap()
        .iter()
        .map(|io| io.buf.len())
        .collect();
    assert_eq!(bytes, [1536, 1536, 1024]);
    let stats = modest.rig.registry.stats("modest").unwrap().total;
    let writes = stats.kind(IoKind::Write);
    assert_eq!((writes.ops, writes.bytes), (1, 4096));
}

#[test]
fn the_first_failing_piece_ends_the_whole() {
    let features = Features {
        max_unmap_blocks: 2,
        ..Features::default()
    };
    let mut modest = modest(features, 3);
    let unmap = io(IoOp::Unmap, 0, 8, Span::EMPTY);
    assert_eq!(modest.driver.run(&unmap), Err(Errno::IO));
    assert_eq!(ranges(&modest.seen), [(0, 2), (2, 2)]);
    let stats = modest.rig.registry.stats("modest").unwrap().total;
    assert_eq!(stats.errors().collect::<Vec<_>>(), [(Errno::IO, 1)]);
}

#[test]
fn zeroes_are_written_where_there_is_no_command_for_them() {
    let features = Features {
        write_zeroes: false,
        unmap: false,
        ..Features::default()
    };
    let mut modest = modest(features, u64::MAX);
    let zeroes = io(IoOp::WriteZeroes { no_unmap: false }, 5, 5000, Span::EMPTY);
    modest.driver.run(&zeroes).unwrap();
    assert_eq!(ranges(&modest.seen), [(5, 2048), (2053, 2048), (4101, 904)]);
    let all_zero = |io: &BdevIo| {
        io.op == IoOp::Write { fua: false }
            && io.buf.len() as u64 == io.num_blocks * 512
            && io.buf.is_zeroed()
    };
    assert!(modest.seen.lock().unwrap().iter().all(all_zero));
    let unmap = io(IoOp::Unmap, 0, 1, Span::EMPTY);
    assert_eq!(modest.driver.submit(&unmap), Err(Errno::OPNOTSUPP));
}

#[test]
fn a_device_that_needs_aligned_buffers_gets_nothing_else() {
    let features = Features {
        buf_align: 512,
        ..Features::default()
    };
    let mut modest = modest(features, u64::MAX);
    let buffer = modest.rig.buffer(1 << 20);
    let off = buffer.span().slice(256, 600 * 512).unwrap();
    modest.driver.run(&read(0, 600, off)).unwrap();
    modest.driver.run(&write(7, 600, off)).unwrap();
    let pieces = [(0, 256), (256, 256), (512, 88)];
    let shifted = pieces.map(|(first, blocks)| (first + 7, blocks));
    assert_eq!(ranges(&modest.seen), [pieces, shifted].concat());
    let is_good = |io: &BdevIo| {
        let fits = io.buf.len() as u64 == io.num_blocks * 512;
        fits && io.buf.addr().is_multiple_of(512)
    };
    assert!(modest.seen.lock().unwrap().iter().all(is_good));
}

#[test]
fn an_aligned_buffer_goes_to_the_device_as_it_is() {
    let features = Features {
        buf_align: 512,
        ..Features::default()
    };
    let mut modest = modest(features, u64::MAX);
    let buffer = modest.rig.buffer(2048);
    let on = buffer.span().slice(512, 512).unwrap();
    modest.driver.run(&read(0, 1, on)).unwrap();
    assert_eq!(modest.seen.lock().unwrap()[0].buf.addr(), on.addr());
}

/// Keeps 8 I/Os of 8 blocks in flight for a second of 100 µs steps; returns how many ended.
fn done_in_a_second(rig: &Rig, driver: &mut Driver, op: IoOp) -> u64 {
    let buffer = rig.buffer(4096);
    let block = buffer.span().slice(0, 4096).unwrap();
    let end = driver.now + Nanos::from_secs(1);
    let mut ended = 0;
    while driver.now < end {
        while driver.channel.outstanding() < 8 {
            driver.submit(&io(op, 0, 8, block)).unwrap();
        }
        ended += driver.poll().len() as u64;
        driver.now += Nanos::from_micros(100);
    }
    ended
}

#[test]
fn a_limited_device_does_what_it_may_and_no_more() {
    let rig = Rig::new();
    rig.malloc("M0", 64);
    let (_desc, mut driver) = rig.open("M0", 8);
    assert!(driver.channel.lends_memory());
    let limits = RateLimits {
        rw_ios_per_sec: 5000,
        w_mbytes_per_sec: 1,
        ..RateLimits::default()
    };
    rig.registry.set_limits("M0", limits).unwrap();
    assert!(!driver.channel.lends_memory(), "reads in place pass by it");
    let reads = done_in_a_second(&rig, &mut driver, IoOp::Read);
    assert!((4990..=5015).contains(&reads), "{reads}");
    driver.finish();
    let writes = done_in_a_second(&rig, &mut driver, IoOp::Write { fua: false });
    assert!((250..=260).contains(&writes), "{writes}");

    rig.registry
        .set_limits("M0", RateLimits::default())
        .unwrap();
    driver.poll();
    assert_eq!(driver.channel.outstanding(), 0, "what waited goes at once");
    assert!(done_in_a_second(&rig, &mut driver, IoOp::Read) > 50_000);
}

#[test]
fn a_sleeper_is_told_when_a_limited_io_may_go() {
    let rig = Rig::new();
    rig.malloc("M0", 64);
    let (_desc, mut driver) = rig.open("M0", 8);
    let limits = RateLimits {
        rw_ios_per_sec: 1000,
        ..RateLimits::default()
    };
    rig.registry.set_limits("M0", limits).unwrap();
    let buffer = rig.buffer(512);
    let block = buffer.span().slice(0, 512).unwrap();
    let start = driver.now;
    (0..4).for_each(|_| driver.submit(&read(0, 1, block)).unwrap());
    driver.poll();
    assert_eq!(driver.channel.outstanding(), 2);
    let next = start + Nanos::from_millis(1);
    assert_eq!(driver.channel.next_deadline(), Some(next));
    driver.finish();
    assert_eq!(driver.now, start + Nanos::from_millis(2));
}

#[test]
fn queue_depth_is_sampled_while_it_is_wanted() {
    let rig = Rig::new();
    rig.malloc("M0", 64);
    let (_desc, mut driver) = rig.open("M0", 8);
    let registry = &rig.registry;
    let id = registry.set_qd_sampling_period("M0", 100).unwrap();
    assert!(registry.sample_queue_depth("M0", id));
    let buffer = rig.buffer(512);
    let block = buffer.span().slice(0, 512).unwrap();
    (0..3).for_each(|_| driver.submit(&read(0, 1, block)).unwrap());
    assert!(registry.sample_queue_depth("M0", id));
    let sampled = registry.stats("M0").unwrap().queue_depth.unwrap();
    assert_eq!(
        (
            sampled.queue_depth,
            sampled.io_time_us,
            sampled.weighted_io_time_us
        ),
        (3, 100, 300)
    );
    driver.finish();
    assert!(registry.sample_queue_depth("M0", id));
    assert_eq!(
        registry
            .stats("M0")
            .unwrap()
            .queue_depth
            .unwrap()
            .queue_depth,
        0
    );
    registry.set_qd_sampling_period("M0", 0).unwrap();
    assert!(!registry.sample_queue_depth("M0", id));
    assert_eq!(registry.stats("M0").unwrap().queue_depth, None);
}

#[test]
fn memory_is_read_in_place_within_its_end_and_counted() {
    let rig = Rig::new();
    rig.malloc("ram", 8);
    rig.null("null", 8);
    let (_ram, mut ram) = rig.open("ram", 4);
    let buffer = rig.buffer(1024);
    buffer.span().fill(7);
    ram.run(&write(3, 2, buffer.span().slice(0, 1024).unwrap()))
        .unwrap();
    let data = ram.channel.read_in_place(3, 2).unwrap();
    let mut bytes = [0; 1024];
    data.read_at(0, &mut bytes);
    assert_eq!((data.len(), bytes), (1024, [7; 1024]));
    assert_eq!(ram.channel.read_in_place(7, 2), Err(Errno::INVAL));
    assert_eq!(ram.channel.read_in_place(u64::MAX, 2), Err(Errno::INVAL));
    let stats = rig.registry.stats("ram").unwrap().total;
    assert_eq!(stats.kind(IoKind::Read).bytes, 1024);
    let (_null, mut null) = rig.open("null", 4);
    assert_eq!(null.channel.read_in_place(0, 1), Err(Errno::OPNOTSUPP));
}
