//! The table of ways and bandwidths: medians, ratios, text, Markdown.

use std::fmt::Write;

use serde::Serialize;

use super::way::Way;
use crate::compare::statistics::Spread;

/// What the offload is to reach, against both other ways.
const AIM: f64 = 1.6;

/// All ways at all bandwidths.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The experiment in words.
    pub experiment: String,
    /// What compresses in software.
    pub software: String,
    /// What the records are taken from.
    pub corpus: String,
    /// How often everything was measured.
    pub rounds: u32,
    /// The bandwidth that the aims are held against, MB/s.
    pub bandwidth: u32,
    /// Bandwidth by bandwidth, way by way.
    pub cells: Vec<Cell>,
}

/// One way at one bandwidth.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// MB/s of the disk.
    pub bandwidth: u32,
    /// Who compresses.
    pub way: Way,
    /// Round by round.
    pub runs: Vec<Run>,
}

/// The data set written and read back once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Run {
    /// Bytes of the data set.
    pub bytes: u64,
    /// Bytes that it takes on the disk, in whole blocks.
    pub stored: u64,
    /// Writing it.
    pub write: Phase,
    /// Reading it back and comparing it.
    pub read: Phase,
}

/// What one phase took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Phase {
    /// From the first request to the last answer.
    pub seconds: f64,
    /// CPU seconds of the submitter's thread.
    pub submitter_cpu: f64,
    /// CPU seconds of vhostd-blk.
    pub disk_cpu: f64,
    /// CPU seconds of vhostd-compress.
    pub compress_cpu: f64,
}

impl Run {
    /// MB of plain data written a second.
    pub fn write_rate(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.write.seconds
    }

    /// MB of plain data read a second.
    pub fn read_rate(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.read.seconds
    }

    /// MB of plain data a second, written and then read.
    pub fn rate(&self) -> f64 {
        2.0 * self.bytes as f64 / 1e6 / (self.write.seconds + self.read.seconds)
    }

    /// Plain bytes for one byte on the disk.
    pub fn ratio(&self) -> f64 {
        self.bytes as f64 / self.stored as f64
    }

    /// CPU seconds for a GB that is written or read.
    pub fn cpu(&self, of: fn(&Phase) -> f64) -> f64 {
        (of(&self.write) + of(&self.read)) / (2.0 * self.bytes as f64 / 1e9)
    }

    /// CPU seconds of the submitter for a GB that is written or read.
    pub fn submitter_cpu(&self) -> f64 {
        self.cpu(|phase| phase.submitter_cpu)
    }
}

impl Cell {
    /// Not yet measured.
    pub fn new(bandwidth: u32, way: Way) -> Self {
        Self { bandwidth, way, runs: Vec::new() }
    }

    /// The middle of the rounds.
    pub fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        middle(&self.runs.iter().map(of).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    }
}

fn middle(values: &[f64]) -> Option<f64> {
    Spread::of(values).map(|spread| spread.median)
}

/// What the issue wants of the offload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Aim {
    /// What it is compared with.
    pub against: Way,
    /// How many times as fast it is, written and read.
    pub value: f64,
    /// It is fast enough.
    pub reached: bool,
}

