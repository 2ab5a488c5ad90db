//! Rate limits of a disk: requests and bytes a second, for reads, writes and both together.
//!
//! A token bucket in its GCRA form: one number, the time at which the bucket is full again. A request pays at
//! once; when the bucket was in debt before, it may go on only from the time at which that debt is repaid. So
//! queues pass in the order in which they asked, on whatever worker they are, and a request larger than the
//! burst passes like any other and the next one waits the longer. There is no timer and no retry: a queue learns
//! its time when it asks.
//!
//! Every worker that serves the disk shares the buckets. Without limits nothing here is touched.

use crate::request::Direction;
use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Fractions of a nanosecond the buckets count in, so that the cost of a small request keeps its precision
/// at 100 GB/s and the clock still lasts 9 years.
const FRACTION: u128 = 64;
const SECOND: u128 = 1_000_000_000;

/// One limit: a sustained rate and how much may be used at once after a pause. Zero rate: unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Rate {
    /// Tokens (requests or bytes) a second; 0 is no limit.
    pub rate: u64,
    /// Tokens that accumulate in a pause; 0 stands for a tenth of a second's worth.
    pub burst: u64,
}

/// The limits of one disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Limits {
    /// All requests.
    pub iops: Rate,
    /// Read requests.
    pub read_iops: Rate,
    /// Write, discard, write-zeroes and secure-erase requests.
    pub write_iops: Rate,
    /// All data bytes.
    pub bandwidth: Rate,
    /// Bytes read.
    pub read_bandwidth: Rate,
    /// Bytes written.
    pub write_bandwidth: Rate,
}

/// One bucket.
#[derive(Debug, Default)]
struct Bucket {
    rate: AtomicU64,
    /// Time that the bucket may run ahead of the clock, in fractions.
    tolerance: AtomicU64,
    /// Theoretical arrival time: when the bucket is full again, in fractions.
    full_at: AtomicU64,
}

fn fractions(tokens: u64, rate: u64) -> u64 {
    u64::try_from(u128::from(tokens) * SECOND * FRACTION / u128::from(rate.max(1))).unwrap_or(u64::MAX)
}

fn clock(now_ns: u64) -> u64 {
    now_ns.saturating_mul(FRACTION as u64)
}

impl Bucket {
    fn set(&self, limit: Rate) {
        let burst = if limit.burst == 0 { limit.rate / 10 } else { limit.burst };
        self.tolerance.store(fractions(burst, limit.rate), Relaxed);
        self.full_at.store(0, Relaxed);
        self.rate.store(limit.rate, Relaxed);
    }

    /// Pays. Returns the nanosecond from which the request may go on; `None`: at once.
    fn pay(&self, tokens: u64, now_ns: u64) -> Option<u64> {
        let rate = self.rate.load(Relaxed);
        if rate == 0 {
            return None;
        }
        let cost = fractions(tokens, rate);
        let pay = |full_at: u64| Some(full_at.max(clock(now_ns)).saturating_add(cost));
        // Never fails: the closure always has a value.
        let before = self.full_at.fetch_update(Relaxed, Relaxed, pay).unwrap_or(0);
        let ready = before.saturating_sub(self.tolerance.load(Relaxed));
        (ready > clock(now_ns)).then(|| ready.div_ceil(FRACTION as u64))
    }
}

/// The buckets of one disk, shared by all its queues.
#[derive(Debug, Default)]
pub struct Limiter {
    active: AtomicBool,
    /// total, read, write; each requests, then bytes.
    buckets: CachePadded<[[Bucket; 2]; 3]>,
}

const TOTAL: usize = 0;

fn class(direction: Direction) -> usize {
    match direction {
        Direction::Read => 1,
        Direction::Write => 2,
    }
}

impl Limiter {
    /// A limiter with these limits.
    pub fn new(limits: &Limits) -> Self {
        let limiter = Self::default();
        limiter.set(limits);
        limiter
    }

    /// Replaces all limits; debt is forgiven. Any thread, at any time.
    pub fn set(&self, limits: &Limits) {
        let rates = [
            [limits.iops, limits.bandwidth],
            [limits.read_iops, limits.read_bandwidth],
            [limits.write_iops, limits.write_bandwidth],
        ];
        for (bucket, rate) in self.buckets.iter().flatten().zip(rates.iter().flatten()) {
            bucket.set(*rate);
        }
        self.active.store(rates.iter().flatten().any(|r| r.rate != 0), Relaxed);
    }

    /// False while there is no limit at all; the fast path asks nothing else.
    #[inline]
    pub fn active(&self) -> bool {
        self.active.load(Relaxed)
    }

