//! Latency distribution of one run: recorded in nanoseconds, reported in microseconds.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Largest latency told apart from larger ones: one minute.
const MAX_NANOS: u64 = 60_000_000_000;

/// Latencies of one queue. Recording allocates nothing and costs a few nanoseconds.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// An empty distribution with three significant figures from 1 ns to a minute.
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, MAX_NANOS, 3);
        Self(histogram.expect("bounds 1..=60e9 with 3 figures are always valid"))
    }

    /// Counts one operation; longer than a minute counts as a minute.
    #[inline]
    pub fn record(&mut self, nanos: u64) {
        self.0.saturating_record(nanos);
    }

    /// Forgets everything recorded so far (end of the warm-up).
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// Adds the operations of another queue.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both histograms have the same bounds");
    }

    /// Number of operations recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The figures of the report.
    pub fn summary(&self) -> LatencySummary {
        let micros = |nanos: u64| nanos as f64 / 1e3;
        if self.0.is_empty() {
            return LatencySummary::default();
        }
        LatencySummary {
            mean_us: self.0.mean() / 1e3,
            min_us: micros(self.0.min()),
            p50_us: micros(self.0.value_at_quantile(0.5)),
            p99_us: micros(self.0.value_at_quantile(0.99)),
            p999_us: micros(self.0.value_at_quantile(0.999)),
            max_us: micros(self.0.max()),
        }
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

/// Mean and percentiles in microseconds; all zero when nothing was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Arithmetic mean.
    pub mean_us: f64,
    /// Fastest operation.
    pub min_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 99 % were not slower.
    pub p99_us: f64,
    /// 99.9 % were not slower.
    pub p999_us: f64,
    /// Slowest operation.
    pub max_us: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(value: f64, expected: f64) -> bool {
        (value - expected).abs() <= expected * 0.001 + 0.001
    }

    #[test]
    fn percentiles_of_a_known_distribution_are_exact_to_three_figures() {
        let mut latencies = Latencies::new();
        for micros in 1..=1000 {
            latencies.record(micros * 1000);
        }
        let summary = latencies.summary();
        assert_eq!(latencies.count(), 1000);
        assert!(close(summary.mean_us, 500.5), "{summary:?}");
        assert!(close(summary.p50_us, 500.0), "{summary:?}");
        assert!(close(summary.p99_us, 990.0), "{summary:?}");
        assert!(close(summary.p999_us, 999.0), "{summary:?}");
        assert!(close(summary.max_us, 1000.0), "{summary:?}");
        assert!(close(summary.min_us, 1.0), "{summary:?}");
    }

    #[test]
    fn merging_equals_recording_in_one_place() {
        let (mut odd, mut even, mut all) = (Latencies::new(), Latencies::new(), Latencies::new());
        for nanos in 1..5000 {
            if nanos % 2 == 0 {
                even.record(nanos)
            } else {
                odd.record(nanos)
            }
            all.record(nanos);
        }
        odd.merge(&even);
        assert_eq!(odd.summary(), all.summary());
        assert_eq!(odd.count(), 4999);
    }

    #[test]
    fn an_outage_longer_than_the_range_still_counts() {
        let mut latencies = Latencies::new();
        latencies.record(10 * MAX_NANOS);
        assert_eq!(latencies.count(), 1);
        assert!(latencies.summary().max_us >= 59e6);
    }

    #[test]
    fn nothing_recorded_gives_zeros_and_clear_forgets() {
        let mut latencies = Latencies::new();
        latencies.record(5);
        latencies.clear();
        assert_eq!(latencies.summary(), LatencySummary::default());
    }
}
