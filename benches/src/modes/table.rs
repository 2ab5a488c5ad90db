//! The table of modes and depths: medians, ratios, text, Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::compare::statistics::Spread;
use crate::flushes::Flushes;
use crate::guest::Figures;
use crate::units::show_rate;

/// All modes at all depths.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The load without its depth.
    pub load: String,
    /// How often everything was measured.
    pub rounds: u32,
    /// Mode by mode, depth by depth.
    pub cells: Vec<Cell>,
    /// By mode: share of a CPU with a driver that does nothing.
    pub idle: BTreeMap<String, f64>,
}

/// One mode at one depth.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// As `--mode` of the daemon has it.
    pub mode: String,
    /// Requests in flight.
    pub depth: u16,
    /// Round by round.
    pub runs: Vec<Run>,
}

/// The figures of one run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Run {
    /// Operations per second.
    pub ops: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of latency in microseconds.
    pub p99_us: f64,
    /// CPU time of the daemon per operation in microseconds.
    pub cpu_us: f64,
    /// Share of a CPU that the daemon took.
    pub cpu_load: f64,
    /// Interrupts per operation.
    pub interrupts: f64,
    /// Kicks per operation.
    pub kicks: f64,
    /// Why batches were submitted.
    pub flushes: Flushes,
}

impl Run {
    /// Those of a report.
    pub fn new(ops: f64, figures: &Figures, flushes: Option<Flushes>) -> Self {
        Self {
            ops,
            p50_us: figures.latency.p50_us,
            p99_us: figures.latency.p99_us,
            cpu_us: figures.cpu_us_per_op.unwrap_or(f64::NAN),
            cpu_load: figures.cpu_load.unwrap_or(f64::NAN),
            interrupts: figures.interrupts_per_op,
            kicks: figures.kicks_per_op,
            flushes: flushes.unwrap_or_default(),
        }
    }
}

impl Cell {
    /// Not yet measured.
    pub fn new(mode: &str, depth: u16) -> Self {
        Self { mode: mode.to_owned(), depth, runs: Vec::new() }
    }

    /// The middle of the rounds.
    pub fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        let values: Vec<f64> = self.runs.iter().map(of).collect();
        Spread::of(&values).map_or(f64::NAN, |spread| spread.median)
    }

    /// Medians as both tables show them.
    fn columns(&self) -> [String; 10] {
        [
            self.mode.clone(),
            self.depth.to_string(),
            show_rate(self.median(|run| run.ops)),
            format!("{:.1}", self.median(|run| run.p50_us)),
            format!("{:.1}", self.median(|run| run.p99_us)),
            format!("{:.2}", self.median(|run| run.cpu_us)),
            format!("{:.0} %", self.median(|run| run.cpu_load) * 100.0),
            format!("{:.3}", self.median(|run| run.interrupts)),
            format!("{:.3}", self.median(|run| run.kicks)),
            self.flushes().text(),
        ]
    }

    /// Shares of the reasons over all rounds, each round counting the same.
    fn flushes(&self) -> Flushes {
        let mut all = Flushes::default();
        for run in &self.runs {
            for (reason, share) in &run.flushes.shares {
                *all.shares.entry(reason.clone()).or_default() += share / self.runs.len() as f64;
            }
            all.batches += run.flushes.batches;
        }
        all
    }
}

/// What the issue wants of the heuristic.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Aim {
    /// What is compared.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// What it is to be.
    pub wanted: &'static str,
    /// It is.
    pub reached: bool,
}

impl Table {
    /// Not yet measured.
    pub fn new(load: &str, rounds: u32, cells: Vec<Cell>) -> Self {
        Self { load: load.to_owned(), rounds, cells, idle: BTreeMap::new() }
    }

    /// Modes in their order.
    pub fn modes(&self) -> Vec<&str> {
        let mut modes: Vec<&str> = Vec::new();
        for cell in &self.cells {
            if !modes.contains(&cell.mode.as_str()) {
                modes.push(&cell.mode);
            }
        }
        modes
    }

