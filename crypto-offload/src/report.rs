//! What the process shows of its devices and engines: for `status`, `device.list`, `engine.list`, `stats` and the metrics
//! endpoint.

use crate::algorithm::Service;
use crate::app::{App, Served};
use crate::control;
use crate::device::Door;
use crate::engine::{self, Description};
use crate::keys;
use crate::options::Limits;
use crate::service::Unit;
use crate::stats::{Algo, QueueSnapshot, ServiceSnapshot};
use crate::wire::status::Status;
use daemon::device::described;
use daemon::metrics::Exposition;
use daemon::stats::{Device, Histogram, Operation, Snapshot, Worker};
use serde_json::{Value, json};

/// The device part of `status`.
pub fn status(app: &App) -> Value {
    json!({
        "devices": app.host().served().iter().map(|served| device(served)).collect::<Value>(),
        "scheduling": control::mode(app),
        "engines": engines(),
        "asymmetric": asymmetric(app),
        "key_memory": key_memory(),
        "supervised": app.host().is_supervised(),
        "workers": app.host().workers().status(),
    })
}

/// One device, for people and programs.
pub fn device(served: &Served) -> Value {
    let (unit, options) = (&served.unit, &served.options);
    let session = served.notifier.status();
    let sessions = unit.sessions().figures();
    let limits = limits(unit);
    let own = json!({
        "id": unit.id(),
        "door": Door::of(session.protocol_features).filter(|_| session.connected).map(Door::name),
        "queues": options.queues,
        "queue_size": options.queue_size,
        "sessions": {"open": sessions.open, "limit": limits.sessions, "created": sessions.created, "refused": sessions.refused},
        "max_size": limits.max_size,
    });
    described(own, &session)
}

/// The limits in force.
pub fn limits(unit: &Unit) -> Limits {
    let whole = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Limits { sessions: whole(unit.sessions().figures().limit), max_size: whole(unit.max_size()) }
}

/// Threads for asymmetric requests.
fn asymmetric(app: &App) -> Value {
    let figures = app.pool(|pool| pool.figures()).unwrap_or_default();
    json!({
        "threads": figures.threads,
        "waiting": figures.waiting,
        "done": figures.done,
        "busy_ms": figures.busy_ns / 1_000_000,
    })
}

/// Locked memory for keys, in bytes.
fn key_memory() -> Value {
    let usage = keys::usage();
    json!({"locked": usage.locked, "used": usage.used})
}

/// The engines of this machine, in the order in which they are asked.
pub fn engines() -> Value {
    let shown =
        |engine: &Description| json!({"name": engine.name, "detail": engine.detail, "takes": engine.takes});
    engine::list().iter().map(shown).collect()
}

/// All counters of the process.
pub fn snapshot(app: &App) -> Snapshot {
    let devices = app.host().served().iter().map(|served| counters(served)).collect();
    let mut snapshot = Snapshot::new(devices, &app.host().workers().stats());
    for (worker, service) in snapshot.workers.iter_mut().zip(app.services()) {
        batches(worker, &service.snapshot());
    }
    snapshot
}

fn counters(served: &Served) -> Device {
    let (unit, session) = (&served.unit, served.notifier.status());
    let mut device = Device::new(unit.id(), "crypto", &session, &served.queues);
    let totals = unit.totals();
    device.operations = Service::ALL.iter().filter_map(|service| operation(&totals, *service)).collect();
    let sessions = unit.sessions().figures();
    let counters = [
        ("malformed", totals.malformed),
        ("inline", totals.inline),
        ("stateless", totals.stateless),
        ("throttled", totals.throttled),
        ("resubmitted_requests", totals.resubmitted),
        ("sessions_created", sessions.created),
        ("sessions_closed", sessions.closed),
        ("sessions_refused", sessions.refused),
    ];
    device.extra.extend(counters.map(|(name, value)| (name.to_owned(), value)));
    let failed = Status::ALL.iter().filter(|status| **status != Status::Ok);
    device.extra.extend(failed.map(|status| (format!("status_{}", status.name()), totals.status(*status))));
    device
}

/// What the algorithms of a service have done; nothing for one that was never asked for.
fn operation(totals: &QueueSnapshot, service: Service) -> Option<(String, Operation)> {
    let of = |counters: &[u64]| {
        let algorithms = Algo::ALL.iter().filter(|algo| algo.service() == Some(service));
        algorithms.map(|algo| counters[*algo as usize]).sum::<u64>()
    };
    let requests = of(&totals.ops);
    let latency_ns = Histogram::from(&totals.latency_ns[service.wire() as usize]);
    let operation = Operation { requests, bytes: of(&totals.bytes), errors: of(&totals.errors), latency_ns };
    (requests > 0).then(|| (service.name().to_owned(), operation))
}

fn batches(worker: &mut Worker, service: &ServiceSnapshot) {
    service.batches.show(worker);
    let counters = [
        ("fallbacks", service.fallbacks),
        ("busy", service.busy),
        ("asym_requests", service.asym),
        ("asym_wakeups", Histogram::from(&service.asym_batch).count()),
    ];
    worker.extra.extend(counters.map(|(name, value)| (name.to_owned(), value)));
}

/// Metrics with labels of their own, and those that are not counters.
pub fn metrics(app: &App, out: &mut Exposition) {
    for served in app.host().served() {
        let device = served.unit.id();
        algorithms(device, &served.unit.totals(), out);
        let sessions = served.unit.sessions().figures().open as f64;
        out.gauge("vhostd_crypto_sessions", "Sessions open", &[("device", device)], sessions);
    }
    for (worker, service) in app.host().workers().handles().iter().zip(app.services()) {
        service.snapshot().batches.metrics("vhostd_crypto", worker.name(), out);
    }
}

fn algorithms(device: &str, totals: &QueueSnapshot, out: &mut Exposition) {
    for algo in Algo::ALL.into_iter().filter(|algo| totals.op(*algo) > 0) {
        let labels = [("device", device), ("algorithm", algo.name())];
        let (requests, bytes) = (totals.op(algo), totals.bytes[algo as usize]);
        out.counter(
            "vhostd_crypto_requests_total",
            "Requests by algorithm, failed ones included",
            &labels,
            requests,
        );
        out.counter("vhostd_crypto_bytes_total", "Bytes of source data by algorithm", &labels, bytes);
    }
    for status in Status::ALL {
        let labels = [("device", device), ("status", status.name())];
        let help = "Requests by the status they were answered with";
        out.counter("vhostd_crypto_status_total", help, &labels, totals.status(status));
    }
}
