//! The methods that vhostd-compress adds to the control socket.

use crate::app::App;
use crate::options::{Scheduling, Verify};
use crate::report;
use crate::spec::{DeviceSpec, LimitsChange, SchedulingSpec};
use daemon::cli::{ByteSize, from_text};
use daemon::control::{Method, Nothing, RpcError, params, result};
use offload::parameters;
use offload::spec::mode_set;
use serde::Deserialize;
use serde_json::{Value, json};

/// All of them. Those of devices come first: they are what `vhostctl`'s verbs mean.
pub const METHODS: &[Method] = &[
    Method {
        name: "device.list",
        params: "{}",
        help: "Lists the devices with queues, limits, streams, door and connection",
    },
    Method {
        name: "device.add",
        params: "{id: string, socket: string, queues?: integer, max-size?: integer|string, ...}",
        help: "Serves one more device; the keys are those of a [[device]] in the configuration file",
    },
    Method {
        name: "device.remove",
        params: "{device: string}",
        help: "Finishes a device's requests and lets go of it",
    },
    Method {
        name: "device.set",
        params: "{device: string, max-size?: integer|string, max-in-flight?: integer, streams?: integer, verify?: string}",
        help: "Changes how long a device's requests may be, how much memory (MiB) they may take, how many streams may be open, \
            and which results are verified",
    },
    Method {
        name: "mode.get",
        params: "{}",
        help: "Shows how workers wait, when they submit, and which engine is asked first",
    },
    Method {
        name: "mode.set",
        params: "{mode?: string, batch?: integer, deadline-us?: integer, inline-bytes?: integer|string, max-us?: integer, \
            preset?: string}",
        help: "Changes how workers wait (interrupt, timer=100us, heuristic, busy) and when they submit; what is not given stays. \
            max-us and preset say how heuristic polls",
    },
    Method { name: "engine.list", params: "{}", help: "Lists the engines of this build and what each does" },
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
    max_size: Option<ByteSize>,
    max_in_flight: Option<u32>,
    streams: Option<u32>,
    #[serde(default, deserialize_with = "from_text")]
    verify: Option<Verify>,
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
    let SetDevice { device, max_size, max_in_flight, streams, verify } = change;
    let served = app.host().find(&device)?;
    let present = served.unit.limits();
    let limits = LimitsChange { max_size, max_in_flight, streams, verify }.of(present)?;
    served.unit.set_limits(limits);
    if (limits.max_size, limits.streams) != (present.max_size, present.streams) {
        // They are in the configuration space.
        served.notifier.config_changed();
    }
    result(limits)
}

fn set_mode(app: &App, value: Value) -> Result<Value, RpcError> {
    let (change, spin) = mode_set::<SchedulingSpec>(value)?;
    if change.engine.is_some() {
        return Err(RpcError::invalid_params("engine cannot be changed while the daemon runs"));
    }
    app.host().pace().change(app.host().workers(), &change.flush(), spin, parameters::check)?;
    Ok(mode(app))
}

/// What holds now, in the words of the command line.
pub fn mode(app: &App) -> Value {
    let Scheduling { engine, .. } = app.scheduling();
    let mut shown = app.host().pace().show();
    shown.insert("engine".to_owned(), json!(engine.name()));
    shown.into()
}
