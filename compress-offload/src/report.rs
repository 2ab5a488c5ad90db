//! What the process shows of its devices and workers: for `status`, `device.list`, `engine.list`, `stats` and the metrics
//! endpoint.

use crate::app::{App, Served};
use crate::control;
use crate::device::Door;
use crate::engine::{self, Description};
use crate::stats::{Kind, LATENCIES, LATENCY_NAMES, QueueSnapshot, ServiceSnapshot};
use compress_protocol::{Format, Status};
use daemon::device::described;
use daemon::metrics::Exposition;
use daemon::stats::{Device, Histogram, Operation, Snapshot, Worker};
use serde_json::{Value, json};

/// The device part of `status`.
pub fn status(app: &App) -> Value {
    let host = app.host();
    json!({
        "devices": host.served().iter().map(|served| device(served)).collect::<Value>(),
        "scheduling": control::mode(app),
        "engines": engines(),
        "supervised": host.is_supervised(),
        "workers": host.workers().status(),
    })
}

/// One device, for people and programs.
pub fn device(served: &Served) -> Value {
    let unit = &served.unit;
    let session = served.notifier.status();
    let door = session.connected.then(|| Door::of(session.protocol_features).name());
    let (limits, totals) = (unit.limits(), unit.totals());
    let ratio = |format: &Format| Some((format.name().to_owned(), json!(totals.ratio(*format)?)));
    let own = json!({
        "id": unit.id(),
        "door": door,
        "queues": unit.queues(),
        "queue_size": unit.queue_size(),
        "max_size": limits.max_size,
        "in_flight_bytes": {"now": unit.in_flight_bytes(), "limit": limits.max_in_flight},
        "streams": {"open": unit.open_streams(), "limit": limits.streams},
        "verify": limits.verify,
        "zero_copy": unit.zero_copy(),
        "ratios": Format::ALL.iter().filter_map(ratio).collect::<serde_json::Map<_, _>>(),
    });
    described(own, &session)
}

/// The engines of this build, in the order in which they are asked.
pub fn engines() -> Value {
    let shown =
        |engine: &Description| json!({"name": engine.name, "detail": engine.detail, "takes": engine.takes});
    engine::list().iter().map(shown).collect()
}

/// All counters of the process.
pub fn snapshot(app: &App) -> Snapshot {
    let host = app.host();
    let devices = host.served().iter().map(|served| counters(served)).collect();
    let mut snapshot = Snapshot::new(devices, &host.workers().stats());
    for (worker, service) in snapshot.workers.iter_mut().zip(app.services()) {
        tasks(worker, &service.snapshot());
    }
    snapshot
}

fn counters(served: &Served) -> Device {
    let unit = &served.unit;
    let mut device = Device::new(unit.id(), "compress", &served.notifier.status(), &served.queues);
    let totals = unit.totals();
    device.operations = (0..LATENCIES).filter_map(|group| operation(&totals, group)).collect();
    let (plain, packed) = amounts(&totals);
    let counters = [
        ("uncompressed_bytes", plain),
        ("compressed_bytes", packed),
        ("malformed", totals.malformed),
        ("inline", totals.inline),
        ("stolen", totals.stolen),
        ("direct", totals.direct),
        ("verified", totals.verified),
        ("second_engine", totals.second_engine),
        ("streamed", totals.streamed),
        ("throttled", totals.throttled),
        ("resubmitted_requests", totals.resubmitted),
    ];
    device.extra.extend(counters.map(|(name, value)| (name.to_owned(), value)));
    let failed = Status::ALL.iter().filter(|status| **status != Status::Ok);
    device.extra.extend(failed.map(|status| (format!("status_{}", status.name()), totals.status(*status))));
    device
}

/// What compressing took and gave: uncompressed bytes, and compressed ones.
fn amounts(totals: &QueueSnapshot) -> (u64, u64) {
    let compressing = Kind::ALL.iter().filter(|kind| kind.latency() == 0).map(|kind| kind.index());
    compressing.fold((0, 0), |(plain, packed), place| {
        (plain + totals.bytes_in[place], packed + totals.bytes_out[place])
    })
}

/// What was compressed, decompressed, or else; nothing for what was never asked for. Bytes are those of the uncompressed side.
fn operation(totals: &QueueSnapshot, group: usize) -> Option<(String, Operation)> {
    let kinds = || Kind::ALL.iter().filter(|kind| kind.latency() == group).map(|kind| kind.index());
    let sum = |counters: &[u64]| kinds().map(|place| counters[place]).sum::<u64>();
    let requests = sum(&totals.ops);
    let bytes = if group == DECOMPRESS { sum(&totals.bytes_out) } else { sum(&totals.bytes_in) };
    let latency_ns = Histogram::from(&totals.latency_ns[group]);
    let operation = Operation { requests, bytes, errors: sum(&totals.errors), latency_ns };
    (requests > 0).then(|| (LATENCY_NAMES[group].to_owned(), operation))
}

/// The group of decompressions.
const DECOMPRESS: usize = 1;

fn tasks(worker: &mut Worker, service: &ServiceSnapshot) {
    service.batches.show(worker);
    let counters = [
        ("tasks_computed", service.computed),
        ("tasks_stolen", service.stolen),
        ("tasks_lent", service.lent),
        ("workers_called", service.called),
        ("compute_ns", service.compute_ns),
    ];
    worker.extra.extend(counters.map(|(name, value)| (name.to_owned(), value)));
}

/// Metrics with labels of their own, and those that are not counters.
pub fn metrics(app: &App, out: &mut Exposition) {
    for served in app.host().served() {
        let (unit, label) = (&served.unit, [("device", served.unit.id())]);
        kinds(unit.id(), &unit.totals(), out);
        let streams = unit.open_streams() as f64;
        out.gauge("vhostd_compress_streams", "Streams open", &label, streams);
        let help = "Bytes of the requests that were taken and have not ended";
        out.gauge("vhostd_compress_in_flight_bytes", help, &label, unit.in_flight_bytes() as f64);
    }
    for (worker, service) in app.host().workers().handles().iter().zip(app.services()) {
        let service = service.snapshot();
        service.batches.metrics("vhostd_compress", worker.name(), out);
        let label = [("worker", worker.name())];
        let help = "Requests computed for other workers";
        out.counter("vhostd_compress_stolen_total", help, &label, service.stolen);
        let help = "Private memory kept for the next requests, in bytes";
        out.gauge("vhostd_compress_kept_bytes", help, &label, service.kept_bytes as f64);
    }
}

fn kinds(device: &str, totals: &QueueSnapshot, out: &mut Exposition) {
    for kind in Kind::ALL.into_iter().filter(|kind| totals.of(*kind) > 0) {
        let labels = [("device", device), ("operation", kind.operation()), ("format", kind.format())];
        let place = kind.index();
        let help = "Requests by operation and format, failed ones included";
        out.counter("vhostd_compress_requests_total", help, &labels, totals.ops[place]);
        let help = "Bytes of source by operation and format";
        out.counter("vhostd_compress_source_bytes_total", help, &labels, totals.bytes_in[place]);
        let help = "Bytes of result by operation and format";
        out.counter("vhostd_compress_result_bytes_total", help, &labels, totals.bytes_out[place]);
    }
    for status in Status::ALL {
        let labels = [("device", device), ("status", status.name())];
        let help = "Requests by the status they were answered with";
        out.counter("vhostd_compress_status_total", help, &labels, totals.status(status));
    }
}
