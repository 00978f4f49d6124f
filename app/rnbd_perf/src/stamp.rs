//! What a verified write leaves in each block: who wrote it, where it belongs, which write it was.
//!
//! ```text
//!   0       8       16      24         32          40        48                 block size
//!   | magic | run   | LBA   | generation | written | check | filler, grown from the check |
//! ```
//!
//! All words are little-endian. Every byte of a block is a function of the first five words, so
//! that damage anywhere is found, and what else is found says where it came from.

use rnbd_base::Nanos;

/// Bytes before the filler.
pub(crate) const STAMP_BYTES: usize = 48;

const MAGIC: u64 = u64::from_le_bytes(*b"rnbdperf");
const WORD: usize = size_of::<u64>();

/// The identity of one written block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Which run, and which of its jobs, wrote it.
    pub(crate) run: u64,
    /// Where it belongs.
    pub(crate) lba: u64,
    /// The how manieth write of this place it was, from 1.
    pub(crate) generation: u32,
    /// When the write was submitted, since the start of the run.
    pub(crate) written_at: Nanos,
}

/// What a block turned out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A block as it was written, wherever and whenever.
    Stamped(Stamp),
    /// The start of one write, with damage from byte `offset` on.
    Damaged { stamp: Stamp, offset: usize },
    /// Nothing but zeroes.
    Zeroes,
    /// Bytes that no run wrote, or a damaged stamp.
    Unknown,
}

impl Stamp {
    /// Fills `block`, which is a whole number of words and longer than a stamp.
    pub(crate) fn fill(&self, block: &mut [u8]) {
        let (header, filler) = block.split_at_mut(STAMP_BYTES);
        let words = self.words();
        put_words(header, words.into_iter());
        put_words(filler, self.filler());
    }

    /// What `block` holds.
    pub(crate) fn read(block: &[u8]) -> Content {
        let (header, filler) = block.split_at(STAMP_BYTES);
        let (words, _) = header.as_chunks::<WORD>();
        let word = |index: usize| u64::from_le_bytes(words[index]);
        let stamp = Self {
            run: word(1),
            lba: word(2),
            generation: u32::try_from(word(3)).unwrap_or(0),
            written_at: Nanos(word(4)),
        };
        let intact = stamp.words().into_iter().enumerate();
        if !intact
            .into_iter()
            .all(|(index, expected)| word(index) == expected)
        {
            let is_zeroed = block.iter().all(|&byte| byte == 0);
            return if is_zeroed {
                Content::Zeroes
            } else {
                Content::Unknown
            };
        }
        match first_difference(filler, stamp.filler()) {
            None => Content::Stamped(stamp),
            Some(offset) => Content::Damaged {
                stamp,
                offset: STAMP_BYTES + offset,
            },
        }
    }

    fn words(&self) -> [u64; STAMP_BYTES / WORD] {
        let generation = u64::from(self.generation);
        let written_at = self.written_at.0;
        let identity = [MAGIC, self.run, self.lba, generation, written_at];
        let check = identity
            .into_iter()
            .fold(0, |check, word| mix(check ^ word));
        [MAGIC, self.run, self.lba, generation, written_at, check]
    }

    fn filler(&self) -> impl Iterator<Item = u64> + use<> {
        let [.., check] = self.words();
        (1_u64..).map(move |index| (check ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// Spreads every bit over the word (the finalizer of SplitMix64).
pub(crate) fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

fn put_words(bytes: &mut [u8], words: impl Iterator<Item = u64>) {
    let (chunks, _) = bytes.as_chunks_mut::<WORD>();
    for (chunk, word) in chunks.iter_mut().zip(words) {
        *chunk = word.to_le_bytes();
    }
}

/// The first byte of `bytes` that is not as in `words`.
fn first_difference(bytes: &[u8], words: impl Iterator<Item = u64>) -> Option<usize> {
    let (chunks, _) = bytes.as_chunks::<WORD>();
    let mut pairs = chunks.iter().zip(words).enumerate();
    let (index, (found, expected)) =
        pairs.find(|(_, (found, expected))| u64::from_le_bytes(**found) != *expected)?;
    let expected = expected.to_le_bytes();
    let byte = (0..WORD).find(|&byte| found[byte] != expected[byte]);
    Some(index * WORD + byte.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamp() -> impl Strategy<Value = Stamp> {
        (any::<u64>(), any::<u64>(), any::<u32>(), any::<u64>()).prop_map(
            |(run, lba, generation, written_at)| Stamp {
                run,
                lba,
                generation,
                written_at: Nanos(written_at),
            },
        )
    }

    proptest! {
        #[test]
        fn a_block_says_what_was_written(stamp in stamp(), size in prop::sample::select(vec![512, 4096])) {
            let mut block = vec![0; size];
            stamp.fill(&mut block);
            prop_assert_eq!(Stamp::read(&block), Content::Stamped(stamp));
        }

        #[test]
        fn one_changed_bit_anywhere_is_found(stamp in stamp(), at in 0..512_usize, bit in 0..8_u8) {
            let mut block = [0; 512];
            stamp.fill(&mut block);
            block[at] ^= 1 << bit;
            let expected = if at < STAMP_BYTES {
                Content::Unknown
            } else {
                Content::Damaged { stamp, offset: at }
            };
            prop_assert_eq!(Stamp::read(&block), expected);
        }

        #[test]
        fn a_block_torn_between_two_writes_is_found(a in stamp(), b in stamp(), cut in 1..512_usize) {
            let (mut first, mut second) = ([0; 512], [0; 512]);
            a.fill(&mut first);
            b.fill(&mut second);
            prop_assume!(first[..cut] != second[..cut] && first[cut..] != second[cut..]);
            first[cut..].copy_from_slice(&second[cut..]);
            prop_assert!(!matches!(Stamp::read(&first), Content::Stamped(_)));
        }
    }

    #[test]
    fn zeroes_are_told_from_foreign_bytes() {
        assert_eq!(Stamp::read(&[0; 512]), Content::Zeroes);
        assert_eq!(Stamp::read(&[7; 512]), Content::Unknown);
    }
}
