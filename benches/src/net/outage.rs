//! While there is no backend the threads stand still, and each says where its rings are.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The meeting point of the supervisor and the threads.
#[derive(Debug)]
pub struct Outage {
    on: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Threads that still run.
    threads: usize,
    /// By thread: receive and transmit base of each of its lanes.
    bases: Vec<Option<Vec<[u32; 2]>>>,
}

impl Outage {
    /// For `threads` threads.
    pub fn new(threads: usize) -> Self {
        let state = State { threads, bases: vec![None; threads] };
        Self { on: AtomicBool::new(false), state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Called by thread `index` in every round: stands still here as long as there is no backend. `true` when it did.
    #[inline]
    pub fn hold(&self, index: usize, bases: impl FnOnce() -> Vec<[u32; 2]>) -> bool {
        // Pairs with the release in `begin` and `end`: rings are only touched by whoever may.
        let on = self.on.load(Ordering::Acquire);
        if on {
            self.stand_still(index, bases());
        }
        on
    }

    #[cold]
    fn stand_still(&self, index: usize, bases: Vec<[u32; 2]>) {
        let mut state = self.state();
        state.bases[index] = Some(bases);
        self.changed.notify_all();
        while self.on.load(Ordering::Acquire) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.bases[index] = None;
    }

    /// A thread ends.
    pub fn leave(&self) {
        self.state().threads -= 1;
        self.changed.notify_all();
    }

    /// Stops all threads; the caller wakes those that sleep. Returns once each of them stands still, with their bases;
    /// `None` when a thread has ended meanwhile: there is nothing to go on with.
    pub fn begin(&self, wake: impl Fn()) -> Option<Vec<Vec<[u32; 2]>>> {
        let mut state = self.state();
        let all = state.threads;
        self.on.store(true, Ordering::Release);
        wake();
        loop {
            if state.threads < all || all < state.bases.len() {
                return None;
            }
            if let Some(bases) = state.bases.iter().cloned().collect() {
                return Some(bases);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets them go on.
    pub fn end(&self) {
        let _state = self.state();
        self.on.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn threads_stand_still_from_begin_to_end_and_give_their_bases() {
        let (outage, rounds) = (Arc::new(Outage::new(2)), Arc::new(AtomicU32::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..2)
            .map(|index| {
                let (outage, rounds, stop) = (Arc::clone(&outage), Arc::clone(&rounds), Arc::clone(&stop));
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        outage.hold(index, || vec![[index as u32, 7]]);
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                    outage.leave();
                })
            })
            .collect();
        assert_eq!(outage.begin(|| {}), Some(vec![vec![[0, 7]], vec![[1, 7]]]));
        let before = rounds.load(Ordering::Relaxed);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(rounds.load(Ordering::Relaxed), before);
        outage.end();
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(rounds.load(Ordering::Relaxed) > before);
        assert_eq!(outage.begin(|| {}), None);
    }
}
