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
