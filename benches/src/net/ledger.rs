//! Which frames of a stream have arrived: losses, duplicates, reordering.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most gaps remembered; with more, the oldest are given up as lost and a late frame of theirs counts as a duplicate.
const MOST_GAPS: usize = 1 << 16;

/// The arrivals of one stream at one receiver. In order, a frame costs one comparison.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The number that comes next.
    next: u64,
    /// Frames missing below `next`, as first number and count.
    gaps: BTreeMap<u64, u64>,
    seen: Seen,
}

/// What was seen of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Frames that arrived for the first time.
    pub unique: u64,
    /// Frames that arrived again.
    pub duplicates: u64,
    /// Frames that arrived after a later one.
    pub reordered: u64,
}

impl Ledger {
    /// Notes the arrival of frame `number`.
    #[inline]
    pub fn arrive(&mut self, number: u64) {
        if number == self.next {
            self.next += 1;
            self.seen.unique += 1;
        } else {
            self.out_of_line(number);
        }
    }

    #[cold]
    fn out_of_line(&mut self, number: u64) {
        if number > self.next {
            self.gaps.insert(self.next, number - self.next);
            if self.gaps.len() > MOST_GAPS {
                self.gaps.pop_first();
            }
            self.next = number + 1;
            self.seen.unique += 1;
        } else if self.close(number) {
            self.seen.unique += 1;
            self.seen.reordered += 1;
        } else {
            self.seen.duplicates += 1;
        }
    }

    /// Takes `number` out of the gap it lies in.
    fn close(&mut self, number: u64) -> bool {
        let Some((&first, &count)) = self.gaps.range(..=number).next_back() else { return false };
        let before = number - first;
        if before >= count {
            return false;
        }
        self.gaps.remove(&first);
        for (first, count) in [(first, before), (number + 1, count - before - 1)] {
            if count > 0 {
                self.gaps.insert(first, count);
            }
        }
        true
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        self.seen
    }

    /// The number behind the last one that has arrived.
    #[inline]
    pub fn next(&self) -> u64 {
        self.next
    }
}

impl std::ops::AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.unique += other.unique;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(numbers: &[u64]) -> (u64, u64, u64) {
        let mut ledger = Ledger::default();
        numbers.iter().for_each(|&number| ledger.arrive(number));
        let Seen { unique, duplicates, reordered } = ledger.seen();
        (unique, duplicates, reordered)
    }

    #[test]
    fn frames_in_order_are_unique_and_nothing_else() {
        assert_eq!(seen(&[0, 1, 2, 3]), (4, 0, 0));
    }

    #[test]
    fn a_late_frame_is_reordered_and_not_lost() {
        assert_eq!(seen(&[0, 3, 1, 2, 4]), (5, 0, 2));
    }

    #[test]
    fn a_frame_that_comes_twice_is_a_duplicate_wherever_it_comes() {
        assert_eq!(seen(&[0, 0, 1]), (2, 1, 0));
        assert_eq!(seen(&[0, 4, 2, 2, 4, 0]), (3, 3, 1));
    }

    #[test]
    fn missing_frames_are_no_arrivals() {
        assert_eq!(seen(&[5, 9]), (2, 0, 0));
    }
}
