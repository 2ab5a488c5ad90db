//! The result of one run: numbers, JSON, table.

use std::fmt::Write;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::client::status_name;
use super::options::Load;
use super::verifier::Verified;
use crate::guest::{Figures, Shown, Tally, Totals};
use crate::units::{show_rate, show_size};

/// Result of one run. Rates and counts are those of the measured time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Load, in words.
    pub load: String,
    /// Requests per second, all queues.
    pub iops: f64,
    /// What every load has.
    #[serde(flatten)]
    pub figures: Figures,
    /// Blocks compared byte by byte.
    pub verified_blocks: u64,
    /// Blocks that were wrong.
    pub wrong_blocks: u64,
    /// The first few of them.
    pub mismatches: Vec<String>,
    /// Times the backend was gone, in milliseconds from its death until it was driven again.
    pub outages_ms: Vec<f64>,
}

impl Report {
    /// Adds up what the queues have measured. `cpu` is the backend's CPU time in the measured time.
    pub fn new(load: &Load, tallies: Vec<(Tally, Verified)>, cpu: Option<std::time::Duration>) -> Self {
        let totals = Totals::of(tallies.iter().map(|(tally, _)| tally));
        let mut verified = Verified::default();
        tallies.into_iter().for_each(|(_, part)| verified.merge(part));
        Self {
            load: describe(load),
            iops: totals.rate,
            figures: Figures::new(&totals, cpu, status_name),
            verified_blocks: verified.blocks,
            wrong_blocks: verified.wrong,
            mismatches: verified.mismatches.iter().map(ToString::to_string).collect(),
            outages_ms: Vec::new(),
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
        self.errors == 0 && self.wrong_blocks == 0
    }

    fn table(&self) -> String {
        let mut lines = self.lines(&self.load, ("IOPS", show_rate(self.iops)));
        if self.verified_blocks > 0 {
            lines.add("verified", format!("{} blocks, {} wrong", self.verified_blocks, self.wrong_blocks));
        }
        if !self.outages_ms.is_empty() {
            let times: Vec<String> = self.outages_ms.iter().map(|ms| format!("{ms:.1} ms")).collect();
            lines.add("outages survived", times.join(", "));
        }
        self.mismatches.iter().for_each(|mismatch| lines.add("MISMATCH", mismatch));
        lines.0
    }
}

/// The load in words: `randread bs=4k iodepth=32 numjobs=1 split polled`.
fn describe(load: &Load) -> String {
    let mut text = format!(
        "{} bs={} iodepth={} numjobs={} {} {}",
        load.rw.name(),
        show_size(load.bs),
        load.iodepth,
        load.numjobs,
        if load.rings.packed { "packed" } else { "split" },
        if load.rings.interrupt { "interrupts" } else { "polled" },
    );
    if let Some(rate) = load.pace.rate {
        let _ = write!(text, " rate={rate}");
    }
    if load.rings.indirect {
        text.push_str(" indirect");
    }
    if load.verify {
        text.push_str(" verify");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{Counts, Signals};
    use crate::latency::Latencies;
    use std::time::Duration;

    fn load() -> Load {
        Load::default()
    }

    fn tally(operations: u64, seconds: f64) -> (Tally, Verified) {
        let mut latencies = Latencies::new();
        latencies.record(operations * 1000);
        let counts = Counts { operations, bytes: operations * 4096, latencies, bursts: operations / 10 };
        let signals = Signals { kicks: operations / 2, interrupts: operations / 4 };
        (Tally { counts, signals, seconds, ..Tally::default() }, Verified::default())
    }

    #[test]
    fn rates_of_queues_add_up_and_ratios_are_per_request() {
        let report =
            Report::new(&load(), vec![tally(1000, 2.0), tally(3000, 2.0)], Some(Duration::from_secs(1)));
        assert_eq!((report.operations, report.iops, report.batch), (4000, 2000.0, 10.0));
        assert!((report.mb_per_second - 8.192).abs() < 1e-9);
        assert_eq!((report.kicks_per_op, report.interrupts_per_op), (0.5, 0.25));
        assert_eq!((report.cpu_us_per_op, report.cpu_load), (Some(250.0), Some(0.5)));
        assert!((report.latency.max_us - 3000.0).abs() < 4.0);
        assert!(report.is_clean());
    }

    #[test]
    fn nothing_completed_gives_zeros_and_no_cpu_figure() {
        let report = Report::new(&load(), vec![Default::default()], Some(Duration::from_secs(1)));
        assert_eq!(
            (report.iops, report.batch, report.kicks_per_op, report.cpu_us_per_op),
            (0.0, 0.0, 0.0, None)
        );
    }

    #[test]
    fn errors_and_mismatches_are_in_the_table_and_make_it_unclean() {
        let mut failed = tally(10, 1.0);
        (failed.0.errors, failed.0.first_error) = (3, Some(1));
        let report = Report::new(&load(), vec![failed], None);
        assert!(!report.is_clean());
        let table = report.table();
        assert!(table.contains("3, the first with status 1 (IOERR)"), "{table}");
        assert!(table.contains("not visible"), "{table}");
    }

    #[test]
    fn json_keeps_every_field() {
        let report = Report::new(&load(), vec![tally(1000, 2.0)], None);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}
