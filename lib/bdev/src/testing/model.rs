//! Devices against a model: an array of bytes.

use std::path::Path;

use proptest::prelude::*;
use rnbd_mem::{Buffer, Span};

use super::{Driver, Rig, flush, io, read, write};
use crate::{ErrorOptions, IoOp, UringBdev, UringOptions};

const BLOCK_BYTES: usize = 512;
const NUM_BLOCKS: u64 = 64;
const MOST_BLOCKS: u64 = 16;

#[derive(Clone, Debug)]
enum Step {
    Write {
        at: u64,
        len: u64,
        byte: u8,
        fua: bool,
    },
    Read {
        at: u64,
        len: u64,
    },
    Unmap {
        at: u64,
        len: u64,
    },
    WriteZeroes {
        at: u64,
        len: u64,
        no_unmap: bool,
    },
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..NUM_BLOCKS, 1..=MOST_BLOCKS);
    let range = || range().prop_map(|(at, len)| (at, len.min(NUM_BLOCKS - at)));
    let step = prop_oneof![
        4 => (range(), any::<u8>(), any::<bool>())
            .prop_map(|((at, len), byte, fua)| Step::Write { at, len, byte, fua }),
        4 => range().prop_map(|(at, len)| Step::Read { at, len }),
        1 => range().prop_map(|(at, len)| Step::Unmap { at, len }),
        1 => (range(), any::<bool>())
            .prop_map(|((at, len), no_unmap)| Step::WriteZeroes { at, len, no_unmap }),
        1 => Just(Step::Flush),
    ];
    prop::collection::vec(step, 1..40)
}

/// A device, what it should contain, and a buffer.
struct Checked {
    driver: Driver,
    model: Vec<u8>,
    buffer: Buffer,
}

impl Checked {
    fn new(rig: &Rig, driver: Driver) -> Self {
        Self {
            driver,
            model: vec![0; usize::try_from(NUM_BLOCKS).unwrap() * BLOCK_BYTES],
            buffer: rig.buffer(usize::try_from(MOST_BLOCKS).unwrap() * BLOCK_BYTES),
        }
    }

    fn span(&self, len: u64) -> Span {
        let bytes = usize::try_from(len).unwrap() * BLOCK_BYTES;
        self.buffer.span().slice(0, bytes).unwrap()
    }

    fn model_part(&mut self, at: u64, len: u64) -> &mut [u8] {
        let at = usize::try_from(at).unwrap() * BLOCK_BYTES;
        let len = usize::try_from(len).unwrap() * BLOCK_BYTES;
        &mut self.model[at..at + len]
    }

    fn zero(&mut self, at: u64, len: u64, op: IoOp) {
        self.driver.run(&io(op, at, len, Span::EMPTY)).unwrap();
        self.model_part(at, len).fill(0);
    }

    fn check(&mut self, at: u64, len: u64) {
        let span = self.span(len);
        span.fill(0xa5);
        self.driver.run(&read(at, len, span)).unwrap();
        let mut found = vec![0; span.len()];
        span.read_at(0, &mut found);
        assert!(
            found == self.model_part(at, len),
            "blocks {at}+{len} differ"
        );
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Write { at, len, byte, fua } => {
                let span = self.span(len);
                span.fill(byte);
                let op = IoOp::Write { fua };
                self.driver.run(&io(op, at, len, span)).unwrap();
                self.model_part(at, len).fill(byte);
            }
            Step::Read { at, len } => self.check(at, len),
            Step::Unmap { at, len } => self.zero(at, len, IoOp::Unmap),
            Step::WriteZeroes { at, len, no_unmap } => {
                self.zero(at, len, IoOp::WriteZeroes { no_unmap });
            }
            Step::Flush => self.driver.run(&flush()).unwrap(),
        }
    }

    fn apply_all(mut self, steps: &[Step]) {
        for step in steps {
            self.apply(step);
        }
        for at in (0..NUM_BLOCKS).step_by(16) {
            self.check(at, MOST_BLOCKS);
        }
    }
}

