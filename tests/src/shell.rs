//! Commands in the guest, over its second serial port. The other end is `xtask/src/testbed/init.sh`.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

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

mod base64 {
    //! RFC 4648 section 4.

    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    pub fn encode(bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
        for chunk in bytes.chunks(3) {
            let group = (0..3).fold(0u32, |group, i| group << 8 | u32::from(*chunk.get(i).unwrap_or(&0)));
            for i in 0..4 {
                let sextet = (group >> (18 - 6 * i)) & 63;
                text.push(if i <= chunk.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
            }
        }
        text
    }

    /// Stops at the first character that is not of the alphabet, as at padding.
    pub fn decode(text: &str) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
        let (mut group, mut bits) = (0u32, 0);
        for character in text.bytes() {
            let Some(sextet) = ALPHABET.iter().position(|letter| *letter == character) else { break };
            group = group << 6 | sextet as u32;
            bits += 6;
            if bits >= 8 {
                bits -= 8;
                bytes.push((group >> bits) as u8);
            }
        }
        bytes
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_vectors_of_the_rfc_go_both_ways() {
            for (plain, coded) in
                [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
            {
                assert_eq!(encode(plain.as_bytes()), coded);
                assert_eq!(decode(coded), plain.as_bytes());
            }
        }
    }
}
