//! What a worker's batches are counted by: written by the worker that owns them, read by anybody.

use daemon::metrics::{BATCH_BUCKETS, Exposition};
use daemon::stats::{Histogram, Worker};
use runtime::stats::{Counter, HistogramSnapshot, Log2Histogram};

use crate::flush::{REASONS, Reason};

/// What one worker's batches did.
#[derive(Debug, Default)]
pub struct BatchCounters {
    /// Batches submitted, by [`Reason`].
    pub flushes: [Counter; REASONS],
    /// Requests per batch.
    pub batch: Log2Histogram,
    /// Bytes per batch.
    pub batch_bytes: Log2Histogram,
    /// Looks for results of engines.
    pub reaps: Counter,
    /// Requests with the engines now.
    pub in_flight: Counter,
    /// Requests collected and not submitted now.
    pub collected: Counter,
    /// Ticks of the timer.
    pub ticks: Counter,
}

impl BatchCounters {
    /// Counts a batch of `jobs` requests.
    #[inline]
    pub fn flushed(&self, reason: Reason, jobs: usize, bytes: u64) {
        self.flushes[reason as usize].add(1);
        self.batch.record(jobs as u64);
        self.batch_bytes.record(bytes);
    }

    /// A copy of everything.
    pub fn snapshot(&self) -> BatchSnapshot {
        BatchSnapshot {
            flushes: self.flushes.each_ref().map(Counter::get),
            batch: self.batch.snapshot(),
            batch_bytes: self.batch_bytes.snapshot(),
            reaps: self.reaps.get(),
            in_flight: self.in_flight.get(),
            collected: self.collected.get(),
            ticks: self.ticks.get(),
        }
    }
}

/// [`BatchCounters`] at one moment; fields as there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at the counters")]
pub struct BatchSnapshot {
    pub flushes: [u64; REASONS],
    pub batch: HistogramSnapshot,
    pub batch_bytes: HistogramSnapshot,
    pub reaps: u64,
    pub in_flight: u64,
    pub collected: u64,
    pub ticks: u64,
}

impl BatchSnapshot {
    /// Batches submitted for one reason.
    pub fn flushed(&self, reason: Reason) -> u64 {
        self.flushes[reason as usize]
    }

    /// Adds another one, value by value.
    pub fn merge(&mut self, other: &Self) {
        self.flushes.iter_mut().zip(&other.flushes).for_each(|(mine, theirs)| *mine += theirs);
        self.batch.merge(&other.batch);
        self.batch_bytes.merge(&other.batch_bytes);
        self.reaps += other.reaps;
        self.in_flight += other.in_flight;
        self.collected += other.collected;
        self.ticks += other.ticks;
    }

    /// Puts them among the counters of their worker.
    pub fn show(&self, worker: &mut Worker) {
        let batch = Histogram::from(&self.batch);
        let counters = [
            ("batches", batch.count()),
            ("batched_requests", batch.sum),
            ("batched_bytes", self.batch_bytes.sum),
            ("reaps", self.reaps),
            ("ticks", self.ticks),
        ];
        worker.extra.extend(counters.map(|(name, value)| (name.to_owned(), value)));
        let flushes = Reason::ALL.map(|reason| (format!("flushes_{}", reason.name()), self.flushed(reason)));
        worker.extra.extend(flushes);
    }

    /// Metrics with labels of their own; `prefix` is `vhostd_` and the kind of daemon.
    pub fn metrics(&self, prefix: &str, worker: &str, out: &mut Exposition) {
        for reason in Reason::ALL {
            let labels = [("worker", worker), ("reason", reason.name())];
            let help = "Batches, by why they were submitted";
            out.counter(&format!("{prefix}_flushes_total"), help, &labels, self.flushed(reason));
        }
        let name = format!("{prefix}_batch_requests");
        let batch = Histogram::from(&self.batch);
        out.histogram((&name, "Requests of a batch"), &[("worker", worker)], &batch, BATCH_BUCKETS, 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_names_are_in_the_same_order() {
        assert!(Reason::ALL.iter().enumerate().all(|(i, reason)| *reason as usize == i));
    }

    #[test]
    fn a_batch_is_counted_by_its_reason() {
        let counters = BatchCounters::default();
        counters.flushed(Reason::Full, 8, 4096);
        counters.flushed(Reason::Deadline, 2, 64);
        let mut sum = counters.snapshot();
        sum.merge(&counters.snapshot());
        assert_eq!((sum.flushed(Reason::Full), sum.flushed(Reason::Deadline)), (2, 2));
        assert_eq!((sum.batch.count(), sum.batch.sum, sum.batch_bytes.sum), (4, 20, 8320));
    }
}
