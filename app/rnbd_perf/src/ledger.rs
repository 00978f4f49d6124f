//! What each place of a device must hold: the other half of verification.

use std::fmt;

use rnbd_base::Nanos;
use rnbd_mem::Span;

use crate::stamp::{Content, Stamp};

/// A block that does not hold what was written to it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mismatch {
    pub(crate) lba: u64,
    pub(crate) fault: Fault,
    /// Generations that would have been right.
    pub(crate) oldest_expected: u32,
    pub(crate) newest_expected: u32,
    /// When the last write of this place that succeeded was answered.
    pub(crate) written_at: Nanos,
    /// When the read was submitted and answered.
    pub(crate) read_submitted_at: Nanos,
    pub(crate) read_answered_at: Nanos,
    /// How many blocks of this I/O are wrong, and how many it has.
    pub(crate) wrong_blocks: usize,
    pub(crate) blocks: usize,
}

/// In which way a block is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// An older write of this place: the newest was lost.
    Stale(Stamp),
    /// Of one write some blocks are there and others are not.
    Torn(Stamp),
    /// A block that belongs elsewhere.
    Misplaced(Stamp),
    /// A block of another run, or of another job of this one.
    Foreign(Stamp),
    /// A write that was never issued.
    Impossible(Stamp),
    /// The right stamp with wrong bytes from `offset` on.
    Damaged { stamp: Stamp, offset: usize },
    /// Zeroes where data was written: it was lost.
    Zeroes,
    /// Data where zeroes were written.
    NotZeroes,
    /// Bytes that are no block of any run.
    Unknown,
}

/// What is known of one unit: the blocks of one I/O.
#[derive(Clone, Copy, Debug)]
struct Unit {
    /// The last write that succeeded, and the last that was issued. In between lie writes that
    /// failed: each may have reached the device or not.
    confirmed: u32,
    issued: u32,
    expectation: Expectation,
    written_at: Nanos,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expectation {
    Anything,
    Data,
    Zeroes,
}

/// What every unit of a job's range must hold, and which units are in use.
#[derive(Debug)]
pub(crate) struct Ledger {
    run: u64,
    first_block: u64,
    block_bytes: usize,
    blocks_per_unit: usize,
    units: Vec<Unit>,
    block: Vec<u8>,
}

impl Ledger {
    /// A ledger for `units` of `blocks_per_unit` blocks, from `first_block` on. Nothing is known
    /// of any.
    pub(crate) fn new(
        run: u64,
        first_block: u64,
        block_bytes: usize,
        blocks_per_unit: usize,
        units: usize,
    ) -> Self {
        let unknown = Unit {
            confirmed: 0,
            issued: 0,
            expectation: Expectation::Anything,
            written_at: Nanos::ZERO,
        };
        Self {
            run,
            first_block,
            block_bytes,
            blocks_per_unit,
            units: vec![unknown; units],
            block: vec![0; block_bytes],
        }
    }

    /// Whether something definite is expected of `unit`.
    pub(crate) fn can_check(&self, unit: usize) -> bool {
        self.units[unit].expectation != Expectation::Anything
    }

    /// Fills `buf` with the next generation of `unit`, about to be written.
    pub(crate) fn begin_write(&mut self, unit: usize, buf: Span, now: Nanos) {
        self.units[unit].issued += 1;
        let generation = self.units[unit].issued;
        for index in 0..self.blocks_per_unit {
            let stamp = Stamp {
                run: self.run,
                lba: self.lba(unit, index),
                generation,
                written_at: now,
            };
            stamp.fill(&mut self.block);
            buf.write_at(index * self.block_bytes, &self.block);
        }
    }

    /// The write that began last was answered.
    pub(crate) fn end_write(&mut self, unit: usize, succeeded: bool, now: Nanos) {
        let unit = &mut self.units[unit];
        if succeeded {
            unit.confirmed = unit.issued;
            unit.expectation = Expectation::Data;
            unit.written_at = now;
        } else if unit.expectation != Expectation::Data {
            unit.expectation = Expectation::Anything;
        }
    }

    /// A write-zeroes was answered.
    pub(crate) fn end_zeroes(&mut self, unit: usize, succeeded: bool, now: Nanos) {
        let unit = &mut self.units[unit];
        unit.expectation = if succeeded {
            Expectation::Zeroes
        } else {
            Expectation::Anything
        };
        unit.written_at = now;
    }

    /// An unmap was answered: the blocks may hold anything.
    pub(crate) fn end_unmap(&mut self, unit: usize) {
        self.units[unit].expectation = Expectation::Anything;
    }

