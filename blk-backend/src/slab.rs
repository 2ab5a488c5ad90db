//! Entries with an index and an address that stay while they are in use.

/// Entries are made this many at a time, when the queue is first that deep.
const CHUNK: usize = 32;

/// A growing set of entries that never move: the kernel holds pointers into those in use. The entry given back
/// last is taken first, while it is still in the cache.
#[derive(Debug, Default)]
pub struct Slab<T> {
    chunks: Vec<Box<[T; CHUNK]>>,
    free: Vec<u16>,
}

impl<T: Default> Slab<T> {
    /// Index of an entry nobody uses; whatever its last user left is still in it.
    #[inline]
    pub fn take(&mut self) -> u16 {
        match self.free.pop() {
            Some(index) => index,
            None => self.grow(),
        }
    }

    #[cold]
    fn grow(&mut self) -> u16 {
        let first = self.chunks.len() * CHUNK;
        // A queue has at most 32,768 chains in flight.
        debug_assert!(first + CHUNK <= 1 << 16);
        self.chunks.push(Box::new(std::array::from_fn(|_| T::default())));
        self.free.extend((first + 1..first + CHUNK).rev().map(|index| index as u16));
        first as u16
    }

    /// Ends the use of an entry.
    #[inline]
    pub fn give(&mut self, index: u16) {
        debug_assert!(!self.free.contains(&index), "given back twice");
        self.free.push(index);
    }

    /// The entry at `index`, if there ever was one.
    #[inline]
    pub fn get_mut(&mut self, index: u16) -> Option<&mut T> {
        self.chunks.get_mut(usize::from(index) / CHUNK).map(|chunk| &mut chunk[usize::from(index) % CHUNK])
    }

    /// Reads the entry at `index`, if there ever was one.
    pub fn get(&self, index: u16) -> Option<&T> {
        self.chunks.get(usize::from(index) / CHUNK).map(|chunk| &chunk[usize::from(index) % CHUNK])
    }

    /// All entries, used or not.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &T)> {
        let entries = self.chunks.iter().flat_map(|chunk| chunk.iter());
        entries.enumerate().map(|(index, entry)| (index as u16, entry))
    }

    /// Entries in use.
    pub fn used(&self) -> usize {
        self.chunks.len() * CHUNK - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stay_where_they_are_when_the_slab_grows() {
        let mut slab = Slab::<u64>::default();
        let first = slab.take();
        let address = std::ptr::from_ref(slab.get_mut(first).unwrap());
        let more: Vec<u16> = (0..1000).map(|_| slab.take()).collect();
        assert_eq!(std::ptr::from_ref(slab.get_mut(first).unwrap()), address);
        assert_eq!(slab.used(), 1001);
        let mut all: Vec<u16> = more.into_iter().chain([first]).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 1001, "each index is given once");
    }

    #[test]
    fn the_entry_given_back_last_is_taken_first() {
        let mut slab = Slab::<u64>::default();
        let (a, b) = (slab.take(), slab.take());
        slab.give(a);
        slab.give(b);
        assert_eq!(slab.take(), b);
        assert_eq!(slab.used(), 1);
        assert!(slab.get_mut(60000).is_none());
    }
}