    /// One mode at one depth.
    pub fn cell(&self, mode: &str, depth: u16) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.mode == mode && cell.depth == depth)
    }

    /// The ratio of two modes at the same depth, round by round, so that a machine that changes speed cancels out.
    fn ratio(&self, mode: &str, other: &str, depth: u16, of: fn(&Run) -> f64) -> Option<f64> {
        let (one, two) = (self.cell(mode, depth)?, self.cell(other, depth)?);
        let ratios: Vec<f64> = one.runs.iter().zip(&two.runs).map(|(one, two)| of(one) / of(two)).collect();
        Spread::of(&ratios).map(|spread| spread.median)
    }

    /// The aims that the measured modes and depths have a figure for.
    pub fn aims(&self) -> Vec<Aim> {
        let mut aims = Vec::new();
        for cell in self.cells.iter().filter(|cell| cell.mode == "heuristic" && cell.depth >= 16) {
            if let Some(value) = self.ratio("heuristic", "busy", cell.depth, |run| run.ops) {
                let name =
                    format!("heuristic against busy polling, operations per second at depth {}", cell.depth);
                aims.push(Aim { name, value, wanted: "at least 0.95", reached: value >= 0.95 });
            }
        }
        if let Some(value) = self.ratio("timer=1ms", "heuristic", 1, |run| run.p50_us) {
            let name = "timer of 1 ms against heuristic, p50 at depth 1".to_owned();
            aims.push(Aim { name, value, wanted: "at least 10", reached: value >= 10.0 });
        }
        if let Some(&value) = self.idle.get("heuristic") {
            let name = "heuristic, CPU share when idle".to_owned();
            aims.push(Aim { name, value, wanted: "below 0.01", reached: value < 0.01 });
        }
        aims
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{} (medians of {} rounds)\n", self.load, self.rounds);
        let _ = writeln!(
            text,
            "{:<12}{:>6}{:>10}{:>10}{:>10}{:>11}{:>7}{:>9}{:>9}  flushed because",
            "mode", "depth", "op/s", "p50 us", "p99 us", "CPU us/op", "CPU", "intr/op", "kick/op"
        );
        for cell in &self.cells {
            let [mode, depth, ops, p50, p99, cpu, load, interrupts, kicks, flushes] = cell.columns();
            let _ = writeln!(
                text,
                "{mode:<12}{depth:>6}{ops:>10}{p50:>10}{p99:>10}{cpu:>11}{load:>7}{interrupts:>9}{kicks:>9}  {flushes}"
            );
        }
        for (mode, share) in &self.idle {
            let _ = writeln!(text, "{mode:<12}  idle: {:.3} % of a CPU", share * 100.0);
        }
        for aim in self.aims() {
            let verdict = if aim.reached { "reached" } else { "missed" };
            let _ = writeln!(text, "{}: {:.3}, wanted {}: {verdict}", aim.name, aim.value, aim.wanted);
        }
        text
    }

    /// For a document.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "| mode | depth | op/s | p50 us | p99 us | CPU us/op | CPU | interrupts/op | kicks/op | flushed because |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|---:|---|\n",
        );
        for cell in &self.cells {
            let _ = writeln!(text, "| {} |", cell.columns().join(" | "));
        }
        text.push_str("\n| mode | CPU when idle |\n|---|---:|\n");
        for mode in self.modes() {
            if let Some(share) = self.idle.get(mode) {
                let _ = writeln!(text, "| {mode} | {:.3} % |", share * 100.0);
            }
        }
        text.push_str("\n| aim | figure | wanted | |\n|---|---:|---|---|\n");
        for aim in self.aims() {
            let verdict = if aim.reached { "reached" } else { "missed" };
            let _ = writeln!(text, "| {} | {:.3} | {} | {verdict} |", aim.name, aim.value, aim.wanted);
        }
        let _ = writeln!(text, "\nLoad `{}`, medians of {} interleaved rounds.", self.load, self.rounds);
        text
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two modes that differ by a factor of two, and a slow timer.
    pub fn table() -> Table {
        let mut cells = Vec::new();
        for (mode, speed) in [("timer=1ms", 0.01), ("heuristic", 1.0), ("busy", 1.02)] {
            for depth in [1, 16, 64] {
                let run = |round: f64| Run {
                    ops: speed * round * 1e5 * f64::from(depth),
                    p50_us: 10.0 / speed,
                    p99_us: 20.0 / speed,
                    cpu_us: 1.5,
                    cpu_load: 0.5,
                    interrupts: 0.25,
                    kicks: 0.5,
                    flushes: Flushes { shares: [("empty".to_owned(), 1.0)].into(), batches: 10 },
                };
                // The machine is three times as fast in the second round.
                let runs = vec![run(1.0), run(3.0), run(2.0)];
                cells.push(Cell { mode: mode.to_owned(), depth, runs });
            }
        }
        let mut table = Table::new("--size 4k", 3, cells);
        table.idle = [("busy".to_owned(), 1.0), ("heuristic".to_owned(), 0.0001)].into();
        table
    }

    #[test]
    fn aims_of_the_heuristic_are_ratios_of_the_same_round() {
        let aims = table().aims();
        let close = |value: f64, wanted: f64| (value - wanted).abs() < 1e-9;
        assert_eq!(aims.len(), 4);
        assert!(close(aims[0].value, 1.0 / 1.02) && aims[0].reached, "{aims:?}");
        assert!(aims[0].name.ends_with("at depth 16") && aims[1].name.ends_with("at depth 64"));
        assert!(close(aims[2].value, 100.0) && aims[2].reached);
        assert!(aims[3].reached);
    }

    #[test]
    fn modes_that_were_not_measured_have_no_aims() {
        let mut table = table();
        table.cells.retain(|cell| cell.mode == "busy");
        table.idle.clear();
        assert!(table.aims().is_empty());
        assert_eq!(table.modes(), ["busy"]);
    }

    #[test]
    fn both_tables_have_a_line_for_each_mode_and_depth() {
        let table = table();
        let text = table.text();
        assert!(text.contains("heuristic       16    3.20 M      10.0      20.0       1.50   50 %    0.250    0.500  empty 100 %"), "{text}");
        assert!(text.contains("idle: 100.000 % of a CPU"), "{text}");
        let markdown = table.markdown();
        assert!(
            markdown
                .contains("| busy | 1 | 204 k | 9.8 | 19.6 | 1.50 | 50 % | 0.250 | 0.500 | empty 100 % |"),
            "{markdown}"
        );
        assert_eq!(markdown.matches("reached |").count(), 4);
    }
}