    /// Pays for a request of `bytes`. Returns the nanosecond from which it may go on, without asking again;
    /// `None`: at once.
    pub fn pay(&self, direction: Direction, bytes: u64, now_ns: u64) -> Option<u64> {
        let classes = [TOTAL, class(direction)];
        let waits = classes.map(|class| {
            let [requests, data] = &self.buckets[class];
            requests.pay(1, now_ns).max(data.pay(bytes, now_ns))
        });
        waits.into_iter().flatten().max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn iops(rate: u64, burst: u64) -> Limiter {
        Limiter::new(&Limits { iops: Rate { rate, burst }, ..Limits::default() })
    }

    #[test]
    fn without_limits_nothing_is_held_back() {
        let limiter = Limiter::default();
        assert!(!limiter.active());
        assert!((0..1000).all(|_| limiter.pay(Direction::Write, 1 << 30, 0).is_none()));
    }

    #[test]
    fn the_burst_goes_through_and_the_others_get_times_in_their_order() {
        let limiter = iops(1000, 10);
        let start = 5_000_000_000;
        // A request passes while the bucket is not in debt: ten from the burst, one on credit.
        assert!((0..11).all(|_| limiter.pay(Direction::Read, 0, start).is_none()));
        for i in 1..5 {
            assert_eq!(limiter.pay(Direction::Read, 0, start), Some(start + i * 1_000_000));
        }
        assert_eq!(limiter.pay(Direction::Read, 0, start + 1_000_000_000), None);
    }

    #[test]
    fn a_request_larger_than_the_burst_passes_and_the_next_pays_for_it() {
        let bandwidth = Rate { rate: 1 << 20, burst: 4096 };
        let limiter = Limiter::new(&Limits { bandwidth, ..Limits::default() });
        assert_eq!(limiter.pay(Direction::Write, 4 << 20, 0), None);
        let until = limiter.pay(Direction::Write, 512, 0).unwrap();
        assert!((3_900_000_000..4_000_000_000).contains(&until), "4 MiB at 1 MiB/s: {until}");
    }

    #[test]
    fn reads_do_not_pay_for_writes() {
        let limiter = Limiter::new(&Limits { write_iops: Rate { rate: 1, burst: 1 }, ..Limits::default() });
        while limiter.pay(Direction::Write, 512, 0).is_none() {}
        assert_eq!(limiter.pay(Direction::Read, 512, 0), None);
    }

    #[test]
    fn a_change_takes_effect_at_once() {
        let limiter = iops(1, 1);
        while limiter.pay(Direction::Read, 0, 0).is_none() {}
        limiter.set(&Limits::default());
        assert_eq!(limiter.pay(Direction::Read, 0, 0), None);
        assert!(!limiter.active());
    }

    proptest! {
        /// Queues that come when they like and go on when told: in no window of time does more pass than the
        /// burst, what the rate gives for the window, and the one request that may take the bucket into debt.
        #[test]
        fn no_window_admits_more_than_rate_and_burst(
            rate in 1_000u64..2_000_000_000,
            burst in 1u64..10_000_000,
            steps in prop::collection::vec((0u64..5_000_000, 1u64..1_000_000), 1..200),
        ) {
            let bandwidth = Rate { rate, burst };
            let limiter = Limiter::new(&Limits { bandwidth, ..Limits::default() });
            let largest = steps.iter().map(|s| s.1).max().unwrap_or(0);
            let mut now = 1_000_000_000;
            let mut passed: Vec<(u64, u64)> = Vec::new();
            for (wait, bytes) in steps {
                now += wait;
                let at = limiter.pay(Direction::Write, bytes, now).unwrap_or(now);
                prop_assert!(at >= passed.last().map_or(0, |last| last.0), "overtaken");
                passed.push((at, bytes));
            }
            for first in 0..passed.len() {
                let mut sum = 0u128;
                for &(at, bytes) in &passed[first..] {
                    sum += u128::from(bytes);
                    let window = u128::from(at - passed[first].0);
                    let allowed = u128::from(burst) + u128::from(rate) * window / SECOND + u128::from(largest);
                    // Rounding down to a fraction of a nanosecond gives away at most one fraction a request.
                    let slack = u128::from(rate) * passed.len() as u128 / (SECOND * FRACTION) + 1;
                    prop_assert!(sum <= allowed + slack, "{sum} > {allowed}");
                }
            }
        }

        /// Whoever comes back at the time it was told reaches the full rate.
        #[test]
        fn a_client_that_waits_as_told_gets_the_full_rate(
            rate in 1_000u64..1_000_000_000,
            bytes in 1u64..1_000_000,
        ) {
            let bandwidth = Rate { rate, burst: 1 };
            let limiter = Limiter::new(&Limits { bandwidth, ..Limits::default() });
            let start = 1_000_000_000u64;
            let mut now = start;
            for _ in 0..64 {
                now = limiter.pay(Direction::Read, bytes, now).unwrap_or(now).max(now);
            }
            let expected = u128::from(bytes) * 64 * SECOND / u128::from(rate);
            prop_assert!(u128::from(now - start) <= expected + 64);
        }
    }
}
