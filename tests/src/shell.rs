//! Commands in the guest, over its second serial port. The other end is `xtask/src/testbed/init.sh`.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::base64;
use crate::line::LineStream;

/// How a script ended in the guest.
#[derive(Debug)]
pub struct Output {
    /// Exit code of the shell.
    pub code: i32,
    /// Standard output and standard error together.
    pub text: String,
}

/// The guest's shell. Scripts run one after another.
pub struct Shell {
    lines: LineStream,
    last_id: u32,
}

impl Shell {
    /// A shell at the other end of `stream`; the guest may not have booted yet.
    pub fn new(stream: UnixStream) -> Self {
        Self { lines: LineStream::new(stream), last_id: 0 }
    }

    /// Goes on where the shell of a migrated guest was.
    pub fn resume(&mut self, source: &Shell) {
        self.last_id = source.last_id;
    }

    /// Waits for the line the guest's first process prints when it is ready.
    ///
    /// # Errors
    /// When `timeout` passes first.
    pub fn wait_boot(&mut self, timeout: Duration) -> Result<()> {
        self.reply_to("0", timeout).context("The guest did not boot")?;
        Ok(())
    }

    /// Runs a script to its end.
    ///
    /// # Errors
    /// When there is no answer within `timeout`; a failing script is not an error here.
    pub fn run(&mut self, script: &str, timeout: Duration) -> Result<Output> {
        let id = self.start(script)?;
        self.reply_to(&id, timeout).with_context(|| format!("No answer within {timeout:?} from: {script}"))
    }

    /// Sends a script and returns its number, without waiting.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub fn start(&mut self, script: &str) -> Result<String> {
        self.last_id += 1;
        let id = self.last_id.to_string();
        self.lines.send(&format!("{id} {}", base64::encode(script.as_bytes())))?;
        Ok(id)
    }

    fn reply_to(&mut self, id: &str, timeout: Duration) -> Result<Output> {
        let deadline = Instant::now() + timeout;
        loop {
            let line = self.lines.receive(deadline.saturating_duration_since(Instant::now()))?;
            let mut words = line.split(' ');
            if words.next() != Some(id) {
                continue;
            }
            let Some(Ok(code)) = words.next().map(str::parse) else { bail!("Malformed reply: {line}") };
            let text = String::from_utf8_lossy(&base64::decode(words.next().unwrap_or(""))).into_owned();
            return Ok(Output { code, text });
        }
    }
}