    /// Compares what was read of `unit` with what it must hold.
    pub(crate) fn check(
        &mut self,
        unit: usize,
        buf: Span,
        read_submitted_at: Nanos,
        now: Nanos,
    ) -> Result<(), Mismatch> {
        let mut first_fault = None;
        let mut wrong_blocks = 0;
        for index in 0..self.blocks_per_unit {
            buf.read_at(index * self.block_bytes, &mut self.block);
            if let Some(fault) = self.fault_of(unit, self.lba(unit, index)) {
                first_fault.get_or_insert((self.lba(unit, index), fault));
                wrong_blocks += 1;
            }
        }
        let Some((lba, fault)) = first_fault else {
            return Ok(());
        };
        let blocks = self.blocks_per_unit;
        let known = &self.units[unit];
        Err(Mismatch {
            lba,
            fault: or_torn(fault, wrong_blocks < blocks),
            oldest_expected: known.confirmed,
            newest_expected: known.issued,
            written_at: known.written_at,
            read_submitted_at,
            read_answered_at: now,
            wrong_blocks,
            blocks,
        })
    }

    /// What is wrong with the block at hand, if it was read at `lba`.
    fn fault_of(&self, unit: usize, lba: u64) -> Option<Fault> {
        let known = &self.units[unit];
        match known.expectation {
            Expectation::Anything => None,
            Expectation::Zeroes if self.block.iter().all(|&byte| byte == 0) => None,
            Expectation::Zeroes => Some(Fault::NotZeroes),
            Expectation::Data => self.fault_of_data(known, lba),
        }
    }

    fn fault_of_data(&self, known: &Unit, lba: u64) -> Option<Fault> {
        match Stamp::read(&self.block) {
            Content::Zeroes => Some(Fault::Zeroes),
            Content::Unknown => Some(Fault::Unknown),
            Content::Stamped(stamp) | Content::Damaged { stamp, .. } if stamp.run != self.run => {
                Some(Fault::Foreign(stamp))
            }
            Content::Stamped(stamp) | Content::Damaged { stamp, .. } if stamp.lba != lba => {
                Some(Fault::Misplaced(stamp))
            }
            Content::Damaged { stamp, offset } => Some(Fault::Damaged { stamp, offset }),
            Content::Stamped(stamp) if stamp.generation < known.confirmed => {
                Some(Fault::Stale(stamp))
            }
            Content::Stamped(stamp) if stamp.generation > known.issued => {
                Some(Fault::Impossible(stamp))
            }
            Content::Stamped(_) => None,
        }
    }

    fn lba(&self, unit: usize, index: usize) -> u64 {
        self.first_block + (unit * self.blocks_per_unit + index) as u64
    }
}

/// A stale block beside right ones of the same I/O is half of a write.
fn or_torn(fault: Fault, others_are_right: bool) -> Fault {
    match fault {
        Fault::Stale(stamp) if others_are_right => Fault::Torn(stamp),
        other => other,
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}: {}; expected ", self.lba, self.fault)?;
        if self.fault == Fault::NotZeroes {
            write!(f, "zeroes")?;
        } else if self.oldest_expected == self.newest_expected {
            write!(f, "generation {}", self.newest_expected)?;
        } else {
            write!(
                f,
                "a generation from {} to {}",
                self.oldest_expected, self.newest_expected
            )?;
        }
        write!(
            f,
            " (written at {:?}, read from {:?} to {:?}; {} of {} blocks of this I/O are wrong)",
            self.written_at,
            self.read_submitted_at,
            self.read_answered_at,
            self.wrong_blocks,
            self.blocks
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale(stamp) => write!(f, "lost write, it holds {stamp}"),
            Self::Torn(stamp) => write!(f, "torn write, it holds {stamp}"),
            Self::Misplaced(stamp) => {
                write!(
                    f,
                    "misplaced write, it holds {stamp} of block {}",
                    stamp.lba
                )
            }
            Self::Foreign(stamp) => {
                write!(
                    f,
                    "it holds {stamp} of block {} of another run or job",
                    stamp.lba
                )
            }
            Self::Impossible(stamp) => write!(f, "it holds {stamp}, which was never written"),
            Self::Damaged { stamp, offset } => {
                write!(
                    f,
                    "it holds {stamp}, with wrong bytes from byte {offset} on"
                )
            }
            Self::Zeroes => write!(f, "lost write, it holds zeroes"),
            Self::NotZeroes => write!(f, "lost write, it holds data"),
            Self::Unknown => write!(f, "it holds bytes that were never written"),
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "generation {} (written at {:?})",
            self.generation, self.written_at
        )
    }
}

#[cfg(test)]
mod tests;
