use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::str::FromStr;

/// The highest CPU number a mask can name; the kernel's `cpu_set_t` ends there.
const CORE_MAX: u32 = 1023;

/// A set of CPU numbers, never empty. Written as SPDK writes it: a hexadecimal mask (`0x3`, or
/// `3`) or a list (`[0,1,4-7]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreMask {
    cores: BTreeSet<u32>,
}

/// Why a text is no [`CoreMask`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoreMaskError {
    /// No core is named.
    #[error("CPU mask '{0}' names no core")]
    Empty(String),
    /// Neither a hexadecimal mask nor a list.
    #[error(
        "CPU mask '{0}' is neither a hexadecimal mask such as 0x3 nor a list such as [0,1,4-7]"
    )]
    Malformed(String),
    /// A core number, or a bit of a mask, beyond what the kernel can name.
    #[error("CPU mask '{0}' names a core above {CORE_MAX}")]
    TooLarge(String),
}

/// Cores were asked for that this process may not run on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} not available to this process, which may run on {}", cores(absent), list(present.cores()))]
pub struct AbsentCores {
    /// The cores that are missing, in order.
    pub absent: Vec<u32>,
    /// Those that `sched_getaffinity` allows.
    pub present: CoreMask,
}

impl CoreMask {
    /// The mask of one core.
    #[must_use]
    pub fn single(core: u32) -> Self {
        Self {
            cores: BTreeSet::from([core]),
        }
    }

    /// The cores that the calling thread may run on.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn available() -> io::Result<Self> {
        let cores: BTreeSet<u32> = core_affinity::get_core_ids()
            .unwrap_or_default()
            .into_iter()
            .filter_map(|core| u32::try_from(core.id).ok())
            .collect();
        if cores.is_empty() {
            return Err(io::Error::other("the kernel did not tell the CPU affinity"));
        }
        Ok(Self { cores })
    }

    /// Checks that every core of the mask is among `present`.
    ///
    /// # Errors
    /// [`AbsentCores`] names those that are missing and those that are there.
    pub fn check_within(&self, present: &Self) -> Result<(), AbsentCores> {
        let absent: Vec<u32> = self.cores.difference(&present.cores).copied().collect();
        if absent.is_empty() {
            return Ok(());
        }
        let present = present.clone();
        Err(AbsentCores { absent, present })
    }

    /// The cores, ascending.
    pub fn cores(&self) -> impl Iterator<Item = u32> + '_ {
        self.cores.iter().copied()
    }

    /// How many cores; at least one.
    #[expect(clippy::len_without_is_empty, reason = "a mask is never empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.cores.len()
    }

    /// Whether `core` is in the mask.
    #[must_use]
    pub fn contains(&self, core: u32) -> bool {
        self.cores.contains(&core)
    }

    /// The mask in hexadecimal without `0x`, as SPDK's `cpumask` members have it.
    #[must_use]
    pub fn to_hex(&self) -> String {
        let digits = self.cores.last().map_or(0, |last| last / 4);
        (0..=digits)
            .rev()
            .map(|digit| format!("{:x}", self.nibble(digit)))
            .collect()
    }

    fn nibble(&self, digit: u32) -> u32 {
        (0..4)
            .filter(|bit| self.contains(digit * 4 + bit))
            .map(|bit| 1 << bit)
            .sum()
    }
}

impl FromStr for CoreMask {
    type Err = CoreMaskError;

    fn from_str(text: &str) -> Result<Self, CoreMaskError> {
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        let cores = match inner {
            Some(list) => parse_list(list, text)?,
            None => parse_hex(text)?,
        };
        if cores.is_empty() {
            return Err(CoreMaskError::Empty(text.into()));
        }
        if cores.last() > Some(&CORE_MAX) {
            return Err(CoreMaskError::TooLarge(text.into()));
        }
        Ok(Self { cores })
    }
}

