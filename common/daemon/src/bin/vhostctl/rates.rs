//! What happened between two snapshots.

use std::collections::BTreeSet;

use daemon::stats::{Device, Histogram, Snapshot, Worker};
use serde::Serialize;

/// Rates of one daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Length of the interval, in seconds.
    pub seconds: f64,
    /// CPU time used per second: 1 is one whole CPU.
    pub cpu: f64,
    /// Busy-poll windows that found work, of all; none without polling.
    pub poll_success: Option<f64>,
    /// Times a second that workers went to sleep.
    pub parks: f64,
    /// Requests of a batch, for daemons that gather them.
    pub batch_fill: Option<f64>,
    /// Of all batches, how many were submitted for each reason.
    pub flushes: Vec<(String, f64)>,
    /// One entry a device.
    pub devices: Vec<DeviceRates>,
}

/// Rates of one device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceRates {
    pub name: String,
    /// `block`, `net` and so on.
    pub kind: String,
    pub connected: bool,
    pub in_flight: u64,
    /// Requests completed a second.
    pub iops: f64,
    /// Of those, by operation.
    pub operations: Vec<(String, f64)>,
    /// Payload bytes a second, by operation.
    pub operation_bytes: Vec<(String, f64)>,
    /// Payload bytes a second.
    pub bytes: f64,
    /// Failed requests a second.
    pub errors: f64,
    /// Latency percentiles of the interval, in nanoseconds.
    pub p50_ns: Option<f64>,
    pub p99_ns: Option<f64>,
    pub p999_ns: Option<f64>,
    pub kicks_per_request: Option<f64>,
    pub interrupts_per_request: Option<f64>,
    /// Uncompressed bytes for each compressed one, of what was compressed; none for other devices.
    pub ratio: Option<f64>,
}

/// Rates between two snapshots of one daemon. A counter that went back (the daemon was restarted) counts from zero.
pub fn between(before: &Snapshot, after: &Snapshot) -> Rates {
    let seconds = (after.time_ns.saturating_sub(before.time_ns).max(1)) as f64 / 1e9;
    let polls =
        |count: fn(&Worker) -> u64| rise(sum(&before.workers, count), sum(&after.workers, count)) as f64;
    let (success, failure) = (polls(|worker| worker.poll_success), polls(|worker| worker.poll_failure));
    let extra =
        |workers: &[Worker], name: &str| sum(workers, |worker| worker.extra.get(name).copied().unwrap_or(0));
    let risen = |name: &str| rise(extra(&before.workers, name), extra(&after.workers, name)) as f64;
    let nothing = Device::default();
    let earlier = |name: &str| before.devices.iter().find(|device| device.name == name).unwrap_or(&nothing);
    Rates {
        seconds,
        cpu: rise(before.cpu_ns, after.cpu_ns) as f64 / 1e9 / seconds,
        poll_success: quotient(success, success + failure),
        parks: polls(|worker| worker.parks) / seconds,
        batch_fill: quotient(risen("batched_requests"), risen("batches")),
        flushes: flushes(after)
            .into_iter()
            .filter_map(|reason| {
                let share = quotient(risen(&format!("{FLUSHES}{reason}")), risen("batches"))?;
                Some((reason.to_owned(), share))
            })
            .collect(),
        devices: after.devices.iter().map(|now| device(earlier(&now.name), now, seconds)).collect(),
    }
}

fn device(before: &Device, after: &Device, seconds: f64) -> DeviceRates {
    let (mut requests, mut bytes, mut errors) = (0, 0, 0);
    let mut latency = Histogram::default();
    let (mut operations, mut operation_bytes) = (Vec::new(), Vec::new());
    for (name, now) in &after.operations {
        let then = before.operations.get(name).cloned().unwrap_or_default();
        let completed = rise(then.requests, now.requests);
        requests += completed;
        let moved = rise(then.bytes, now.bytes);
        bytes += moved;
        errors += rise(then.errors, now.errors);
        latency.merge(&now.latency_ns.since(&then.latency_ns));
        operations.push((name.clone(), completed as f64 / seconds));
        operation_bytes.push((name.clone(), moved as f64 / seconds));
    }
    let count = |device: &Device, name: &str| device.extra.get(name).copied().unwrap_or(0);
    let extra = |name: &str| rise(count(before, name), count(after, name)) as f64;
    let per_request = |then, now| quotient(rise(then, now) as f64, requests as f64);
    DeviceRates {
        name: after.name.clone(),
        kind: after.kind.clone(),
        connected: after.connected,
        in_flight: after.in_flight,
        iops: requests as f64 / seconds,
        operations,
        operation_bytes,
        bytes: bytes as f64 / seconds,
        errors: errors as f64 / seconds,
        p50_ns: latency.percentile(0.5),
        p99_ns: latency.percentile(0.99),
        p999_ns: latency.percentile(0.999),
        kicks_per_request: per_request(before.kicks, after.kicks),
        interrupts_per_request: per_request(before.interrupts, after.interrupts),
        ratio: quotient(extra("uncompressed_bytes"), extra("compressed_bytes")),
    }
}