impl Table {
    /// One way at one bandwidth.
    pub fn cell(&self, bandwidth: u32, way: Way) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.bandwidth == bandwidth && cell.way == way)
    }

    /// Bandwidths in their order.
    pub fn bandwidths(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.cells.iter().map(|cell| cell.bandwidth).collect();
        all.dedup();
        all
    }

    /// How many times as fast the offload is, round by round, so that a machine that changes speed cancels out.
    pub fn gain(&self, bandwidth: u32, against: Way, of: fn(&Run) -> f64) -> Option<f64> {
        let (ours, theirs) = (self.cell(bandwidth, Way::Offload)?, self.cell(bandwidth, against)?);
        let ratios: Vec<f64> =
            ours.runs.iter().zip(&theirs.runs).map(|(one, two)| of(one) / of(two)).collect();
        middle(&ratios)
    }

    /// Those that were measured.
    pub fn aims(&self) -> Vec<Aim> {
        let aim = |against| {
            let value = self.gain(self.bandwidth, against, Run::rate)?;
            Some(Aim { against, value, reached: value >= AIM })
        };
        [Way::None, Way::Software].into_iter().filter_map(aim).collect()
    }

    /// Medians as both tables show them.
    fn columns(&self, cell: &Cell) -> [String; 11] {
        let gain = |against| match self.gain(cell.bandwidth, against, Run::rate) {
            Some(gain) if cell.way == Way::Offload => format!("{gain:.2}x"),
            _ => "-".to_owned(),
        };
        let cpu = |of: fn(&Phase) -> f64| format!("{:.2}", cell.median(|run| run.cpu(of)));
        let rate = |of: fn(&Run) -> f64| format!("{:.0}", cell.median(of));
        [
            cell.bandwidth.to_string(),
            cell.way.name().to_owned(),
            rate(Run::write_rate),
            rate(Run::read_rate),
            rate(Run::rate),
            format!("{:.2}", cell.median(Run::ratio)),
            cpu(|phase| phase.submitter_cpu),
            cpu(|phase| phase.disk_cpu),
            cpu(|phase| phase.compress_cpu),
            gain(Way::None),
            gain(Way::Software),
        ]
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{} (medians of {} rounds)\n", self.experiment, self.rounds);
        let _ = writeln!(text, "software: {} level 1; corpus: {}", self.software, self.corpus);
        let _ = writeln!(
            text,
            "{:>9}  {:<9}{:>11}{:>11}{:>11}{:>7}{:>16}{:>10}{:>15}{:>11}{:>15}",
            "disk MB/s",
            "way",
            "write MB/s",
            "read MB/s",
            "both MB/s",
            "ratio",
            "submitter s/GB",
            "blk s/GB",
            "compress s/GB",
            "over none",
            "over software"
        );
        for cell in &self.cells {
            let [disk, way, write, read, both, ratio, own, blk, compress, none, software] =
                self.columns(cell);
            let _ = writeln!(
                text,
                "{disk:>9}  {way:<9}{write:>11}{read:>11}{both:>11}{ratio:>7}{own:>16}{blk:>10}{compress:>15}{none:>11}{software:>15}"
            );
        }
        for Aim { against, value, reached } in self.aims() {
            let verdict = if reached { "reached" } else { "missed" };
            let (disk, other) = (self.bandwidth, against.name());
            let _ = writeln!(
                text,
                "offload against {other} at {disk} MB/s, written and read: {value:.2}, wanted at least {AIM}: {verdict}"
            );
        }
        text
    }

    /// For a document.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "| disk MB/s | way | write MB/s | read MB/s | both MB/s | ratio | submitter CPU s/GB | vhostd-blk CPU s/GB | \
             vhostd-compress CPU s/GB | over none | over software |\n|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        );
        for cell in &self.cells {
            let _ = writeln!(text, "| {} |", self.columns(cell).join(" | "));
        }
        text.push_str("\n| aim | figure | wanted | |\n|---|---:|---|---|\n");
        for Aim { against, value, reached } in self.aims() {
            let verdict = if reached { "reached" } else { "missed" };
            let (disk, other) = (self.bandwidth, against.name());
            let _ = writeln!(
                text,
                "| offload against {other} at {disk} MB/s, written and read | {value:.2} | at least {AIM} | {verdict} |"
            );
        }
        let _ = writeln!(
            text,
            "\n{}; software: {} level 1; corpus: {}. Medians of {} interleaved rounds.",
            self.experiment, self.software, self.corpus, self.rounds
        );
        text
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two disks; the offload is limited by its engine on the fast one.
    pub fn table() -> Table {
        let mut cells = Vec::new();
        for bandwidth in [100, 1000] {
            for (way, limit, ratio, cpu) in
                [(Way::None, 1e9, 1, 0.1), (Way::Software, 125.0, 4, 8.0), (Way::Offload, 500.0, 4, 0.2)]
            {
                let run = |speed: f64| {
                    let rate = f64::min(f64::from(bandwidth * ratio), limit) * speed;
                    let phase = Phase { seconds: 1000.0 / rate, submitter_cpu: cpu, ..Phase::default() };
                    Run {
                        bytes: 1_000_000_000,
                        stored: 1_000_000_000 / u64::from(ratio),
                        write: phase,
                        read: phase,
                    }
                };
                // The machine is three times as fast in the second round.
                cells.push(Cell { bandwidth, way, runs: vec![run(1.0), run(3.0), run(2.0)] });
            }
        }
        let words = |text: &str| text.to_owned();
        let (experiment, software, corpus) = (words("1g in records"), words("zlib 1.3"), words("mixed"));
        Table { experiment, software, corpus, rounds: 3, bandwidth: 100, cells }
    }

    #[test]
    fn aims_are_ratios_of_the_same_round_at_the_bandwidth_they_are_for() {
        let aims = table().aims();
        assert_eq!(aims.len(), 2);
        assert!((aims[0].value - 4.0).abs() < 1e-9 && aims[0].reached, "{aims:?}");
        assert!((aims[1].value - 3.2).abs() < 1e-9 && aims[1].against == Way::Software, "{aims:?}");
        let fast = Table { bandwidth: 1000, ..table() }.aims();
        assert!((fast[0].value - 0.5).abs() < 1e-9 && !fast[0].reached, "{fast:?}");
    }

    #[test]
    fn what_was_not_measured_has_no_aim() {
        let mut table = table();
        table.cells.retain(|cell| cell.way != Way::Offload);
        assert!(table.aims().is_empty());
        assert_eq!(table.bandwidths(), [100, 1000]);
    }

    #[test]
    fn both_tables_have_a_line_for_each_way_and_bandwidth() {
        let table = table();
        let text = table.text();
        assert_eq!(text.lines().filter(|line| line.contains("software  ")).count(), 2, "{text}");
        assert!(text.contains("wanted at least 1.6: reached"), "{text}");
        let markdown = table.markdown();
        let line = "| 100 | offload | 800 | 800 | 800 | 4.00 | 0.20 | 0.00 | 0.00 | 4.00x | 3.20x |";
        assert!(markdown.contains(line), "{markdown}");
        assert!(
            markdown.contains("| 1000 | none | 2000 | 2000 | 2000 | 1.00 | 0.10 | 0.00 | 0.00 | - | - |")
        );
    }

    #[test]
    fn cpu_time_is_per_gigabyte_in_either_direction() {
        let phase = Phase { seconds: 1.0, submitter_cpu: 3.0, disk_cpu: 1.0, compress_cpu: 0.5 };
        let run = Run { bytes: 500_000_000, stored: 250_000_000, write: phase, read: phase };
        assert_eq!((run.submitter_cpu(), run.ratio(), run.rate()), (6.0, 2.0, 500.0));
    }
}
