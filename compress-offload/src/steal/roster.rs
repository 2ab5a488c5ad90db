//! Who of a team has nothing to do, and who of them sleeps.
//!
//! A worker that puts a task where others find it, and one that goes to sleep because it found none, must not miss each
//! other: either the sleeper's fence comes first, and whoever [wakes](Roster::wake) sees it asleep; or the other one's does,
//! and the sleeper finds the task when it looks once more. `tests/loom.rs` explores every interleaving of this module.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// The states of up to 64 workers. Further ones are never woken to steal, which they do whenever they are awake.
#[derive(Debug, Default)]
pub struct Roster {
    /// Bit `n`: worker `n` has nothing to do. A hint.
    idle: AtomicU64,
    /// Bit `n`: worker `n` sleeps or is about to, and nobody has woken it.
    asleep: AtomicU64,
}

const fn bit(seat: usize) -> u64 {
    if seat < 64 { 1 << seat } else { 0 }
}

impl Roster {
    /// Nobody is idle.
    pub fn new() -> Self {
        Self { idle: AtomicU64::new(0), asleep: AtomicU64::new(0) }
    }

    /// This worker has nothing to do, or has again.
    pub fn set_idle(&self, seat: usize, idle: bool) {
        match idle {
            true => self.idle.fetch_or(bit(seat), Ordering::Relaxed),
            false => self.idle.fetch_and(!bit(seat), Ordering::Relaxed),
        };
    }

    /// How many others have nothing to do.
    #[inline]
    pub fn idle_besides(&self, seat: usize) -> usize {
        (self.idle.load(Ordering::Relaxed) & !bit(seat)).count_ones() as usize
    }

    /// This worker is about to sleep. It must look for tasks once more afterwards.
    pub fn lie_down(&self, seat: usize) {
        self.asleep.fetch_or(bit(seat), Ordering::Relaxed);
        // Pairs with the fence in `wake`.
        fence(Ordering::SeqCst);
    }

    /// This worker is awake.
    pub fn get_up(&self, seat: usize) {
        self.asleep.fetch_and(!bit(seat), Ordering::Relaxed);
    }

    /// Calls `ring` for up to `most` sleeping workers other than `seat`, each of which nobody else wakes meanwhile. The caller
    /// has put tasks where they will look. Returns how many.
    #[inline]
    pub fn wake(&self, seat: usize, most: usize, mut ring: impl FnMut(usize)) -> usize {
        // Pairs with the fence in `lie_down`.
        fence(Ordering::SeqCst);
        let mut asleep = self.asleep.load(Ordering::Relaxed) & !bit(seat);
        let mut woken = 0;
        while asleep != 0 && woken < most {
            let one = asleep & asleep.wrapping_neg();
            asleep &= !one;
            // Of several that want to wake it, one does.
            if self.asleep.fetch_and(!one, Ordering::Relaxed) & one != 0 {
                ring(one.trailing_zeros() as usize);
                woken += 1;
            }
        }
        woken
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn woken(roster: &Roster, seat: usize, most: usize) -> Vec<usize> {
        let mut woken = Vec::new();
        assert_eq!(roster.wake(seat, most, |seat| woken.push(seat)), woken.len());
        woken
    }

    #[test]
    fn sleepers_are_woken_once_each_and_no_more_than_wanted() {
        let roster = Roster::new();
        [0, 2, 3, 63].into_iter().for_each(|seat| roster.lie_down(seat));
        assert_eq!(woken(&roster, 2, 2), [0, 3]);
        assert_eq!(woken(&roster, 2, 9), [63]);
        assert_eq!(woken(&roster, 0, 9), [2]);
        roster.lie_down(3);
        roster.get_up(3);
        assert!(woken(&roster, 0, 9).is_empty());
    }

    #[test]
    fn idle_workers_are_counted_without_the_one_that_asks() {
        let roster = Roster::new();
        [0, 1, 5].into_iter().for_each(|seat| roster.set_idle(seat, true));
        roster.set_idle(1, false);
        assert_eq!((roster.idle_besides(5), roster.idle_besides(7)), (1, 2));
    }

    #[test]
    fn workers_beyond_the_roster_are_nobody() {
        let roster = Roster::new();
        roster.lie_down(64);
        roster.set_idle(200, true);
        assert!(woken(&roster, 0, 9).is_empty());
        assert_eq!(roster.idle_besides(0), 0);
    }
}
