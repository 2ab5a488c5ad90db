//! The result of one run: numbers, JSON, table.

use std::fmt::Write;
use std::ops::Deref;

use anyhow::Result;
use compress_protocol::Checksum;
use serde::{Deserialize, Serialize};

use super::algorithm::Operation;
use super::material::{self, Material};
use super::options::Load;
use super::workload::{Findings, code_name};
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
    /// What every load has. Bytes are those of blocks before they are compressed, whatever is done.
    #[serde(flatten)]
    pub figures: Figures,
    /// Plain bytes for one compressed byte, each block of the corpus counted once; those that are incompressible count as they
    /// are. `None` where nothing is compressed.
    pub ratio: Option<f64>,
    /// Every block is in the ratio: only such ratios can be compared.
    pub whole: bool,
    /// Requests that came back as incompressible, over the whole run.
    pub incompressible: u64,
    /// Answers of a second engine, over the whole run.
    pub second_engine: u64,
    /// CRC-32 and bytes of the corpus: what runs that are compared have in common.
    pub corpus: String,
    /// Why the backend submitted its batches; `None` if it was not asked or does not tell.
    pub flushes: Option<Flushes>,
    /// Results held against another implementation.
    pub verified: u64,
    /// Results that were wrong.
    pub wrong: u64,
    /// The first few of them.
    pub mismatches: Vec<String>,
}

impl Report {
    /// Adds up what the queues have measured and found out.
    pub fn new(
        load: &Load,
        material: &Material,
        tallies: &[Tally],
        findings: Vec<Findings>,
        backend: Observed,
    ) -> Result<Self> {
        let totals = Totals::of(tallies);
        let mut verified = Verified::default();
        let sum = |count: fn(&Findings) -> u64| findings.iter().map(count).sum();
        let (incompressible, second_engine) = (sum(|it| it.incompressible), sum(|it| it.second_engine));
        let mut sizes = Vec::new();
        for found in findings {
            verified.merge(found.verified);
            sizes.push(found.sizes);
        }
        let sizes = material::merged(sizes)?;
        Ok(Self {
            load: describe(load),
            ops_per_second: totals.rate,
            figures: Figures::new(&totals, backend.cpu, code_name),
            ratio: sizes.ratio(),
            whole: sizes.is_whole(),
            incompressible,
            second_engine,
            corpus: describe_corpus(load, material),
            flushes: backend.flushes,
            verified: verified.requests,
            wrong: verified.wrong,
            mismatches: verified.mismatches,
        })
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
        if let Some(ratio) = self.ratio {
            let part = if self.whole { "" } else { " (of a part of the corpus)" };
            lines.add("ratio", format!("{ratio:.3}{part}"));
        }
        lines.add("corpus", &self.corpus);
        for (name, count) in [("incompressible", self.incompressible), ("second engine", self.second_engine)]
        {
            if count > 0 {
                lines.add(name, format!("{count} requests"));
            }
        }
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

/// The corpus in words: `mixed, 8m in 128 blocks, crc32 1a2b3c4d`.
fn describe_corpus(load: &Load, material: &Material) -> String {
    let (blocks, size) = (material.len(), show_size((material.len() * material.size()) as u64));
    format!("{}, {size} in {blocks} blocks, crc32 {:08x}", load.corpus, material.sum())
}

/// The load in words: `compress zlib level=1 size=64k depth=16 queues=1 polled`.
fn describe(load: &Load) -> String {
    let mut text = load.op.name().to_owned();
    if load.op != Operation::Checksum {
        let _ = write!(text, " {}", load.format.name());
    }
    if load.op == Operation::Compress {
        let _ = write!(text, " level={}", load.level);
    }
    if load.checksum != Checksum::None {
        let _ = write!(text, " {}", load.checksum.name());
    }
    let _ = write!(text, " size={} depth={} queues={}", show_size(load.size), load.depth, load.queues);
    let words = [
        (load.verified, "verified by the device"),
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
    use crate::compress::material::Sizes;
    use crate::guest::Counts;

    fn report(wrong: u64) -> Report {
        let load = Load::parse("--corpus zeros --corpus-size 128k --checksum crc32").unwrap();
        let material = Material::new(&load).unwrap();
        let counts = Counts { operations: 1000, bytes: 65_536_000, bursts: 100, ..Counts::default() };
        let tally = Tally { counts, seconds: 2.0, ..Tally::default() };
        let mut sizes = Sizes::new(2, 65536);
        sizes.note(0, 32768);
        sizes.note(1, 65536);
        let mut verified = Verified::default();
        (0..10).for_each(|n| verified.note(n >= wrong, || "byte 7".to_owned()));
        let found = Findings { sizes, incompressible: 5, second_engine: 0, verified };
        Report::new(&load, &material, &[tally], vec![found], Observed::default()).unwrap()
    }

    #[test]
    fn the_table_has_ratio_and_corpus_and_bytes_are_plain_ones() {
        let report = report(0);
        assert_eq!((report.ops_per_second, report.mb_per_second), (500.0, 32.768));
        assert!((report.ratio.unwrap() - 131_072.0 / 98_304.0).abs() < 1e-9);
        let table = report.table();
        let head = "compress zlib level=1 crc32 size=64k depth=16 queues=1 polled\n";
        assert!(table.starts_with(head), "{table}");
        assert!(table.contains("zeros, 128k in 2 blocks, crc32 ") && table.contains("1.333"), "{table}");
        assert!(table.contains("5 requests") && !table.contains("second engine"), "{table}");
        assert!(report.is_clean() && report.whole && !table.contains("of a part"), "{table}");
    }

    #[test]
    fn wrong_results_make_it_unclean_and_are_in_the_table() {
        let report = report(1);
        assert!(!report.is_clean() && report.table().contains("MISMATCH              byte 7"));
    }

    #[test]
    fn json_keeps_every_field() {
        let report = report(1);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}
