//! The numbers a daemon gives out: one snapshot, shown as JSON by the control method `stats` and as text by the metrics
//! endpoint, and read back by `vhostctl`. All counters only rise; rates are the reader's business.

use std::collections::BTreeMap;

use runtime::stats::{HistogramSnapshot, QueueSnapshot, QueueStats, WorkerSnapshot};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vhost_user::SessionStatus;

use crate::device;

/// Everything counted in one process at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// Monotonic clock when the snapshot was taken, in nanoseconds; filled in by the supervisor.
    pub time_ns: u64,
    /// CPU time of the whole process, user and system, in nanoseconds; filled in by the supervisor.
    pub cpu_ns: u64,
    /// One entry a device, in the order of their names.
    pub devices: Vec<Device>,
    /// One entry a worker thread.
    pub workers: Vec<Worker>,
}

/// Counters of one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// The device's name in the configuration.
    pub name: String,
    /// `block`, `net`, `crypto` or `compress`.
    pub kind: String,
    /// A frontend is connected.
    pub connected: bool,
    /// Virtqueues running now.
    pub queues: u32,
    /// Requests taken and not completed.
    pub in_flight: u64,
    /// By operation (`read`, `write`, `flush`, `rx`, ...).
    pub operations: BTreeMap<String, Operation>,
    /// Kicks taken from the driver.
    pub kicks: u64,
    /// Interrupts sent to the driver.
    pub interrupts: u64,
    /// Completions published without an interrupt because the driver asked for none.
    pub interrupts_suppressed: u64,
    /// Rings broken by the guest.
    pub broken_rings: u64,
    /// Counters only this kind of device has, by a name fit for a metric (`bounced_requests`).
    pub extra: BTreeMap<String, u64>,
}

/// Counters of one kind of request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Operation {
    /// Requests completed, failed ones included.
    pub requests: u64,
    /// Payload bytes of completed requests.
    pub bytes: u64,
    /// Requests completed with an error status.
    pub errors: u64,
    /// Time from fetch to completion, in nanoseconds.
    pub latency_ns: Histogram,
}

/// Counters of one worker thread.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Worker {
    /// The thread's name.
    pub name: String,
    /// The CPU it is pinned to.
    pub cpu: Option<u32>,
    /// Busy-poll windows that found work.
    pub poll_success: u64,
    /// Busy-poll windows that ended in sleep.
    pub poll_failure: u64,
    /// Times the worker slept.
    pub parks: u64,
    /// Chains taken from rings per burst.
    pub batch: Histogram,
    /// Time from fetch to completion, in nanoseconds.
    pub latency_ns: Histogram,
    /// Counters beyond these, by a name fit for a metric.
    pub extra: BTreeMap<String, u64>,
}

/// A log2 histogram: bucket 0 counts the value 0, bucket `i` counts values in `[2^(i-1), 2^i)`.
///
/// Trailing empty buckets may be missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// Counts by bucket.
    pub buckets: Vec<u64>,
    /// Sum of all values.
    pub sum: u64,
}

impl Histogram {
    /// Bucket that counts `value`.
    pub fn bucket_of(value: u64) -> usize {
        (u64::BITS - value.leading_zeros()) as usize
    }

    /// Largest value of bucket `index`.
    pub fn upper_bound(index: usize) -> u64 {
        match index {
            0 => 0,
            1..=63 => (1 << index) - 1,
            _ => u64::MAX,
        }
    }

    /// Counts one value; for tests and for daemons that count outside the data path.
    pub fn record(&mut self, value: u64) {
        let index = Self::bucket_of(value);
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, 0);
        }
        self.buckets[index] += 1;
        self.sum = self.sum.wrapping_add(value);
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// What `self` has more than `earlier`; a counter that went back (a restarted daemon) counts from zero.
    pub fn since(&self, earlier: &Self) -> Self {
        if earlier.count() > self.count() {
            return self.clone();
        }
        let before = earlier.buckets.iter().chain(std::iter::repeat(&0));
        let buckets = self.buckets.iter().zip(before).map(|(now, then)| now.saturating_sub(*then)).collect();
        Self { buckets, sum: self.sum.wrapping_sub(earlier.sum) }
    }

    /// Adds another histogram's counts.
    pub fn merge(&mut self, other: &Self) {
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine = mine.saturating_add(*theirs);
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// The value below which `fraction` (0 to 1) of all values lie, interpolated inside its bucket; `None` when empty.
    pub fn percentile(&self, fraction: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = (fraction.clamp(0.0, 1.0) * count as f64).max(1.0);
        let mut below = 0.0;
        for (index, &n) in self.buckets.iter().enumerate() {
            let n = n as f64;
            if n > 0.0 && below + n >= rank {
                let low = if index == 0 { 0.0 } else { Self::upper_bound(index - 1) as f64 + 1.0 };
                let width = Self::upper_bound(index) as f64 - low;
                return Some(low + width * (rank - below) / n);
            }
            below += n;
        }
        Some(Self::upper_bound(self.buckets.len().saturating_sub(1)) as f64)
    }
}

impl Snapshot {
    /// Devices and workers as they are now.
    pub fn new(devices: Vec<Device>, workers: &[(String, Option<usize>, WorkerSnapshot)]) -> Self {
        let workers = workers.iter().map(|(name, cpu, counters)| Worker::new(name, *cpu, counters)).collect();
        Self { devices, workers, ..Self::default() }
    }

    /// Stamps the snapshot with the clock and the process's CPU time.
    pub(crate) fn stamped(mut self) -> Self {
        self.time_ns = runtime::cpu::monotonic_ns();
        self.cpu_ns = crate::clock::process_cpu_ns();
        self
    }
}

