//! Free slots, as runs: found by their length, and joined when their neighbours are free too. A guest that closes every other
//! session makes many, and must not make others wait while they are looked through.

use std::collections::{BTreeMap, BTreeSet};

/// Runs of free slots, no two of which touch.
#[derive(Default, Debug, PartialEq, Eq)]
pub(super) struct Holes {
    /// Lengths by first slot.
    by_start: BTreeMap<usize, usize>,
    /// The same, shortest first.
    by_len: BTreeSet<(usize, usize)>,
}

impl Holes {
    /// The first of so many slots, of the shortest run that has them.
    pub fn take(&mut self, slots: usize) -> Option<usize> {
        let &(len, start) = self.by_len.range((slots, 0)..).next()?;
        self.remove(start, len);
        if len > slots {
            self.insert(start + slots, len - slots);
        }
        Some(start)
    }

    /// The first slot of the run that ends before `end`.
    pub fn take_before(&mut self, end: usize) -> Option<usize> {
        let (&start, &len) = self.by_start.range(..end).next_back()?;
        (start + len == end).then(|| {
            self.remove(start, len);
            start
        })
    }

    /// So many slots are free.
    pub fn give(&mut self, start: usize, slots: usize) {
        let (mut first, mut end) = (start, start + slots);
        if let Some(before) = self.take_before(start) {
            first = before;
        }
        if let Some(&len) = self.by_start.get(&end) {
            self.remove(end, len);
            end += len;
        }
        self.insert(first, end - first);
    }

    fn insert(&mut self, start: usize, len: usize) {
        self.by_start.insert(start, len);
        self.by_len.insert((len, start));
    }

    fn remove(&mut self, start: usize, len: usize) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_given_back_joins_its_neighbours() {
        let mut holes = Holes::default();
        for start in [0, 4, 2, 6, 1, 5, 3] {
            holes.give(start, 1);
        }
        assert_eq!((holes.take(7), &holes), (Some(0), &Holes::default()));
    }

    #[test]
    fn the_shortest_run_that_fits_is_taken() {
        let mut holes = Holes::default();
        holes.give(0, 5);
        holes.give(10, 2);
        holes.give(20, 3);
        assert_eq!(
            [holes.take(2), holes.take(3), holes.take(6), holes.take(5)],
            [Some(10), Some(20), None, Some(0)]
        );
    }

    #[test]
    fn only_a_run_at_the_end_is_cut_off() {
        let mut holes = Holes::default();
        holes.give(3, 2);
        assert_eq!((holes.take_before(9), holes.take_before(5), holes.take_before(5)), (None, Some(3), None));
    }

    proptest! {
        #[test]
        fn slots_are_never_given_away_twice(
            steps in proptest::collection::vec((any::<bool>(), 1usize..6, 0usize..50), 1..200),
        ) {
            let (mut holes, mut free, mut taken) = (Holes::default(), [true; 64], Vec::new());
            holes.give(0, free.len());
            for (takes, slots, which) in steps {
                if takes || taken.is_empty() {
                    let fits = (0..=free.len() - slots).any(|at| free[at..at + slots].iter().all(|free| *free));
                    let found = holes.take(slots);
                    prop_assert_eq!(found.is_some(), fits);
                    if let Some(start) = found {
                        prop_assert!(free[start..start + slots].iter().all(|free| *free));
                        free[start..start + slots].fill(false);
                        taken.push((start, slots));
                    }
                } else {
                    let (start, slots) = taken.swap_remove(which % taken.len());
                    free[start..start + slots].fill(true);
                    holes.give(start, slots);
                }
            }
        }
    }
}
