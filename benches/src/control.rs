//! What the supervising thread and the queues' threads share: the phase of the run and live progress.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Phases of a run, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Load without measurement.
    Warmup,
    /// Load, measured.
    Measure,
    /// No new requests; those in flight are waited for.
    Drain,
    /// The backend is gone for good: nothing in flight will come back.
    Abort,
}

/// Shared state of one run.
#[derive(Debug)]
pub struct Control {
    phase: AtomicU8,
    progress: Vec<Progress>,
}

/// Requests of one queue so far; on cache lines of its own, written by the queue's thread only.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Progress {
    completed: AtomicU64,
    finished: AtomicU8,
}

impl Control {
    /// State for `queues` threads.
    pub fn new(queues: usize) -> Self {
        let progress = (0..queues).map(|_| Progress::default()).collect();
        Self { phase: AtomicU8::new(Phase::Warmup as u8), progress }
    }

    /// The current phase.
    #[inline]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Warmup,
            1 => Phase::Measure,
            2 => Phase::Drain,
            _ => Phase::Abort,
        }
    }

    /// Moves on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// Publishes how many requests `queue` has completed.
    #[inline]
    pub fn report(&self, queue: usize, completed: u64) {
        self.progress[queue].completed.store(completed, Ordering::Relaxed);
    }

    /// The thread of `queue` has ended.
    pub fn finish(&self, queue: usize) {
        self.progress[queue].finished.store(1, Ordering::Release);
    }

    /// Requests completed by all queues.
    pub fn completed(&self) -> u64 {
        self.progress.iter().map(|progress| progress.completed.load(Ordering::Relaxed)).sum()
    }

    /// All threads have ended.
    pub fn all_finished(&self) -> bool {
        self.progress.iter().all(|progress| progress.finished.load(Ordering::Acquire) == 1)
    }
}

/// One thread's view of the phases.
#[derive(Debug)]
pub struct Follower(Phase);

impl Default for Follower {
    /// Before the first look.
    fn default() -> Self {
        Self(Phase::Warmup)
    }
}

impl Follower {
    /// The current phase, and whether the measurement begins with this look. A thread that was not scheduled for the whole
    /// measured time begins it late: nothing of the warm-up counts.
    #[inline]
    pub fn look(&mut self, control: &Control) -> (Phase, bool) {
        let now = control.phase();
        let before = std::mem::replace(&mut self.0, now);
        (now, before < Phase::Measure && now >= Phase::Measure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measurement_begins_once_however_late_a_thread_looks() {
        let control = Control::new(1);
        let (mut early, mut late) = (Follower::default(), Follower::default());
        assert_eq!(early.look(&control), (Phase::Warmup, false));
        control.advance(Phase::Measure);
        assert_eq!(early.look(&control), (Phase::Measure, true));
        assert_eq!(early.look(&control), (Phase::Measure, false));
        control.advance(Phase::Drain);
        assert_eq!(early.look(&control), (Phase::Drain, false));
        assert_eq!(late.look(&control), (Phase::Drain, true));
    }

    #[test]
    fn phases_only_go_forward() {
        let control = Control::new(1);
        control.advance(Phase::Drain);
        control.advance(Phase::Measure);
        assert_eq!(control.phase(), Phase::Drain);
        control.advance(Phase::Abort);
        assert_eq!(control.phase(), Phase::Abort);
    }

    #[test]
    fn progress_is_the_sum_over_queues() {
        let control = Control::new(2);
        control.report(0, 5);
        control.report(1, 7);
        control.finish(1);
        assert_eq!((control.completed(), control.all_finished()), (12, false));
        control.finish(0);
        assert!(control.all_finished());
    }
}
