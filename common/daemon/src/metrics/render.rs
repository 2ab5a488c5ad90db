//! Which metrics there are: one place for all daemons, made from [`stats::Snapshot`](crate::stats::Snapshot).

use std::ops::RangeInclusive;
use std::time::Duration;

use super::Exposition;
use crate::Program;
use crate::stats::{Device, Operation, Snapshot, Worker};

/// Latency bounds from 256 ns to 17 s.
const LATENCY_BUCKETS: RangeInclusive<usize> = 8..=34;
/// Batch bounds from 1 to 1023 chains.
pub const BATCH_BUCKETS: RangeInclusive<usize> = 1..=10;
const NANOSECONDS: f64 = 1e9;

/// Metrics about the process itself.
pub fn process(out: &mut Exposition, program: &Program, uptime: Duration) {
    let labels = [("program", program.name), ("version", program.version), ("kind", program.kind)];
    out.gauge("vhostd_build_info", "What runs here; always 1.", &labels, 1.0);
    out.gauge("vhostd_uptime_seconds", "Time since the daemon started.", &[], uptime.as_secs_f64());
}

/// All metrics of a snapshot.
pub fn snapshot(out: &mut Exposition, snapshot: &Snapshot) {
    out.counter_seconds("process_cpu_seconds_total", "CPU time, user and system.", &[], snapshot.cpu_ns);
    snapshot.devices.iter().for_each(|one| device(out, one));
    snapshot.workers.iter().for_each(|one| worker(out, one));
}

fn device(out: &mut Exposition, device: &Device) {
    let name = [("device", device.name.as_str())];
    let gauges = [
        ("vhostd_device_connected", "1 while a frontend is connected.", u64::from(device.connected)),
        ("vhostd_device_queues", "Virtqueues running.", u64::from(device.queues)),
        ("vhostd_requests_in_flight", "Requests taken and not completed.", device.in_flight),
    ];
    for (metric, help, value) in gauges {
        out.gauge(metric, help, &name, value as f64);
    }
    let suppressed = "Completions without an interrupt because the driver asked for none.";
    let counters = [
        ("vhostd_kicks_total", "Kicks taken from the driver.", device.kicks),
        ("vhostd_interrupts_total", "Interrupts sent to the driver.", device.interrupts),
        ("vhostd_interrupts_suppressed_total", suppressed, device.interrupts_suppressed),
        ("vhostd_broken_rings_total", "Rings broken by the guest.", device.broken_rings),
    ];
    for (metric, help, value) in counters {
        out.counter(metric, help, &name, value);
    }
    for (metric, value) in &device.extra {
        out.counter(&format!("vhostd_{metric}_total"), "Counter of this kind of device.", &name, *value);
    }
    for (label, counts) in &device.operations {
        operation(out, &[name[0], ("operation", label)], counts);
    }
}

fn operation(out: &mut Exposition, labels: &[(&str, &str)], counts: &Operation) {
    out.counter(
        "vhostd_requests_total",
        "Requests completed, failed ones included.",
        labels,
        counts.requests,
    );
    out.counter("vhostd_request_bytes_total", "Payload of completed requests.", labels, counts.bytes);
    out.counter("vhostd_request_errors_total", "Requests completed with an error.", labels, counts.errors);
    let family = ("vhostd_request_latency_seconds", "Time from fetch to completion.");
    out.histogram(family, labels, &counts.latency_ns, LATENCY_BUCKETS, NANOSECONDS);
}

