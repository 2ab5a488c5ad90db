//! The result of one run: numbers, JSON, table.

use std::fmt::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::algorithm::Direction;
use super::flushes::Flushes;
use super::options::Load;
use super::wire::status;
use super::workload::Verified;
use crate::guest::{Tally, Totals};
use crate::latency::LatencySummary;
use crate::units::{show_rate, show_size};

/// Result of one run. Rates and counts are those of the measured time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Load, in words.
    pub load: String,
    /// Requests completed.
    pub operations: u64,
    /// Measured time.
    pub seconds: f64,
    /// Requests per second, all queues.
    pub ops_per_second: f64,
    /// Megabytes (10^6) of source per second, all queues; 0 for public-key operations.
    pub mb_per_second: f64,
    /// Latency distribution over all queues.
    pub latency: LatencySummary,
    /// CPU time of the backend process per request; `None` if its process is not visible.
    pub cpu_us_per_op: Option<f64>,
    /// Share of one CPU that the backend used: 1.0 is a full core.
    pub cpu_load: Option<f64>,
    /// Eventfd writes by the driver per request.
    pub kicks_per_op: f64,
    /// Eventfd writes by the backend per request.
    pub interrupts_per_op: f64,
    /// Requests harvested at once, on average.
    pub batch: f64,
    /// Why the backend submitted its batches; `None` if it was not asked or does not tell.
    pub flushes: Option<Flushes>,
    /// Requests the backend completed with an error, over the whole run.
    pub errors: u64,
    /// Status of the first of them.
    pub first_error: Option<String>,
    /// Results held against the library's.
    pub verified: u64,
    /// Results that were wrong.
    pub wrong: u64,
    /// The first few of them.
    pub mismatches: Vec<String>,
}

/// What is known of the backend.
#[derive(Clone, Debug, Default)]
pub struct Backend {
    /// Its CPU time in the measured time.
    pub cpu: Option<Duration>,
    /// Why it submitted its batches.
    pub flushes: Option<Flushes>,
}

impl Report {
    /// Adds up what the queues have measured.
    pub fn new(load: &Load, tallies: &[Tally], verified: Verified, backend: Backend) -> Self {
        let totals = Totals::of(tallies);
        let status = |code| format!("{code} ({})", status::name(code));
        Self {
            load: describe(load),
            operations: totals.operations,
            seconds: totals.seconds,
            ops_per_second: totals.rate,
            mb_per_second: totals.bytes_per_second / 1e6,
            latency: totals.latencies.summary(),
            cpu_us_per_op: totals.cpu_us(backend.cpu),
            cpu_load: totals.cpu_load(backend.cpu),
            kicks_per_op: totals.per_operation(totals.signals.kicks as f64),
            interrupts_per_op: totals.per_operation(totals.signals.interrupts as f64),
            batch: totals.batch(),
            flushes: backend.flushes,
            errors: totals.errors,
            first_error: totals.first_error.map(status),
            verified: verified.requests,
            wrong: verified.wrong,
            mismatches: verified.mismatches,
        }
    }

    /// No request failed and no result was wrong.
    pub fn is_clean(&self) -> bool {
        self.errors == 0 && self.wrong == 0
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let mut text = format!("{}\n", self.load);
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<22}{value}");
        };
        line("operations", format!("{}/s", show_rate(self.ops_per_second)));
        if self.mb_per_second > 0.0 {
            line("throughput", format!("{:.0} MB/s", self.mb_per_second));
        }
        line("latency mean", format!("{:.2} us", self.latency.mean_us));
        line("latency p50", format!("{:.2} us", self.latency.p50_us));
        line("latency p99", format!("{:.2} us", self.latency.p99_us));
        line("latency max", format!("{:.2} us", self.latency.max_us));
        match (self.cpu_us_per_op, self.cpu_load) {
            (Some(cpu), Some(load)) => {
                line("backend CPU", format!("{cpu:.3} us per request, {:.0} % of a core", load * 100.0));
            }
            _ => line("backend CPU", "unknown (its process is not visible from here)".to_owned()),
        }
        line("kicks", format!("{:.4} per request", self.kicks_per_op));
        line("interrupts", format!("{:.4} per request", self.interrupts_per_op));
        line("average batch", format!("{:.1} harvested at once", self.batch));
        if let Some(flushes) = &self.flushes {
            line("flushed because", flushes.text());
        }
        line("requests", format!("{} in {:.2} s", self.operations, self.seconds));
        if self.verified > 0 {
            line("verified", format!("{} results, {} wrong", self.verified, self.wrong));
        }
        if let Some(first) = &self.first_error {
            line("ERRORS", format!("{}, the first with status {first}", self.errors));
        }
        for mismatch in &self.mismatches {
            line("MISMATCH", mismatch.clone());
        }
        text
    }
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
    if let Some(rate) = load.rate {
        let _ = write!(text, " rate={rate}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{Counts, Signals};

    fn tally() -> Tally {
        let counts = Counts { operations: 1000, bytes: 4_096_000, bursts: 100, ..Counts::default() };
        let signals = Signals { kicks: 500, interrupts: 250 };
        Tally { counts, signals, seconds: 2.0, ..Tally::default() }
    }

    fn report(verified: Verified) -> Report {
        let shares = [("full".to_owned(), 0.25), ("empty".to_owned(), 0.75), ("timer".to_owned(), 0.0)];
        let flushes = Flushes { shares: shares.into(), batches: 8 };
        let backend = Backend { cpu: Some(Duration::from_millis(500)), flushes: Some(flushes) };
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
    fn json_keeps_every_field() {
        let report = report(Verified::default());
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}
