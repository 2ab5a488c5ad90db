//! The result of one run: numbers, JSON, table.

use std::fmt::Write;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::algorithm::Direction;
use super::options::Load;
use super::wire::status;
use crate::flushes::Flushes;
use crate::guest::{Figures, Observed, Shown, Tally, Totals, Verified};
use crate::units::{show_rate, show_size};

/// Result of one run. Rates and counts are those of the measured time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Load, in words.
    pub load: String,
    /// Requests per second, all queues.
    pub ops_per_second: f64,
    /// What every load has. Bytes are those of sources; public-key operations have none.
    #[serde(flatten)]
    pub figures: Figures,
    /// Why the backend submitted its batches; `None` if it was not asked or does not tell.
    pub flushes: Option<Flushes>,
    /// Results held against the library's.
    pub verified: u64,
    /// Results that were wrong.
    pub wrong: u64,
    /// The first few of them.
    pub mismatches: Vec<String>,
}

impl Report {
    /// Adds up what the queues have measured.
    pub fn new(load: &Load, tallies: &[Tally], verified: Verified, backend: Observed) -> Self {
        let totals = Totals::of(tallies);
        Self {
            load: describe(load),
            ops_per_second: totals.rate,
            figures: Figures::new(&totals, backend.cpu, status::name),
            flushes: backend.flushes,
            verified: verified.requests,
            wrong: verified.wrong,
            mismatches: verified.mismatches,
        }
    }
}

impl Deref for Report {
    type Target = Figures;

    fn deref(&self) -> &Figures {
        &self.figures
    }
}

impl Shown for Report {
    fn is_clean(&self) -> bool {
        self.operations > 0 && self.errors == 0 && self.wrong == 0
    }

    fn table(&self) -> String {
        let rate = ("operations", format!("{}/s", show_rate(self.ops_per_second)));
        let mut lines = self.lines(&self.load, rate);
        if let Some(flushes) = &self.flushes {
            lines.add("flushed because", flushes.text());
        }
        if self.verified > 0 {
            lines.add("verified", format!("{} results, {} wrong", self.verified, self.wrong));
        }
        self.mismatches.iter().for_each(|mismatch| lines.add("MISMATCH", mismatch));
        lines.0
    }
}

/// The load in words: `aes-128-cbc encrypt size=4k depth=32 queues=1 jobs=1 door=b split polled`.
pub fn describe(load: &Load) -> String {
    let mut text = format!("{} {}", load.algorithm, load.direction().name());
    if !load.algorithm.is_asymmetric() {
        let _ = write!(text, " size={}", show_size(load.size));
    }
    let _ = write!(text, " depth={} queues={} jobs={}", load.depth, load.queues, load.jobs);
    let words = [
        (load.direction() == Direction::Digest && load.stateless, "stateless"),
        (load.direction() != Direction::Digest && load.stateless, "stateless, a key each"),
        (load.in_place, "in place"),
        (load.rings.packed, "packed"),
        (load.rings.indirect, "indirect"),
        (load.verify, "verify"),
    ];
    for (_, word) in words.iter().filter(|(given, _)| *given) {
        let _ = write!(text, " {word}");
    }
    let _ = write!(text, " {}", if load.rings.interrupt { "interrupts" } else { "polled" });
    if let Some(rate) = load.pace.rate {
        let _ = write!(text, " rate={rate}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::guest::{Counts, Signals};

    fn tally() -> Tally {
        let counts = Counts { operations: 1000, bytes: 4_096_000, bursts: 100, ..Counts::default() };
        let signals = Signals { kicks: 500, interrupts: 250 };
        Tally { counts, signals, seconds: 2.0, ..Tally::default() }
    }

    fn report(verified: Verified) -> Report {
        let shares = [("full".to_owned(), 0.25), ("empty".to_owned(), 0.75), ("timer".to_owned(), 0.0)];
        let flushes = Flushes { shares: shares.into(), batches: 8 };
        let backend = Observed { cpu: Some(Duration::from_millis(500)), flushes: Some(flushes) };
        Report::new(&Load::default(), &[tally(), tally()], verified, backend)
    }

    #[test]
    fn figures_are_per_second_and_per_request() {
        let report = report(Verified::default());
        assert_eq!((report.ops_per_second, report.mb_per_second), (1000.0, 4.096));
        assert_eq!((report.cpu_us_per_op, report.cpu_load), (Some(250.0), Some(0.25)));
        assert_eq!((report.kicks_per_op, report.interrupts_per_op, report.batch), (0.5, 0.25, 10.0));
        assert!(report.is_clean());
        let table = report.table();
        assert!(table.contains("empty 75 %, full 25 %\n"), "{table}");
        assert!(table.starts_with("aes-128-cbc encrypt size=4k depth=32 queues=1 jobs=1 polled"), "{table}");
    }

    #[test]
    fn wrong_results_make_it_unclean_and_are_in_the_table() {
        let wrong = Verified { requests: 10, wrong: 1, mismatches: vec!["byte 7".to_owned()] };
        let report = report(wrong);
        assert!(!report.is_clean() && report.table().contains("MISMATCH              byte 7"));
    }

    #[test]
    fn a_run_in_which_nothing_ended_is_no_measurement() {
        let report =
            Report::new(&Load::default(), &[Tally::default()], Verified::default(), Observed::default());
        assert!(!report.is_clean());
    }

    #[test]
    fn json_keeps_every_field() {
        let report = report(Verified::default());
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}