fn worker(out: &mut Exposition, worker: &Worker) {
    let name = ("worker", worker.name.as_str());
    let help = "Busy-poll windows, by whether they found work.";
    out.counter("vhostd_worker_polls_total", help, &[name, ("result", "success")], worker.poll_success);
    out.counter("vhostd_worker_polls_total", help, &[name, ("result", "failure")], worker.poll_failure);
    out.counter("vhostd_worker_parks_total", "Times the worker slept.", &[name], worker.parks);
    let family = ("vhostd_worker_batch_chains", "Chains taken from a ring at once.");
    out.histogram(family, &[name], &worker.batch, BATCH_BUCKETS, 1.0);
    let family = ("vhostd_worker_latency_seconds", "Time from fetch to completion.");
    out.histogram(family, &[name], &worker.latency_ns, LATENCY_BUCKETS, NANOSECONDS);
    for (metric, value) in &worker.extra {
        out.counter(&format!("vhostd_worker_{metric}_total"), "Counter of a worker.", &[name], *value);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn sample() -> Snapshot {
        let mut read = Operation { requests: 3, bytes: 12288, errors: 1, ..Default::default() };
        [900, 1500, 40_000_000].into_iter().for_each(|ns| read.latency_ns.record(ns));
        let device = |name: &str| Device {
            name: name.into(),
            connected: true,
            queues: 2,
            kicks: 5,
            operations: BTreeMap::from([
                ("read".into(), read.clone()),
                ("write".into(), Operation::default()),
            ]),
            extra: BTreeMap::from([("bounced_requests".into(), 4)]),
            ..Default::default()
        };
        let mut worker = Worker { name: "worker-0".into(), poll_success: 9, ..Default::default() };
        worker.batch.record(4);
        worker.latency_ns.record(700);
        Snapshot {
            cpu_ns: 1_500_000_000,
            devices: vec![device("disk \"0\""), device("b")],
            workers: vec![worker],
            ..Default::default()
        }
    }

    fn text() -> String {
        let mut out = Exposition::new();
        let program = Program { name: "vhostd-test", version: "1.2", kind: "block", features: &[] };
        process(&mut out, &program, Duration::from_millis(2500));
        snapshot(&mut out, &sample());
        out.finish()
    }

    /// One line of samples: name, labels, value.
    fn parse(line: &str) -> (String, BTreeMap<String, String>, f64) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let (name, mut rest) = series.split_once('{').unwrap_or((series, "}"));
        let mut labels = BTreeMap::new();
        while let Some((label, after)) = rest.split_once("=\"") {
            let mut text = String::new();
            let mut chars = after.chars();
            loop {
                match chars.next().expect("a closing quote") {
                    '"' => break,
                    '\\' => text.push(chars.next().expect("an escaped character")),
                    c => text.push(c),
                }
            }
            assert_eq!(labels.insert(label.trim_start_matches(',').to_owned(), text), None, "{line}");
            rest = chars.as_str();
        }
        assert_eq!(rest, "}", "{line}");
        let value = if value == "+Inf" { f64::INFINITY } else { value.parse().expect("a number") };
        (name.to_owned(), labels, value)
    }

    #[test]
    fn the_text_parses_and_every_sample_belongs_to_the_family_above_it() {
        let mut families = BTreeSet::new();
        let mut family = (String::new(), String::new());
        let mut seen = BTreeSet::new();
        for line in text().lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(families.insert(name.to_owned()), "{name} twice");
                family = (name.to_owned(), kind.to_owned());
            } else if !line.starts_with("# HELP ") {
                let (name, labels, value) = parse(line);
                let suffixes: &[&str] =
                    if family.1 == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                assert!(
                    suffixes.iter().any(|end| name == format!("{}{end}", family.0)),
                    "{line} under {family:?}"
                );
                assert_eq!(family.1 == "counter", name.ends_with("_total"), "{line}");
                assert!(value >= 0.0);
                assert!(seen.insert((name, labels)), "{line} twice");
            }
        }
        assert!(families.len() > 12);
    }

    #[test]
    fn values_are_those_of_the_snapshot_in_base_units() {
        let text = text();
        let has = |line: &str| assert!(text.lines().any(|have| have == line), "no {line} in\n{text}");
        has("process_cpu_seconds_total 1.5");
        has("vhostd_uptime_seconds 2.5");
        has(r#"vhostd_requests_total{device="b",operation="read"} 3"#);
        has(r#"vhostd_request_errors_total{device="disk \"0\"",operation="read"} 1"#);
        has(r#"vhostd_bounced_requests_total{device="b"} 4"#);
        has(r#"vhostd_request_latency_seconds_bucket{device="b",operation="read",le="0.000001023"} 1"#);
        has(r#"vhostd_request_latency_seconds_bucket{device="b",operation="read",le="0.000002047"} 2"#);
        has(r#"vhostd_request_latency_seconds_count{device="b",operation="read"} 3"#);
        has(r#"vhostd_worker_polls_total{worker="worker-0",result="success"} 9"#);
        has(r#"vhostd_worker_batch_chains_bucket{worker="worker-0",le="7"} 1"#);
        has(r#"vhostd_worker_latency_seconds_bucket{worker="worker-0",le="0.000001023"} 1"#);
    }

    #[test]
    fn buckets_of_every_histogram_only_rise() {
        let mut last: BTreeMap<String, f64> = BTreeMap::new();
        for line in text().lines().filter(|line| line.contains("_bucket{")) {
            let (name, mut labels, value) = parse(line);
            labels.remove("le");
            let before = last.insert(format!("{name}{labels:?}"), value).unwrap_or(0.0);
            assert!(value >= before, "{line}");
        }
        assert_eq!(last.len(), 6);
    }
}
