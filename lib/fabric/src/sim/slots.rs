//! Tables whose entries are reached by an index and a generation.

/// A table of `T`; the generation of a slot changes each time it is taken.
#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<(u32, Option<T>)>,
}

impl<T> Slots<T> {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new() }
    }

    /// Adds a value in the first free slot.
    pub(super) fn insert(&mut self, value: T) -> (u32, u32) {
        let free = self.slots.iter().position(|(_, entry)| entry.is_none());
        let at = free.unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() - 1
        });
        let slot = &mut self.slots[at];
        *slot = (slot.0 + 1, Some(value));
        (u32::try_from(at).expect("far fewer"), slot.0)
    }

    pub(super) fn get(&self, index: u32, generation: u32) -> Option<&T> {
        let (current, value) = self.slots.get(index as usize)?;
        value.as_ref().filter(|_| *current == generation)
    }

    pub(super) fn get_mut(&mut self, index: u32, generation: u32) -> Option<&mut T> {
        let (current, value) = self.slots.get_mut(index as usize)?;
        value.as_mut().filter(|_| *current == generation)
    }

    pub(super) fn remove(&mut self, index: u32, generation: u32) -> Option<T> {
        self.get(index, generation)?;
        self.slots[index as usize].1.take()
    }

    /// Entries with their index and generation, in the order of their slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = ((u32, u32), &T)> {
        (0_u32..)
            .zip(&self.slots)
            .filter_map(|(index, (generation, value))| {
                Some(((index, *generation), value.as_ref()?))
            })
    }
}