fn parse_hex(text: &str) -> Result<BTreeSet<u32>, CoreMaskError> {
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))
        .unwrap_or(text);
    if digits.is_empty() {
        return Err(CoreMaskError::Malformed(text.into()));
    }
    let mut cores = BTreeSet::new();
    for (digit, symbol) in (0u32..).zip(digits.chars().rev()) {
        let value = symbol
            .to_digit(16)
            .ok_or_else(|| CoreMaskError::Malformed(text.into()))?;
        cores.extend(
            (0..4)
                .filter(|bit| value & (1 << bit) != 0)
                .map(|bit| digit * 4 + bit),
        );
    }
    Ok(cores)
}

fn parse_list(list: &str, text: &str) -> Result<BTreeSet<u32>, CoreMaskError> {
    let malformed = || CoreMaskError::Malformed(text.into());
    let number = |part: &str| part.trim().parse::<u32>().map_err(|_| malformed());
    let mut cores = BTreeSet::new();
    for item in list.split(',').filter(|_| !list.trim().is_empty()) {
        let (first, last) = match item.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(item)?, number(item)?),
        };
        if first > last {
            return Err(malformed());
        }
        if last > CORE_MAX {
            return Err(CoreMaskError::TooLarge(text.into()));
        }
        cores.extend(first..=last);
    }
    Ok(cores)
}

impl fmt::Display for CoreMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", self.to_hex())
    }
}

fn cores(absent: &[u32]) -> String {
    let numbers = list(absent.iter().copied());
    match absent {
        [_] => format!("core {numbers} is"),
        _ => format!("cores {numbers} are"),
    }
}

/// `0,1,4-7`.
fn list(cores: impl Iterator<Item = u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for core in cores {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => ranges.push((core, core)),
        }
    }
    let texts: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| match last - first {
            0 => first.to_string(),
            _ => format!("{first}-{last}"),
        })
        .collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Vec<u32> {
        text.parse::<CoreMask>().unwrap().cores().collect()
    }

    #[test]
    fn masks_and_lists_name_the_same_cores() {
        assert_eq!(parsed("0x3"), [0, 1]);
        assert_eq!(parsed("f0"), [4, 5, 6, 7]);
        assert_eq!(parsed("0X8000000000000001"), [0, 63]);
        assert_eq!(parsed("[0,1,4-7]"), [0, 1, 4, 5, 6, 7]);
        assert_eq!(parsed("[ 3 - 4 , 3 ]"), [3, 4]);
    }

    #[test]
    fn texts_that_are_no_mask_are_refused_by_kind() {
        let error = |text: &str| text.parse::<CoreMask>().unwrap_err();
        for empty in ["0", "0x0", "[]", "[ ]"] {
            assert_eq!(error(empty), CoreMaskError::Empty(empty.into()));
        }
        for malformed in ["", "0x", "0xg", "1,2", "[1", "[1,]", "[2-1]", "[-1]", "[a]"] {
            assert_eq!(error(malformed), CoreMaskError::Malformed(malformed.into()));
        }
        let wide = format!("1{}", "0".repeat(256));
        for large in ["[1024]", "[0-4294967295]", wide.as_str()] {
            assert_eq!(error(large), CoreMaskError::TooLarge(large.into()));
        }
    }

    #[test]
    fn an_absent_core_is_named_with_those_present() {
        let mask: CoreMask = "[1022-1023]".parse().unwrap();
        let present: CoreMask = "[0-2,4]".parse().unwrap();
        let error = mask.check_within(&present).unwrap_err();
        assert_eq!(error.absent, [1022, 1023]);
        assert_eq!(
            error.to_string(),
            "cores 1022-1023 are not available to this process, which may run on 0-2,4"
        );
        assert_eq!(CoreMask::single(4).check_within(&present), Ok(()));
    }

    proptest! {
        #[test]
        fn every_mask_reads_back_from_both_spellings(
            cores in proptest::collection::btree_set(0u32..=CORE_MAX, 1..40)
        ) {
            let mask = CoreMask { cores };
            prop_assert_eq!(&mask.to_string().parse::<CoreMask>().unwrap(), &mask);
            let list = format!("[{}]", list(mask.cores()));
            prop_assert_eq!(list.parse::<CoreMask>().unwrap(), mask);
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<CoreMask>();
        }
    }
}
