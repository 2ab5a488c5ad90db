//! A daemon's control socket: JSON-RPC 2.0, one message a line.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::line::LineStream;

const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to the control socket.
pub struct Control {
    lines: LineStream,
}

impl Control {
    /// Connects to the daemon that listens at `socket`.
    ///
    /// # Errors
    /// When nobody does.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("Cannot connect to the control socket {}", socket.display()))?;
        Ok(Self { lines: LineStream::new(stream) })
    }

    /// Calls one method and returns its result.
    ///
    /// # Errors
    /// The daemon's own words when it refuses.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        let request = json!({"jsonrpc": "2.0", "method": method, "params": params, "id": 1});
        self.lines.send(&request.to_string())?;
        let line = self.lines.receive(PATIENCE).with_context(|| format!("No answer to {method}"))?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("Not JSON: {line}"))?;
        if let Some(error) = answer.get("error") {
            bail!("{method}: {}", error["message"].as_str().unwrap_or("refused"));
        }
        Ok(answer["result"].clone())
    }
}