impl From<&HistogramSnapshot> for Histogram {
    /// Both use the same buckets; empty ones at the end are left away.
    fn from(snapshot: &HistogramSnapshot) -> Self {
        let used = snapshot.buckets.iter().rposition(|n| *n != 0).map_or(0, |last| last + 1);
        Self { buckets: snapshot.buckets[..used].to_vec(), sum: snapshot.sum }
    }
}

impl Device {
    /// What every device has: its session, and what happened on its queues.
    pub fn new(name: &str, kind: &str, session: &SessionStatus, queues: &[Arc<QueueStats>]) -> Self {
        let mut device = Self {
            name: name.to_owned(),
            kind: kind.to_owned(),
            connected: session.connected,
            queues: device::running(session) as u32,
            ..Self::default()
        };
        let connections = [
            ("connections", session.connections),
            ("connections_unlogged", session.connections_unlogged),
            ("connection_waits", session.waits),
        ];
        device.extra.extend(connections.map(|(name, count)| (name.to_owned(), count)));
        queues.iter().for_each(|queue| device.add_queue(&queue.snapshot()));
        device
    }

    /// Adds what happened on one of the device's queues; operations are the device's own to count.
    pub fn add_queue(&mut self, queue: &QueueSnapshot) {
        self.kicks += queue.kicks;
        self.interrupts += queue.interrupts;
        self.interrupts_suppressed += queue.interrupts_suppressed;
        self.broken_rings += queue.broken;
        self.in_flight += queue.requests.saturating_sub(queue.completions);
        *self.extra.entry("kicks_suppressed".into()).or_default() += queue.kicks_suppressed;
    }
}

impl Worker {
    /// A worker's counters under their names here.
    pub fn new(name: &str, cpu: Option<usize>, counters: &WorkerSnapshot) -> Self {
        let extra = [
            ("busy_rounds", counters.busy_rounds),
            ("work", counters.work),
            ("requests", counters.requests),
            ("bytes", counters.bytes),
            ("kicks", counters.kicks),
            ("kicks_suppressed", counters.kicks_suppressed),
            ("interrupts", counters.interrupts),
            ("interrupts_suppressed", counters.interrupts_suppressed),
            ("busy_cycles", counters.busy_cycles),
            ("poll_success_ns", counters.poll_success_ns),
            ("poll_fail_ns", counters.poll_fail_ns),
            ("parks_avoided", counters.parks_avoided),
            ("parked_ns", counters.parked_ns),
            ("involuntary_switches", counters.involuntary_switches),
            ("io_enters", counters.enters),
            ("io_submitted", counters.io_submitted),
            ("io_completed", counters.io_completed),
            ("io_fixed", counters.io_fixed),
            ("io_register_refused", counters.io_register_refused),
            ("messages", counters.messages),
        ];
        Self {
            name: name.to_owned(),
            cpu: cpu.and_then(|cpu| u32::try_from(cpu).ok()),
            poll_success: counters.poll_success,
            poll_failure: counters.poll_fail,
            parks: counters.parks,
            batch: Histogram::from(&counters.batch),
            latency_ns: Histogram::from(&counters.latency_ns),
            extra: extra.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_split_at_powers_of_two() {
        assert_eq!([0, 1, 2, 3, 4, 7, 8].map(Histogram::bucket_of), [0, 1, 2, 2, 3, 3, 4]);
        assert_eq!(Histogram::bucket_of(u64::MAX), 64);
        for value in [0, 1, 2, 3, 4, 1023, 1024, u64::MAX] {
            assert!(value <= Histogram::upper_bound(Histogram::bucket_of(value)));
        }
    }

    #[test]
    fn a_worker_histogram_keeps_its_counts_and_bounds() {
        let counters = runtime::stats::Log2Histogram::default();
        [0, 5, 900, 900].into_iter().for_each(|value| counters.record(value));
        let mut expected = Histogram::default();
        [0, 5, 900, 900].into_iter().for_each(|value| expected.record(value));
        assert_eq!(Histogram::from(&counters.snapshot()), expected);
        for bucket in 0..runtime::stats::BUCKETS - 1 {
            assert_eq!(runtime::stats::upper_bound(bucket), Histogram::upper_bound(bucket));
        }
    }

    #[test]
    fn queues_of_a_device_add_up() {
        let queue = QueueSnapshot { requests: 5, completions: 3, kicks: 2, broken: 1, ..Default::default() };
        let mut device = Device::default();
        device.add_queue(&queue);
        device.add_queue(&queue);
        assert_eq!((device.in_flight, device.kicks, device.broken_rings), (4, 4, 2));
    }

    #[test]
    fn difference_counts_only_what_came_after() {
        let mut earlier = Histogram::default();
        earlier.record(5);
        let mut later = earlier.clone();
        later.record(900);
        let diff = later.since(&earlier);
        assert_eq!((diff.count(), diff.sum), (1, 900));
    }

    #[test]
    fn difference_after_a_restart_counts_from_zero() {
        let mut old = Histogram::default();
        (0..10).for_each(|_| old.record(5));
        let mut new = Histogram::default();
        new.record(7);
        assert_eq!(new.since(&old), new);
    }

    #[test]
    fn percentiles_lie_in_the_bucket_of_their_rank() {
        let mut histogram = Histogram::default();
        (0..99).for_each(|_| histogram.record(100));
        histogram.record(1_000_000);
        let p50 = histogram.percentile(0.5).unwrap();
        assert!((64.0..128.0).contains(&p50), "{p50}");
        let p999 = histogram.percentile(0.999).unwrap();
        assert!((524_288.0..1_048_576.0).contains(&p999), "{p999}");
        assert_eq!(Histogram::default().percentile(0.5), None);
    }
}
