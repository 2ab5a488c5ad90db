//! Counters of the data path: written by one thread, read by anybody.
//!
//! A [`Counter`] is bumped by a relaxed load and a relaxed store, no read-modify-write: one writer is the contract, and
//! a plain add is what it compiles to. Readers may see a slightly old value, never a torn one. Blocks that different
//! threads write lie on cache lines of their own.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

/// A number that only its owner thread raises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Owner thread only: a second writer would lose counts (nothing worse).
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Replaces the value, for a figure that is kept elsewhere and only shown here. Owner thread only.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now, from any thread.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Buckets of a [`Log2Histogram`]: bucket 0 counts zeros, bucket `n` counts values in `2^(n-1) .. 2^n`, the last one
/// everything above (with nanoseconds: above 9 minutes).
pub const BUCKETS: usize = 41;

/// A histogram of powers of two, with the rules of [`Counter`].
#[derive(Debug)]
pub struct Log2Histogram {
    buckets: [Counter; BUCKETS],
    sum: Counter,
}

impl Default for Log2Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Counter::default()), sum: Counter::default() }
    }
}

/// The bucket `value` falls in.
#[inline]
pub const fn bucket_of(value: u64) -> usize {
    let bucket = (u64::BITS - value.leading_zeros()) as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// The largest value of a bucket; `u64::MAX` for the last.
pub const fn upper_bound(bucket: usize) -> u64 {
    if bucket >= BUCKETS - 1 { u64::MAX } else { (1 << bucket) - 1 }
}

impl Log2Histogram {
    /// Counts `value` once.
    #[inline]
    pub fn record(&self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts `value` `n` times: one burst measured by one clock read.
    #[inline]
    pub fn record_n(&self, value: u64, n: u64) {
        self.buckets[bucket_of(value)].add(n);
        self.sum.add(value.wrapping_mul(n));
    }

    /// A copy to work with.
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot { buckets: std::array::from_fn(|i| self.buckets[i].get()), sum: self.sum.get() }
    }
}

/// A [`Log2Histogram`] at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// How many values fell into each bucket.
    pub buckets: [u64; BUCKETS],
    /// The sum of all values.
    pub sum: u64,
}

impl Default for HistogramSnapshot {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum: 0 }
    }
}

