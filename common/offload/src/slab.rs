//! Entries with an index. They may move when the set grows; what is on the heap behind them stays.

/// A growing set of entries that are used again and again. The entry given back last is taken first, while it is still
/// in the cache.
#[derive(Debug)]
pub struct Slab<T> {
    entries: Vec<T>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T: Default> Slab<T> {
    /// Index of an entry nobody uses; whatever its last user left is still in it.
    #[inline]
    pub fn take(&mut self) -> u32 {
        match self.free.pop() {
            Some(index) => index,
            None => {
                self.entries.push(T::default());
                (self.entries.len() - 1) as u32
            }
        }
    }

    /// Ends the use of an entry.
    #[inline]
    pub fn give(&mut self, index: u32) {
        debug_assert!(!self.free.contains(&index), "given back twice");
        self.free.push(index);
    }

    /// The entry that [`take`](Self::take) gave.
    ///
    /// # Panics
    ///
    /// When it gave no such index.
    #[inline]
    pub fn at(&mut self, index: u32) -> &mut T {
        &mut self.entries[index as usize]
    }

    /// The entry at `index`, if there ever was one.
    #[inline]
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.entries.get_mut(index as usize)
    }

    /// Entries in use.
    pub fn used(&self) -> usize {
        self.entries.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_given_back_last_is_taken_first() {
        let mut slab = Slab::<u64>::default();
        let (a, b) = (slab.take(), slab.take());
        assert_eq!((a, b, slab.used()), (0, 1, 2));
        slab.give(a);
        slab.give(b);
        assert_eq!((slab.take(), slab.used()), (b, 1));
        assert!(slab.get_mut(2).is_none());
    }
}
