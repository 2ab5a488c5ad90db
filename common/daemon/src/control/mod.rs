//! The control socket: JSON-RPC 2.0 over a Unix socket, one message a line, mode 0600.
//!
//! Every daemon answers the methods of [`BUILT_IN`]; a device crate adds its own through [`Handler`]. Schema and examples
//! are in `docs/control.md`. `vhostctl` is the client.

pub mod client;
mod rpc;
mod server;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use rpc::{Request, RpcError, code};
pub(crate) use server::refuse;
pub use server::{Dispatch, MAX_CLIENTS, MAX_MESSAGE, serve_client};

/// What a device crate adds to the control socket.
///
/// Called on a thread of the client's own, several at once; a call may block (a drain) without delaying other
/// clients, signals or metrics. It must not hold a lock that [`crate::Application::stats`] needs while it blocks.
pub trait Handler: Send + Sync {
    /// The device's methods, for `methods` and for refusing others.
    fn methods(&self) -> &'static [Method];

    /// Answers one of [`methods`](Self::methods); `params` is an object or null.
    fn call(&self, method: &str, params: Value) -> Result<Value, RpcError>;
}

/// One method as `methods` lists it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Method {
    /// Name, `area.verb` for device methods (`disk.resize`).
    pub name: &'static str,
    /// Parameters in the notation of `docs/control.md`: `{name: string, size?: integer}`.
    pub params: &'static str,
    /// One sentence.
    pub help: &'static str,
}

/// Methods every daemon has.
pub const BUILT_IN: &[Method] = &[
    Method { name: "version", params: "{}", help: "Name, version and process id of the daemon." },
    Method { name: "methods", params: "{}", help: "Every method this daemon answers." },
    Method { name: "status", params: "{}", help: "State of the process, its sessions and its devices." },
    Method { name: "stats", params: "{}", help: "All counters and histograms; they only rise." },
    Method { name: "log_level", params: "{level?: string}", help: "Reads or changes how much is logged." },
    Method {
        name: "drain",
        params: "{timeout_ms?: integer}",
        help: "Ends every session, finishes what is in flight and keeps the process for inspection.",
    },
    Method { name: "shutdown", params: "{}", help: "Drains and exits with 0, like SIGTERM." },
];

/// The parameters of a method that has none.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Reads a method's parameters; null counts as an empty object. `T` should be `#[serde(deny_unknown_fields)]`.
pub fn params<T: DeserializeOwned>(params: Value) -> Result<T, RpcError> {
    let params = if params.is_null() { Value::Object(Default::default()) } else { params };
    serde_json::from_value(params).map_err(|error| RpcError::invalid_params(error.to_string()))
}

/// A method's result from any serializable value.
pub fn result(value: impl Serialize) -> Result<Value, RpcError> {
    serde_json::to_value(value).map_err(|error| RpcError::internal(error.to_string()))
}