impl HistogramSnapshot {
    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Mean of all values; 0 when there are none.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count()).unwrap_or(0)
    }

    /// An upper bound of the `q`-quantile (`0.0 ..= 1.0`): the top of the bucket it lies in. 0 when empty.
    pub fn quantile(&self, q: f64) -> u64 {
        let rank = (self.count() as f64 * q.clamp(0.0, 1.0)).ceil() as u64;
        let mut seen = 0;
        for (bucket, &n) in self.buckets.iter().enumerate() {
            seen += n;
            if n > 0 && seen >= rank {
                return upper_bound(bucket);
            }
        }
        0
    }

    /// Adds another one, bucket by bucket.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident / $snapshot:ident {
        $($(#[$cdoc:meta])* $counter:ident),* $(,)?
    } histograms {
        $($(#[$hdoc:meta])* $histogram:ident),* $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[$cdoc])* pub $counter: Counter,)*
            $($(#[$hdoc])* pub $histogram: Log2Histogram,)*
        }

        impl $name {
            /// All values at about one moment.
            pub fn snapshot(&self) -> $snapshot {
                $snapshot {
                    $($counter: self.$counter.get(),)*
                    $($histogram: self.$histogram.snapshot(),)*
                }
            }
        }

        #[doc = concat!("[`", stringify!($name), "`] at one moment.")]
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $snapshot {
            $($(#[$cdoc])* pub $counter: u64,)*
            $($(#[$hdoc])* pub $histogram: HistogramSnapshot,)*
        }

        impl $snapshot {
            /// Adds another one, value by value.
            pub fn merge(&mut self, other: &Self) {
                $(self.$counter = self.$counter.wrapping_add(other.$counter);)*
                $(self.$histogram.merge(&other.$histogram);)*
            }
        }
    };
}

counters! {
    /// What one worker thread did. The names of the polling figures are KVM's (`halt_attempted_poll`, ...).
    WorkerCounters / WorkerSnapshot {
        /// Rounds that found work.
        busy_rounds,
        /// Units of work done, as the service counts them.
        work,
        /// Requests completed.
        requests,
        /// Payload bytes of completed requests.
        bytes,
        /// Kick events taken: the driver wrote an eventfd.
        kicks,
        /// Bursts found on a ring whose kicks were suppressed: each saved the driver a kick.
        kicks_suppressed,
        /// Interrupts sent.
        interrupts,
        /// Publications the driver wanted no interrupt for.
        interrupts_suppressed,
        /// Idle phases that began to spin.
        poll_attempted,
        /// Spins that found work.
        poll_success,
        /// Spins that ended in sleep.
        poll_fail,
        /// Time spent in successful spins, in nanoseconds (measured in steps of the spin's clock reads).
        poll_success_ns,
        /// Time spent in failed spins, in nanoseconds.
        poll_fail_ns,
        /// Time stamp counter cycles of the rounds that found work: what the work has cost, without the waiting.
        busy_cycles,
        /// Times the worker slept.
        parks,
        /// Re-checks after arming kicks that found work and saved a sleep.
        parks_avoided,
        /// Time asleep, in nanoseconds.
        parked_ns,
        /// Involuntary context switches seen by the polling back-off's samples.
        involuntary_switches,
        /// System calls of the I/O engine: `io_uring_enter`, `epoll_wait`.
        enters,
        /// I/O operations submitted.
        io_submitted,
        /// I/O operations completed.
        io_completed,
        /// Transfers that used registered guest memory.
        io_fixed,
        /// Attempts to register guest memory or files that the kernel refused; I/O goes on without.
        io_register_refused,
        /// Messages taken from control.
        messages,
    } histograms {
        /// Chains fetched per burst.
        batch,
        /// Fetch to completion, in nanoseconds, of the requests that the device timed.
        latency_ns,
        /// Time asleep per park, in nanoseconds.
        block_ns,
    }
}

counters! {
    /// What happened on the ring of one queue of one device. Lives as long as the device, across connections. What
    /// the requests were, the device counts itself.
    QueueCounters / QueueSnapshot {
        /// Chains fetched.
        requests,
        /// Chains completed.
        completions,
        /// Bursts found while kicks were off.
        kicks_suppressed,
        /// Kick events taken.
        kicks,
        /// Interrupts sent.
        interrupts,
        /// Publications without an interrupt because the driver asked for none.
        interrupts_suppressed,
        /// Times the ring was broken by the guest.
        broken,
    } histograms {
        /// Chains per burst.
        batch,
    }
}

/// Counters of one worker, on cache lines of their own.
pub type WorkerStats = CachePadded<WorkerCounters>;

/// Counters of one (device, queue), on cache lines of their own.
pub type QueueStats = CachePadded<QueueCounters>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_within_its_bucket() {
        for value in [0, 1, 2, 3, 4, 7, 8, 1023, 1024, 1 << 38, (1 << 39) - 1] {
            let bucket = bucket_of(value);
            assert!(value <= upper_bound(bucket));
            assert!(bucket == 0 || value > upper_bound(bucket - 1), "{value} belongs below {bucket}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_upper_bounds_of_the_true_ones() {
        let histogram = Log2Histogram::default();
        for value in 1..=1000 {
            histogram.record(value);
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.count(), 1000);
        assert_eq!(snapshot.mean(), 500);
        assert_eq!(snapshot.quantile(0.5), 511);
        assert_eq!(snapshot.quantile(1.0), 1023);
        assert_eq!(HistogramSnapshot::default().quantile(0.5), 0);
    }

    #[test]
    fn a_burst_counts_every_request_with_one_record() {
        let histogram = Log2Histogram::default();
        histogram.record_n(100, 32);
        assert_eq!(histogram.snapshot().count(), 32);
        assert_eq!(histogram.snapshot().mean(), 100);
    }

    #[test]
    fn blocks_of_two_threads_share_no_cache_line() {
        assert!(align_of::<WorkerStats>() >= 64);
        assert!(align_of::<QueueStats>() >= 64);
        assert_eq!(size_of::<QueueStats>() % align_of::<QueueStats>(), 0);
    }

    #[test]
    fn snapshots_add_up() {
        let a = QueueStats::default();
        a.requests.add(3);
        a.batch.record(7);
        let mut sum = a.snapshot();
        a.requests.add(1);
        sum.merge(&a.snapshot());
        assert_eq!(sum.requests, 7);
        assert_eq!(sum.batch.count(), 2);
    }
}
