use rnbd_mem::{Buffer, Memory, MemoryConfig, Pages};

use super::*;

const BLOCK: usize = 512;
const BLOCKS: usize = 4;
const UNIT: usize = BLOCK * BLOCKS;
const UNITS: usize = 8;

/// A ledger, and a disk that does what the test tells it to.
struct Lab {
    ledger: Ledger,
    disk: Buffer,
    buf: Buffer,
    now: Nanos,
}

impl Lab {
    fn new() -> Self {
        Self::of_run(1)
    }

    fn of_run(run: u64) -> Self {
        let memory = Memory::new(MemoryConfig::default());
        let alloc = |bytes| memory.alloc("lab", bytes, Pages::Small).unwrap();
        Self {
            ledger: Ledger::new(run, 100, BLOCK, BLOCKS, UNITS),
            disk: alloc(UNIT * UNITS),
            buf: alloc(UNIT),
            now: Nanos(0),
        }
    }

    fn on_disk(&self, unit: usize) -> Span {
        self.disk.span().slice(unit * UNIT, UNIT).unwrap()
    }

    fn buffer(&self) -> Span {
        self.buf.span().slice(0, UNIT).unwrap()
    }

    /// Writes `unit` in the ledger; returns what should reach the disk.
    fn issue(&mut self, unit: usize) -> Span {
        self.now += Nanos(1);
        self.ledger.begin_write(unit, self.buffer(), self.now);
        self.buffer()
    }

    fn write(&mut self, unit: usize) {
        let data = self.issue(unit);
        self.on_disk(unit).copy_from(&data);
        self.ledger.end_write(unit, true, self.now);
    }

    fn check(&mut self, unit: usize) -> Result<(), Mismatch> {
        let found = self.on_disk(unit);
        self.ledger.check(unit, found, Nanos(7), Nanos(9))
    }

    fn fault(&mut self, unit: usize) -> Fault {
        self.check(unit).unwrap_err().fault
    }
}

#[test]
fn what_was_written_is_right_and_what_was_not_may_be_anything() {
    let mut lab = Lab::new();
    lab.on_disk(0).fill(0x5a);
    assert_eq!(lab.check(0), Ok(()));
    lab.write(1);
    lab.write(1);
    assert_eq!(lab.check(1), Ok(()));
}

#[test]
fn a_lost_write_is_found_and_named() {
    let mut lab = Lab::new();
    lab.write(2);
    lab.issue(2);
    lab.ledger.end_write(2, true, lab.now);
    let mismatch = lab.check(2).unwrap_err();
    assert!(matches!(
        mismatch.fault,
        Fault::Stale(Stamp { generation: 1, .. })
    ));
    assert_eq!((mismatch.lba, mismatch.newest_expected), (108, 2));
    assert_eq!(
        mismatch.to_string(),
        "block 108: lost write, it holds generation 1 (written at 1ns); expected generation 2 \
         (written at 2ns, read from 7ns to 9ns; 4 of 4 blocks of this I/O are wrong)"
    );
}

#[test]
fn a_first_write_that_was_lost_leaves_zeroes() {
    let mut lab = Lab::new();
    lab.issue(0);
    lab.ledger.end_write(0, true, lab.now);
    assert_eq!(lab.fault(0), Fault::Zeroes);
}

#[test]
fn half_a_write_is_torn_and_its_first_missing_block_is_named() {
    let mut lab = Lab::new();
    lab.write(0);
    let data = lab.issue(0);
    lab.on_disk(0).copy_from(&data.slice(0, 3 * BLOCK).unwrap());
    lab.ledger.end_write(0, true, lab.now);
    let mismatch = lab.check(0).unwrap_err();
    assert!(matches!(
        mismatch.fault,
        Fault::Torn(Stamp { generation: 1, .. })
    ));
    assert_eq!((mismatch.lba, mismatch.wrong_blocks), (103, 1));
}

#[test]
fn a_write_in_another_place_is_misplaced_where_it_is() {
    let mut lab = Lab::new();
    lab.write(3);
    let data = lab.issue(4);
    lab.on_disk(3).copy_from(&data);
    lab.ledger.end_write(4, true, lab.now);
    assert!(matches!(
        lab.fault(3),
        Fault::Misplaced(Stamp { lba: 116, .. })
    ));
    assert_eq!(lab.fault(4), Fault::Zeroes);
}

#[test]
fn a_write_shifted_by_a_block_is_misplaced() {
    let mut lab = Lab::new();
    lab.write(0);
    let data = lab.issue(0);
    let but_last = data.slice(0, UNIT - BLOCK).unwrap();
    lab.on_disk(0)
        .slice(BLOCK, UNIT - BLOCK)
        .unwrap()
        .copy_from(&but_last);
    lab.ledger.end_write(0, true, lab.now);
    let mismatch = lab.check(0).unwrap_err();
    assert_eq!(mismatch.wrong_blocks, BLOCKS);
}

#[test]
fn a_changed_byte_is_found_with_its_place() {
    let mut lab = Lab::new();
    lab.write(0);
    lab.on_disk(0).write_at(BLOCK + 300, &[0]);
    lab.on_disk(0).write_at(BLOCK + 301, &[0]);
    let mismatch = lab.check(0).unwrap_err();
    assert_eq!(mismatch.lba, 101);
    assert!(matches!(
        mismatch.fault,
        Fault::Damaged {
            offset: 300 | 301,
            ..
        }
    ));
}

#[test]
fn blocks_of_another_run_are_foreign() {
    let (mut lab, mut other) = (Lab::new(), Lab::of_run(2));
    lab.write(0);
    let data = other.issue(0);
    lab.on_disk(0).copy_from(&data);
    assert!(matches!(lab.fault(0), Fault::Foreign(Stamp { run: 2, .. })));
}

#[test]
fn a_generation_that_was_never_written_is_impossible() {
    let (mut lab, mut twin) = (Lab::new(), Lab::new());
    lab.write(0);
    twin.write(0);
    let data = twin.issue(0);
    lab.on_disk(0).copy_from(&data);
    assert!(matches!(lab.fault(0), Fault::Impossible(_)));
}

#[test]
fn a_failed_write_may_have_happened_or_not_until_the_next_one() {
    let mut lab = Lab::new();
    lab.write(0);
    let data = lab.issue(0);
    lab.ledger.end_write(0, false, lab.now);
    assert_eq!(lab.check(0), Ok(()));
    lab.on_disk(0).copy_from(&data);
    assert_eq!(lab.check(0), Ok(()));
    let failed = {
        let copy = vec![0; UNIT];
        let mut copy = copy;
        data.read_at(0, &mut copy);
        copy
    };
    lab.write(0);
    lab.on_disk(0).write_at(0, &failed);
    assert!(matches!(
        lab.fault(0),
        Fault::Stale(Stamp { generation: 2, .. })
    ));
}

#[test]
fn zeroes_must_be_zeroes_and_unmapped_blocks_may_be_anything() {
    let mut lab = Lab::new();
    lab.write(0);
    lab.ledger.end_zeroes(0, true, lab.now);
    let mismatch = lab.check(0).unwrap_err();
    assert_eq!(mismatch.fault, Fault::NotZeroes);
    assert!(mismatch.to_string().contains("expected zeroes"));
    lab.on_disk(0).fill(0);
    assert_eq!(lab.check(0), Ok(()));
    lab.write(0);
    lab.on_disk(0).fill(0x77);
    lab.ledger.end_unmap(0);
    assert_eq!(lab.check(0), Ok(()));
}
