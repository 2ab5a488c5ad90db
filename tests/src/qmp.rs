//! QEMU's monitor protocol (docs/interop/qmp-spec.rst).

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::line::LineStream;

const PATIENCE: Duration = Duration::from_secs(30);

/// A monitor connection, ready for commands.
pub struct Qmp {
    lines: LineStream,
    events: Vec<Value>,
}

impl Qmp {
    /// Takes the greeting and leaves capability negotiation.
    ///
    /// # Errors
    /// When QEMU ends or is silent.
    pub fn new(stream: UnixStream) -> Result<Self> {
        let mut qmp = Self { lines: LineStream::new(stream), events: Vec::new() };
        qmp.lines.receive(PATIENCE).context("No greeting on the monitor")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns what it returned.
    ///
    /// # Errors
    /// QEMU's own words when it refuses.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.lines.send(&json!({"execute": command, "arguments": arguments}).to_string())?;
        loop {
            let message = self.message(PATIENCE).with_context(|| format!("No answer to {command}"))?;
            if let Some(value) = message.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = message.get("error") {
                bail!("{command}: {}", error["desc"].as_str().unwrap_or("refused"));
            }
            self.events.push(message);
        }
    }

    /// Waits for an event of a device; one that came before counts and is used up.
    ///
    /// # Errors
    /// When `timeout` passes without it.
    pub fn wait_event(&mut self, name: &str, device: &str, timeout: Duration) -> Result<Value> {
        let deadline = Instant::now() + timeout;
        // A device has several parts, each with an event of its own.
        let wanted = |event: &Value| event["event"] == name && event["data"]["device"] == device;
        loop {
            if let Some(at) = self.events.iter().position(wanted) {
                return Ok(self.events.remove(at));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.message(left).with_context(|| format!("No event {name} of {device}"))?;
            self.events.push(message);
        }
    }

    fn message(&mut self, timeout: Duration) -> Result<Value> {
        let line = self.lines.receive(timeout)?;
        serde_json::from_str(&line).with_context(|| format!("Not JSON on the monitor: {line}"))
    }
}