fn run_on_file(directory: &str, steps: &[Step]) {
    let file = tempfile::NamedTempFile::new_in(directory).unwrap();
    let bytes = NUM_BLOCKS * BLOCK_BYTES as u64;
    file.as_file().set_len(bytes).unwrap();
    run_on_path(file.path(), steps);
}

fn run_on_path(path: &Path, steps: &[Step]) {
    let rig = Rig::new();
    let options = UringOptions {
        name: "U0".to_owned(),
        filename: path.to_owned(),
        ..UringOptions::default()
    };
    UringBdev::create(&rig.registry, &rig.memory, options).unwrap();
    let (_desc, driver) = rig.open("U0", 4);
    let mut checked = Checked::new(&rig, driver);
    checked.zero(0, NUM_BLOCKS, IoOp::WriteZeroes { no_unmap: true });
    checked.apply_all(steps);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn malloc_keeps_what_was_written(steps in steps()) {
        let rig = Rig::new();
        rig.malloc("M0", NUM_BLOCKS);
        let (_desc, driver) = rig.open("M0", 4);
        Checked::new(&rig, driver).apply_all(&steps);
    }

    #[test]
    fn a_stack_of_devices_keeps_what_was_written(steps in steps()) {
        let rig = Rig::new();
        rig.malloc("M0", NUM_BLOCKS);
        let base_name = "M0".to_owned();
        let options = ErrorOptions { base_name, ..ErrorOptions::default() };
        crate::ErrorBdev::create(&rig.registry, options).unwrap();
        let options = crate::DelayOptions {
            name: "D0".to_owned(),
            base_bdev_name: "EE_M0".to_owned(),
            avg_read_latency: 10,
            p99_read_latency: 20,
            ..crate::DelayOptions::default()
        };
        crate::DelayBdev::create(&rig.registry, options).unwrap();
        let (_desc, driver) = rig.open("D0", 4);
        Checked::new(&rig, driver).apply_all(&steps);
    }

    #[test]
    fn a_file_keeps_what_was_written(steps in steps()) {
        run_on_file(std::env::temp_dir().to_str().unwrap(), &steps);
    }

    /// Needs a block device that may be overwritten, for example a loop device.
    #[test]
    fn a_block_device_keeps_what_was_written(steps in steps()) {
        match std::env::var_os("RNBD_TEST_BLOCK_DEVICE") {
            Some(path) => run_on_path(path.as_ref(), &steps),
            None => eprintln!("skipped: RNBD_TEST_BLOCK_DEVICE names no device"),
        }
    }

    #[test]
    fn a_file_in_memory_keeps_what_was_written(steps in steps()) {
        run_on_file("/dev/shm", &steps);
    }
}

#[test]
fn concurrent_writes_to_different_blocks_all_arrive() {
    let rig = Rig::new();
    rig.malloc("M0", NUM_BLOCKS);
    let (_desc, mut driver) = rig.open("M0", 64);
    let buffer = rig.buffer(64 * BLOCK_BYTES);
    let part = |at: u64| {
        let offset = usize::try_from(at).unwrap() * BLOCK_BYTES;
        buffer.span().slice(offset, BLOCK_BYTES).unwrap()
    };
    for at in 0..NUM_BLOCKS {
        part(at).fill(u8::try_from(at).unwrap());
        driver.submit(&write(at, 1, part(at))).unwrap();
    }
    let mut tags: Vec<u64> = driver.finish().iter().map(|done| done.tag).collect();
    tags.sort_unstable();
    assert!(tags.into_iter().eq(0..NUM_BLOCKS));
    buffer.span().fill(0);
    let whole = buffer.span().slice(0, 64 * BLOCK_BYTES).unwrap();
    driver.run(&read(0, 64, whole)).unwrap();
    for at in 0..NUM_BLOCKS {
        let mut block = [0; BLOCK_BYTES];
        part(at).read_at(0, &mut block);
        assert_eq!(block, [u8::try_from(at).unwrap(); BLOCK_BYTES]);
    }
}
