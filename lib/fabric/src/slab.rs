//! Tables whose entries are reached by an index and a generation, for those who write a fabric.

use std::collections::VecDeque;

/// A table of `T`. An entry's generation changes each time its slot is taken, so an old handle
/// reaches nothing.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: VecDeque<u32>,
    limit: u32,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// The table is full.
#[derive(Debug)]
pub struct Full;

impl<T> Slab<T> {
    /// An empty table of at most `limit` entries.
    pub fn new(limit: u32) -> Self {
        Self {
            slots: Vec::new(),
            free: VecDeque::new(),
            limit,
        }
    }

    /// Adds what `make` makes from the index and generation it will have. The slot that has been
    /// free for longest is taken.
    ///
    /// # Errors
    /// [`Full`].
    pub fn insert(&mut self, make: impl FnOnce(u32, u32) -> T) -> Result<(u32, u32), Full> {
        let index = match self.free.pop_front() {
            Some(index) => index,
            None => self.grow()?,
        };
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.value = Some(make(index, slot.generation));
        Ok((index, slot.generation))
    }

    fn grow(&mut self) -> Result<u32, Full> {
        let index = u32::try_from(self.slots.len()).map_err(|_| Full)?;
        if index >= self.limit {
            return Err(Full);
        }
        self.slots.push(Slot {
            generation: 0,
            value: None,
        });
        Ok(index)
    }

    /// The entry, if the slot has not been taken anew since.
    pub fn get(&self, index: u32, generation: u32) -> Option<&T> {
        let slot = self.slots.get(index as usize)?;
        slot.value
            .as_ref()
            .filter(|_| slot.generation == generation)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, index: u32, generation: u32) -> Option<&mut T> {
        let slot = self.slots.get_mut(index as usize)?;
        slot.value
            .as_mut()
            .filter(|_| slot.generation == generation)
    }

    /// The entry in the slot, whatever its generation.
    pub fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.value.as_mut()
    }

    /// Takes the entry out and frees its slot.
    pub fn remove(&mut self, index: u32, generation: u32) -> Option<T> {
        self.get(index, generation)?;
        self.free.push_back(index);
        self.slots[index as usize].value.take()
    }

    /// The indices of all slots, free ones included.
    pub fn indices(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.slots.len()).expect("indices are 32-bit")
    }

    /// All entries with their index and generation.
    pub fn iter(&self) -> impl Iterator<Item = ((u32, u32), &T)> {
        let slots = (0_u32..).zip(&self.slots);
        slots.filter_map(|(index, slot)| Some(((index, slot.generation), slot.value.as_ref()?)))
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = ((u32, u32), &mut T)> {
        let slots = (0_u32..).zip(&mut self.slots);
        slots.filter_map(|(index, slot)| Some(((index, slot.generation), slot.value.as_mut()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_handle_reaches_nothing() {
        let mut slab = Slab::new(1);
        let (index, old) = slab.insert(|_, _| 'a').unwrap();
        assert!(slab.insert(|_, _| 'b').is_err());
        assert_eq!(slab.remove(index, old), Some('a'));
        let (again, new) = slab.insert(|_, _| 'b').unwrap();
        assert_eq!(again, index);
        assert!(slab.get(index, old).is_none() && slab.remove(index, old).is_none());
        assert_eq!(slab.get(index, new), Some(&'b'));
    }
}
