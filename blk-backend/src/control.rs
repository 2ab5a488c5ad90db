//! The methods that vhostd-blk adds to the control socket.

use crate::app::App;
use crate::limit::Rate;
use crate::report;
use crate::service::Message;
use crate::spec::DiskSpec;
use daemon::cli::ByteSize;
use daemon::control::{Method, Nothing, RpcError, params, result};
use daemon::workers::POLL_SET;
use serde::Deserialize;
use serde_json::{Value, json};

/// All of them.
pub const METHODS: &[Method] = &[
    Method {
        name: "disk.list",
        params: "{}",
        help: "Lists the disks with size, backend, cache mode and limits",
    },
    Method {
        name: "disk.add",
        params: "{id: string, path: string, socket: string, read-only?: bool, ...}",
        help: "Opens and serves one more disk; the keys are those of a [[disk]] in the configuration file",
    },
    Method { name: "disk.remove", params: "{disk: string}", help: "Finishes a disk's I/O and lets go of it" },
    Method {
        name: "disk.resize",
        params: "{disk: string, size?: integer|string}",
        help: "Grows a disk to a size, or to the size its file has by now, and tells the guest",
    },
    Method {
        name: "disk.limit",
        params: "{disk: string, iops?: rate, read-iops?: rate, write-iops?: rate, bandwidth?: rate, \
            read-bandwidth?: rate, write-bandwidth?: rate}",
        help: "Changes rate limits; a rate is a number, \"RATE:BURST\" or {rate, burst}, 0 for none",
    },
    POLL_SET,
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    disk: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resize {
    disk: String,
    size: Option<ByteSize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Limit {
    disk: String,
    iops: Option<Rate>,
    read_iops: Option<Rate>,
    write_iops: Option<Rate>,
    bandwidth: Option<Rate>,
    read_bandwidth: Option<Rate>,
    write_bandwidth: Option<Rate>,
}

/// Answers one of [`METHODS`].
pub fn call(app: &App, method: &str, value: Value) -> Result<Value, RpcError> {
    match method {
        "disk.list" => {
            params::<Nothing>(value)?;
            Ok(app.served().iter().map(|served| report::disk(served)).collect())
        }
        "disk.add" => {
            let spec: DiskSpec = params(value)?;
            app.add(&spec)?;
            Ok(json!({}))
        }
        "disk.remove" => {
            let Which { disk } = params(value)?;
            app.remove(&disk).map(|()| json!({}))
        }
        "disk.resize" => resize(app, params(value)?),
        "disk.limit" => limit(app, params(value)?),
        "poll.set" => app.workers().poll_set(value),
        other => Err(RpcError::method_not_found(other)),
    }
}

fn resize(app: &App, Resize { disk, size }: Resize) -> Result<Value, RpcError> {
    let served = app.find(&disk)?;
    let changed = served.disk.resize(size.map(ByteSize::bytes));
    let changed = changed.map_err(|error| RpcError::refused(error.to_string()))?;
    if changed {
        served.notifier.config_changed();
    }
    Ok(json!({"bytes": served.disk.capacity() * crate::config::SECTOR, "changed": changed}))
}

fn limit(app: &App, change: Limit) -> Result<Value, RpcError> {
    let served = app.find(&change.disk)?;
    let mut limits = served.disk.limits();
    let pairs = [
        (&mut limits.iops, change.iops),
        (&mut limits.read_iops, change.read_iops),
        (&mut limits.write_iops, change.write_iops),
        (&mut limits.bandwidth, change.bandwidth),
        (&mut limits.read_bandwidth, change.read_bandwidth),
        (&mut limits.write_bandwidth, change.write_bandwidth),
    ];
    for (held, asked) in pairs {
        *held = asked.unwrap_or(*held);
    }
    served.disk.set_limits(limits);
    for worker in &served.workers {
        // A worker that is gone holds nothing back.
        let _ = worker.send(Message::Limits { device: served.device });
    }
    result(limits)
}
