//! A worker's batch with the rule that submits it.

use crate::batch::Batch;
use crate::flush::{Collected, Policy, Reason};
use crate::service::Look;
use crate::stats::BatchCounters;

/// What a worker collected, when it goes, and how often it went.
pub struct Collector<J> {
    /// When to submit, and how small requests are answered.
    pub policy: Policy,
    batch: Batch<J>,
    /// When results were last looked for.
    looked: u64,
}

impl<J> Collector<J> {
    /// Nothing collected, in so many groups.
    pub fn new(groups: usize, policy: Policy) -> Self {
        Self { policy, batch: Batch::new(groups), looked: 0 }
    }

    /// Jobs collected and not submitted.
    #[inline]
    pub fn jobs(&self) -> usize {
        self.batch.jobs()
    }

    /// Whether a request of so many bytes is answered at once.
    #[inline]
    pub fn is_small(&self, bytes: usize) -> bool {
        bytes <= self.policy.thresholds.inline_bytes as usize
    }

    /// Collects a job of so many bytes, which came at `now`. True: the batch is full, and should be
    /// [submitted](Self::submit).
    #[inline(always)]
    #[must_use = "a full batch should be submitted"]
    pub fn collect(&mut self, group: usize, job: J, bytes: u64, now: u64) -> bool {
        self.batch.push(group, job, bytes, now);
        self.policy.full(self.batch.jobs(), self.batch.bytes())
    }

    /// After all rings were looked at: whether to submit, and why.
    #[inline]
    pub fn due(&self, look: Look) -> Option<Reason> {
        self.policy.submit(Collected {
            jobs: self.batch.jobs(),
            bytes: self.batch.bytes(),
            age_ns: self.batch.age_ns(look.now),
            rings_empty: look.rings_empty,
            throttled: look.throttled,
        })
    }

    /// Hands what was collected to `submit`, group by group, and counts it.
    pub fn submit(&mut self, reason: Reason, counters: &BatchCounters, submit: impl FnMut(&mut Vec<J>)) {
        counters.flushed(reason, self.batch.jobs(), self.batch.bytes());
        self.batch.drain(submit);
    }

    /// Whether to look for results now, of which `in_flight` are awaited; counts the look.
    #[inline]
    pub fn reap(&mut self, in_flight: usize, look: Look, counters: &BatchCounters) -> bool {
        let since = look.now.saturating_sub(self.looked);
        let reap = self.policy.reap(in_flight, look.rings_empty, since);
        if reap {
            self.looked = look.now;
            counters.reaps.add(1);
        }
        reap
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flush::{Mode, Thresholds};

    fn collector(batch: u16) -> Collector<u32> {
        let thresholds = Thresholds { batch, deadline_us: 50, inline_bytes: 64, ..Thresholds::default() };
        Collector::new(2, Policy { mode: Mode::Heuristic, thresholds })
    }

    fn look(rings_empty: bool, now_us: u64) -> Look {
        Look { rings_empty, throttled: false, now: now_us * 1_000 }
    }

    #[test]
    fn what_was_collected_goes_once_and_is_counted_by_its_reason() {
        let (mut collector, counters) = (collector(3), BatchCounters::default());
        assert!(!collector.collect(1, 10, 100, 1_000) && !collector.collect(0, 11, 100, 2_000));
        assert_eq!(collector.due(look(false, 2)), None);
        assert_eq!(collector.due(look(true, 2)), Some(Reason::Empty));
        assert_eq!(collector.due(look(false, 51)), Some(Reason::Deadline));
        assert!(collector.collect(1, 12, 100, 3_000), "it is full");
        let mut groups = Vec::new();
        collector.submit(Reason::Full, &counters, |jobs| groups.push(std::mem::take(jobs)));
        assert_eq!((groups, collector.jobs()), (vec![vec![10, 12], vec![11]], 0));
        assert_eq!(collector.due(look(true, 99)), None);
        let counted = counters.snapshot();
        assert_eq!((counted.flushed(Reason::Full), counted.batch.sum, counted.batch_bytes.sum), (1, 3, 300));
    }

    #[test]
    fn looks_for_results_are_counted_and_begin_the_wait_for_the_next_one() {
        let (mut collector, counters) = (collector(8), BatchCounters::default());
        assert!(!collector.reap(0, look(true, 60), &counters), "nothing is awaited");
        assert!(collector.reap(2, look(false, 60), &counters), "the last look is long ago");
        assert!(!collector.reap(2, look(false, 80), &counters));
        assert!(
            collector.reap(2, look(true, 80), &counters) && collector.reap(8, look(false, 81), &counters)
        );
        assert_eq!(counters.reaps.get(), 3);
    }

    #[test]
    fn a_request_is_small_up_to_the_threshold() {
        let collector = collector(8);
        assert!(collector.is_small(64) && !collector.is_small(65));
    }
}
