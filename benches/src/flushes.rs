//! Why a daemon that batches submitted its batches, asked on its control socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use daemon::control::client::Client;
use daemon::stats::Snapshot;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the counters of flushes begin with.
const PREFIX: &str = "flushes_";

/// Shares of the reasons why batches were submitted, and how full they were.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flushes {
    /// Share of each reason, 0 to 1: `full`, `empty`, `deadline`, `timer`.
    pub shares: BTreeMap<String, f64>,
    /// Batches in the measured time.
    pub batches: u64,
}

impl Flushes {
    /// `empty 72 %, full 28 %`, the largest share first.
    pub fn text(&self) -> String {
        let mut shares: Vec<_> = self.shares.iter().filter(|(_, share)| **share > 0.0).collect();
        shares.sort_by(|left, right| right.1.total_cmp(left.1));
        let words: Vec<String> =
            shares.iter().map(|(reason, share)| format!("{reason} {:.0} %", **share * 100.0)).collect();
        words.join(", ")
    }
}

/// The daemon behind a control socket.
pub struct Counters {
    path: PathBuf,
    before: BTreeMap<String, u64>,
}

impl Counters {
    /// The daemon that listens on `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), before: BTreeMap::new() }
    }

    /// The measurement begins.
    pub fn begin(&mut self) -> Result<()> {
        self.before = self.read()?;
        Ok(())
    }

    /// The measurement ends.
    pub fn end(&mut self) -> Result<Option<Flushes>> {
        Ok(shares(&self.before, &self.read()?))
    }

    fn read(&self) -> Result<BTreeMap<String, u64>> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let what = || format!("Cannot ask the daemon at {}", self.path.display());
        let mut client = Client::connect(&self.path, PATIENCE).with_context(what)?;
        let stats = client.call("stats", Value::Null).with_context(what)?;
        let snapshot: Snapshot = serde_json::from_value(stats).with_context(what)?;
        Ok(reasons(&snapshot))
    }
}

/// The counters of all workers and devices by reason.
fn reasons(snapshot: &Snapshot) -> BTreeMap<String, u64> {
    let workers = snapshot.workers.iter().flat_map(|worker| &worker.extra);
    let devices = snapshot.devices.iter().flat_map(|device| &device.extra);
    let mut reasons = BTreeMap::new();
    for (name, count) in workers.chain(devices) {
        if let Some(reason) = name.strip_prefix(PREFIX) {
            *reasons.entry(reason.to_owned()).or_default() += count;
        }
    }
    reasons
}

/// What has come since `before`; `None` for a daemon that does not count.
fn shares(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> Option<Flushes> {
    if now.is_empty() {
        return None;
    }
    let since = |(reason, count): (&String, &u64)| {
        (reason.clone(), count.saturating_sub(before.get(reason).copied().unwrap_or(0)))
    };
    let counts: BTreeMap<String, u64> = now.iter().map(since).collect();
    let batches: u64 = counts.values().sum();
    let share = |(reason, count): (String, u64)| (reason, count as f64 / batches.max(1) as f64);
    Some(Flushes { shares: counts.into_iter().map(share).collect(), batches })
}

#[cfg(test)]
mod tests {
    use super::*;
    use daemon::stats::Worker;

    fn snapshot(full: u64, empty: u64) -> Snapshot {
        let extra =
            [("flushes_full".to_owned(), full), ("flushes_empty".to_owned(), empty), ("other".to_owned(), 9)];
        let worker = Worker { extra: extra.into(), ..Worker::default() };
        Snapshot { workers: vec![worker.clone(), worker], ..Snapshot::default() }
    }

    #[test]
    fn shares_are_of_the_measured_time_and_of_all_workers() {
        let flushes = shares(&reasons(&snapshot(10, 10)), &reasons(&snapshot(40, 20))).unwrap();
        assert_eq!((flushes.batches, flushes.shares["full"], flushes.shares["empty"]), (80, 0.75, 0.25));
        assert_eq!(flushes.shares.len(), 2);
    }

    #[test]
    fn a_daemon_that_does_not_count_gives_no_shares_and_an_idle_one_zeros() {
        assert_eq!(shares(&BTreeMap::new(), &reasons(&Snapshot::default())), None);
        let same = reasons(&snapshot(1, 1));
        let flushes = shares(&same, &same).unwrap();
        assert_eq!((flushes.batches, flushes.shares["full"]), (0, 0.0));
    }
}
