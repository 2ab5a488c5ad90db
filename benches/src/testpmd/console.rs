//! A running testpmd and its prompt.

use std::time::Duration;

use anyhow::{Result, bail};

use super::numbers;
use crate::net::meter::Meter;
use crate::process::Process;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long testpmd may take to set up its memory and ports.
const START_LIMIT: Duration = Duration::from_secs(30);
const PROMPT: &str = "testpmd> ";

/// testpmd in interactive mode. As a [`Meter`] it gives the cycles that its forwarding rounds with frames took.
#[derive(Debug)]
pub struct Testpmd {
    /// The program.
    pub process: Process,
}

impl Testpmd {
    /// Starts a command line of `dpdk-testpmd` that has `-i` and `--record-core-cycles` among its options.
    pub fn start(words: &[String], cpus: &[usize]) -> Result<Self> {
        // Its tables would stay in a buffer as long as its output is no terminal.
        let words = [&["stdbuf".to_owned(), "-oL".to_owned()], words].concat();
        let mut process = Process::start_console(&words, cpus)?;
        process.wait_for_output(0, START_LIMIT, |text| text.contains(PROMPT))?;
        Ok(Self { process })
    }

    /// Types a command; returns what was printed by the time that `done` is content with it.
    pub fn ask(&mut self, command: &str, done: impl Fn(&str) -> bool) -> Result<String> {
        let mark = self.process.printed()?;
        self.process.tell(command)?;
        self.process.wait_for_output(mark, PATIENCE, done)
    }

    /// Frames received on all of its `ports`.
    pub fn received(&mut self, ports: usize) -> Result<u64> {
        let text = self.ask("show port stats all", |text| numbers::received(text, ports).is_some())?;
        Ok(numbers::received(&text, ports).unwrap_or(0))
    }

    /// Starts its counters again.
    pub fn clear_cycles(&mut self) -> Result<()> {
        self.ask("clear fwd stats all", |text| text.contains(PROMPT)).map(|_| ())
    }

    /// Busy cycles since the counters were cleared; `None` if there was no packet.
    pub fn busy_cycles(&mut self) -> Result<Option<f64>> {
        // The cycles come last, and only when there are any.
        let complete = |text: &str| numbers::busy_cycles(text).is_some() || text.ends_with(PROMPT);
        let text = self.ask("show fwd stats all", complete)?;
        Ok(numbers::busy_cycles(&text))
    }

    /// The receive and transmit path that its first virtio-user port has chosen.
    pub fn chosen_paths(&mut self) -> Result<Vec<String>> {
        let log = self.process.wait_for_output(0, PATIENCE, |_| true)?;
        let paths = numbers::chosen_paths(&log);
        if paths.is_empty() {
            bail!("testpmd does not say which path it has chosen:\n{}", self.process.output());
        }
        Ok(paths)
    }

    /// Ends it in an orderly way.
    pub fn quit(mut self) {
        // One that does not obey gets the signal when it is dropped.
        let _ = self.process.tell("quit");
        self.process.wait_at_most(Duration::from_secs(5));
    }
}

impl Meter for Testpmd {
    fn begin(&mut self) -> Result<()> {
        self.clear_cycles()
    }

    fn end(&mut self) -> Result<Option<f64>> {
        self.busy_cycles()
    }
}
