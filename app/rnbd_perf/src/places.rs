use std::convert::Infallible;

use fastrand::Rng;
use rand::TryRng;
use rand_distr::{Distribution, Zipf};

/// In which order a job goes over its units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Order {
    /// One after the other.
    Sequential,
    /// At random, each as likely as any other.
    Uniform,
    /// At random, the first ones more often: the `n`th as often as `1 / n^theta`.
    Zipf(f64),
    /// At random, none again before all others.
    EachOnce,
}

/// Chooses the units that I/O goes to.
///
/// While I/O is verified, no unit is used by two I/Os at a time: what such a unit must hold would
/// be unknown.
#[derive(Debug)]
pub(crate) struct Places {
    units: u64,
    cursor: u64,
    order: Order,
    zipf: Option<Zipf<f64>>,
    /// Empty if units may be used twice.
    in_use: Bitmap,
    /// Empty if units may be visited again at once.
    visited: Bitmap,
    visited_count: u64,
}

impl Places {
    /// Over `units` units; `exclusive` ones are not given out twice.
    pub(crate) fn new(units: u64, order: Order, exclusive: bool) -> Self {
        let zipf = match order {
            Order::Zipf(theta) => Zipf::new(units as f64, theta).ok(),
            _ => None,
        };
        Self {
            units,
            cursor: 0,
            order,
            zipf,
            in_use: Bitmap::of(units, exclusive),
            visited: Bitmap::of(units, order == Order::EachOnce),
            visited_count: 0,
        }
    }

    /// A unit for the next I/O; `None` if too many are in use.
    pub(crate) fn take(&mut self, rng: &mut Rng) -> Option<u64> {
        if self.visited_count == self.units {
            self.visited.clear();
            self.visited_count = 0;
        }
        let start = self.start(rng);
        let unit = self.first_free_from(start)?;
        self.cursor = (unit + 1) % self.units;
        self.in_use.set(unit);
        self.visit(unit);
        Some(unit)
    }

    /// Whether `unit` was free; it is in use now.
    pub(crate) fn take_this(&mut self, unit: u64) -> bool {
        self.in_use.set(unit)
    }

    /// The I/O of `unit` has ended.
    pub(crate) fn give_back(&mut self, unit: u64) {
        self.in_use.unset(unit);
    }

    fn start(&mut self, rng: &mut Rng) -> u64 {
        match (&self.zipf, self.order) {
            (_, Order::Sequential) => self.cursor,
            (Some(zipf), _) => {
                let nth = whole_number(zipf.sample(&mut Words(rng)));
                nth.clamp(1, self.units) - 1
            }
            (None, _) => rng.u64(..self.units),
        }
    }

    fn visit(&mut self, unit: u64) {
        if self.order == Order::EachOnce {
            self.visited.set(unit);
            self.visited_count += 1;
        }
    }

    /// The first unit, from `start` on and around, that neither bitmap excludes.
    fn first_free_from(&self, start: u64) -> Option<u64> {
        if self.in_use.is_empty() && self.visited.is_empty() {
            return Some(start);
        }
        let words = self.units.div_ceil(64);
        let first = start / 64;
        // The first word is looked at twice: from `start` on, and in the end all of it.
        (0..=words).find_map(|step| {
            let word = (first + step) % words;
            let mut free = !(self.in_use.word(word) | self.visited.word(word));
            if step == 0 {
                free &= u64::MAX << (start % 64);
            }
            let unit = word * 64 + u64::from(free.trailing_zeros());
            (free != 0 && unit < self.units).then_some(unit)
        })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the distribution gives whole numbers from 1 to the number of units"
)]
fn whole_number(sample: f64) -> u64 {
    sample as u64
}

/// A bit per unit, or none at all.
#[derive(Debug)]
struct Bitmap(Vec<u64>);

impl Bitmap {
    /// With room for `units`, or empty if it is not `wanted`.
    fn of(units: u64, wanted: bool) -> Self {
        let words = if wanted { units.div_ceil(64) } else { 0 };
        Self(vec![0; usize::try_from(words).unwrap_or(usize::MAX)])
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn word(&self, index: u64) -> u64 {
        let index = usize::try_from(index).ok();
        index
            .and_then(|index| self.0.get(index))
            .copied()
            .unwrap_or(0)
    }

    /// Whether the bit was not set; in an empty one no bit ever is.
    fn set(&mut self, unit: u64) -> bool {
        let Some((word, bit)) = self.bit(unit) else {
            return true;
        };
        let was_unset = *word & bit == 0;
        *word |= bit;
        was_unset
    }

    fn unset(&mut self, unit: u64) {
        if let Some((word, bit)) = self.bit(unit) {
            *word &= !bit;
        }
    }

    fn clear(&mut self) {
        self.0.fill(0);
    }

    fn bit(&mut self, unit: u64) -> Option<(&mut u64, u64)> {
        let word = self.0.get_mut(usize::try_from(unit / 64).ok()?)?;
        Some((word, 1 << (unit % 64)))
    }
}

/// The job's random numbers as distributions take them.
struct Words<'a>(&'a mut Rng);

impl TryRng for Words<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.0.u32(..))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.u64(..))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The next `count` units that are given out with seed 1.
    fn take(places: &mut Places, count: usize) -> Vec<u64> {
        let mut rng = Rng::with_seed(1);
        (0..count).filter_map(|_| places.take(&mut rng)).collect()
    }

    #[test]
    fn exclusive_units_are_given_out_once_until_they_come_back() {
        for order in [
            Order::Sequential,
            Order::Uniform,
            Order::Zipf(1.2),
            Order::EachOnce,
        ] {
            let mut places = Places::new(70, order, true);
            let taken: HashSet<u64> = take(&mut places, 70).into_iter().collect();
            assert_eq!(taken.len(), 70, "{order:?}");
            assert!(take(&mut places, 1).is_empty(), "{order:?}");
            places.give_back(69);
            assert_eq!(take(&mut places, 1), [69], "{order:?}");
        }
    }

    #[test]
    fn a_sequence_begins_again_at_its_end() {
        let mut places = Places::new(3, Order::Sequential, false);
        assert_eq!(take(&mut places, 5), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn with_each_once_no_unit_comes_again_before_all_others() {
        let mut places = Places::new(1000, Order::EachOnce, false);
        for _ in 0..3 {
            let pass: HashSet<u64> = take(&mut places, 1000).into_iter().collect();
            assert_eq!(pass.len(), 1000);
        }
    }

    #[test]
    fn zipf_prefers_the_first_units_as_much_as_theta_says() {
        let share_of_first = |theta| {
            let mut places = Places::new(1000, Order::Zipf(theta), false);
            let taken = take(&mut places, 10_000);
            assert!(taken.iter().all(|&unit| unit < 1000));
            taken.iter().filter(|&&unit| unit == 0).count()
        };
        // 1 / H(1000, theta): 13.4 % for 1.0, 62.5 % for 2.0 less a little.
        assert!((1200..1480).contains(&share_of_first(1.0)));
        assert!((5800..6400).contains(&share_of_first(2.0)));
        assert!(share_of_first(0.0) < 30);
    }

    #[test]
    fn the_same_seed_gives_the_same_places() {
        for order in [Order::Uniform, Order::Zipf(0.9), Order::EachOnce] {
            let places = |seed| {
                let (mut places, mut rng) = (Places::new(1000, order, false), Rng::with_seed(seed));
                (0..100)
                    .filter_map(|_| places.take(&mut rng))
                    .collect::<Vec<_>>()
            };
            assert_eq!(places(5), places(5));
            assert_ne!(places(5), places(6));
        }
    }
}
