//! A table whose keys never reach what took the place of what they named.

/// Index and generation.
pub(super) type Place = (u32, u32);

/// Values by index and generation; freed indexes are taken again.
#[derive(Debug)]
pub(super) struct Table<T> {
    entries: Vec<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
        }
    }
}

impl<T> Table<T> {
    pub(super) fn insert(&mut self, value: T) -> Place {
        let free = self.entries.iter().position(|entry| entry.value.is_none());
        let index = free.unwrap_or(self.entries.len());
        if index == self.entries.len() {
            self.entries.push(Entry {
                generation: 0,
                value: None,
            });
        }
        let entry = &mut self.entries[index];
        entry.generation = entry.generation.wrapping_add(1);
        entry.value = Some(value);
        let index = u32::try_from(index).expect("connection limits keep tables small");
        (index, entry.generation)
    }

    pub(super) fn remove(&mut self, place: Place) -> Option<T> {
        self.entry_mut(place)?.value.take()
    }

    pub(super) fn get(&self, (index, generation): Place) -> Option<&T> {
        let entry = self.entries.get(usize::try_from(index).ok()?)?;
        if entry.generation != generation {
            return None;
        }
        entry.value.as_ref()
    }

    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        self.entry_mut(place)?.value.as_mut()
    }

    fn entry_mut(&mut self, (index, generation): Place) -> Option<&mut Entry<T>> {
        let entry = self.entries.get_mut(usize::try_from(index).ok()?)?;
        (entry.generation == generation).then_some(entry)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Place, &T)> {
        (0_u32..).zip(&self.entries).filter_map(|(index, entry)| {
            let value = entry.value.as_ref()?;
            Some(((index, entry.generation), value))
        })
    }
}
