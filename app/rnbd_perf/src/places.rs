use fastrand::Rng;

/// Chooses the units that I/O goes to.
///
/// While I/O is verified, no unit is used by two I/Os at a time: what such a unit must hold would
/// be unknown.
#[derive(Debug)]
pub(crate) struct Places {
    units: u64,
    cursor: u64,
    is_random: bool,
    /// A bit per unit; empty if units may be used twice.
    in_use: Vec<u64>,
}

impl Places {
    /// Over `units` units; `exclusive` ones are not given out twice.
    pub(crate) fn new(units: u64, is_random: bool, exclusive: bool) -> Self {
        let words = if exclusive { units.div_ceil(64) } else { 0 };
        Self {
            units,
            cursor: 0,
            is_random,
            in_use: vec![0; usize::try_from(words).unwrap_or(usize::MAX)],
        }
    }

    /// A unit for the next I/O; `None` if too many are in use.
    pub(crate) fn take(&mut self, rng: &mut Rng) -> Option<u64> {
        if self.is_random {
            self.cursor = rng.u64(..self.units);
        }
        // At most as many as are in flight lie in the way, so this ends soon.
        for _ in 0..self.units {
            let unit = self.cursor;
            self.cursor = (unit + 1) % self.units;
            if self.take_this(unit) {
                return Some(unit);
            }
        }
        None
    }

    /// Whether `unit` was free; it is in use now.
    pub(crate) fn take_this(&mut self, unit: u64) -> bool {
        let Some((word, bit)) = self.bit(unit) else {
            return true;
        };
        let was_free = *word & bit == 0;
        *word |= bit;
        was_free
    }

    /// The I/O of `unit` has ended.
    pub(crate) fn give_back(&mut self, unit: u64) {
        if let Some((word, bit)) = self.bit(unit) {
            *word &= !bit;
        }
    }

    fn bit(&mut self, unit: u64) -> Option<(&mut u64, u64)> {
        let word = self.in_use.get_mut(usize::try_from(unit / 64).ok()?)?;
        Some((word, 1 << (unit % 64)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn exclusive_units_are_given_out_once_until_they_come_back() {
        for is_random in [false, true] {
            let mut places = Places::new(70, is_random, true);
            let mut rng = Rng::with_seed(1);
            let taken: HashSet<u64> = (0..70).filter_map(|_| places.take(&mut rng)).collect();
            assert_eq!(taken.len(), 70);
            assert_eq!(places.take(&mut rng), None);
            places.give_back(69);
            assert_eq!(places.take(&mut rng), Some(69));
        }
    }

    #[test]
    fn a_sequence_begins_again_at_its_end() {
        let mut places = Places::new(3, false, false);
        let mut rng = Rng::with_seed(1);
        let taken: Vec<_> = (0..5).filter_map(|_| places.take(&mut rng)).collect();
        assert_eq!(taken, [0, 1, 2, 0, 1]);
    }

    #[test]
    fn the_same_seed_gives_the_same_places() {
        let places = |seed| {
            let (mut places, mut rng) = (Places::new(1000, true, false), Rng::with_seed(seed));
            (0..100)
                .filter_map(|_| places.take(&mut rng))
                .collect::<Vec<_>>()
        };
        assert_eq!(places(5), places(5));
        assert_ne!(places(5), places(6));
    }
}
