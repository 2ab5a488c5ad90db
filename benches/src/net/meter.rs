//! How much of its CPU time a backend that polls has spent on frames.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use daemon::control::client::Client;
use daemon::stats::Snapshot;
use serde_json::Value;

/// Asks a backend for its busy cycles.
pub trait Meter {
    /// The measurement begins.
    fn begin(&mut self) -> Result<()>;

    /// The measurement ends: busy cycles since it began, `None` when the backend does not know.
    fn end(&mut self) -> Result<Option<f64>>;
}

/// vhostd-net, asked on its control socket: the counters of its workers.
pub struct Control {
    path: PathBuf,
    before: Option<f64>,
}

impl Control {
    /// The daemon that listens on `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), before: None }
    }

    fn read(&self) -> Result<Option<f64>> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let what = || format!("Cannot ask the daemon at {}", self.path.display());
        let mut client = Client::connect(&self.path, PATIENCE).with_context(what)?;
        let stats = client.call("stats", Value::Null).with_context(what)?;
        let snapshot: Snapshot = serde_json::from_value(stats).with_context(what)?;
        Ok(busy_cycles(&snapshot))
    }
}

impl Meter for Control {
    fn begin(&mut self) -> Result<()> {
        self.before = self.read()?;
        Ok(())
    }

    fn end(&mut self) -> Result<Option<f64>> {
        let now = self.read()?;
        Ok(now.zip(self.before).map(|(now, before)| now - before))
    }
}

/// Cycles of the rounds in which the workers found something to do; `None` if the daemon does not count them.
fn busy_cycles(snapshot: &Snapshot) -> Option<f64> {
    let of = |worker: &daemon::stats::Worker| worker.extra.get("busy_cycles").map(|&cycles| cycles as f64);
    snapshot.workers.iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use daemon::stats::Worker;

    #[test]
    fn busy_cycles_are_those_of_all_workers() {
        let worker =
            |cycles| Worker { extra: [("busy_cycles".to_owned(), cycles)].into(), ..Worker::default() };
        let snapshot = Snapshot { workers: vec![worker(3), worker(4)], ..Snapshot::default() };
        assert_eq!(busy_cycles(&snapshot), Some(7.0));
    }

    #[test]
    fn a_daemon_that_does_not_count_them_gives_no_figure() {
        let snapshot = Snapshot { workers: vec![Worker::default()], ..Snapshot::default() };
        assert_eq!(busy_cycles(&snapshot), None);
    }
}
