//! Lines from a stream socket, with deadlines.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A line-oriented connection. A line that arrives slowly is never lost to a timeout: what came stays buffered.
pub struct LineStream {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl LineStream {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Sends one line; the newline is added.
    pub fn send(&mut self, line: &str) -> Result<()> {
        self.stream.write_all(format!("{line}\n").as_bytes()).context("The other end is gone")
    }

    /// The next line, without its line ending, or an error once `timeout` has passed.
    pub fn receive(&mut self, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.fill(deadline)?;
        }
    }

    fn fill(&mut self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("Timed out");
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => bail!("The other end closed the connection"),
            Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_survives_a_timeout() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut lines = LineStream::new(ours);
        theirs.write_all(b"one\r\ntw").unwrap();
        assert_eq!(lines.receive(Duration::from_secs(5)).unwrap(), "one");
        assert!(lines.receive(Duration::from_millis(20)).is_err());
        theirs.write_all(b"o\n").unwrap();
        assert_eq!(lines.receive(Duration::from_secs(5)).unwrap(), "two");
        drop(theirs);
        assert!(lines.receive(Duration::from_secs(5)).is_err());
    }
}
