//! The methods that vhostd-crypto adds to the control socket.

use crate::app::App;
use crate::options::{Limits, Scheduling, check_policy};
use crate::report;
use crate::spec::{DeviceSpec, SchedulingSpec};
use daemon::cli::ByteSize;
use daemon::control::{Method, Nothing, RpcError, params, result};
use offload::spec::mode_set;
use serde::Deserialize;
use serde_json::{Value, json};

/// All of them. Those of devices come first: they are what `vhostctl`'s verbs mean.
pub const METHODS: &[Method] = &[
    Method {
        name: "device.list",
        params: "{}",
        help: "Lists the devices with queues, limits, sessions, door and connection",
    },
    Method {
        name: "device.add",
        params: "{id: string, socket: string, queues?: integer, sessions?: integer, ...}",
        help: "Serves one more device; the keys are those of a [[device]] in the configuration file",
    },
    Method {
        name: "device.remove",
        params: "{device: string}",
        help: "Finishes a device's requests, wipes its sessions and lets go of it",
    },
    Method {
        name: "device.set",
        params: "{device: string, sessions?: integer, max-size?: integer|string}",
        help: "Changes how many sessions a device may have open, and how long its requests may be",
    },
    Method {
        name: "mode.get",
        params: "{}",
        help: "Shows how workers wait, when they submit, and which engine computes",
    },
    Method {
        name: "mode.set",
        params: "{mode?: string, batch?: integer, asym-batch?: integer, deadline-us?: integer, \
            inline-bytes?: integer|string, max-us?: integer, preset?: string}",
        help: "Changes how workers wait (interrupt, timer=100us, heuristic, busy) and when they submit; what is not given stays. \
            max-us and preset say how heuristic polls",
    },
    Method {
        name: "engine.list",
        params: "{}",
        help: "Lists the engines of this machine, what each does, and how many requests it did",
    },
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    device: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SetDevice {
    device: String,
    sessions: Option<u32>,
    max_size: Option<ByteSize>,
}

/// Answers one of [`METHODS`].
pub fn call(app: &App, method: &str, value: Value) -> Result<Value, RpcError> {
    match method {
        "device.list" => {
            params::<Nothing>(value)?;
            Ok(app.host().served().iter().map(|served| report::device(served)).collect())
        }
        "device.add" => {
            let spec: DeviceSpec = params(value)?;
            app.host().add(&spec)?;
            Ok(json!({}))
        }
        "device.remove" => {
            let Which { device } = params(value)?;
            app.host().remove(&device).map(|()| json!({}))
        }
        "device.set" => set_device(app, params(value)?),
        "mode.get" => {
            params::<Nothing>(value)?;
            Ok(mode(app))
        }
        "mode.set" => set_mode(app, value),
        "engine.list" => {
            params::<Nothing>(value)?;
            Ok(report::engines())
        }
        other => Err(RpcError::method_not_found(other)),
    }
}

fn set_device(app: &App, change: SetDevice) -> Result<Value, RpcError> {
    let served = app.host().find(&change.device)?;
    let unit = &served.unit;
    let present = report::limits(unit);
    let limits = Limits {
        sessions: change.sessions.unwrap_or(present.sessions),
        max_size: change.max_size.map_or(present.max_size, ByteSize::clamped),
    };
    limits.check()?;
    unit.sessions().set_limit(limits.sessions);
    unit.set_max_size(limits.max_size.into());
    if limits.max_size != present.max_size {
        // It is in the configuration space.
        served.notifier.config_changed();
    }
    result(limits)
}

fn set_mode(app: &App, value: Value) -> Result<Value, RpcError> {
    let (change, spin) = mode_set::<SchedulingSpec>(value)?;
    if change.engine.is_some() || change.asym_threads.is_some() {
        return Err(RpcError::invalid_params(
            "engine and asym-threads cannot be changed while the daemon runs",
        ));
    }
    app.host().pace().change(app.host().workers(), &change.rule(), spin, check_policy)?;
    Ok(mode(app))
}

/// What holds now, in the words of the command line.
pub fn mode(app: &App) -> Value {
    let Scheduling { engine, asym_threads, .. } = app.scheduling();
    let mut shown = app.host().pace().show();
    let own = [
        ("asym-batch", json!(app.host().pace().policy().thresholds.answers)),
        ("engine", json!(engine.name())),
        ("asym-threads", json!(asym_threads)),
    ];
    shown.extend(own.map(|(key, value)| (key.to_owned(), value)));
    shown.into()
}
