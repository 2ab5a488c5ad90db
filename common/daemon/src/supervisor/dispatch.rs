//! The methods every daemon answers, and the way to the device's own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Application, Phase, Supervisor};
use crate::cli::LogLevel;
use crate::control::{self, BUILT_IN, Dispatch, Nothing, RpcError};

/// Longest and default time the method `drain` waits.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(60);
const DRAIN_WAIT: Duration = Duration::from_secs(5);

/// Answers the clients of one process.
pub(super) struct Methods<A> {
    pub application: Arc<A>,
    pub supervisor: Arc<Supervisor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Level {
    level: Option<LogLevel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Drain {
    timeout_ms: Option<u64>,
}

impl<A: Application> Dispatch for Methods<A> {
    fn dispatch(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        match method {
            "log_level" => return Ok(self.log_level(control::params(params)?)),
            "drain" => return self.drain(control::params(params)?),
            _ if BUILT_IN.iter().any(|known| known.name == method) => control::params::<Nothing>(params)?,
            _ => return self.device(method, params),
        };
        match method {
            "version" => Ok(self.version()),
            "methods" => {
                control::result(BUILT_IN.iter().chain(self.application.methods()).collect::<Vec<_>>())
            }
            "status" => Ok(self.status()),
            "stats" => control::result(self.application.stats().stamped()),
            // The process ends once the answer is on its way: see `answered`.
            "shutdown" => Ok(json!({})),
            other => Err(RpcError::method_not_found(other)),
        }
    }

    fn answered(&self, method: &str) {
        if method == "shutdown" {
            self.supervisor.shutdown();
        }
    }
}

impl<A: Application> Methods<A> {
    fn version(&self) -> Value {
        let program = self.supervisor.program();
        json!({"name": program.name, "version": program.version, "kind": program.kind, "pid": std::process::id()})
    }

    fn status(&self) -> Value {
        let mut status = self.version();
        status["state"] = json!(self.supervisor.phase());
        status["uptime_ms"] =
            json!(u64::try_from(self.supervisor.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        status["sandbox"] = json!(self.supervisor.sandbox);
        status["log_level"] = json!(self.supervisor.log.level());
        status["sessions"] = json!(self.supervisor.sessions.states());
        status["details"] = self.application.status();
        status
    }

    fn log_level(&self, wanted: Level) -> Value {
        if let Some(level) = wanted.level {
            self.supervisor.log.set_level(level);
        }
        json!({"level": self.supervisor.log.level()})
    }

    fn drain(&self, wanted: Drain) -> Result<Value, RpcError> {
        let wait = wanted.timeout_ms.map_or(DRAIN_WAIT, Duration::from_millis).min(DRAIN_WAIT_MAX);
        let late = self.supervisor.drain(&*self.application, Instant::now() + wait);
        crate::systemd::status("Drained");
        Ok(json!({"unfinished": late}))
    }

    fn device(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        if !self.application.methods().iter().any(|known| known.name == method) {
            return Err(RpcError::method_not_found(method));
        }
        if !params.is_null() && !params.is_object() {
            return Err(RpcError::invalid_params("Parameters are given by name, in an object"));
        }
        if self.supervisor.phase() != Phase::Running {
            return Err(RpcError::refused("The daemon is draining"));
        }
        self.application.call(method, params)
    }
}