/// What the counters of batches by reason begin with.
const FLUSHES: &str = "flushes_";

/// The reasons for which a daemon submits batches.
fn flushes(snapshot: &Snapshot) -> BTreeSet<&str> {
    let counters = snapshot.workers.iter().flat_map(|worker| worker.extra.keys());
    counters.filter_map(|name| name.strip_prefix(FLUSHES)).collect()
}

fn sum(workers: &[Worker], count: impl Fn(&Worker) -> u64) -> u64 {
    workers.iter().map(count).sum()
}

fn rise(before: u64, after: u64) -> u64 {
    if after >= before { after - before } else { after }
}

fn quotient(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use daemon::stats::Operation;

    use super::*;

    fn snapshot(seconds: u64, reads: u64, kicks: u64) -> Snapshot {
        let mut read = Operation { requests: reads, bytes: reads * 4096, ..Default::default() };
        (0..reads).for_each(|_| read.latency_ns.record(10_000));
        let device = Device {
            name: "d".into(),
            operations: BTreeMap::from([("read".into(), read)]),
            kicks,
            ..Default::default()
        };
        let worker = Worker { poll_success: reads / 2, poll_failure: reads / 2, ..Default::default() };
        let (time_ns, cpu_ns) = (seconds * 1_000_000_000, seconds * 500_000_000);
        Snapshot { time_ns, cpu_ns, devices: vec![device], workers: vec![worker] }
    }

    #[test]
    fn rates_are_differences_over_time() {
        let rates = between(&snapshot(1, 100, 10), &snapshot(3, 300, 30));
        assert_eq!((rates.seconds, rates.cpu, rates.poll_success), (2.0, 0.5, Some(0.5)));
        let device = &rates.devices[0];
        assert_eq!((device.iops, device.bytes), (100.0, 409_600.0));
        assert_eq!(device.operation_bytes, [("read".to_owned(), 409_600.0)]);
        assert_eq!(device.kicks_per_request, Some(0.1));
        assert!(device.p50_ns.is_some_and(|ns| (8192.0..16384.0).contains(&ns)));
    }

    #[test]
    fn the_ratio_is_that_of_the_interval() {
        let packed = |plain: u64, packed: u64| {
            let extra = [("uncompressed_bytes", plain), ("compressed_bytes", packed)];
            let mut snapshot = snapshot(1, 1, 1);
            snapshot.devices[0].extra = extra.map(|(name, bytes)| (name.to_owned(), bytes)).into();
            snapshot
        };
        let ratio = |before: &Snapshot, after: &Snapshot| between(before, after).devices[0].ratio;
        assert_eq!(ratio(&packed(1000, 1000), &packed(4000, 2000)), Some(3.0));
        assert_eq!(ratio(&packed(1000, 1000), &packed(1000, 1000)), None);
    }

    #[test]
    fn an_idle_interval_has_no_percentiles_and_no_quotients() {
        let rates = between(&snapshot(1, 100, 10), &snapshot(2, 100, 10));
        let device = &rates.devices[0];
        assert_eq!((device.iops, device.p50_ns, device.kicks_per_request), (0.0, None, None));
        assert_eq!(rates.poll_success, None);
    }

    #[test]
    fn a_device_that_is_new_or_restarted_counts_from_zero() {
        let new = between(&Snapshot { time_ns: 1_000_000_000, ..Default::default() }, &snapshot(2, 50, 5));
        assert_eq!(new.devices[0].iops, 50.0);
        let restarted = between(&snapshot(1, 100, 10), &snapshot(2, 50, 5));
        assert_eq!(restarted.devices[0].iops, 50.0);
    }

    #[test]
    fn two_snapshots_at_the_same_time_do_not_divide_by_zero() {
        let rates = between(&snapshot(1, 1, 1), &snapshot(1, 1, 1));
        assert!(rates.cpu.is_finite() && rates.devices[0].iops.is_finite());
    }
}
