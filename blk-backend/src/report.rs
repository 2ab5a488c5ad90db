//! What the process shows of its disks: for `status`, `disk.list`, `stats` and the metrics endpoint.

use crate::app::{App, Served};
use crate::config::SECTOR;
use crate::limit::Limits;
use crate::stats::{Fault, Op, QueueSnapshot};
use daemon::device::described;
use daemon::metrics::Exposition;
use daemon::stats::{Device, Histogram, Operation, Snapshot};
use runtime::stats::WorkerSnapshot;
use serde_json::{Value, json};
use std::sync::Arc;

/// The device part of `status`.
pub fn status(app: &App) -> Value {
    json!({"disks": app.served().iter().map(|served| disk(served)).collect::<Value>(), "workers": app.workers().status()})
}

/// One disk, for people and programs.
pub fn disk(served: &Served) -> Value {
    let disk = &served.disk;
    let options = disk.options();
    let own = json!({
        "id": disk.id(),
        "backend": disk.backend().kind(),
        "path": disk.backend().file().map(|file| file.path()),
        "bytes": disk.capacity() * SECTOR,
        "block_size": disk.config().blk_size.get(),
        "read_only": options.read_only,
        "direct": options.direct,
        "queues": options.num_queues,
        "writeback": disk.writeback(),
        "durable_writes": disk.durable(),
        "flushes_fail": disk.backend().file().is_some_and(|file| file.cache_lost()),
        "locked_out": disk.locked_out(),
        "limits": limits(&disk.limits()),
    });
    described(own, &served.notifier.status())
}

/// Those that are set: six times nothing would hide them.
fn limits(limits: &Limits) -> Value {
    let mut all = serde_json::to_value(limits).unwrap_or_default();
    if let Some(all) = all.as_object_mut() {
        all.retain(|_, limit| limit["rate"] != 0);
    }
    all
}

/// All counters of the process.
pub fn snapshot(served: &[Arc<Served>], workers: &[(String, Option<usize>, WorkerSnapshot)]) -> Snapshot {
    Snapshot::new(served.iter().map(|served| device(served)).collect(), workers)
}

fn device(served: &Served) -> Device {
    let mut device = Device::new(served.disk.id(), "block", &served.notifier.status(), &served.queues);
    for queue in served.disk.queue_stats() {
        add(&mut device, &queue.snapshot());
    }
    device
}

fn add(device: &mut Device, queue: &QueueSnapshot) {
    for op in Op::ALL {
        let of = |values: &[u64]| values[op as usize];
        if of(&queue.ops) == 0 {
            continue;
        }
        let sum: &mut Operation = device.operations.entry(op.name().into()).or_default();
        sum.requests += of(&queue.ops);
        sum.bytes += of(&queue.bytes);
        sum.errors += of(&queue.errors);
        sum.latency_ns.merge(&Histogram::from(&queue.latency_ns[op as usize]));
    }
    let counters = [
        ("bounced_requests", queue.bounced),
        ("bounce_waits", queue.bounce_waits),
        ("io_retries", queue.retries),
        ("short_transfers", queue.partial),
        ("throttled", queue.limited),
        ("discards_ignored", queue.discards_ignored),
        ("resubmitted_requests", queue.resubmitted),
    ];
    let faults = Fault::ALL.map(|fault| (fault.metric(), queue.fault(fault)));
    for (name, value) in counters.into_iter().chain(faults) {
        *device.extra.entry(name.into()).or_default() += value;
    }
}

/// Metrics that are not counters.
pub fn metrics(served: &[Arc<Served>], out: &mut Exposition) {
    let mut gauge = |name: &str, help: &str, value: &dyn Fn(&Served) -> f64| {
        for served in served {
            out.gauge(name, help, &[("device", served.disk.id())], value(served));
        }
    };
    gauge("vhostd_blk_capacity_bytes", "Size of the disk", &|served| {
        (served.disk.capacity() * SECTOR) as f64
    });
    gauge("vhostd_blk_durable_writes", "1 while writes complete only when they are stable", &|served| {
        f64::from(u8::from(served.disk.durable()))
    });
    gauge("vhostd_blk_flushes_fail", "1 after a failed flush of the page cache", &|served| {
        f64::from(u8::from(served.disk.backend().file().is_some_and(|file| file.cache_lost())))
    });
}
