//! Rows of a finished comparison: JSON, text table, Markdown.

use std::fmt::Write;

use serde::Serialize;

use super::spec::{Figure, FigureSpec};
use super::statistics::{Spread, Verdict};

/// All rows of a specification.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Headline.
    pub title: String,
    /// Rounds each side ran.
    pub rounds: u32,
    /// What limits the figures, if anything.
    pub note: Option<String>,
    /// One row a figure.
    pub rows: Vec<Row>,
}

/// One figure of one load.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Load and figure.
    pub name: String,
    /// What is compared.
    pub figure: Figure,
    /// Our median.
    pub ours: Option<f64>,
    /// The peer's median.
    pub peer: Option<f64>,
    /// Name of the peer.
    pub against: String,
    /// Median of the per-round ratios; above 1 is better for us.
    pub ratio: Option<f64>,
    /// Smallest ratio that counts as reached, if there is one.
    pub aim: Option<f64>,
    /// The ratio reaches the aim; `None` without a ratio or an aim.
    pub reached: Option<bool>,
    /// The rounds contradict each other: no conclusion.
    pub noisy: bool,
    /// Our figures over the rounds.
    pub ours_spread: Option<Spread>,
    /// The peer's figures over the rounds.
    pub peer_spread: Option<Spread>,
    /// Quartiles of the per-round ratios.
    pub quartiles: Option<(f64, f64)>,
    /// Why there is no figure.
    pub problem: Option<String>,
}

impl Row {
    /// Compares the rounds of both sides.
    pub fn new(load: &str, against: &str, figure: FigureSpec, ours: &[f64], peer: &[f64]) -> Self {
        let (ours_spread, peer_spread) = (Spread::of(ours), Spread::of(peer));
        let verdict = Verdict::of(ours, peer, figure.of.better(), figure.aim.unwrap_or(0.0));
        Self {
            name: format!("{load}: {}", figure.of.label()),
            figure: figure.of,
            ours: ours_spread.map(|spread| spread.median),
            peer: peer_spread.map(|spread| spread.median),
            against: against.to_owned(),
            ratio: verdict.map(|verdict| verdict.ratio),
            aim: figure.aim,
            reached: figure.aim.and(verdict.map(|verdict| verdict.reached)),
            noisy: verdict.is_some_and(|verdict| verdict.noisy),
            ours_spread,
            peer_spread,
            quartiles: verdict.map(|verdict| (verdict.low, verdict.high)),
            problem: None,
        }
    }

    /// A row without figures, and why.
    pub fn failed(load: &str, against: &str, figure: FigureSpec, problem: String) -> Self {
        Self { problem: Some(problem), ..Self::new(load, against, figure, &[], &[]) }
    }

    fn verdict(&self) -> &'static str {
        match (self.reached, self.noisy) {
            (None, _) if self.problem.is_none() && self.aim.is_none() => "no aim",
            (None, _) => "no figure",
            (_, true) => "too noisy to conclude",
            (Some(true), _) => "reached",
            (Some(false), _) => "missed",
        }
    }
}

impl Comparison {
    /// Every row that has an aim has a ratio, and no run has failed.
    pub fn is_complete(&self) -> bool {
        self.rows.iter().all(|row| row.problem.is_none() && (row.ratio.is_some() || row.aim.is_none()))
    }

    /// A conclusive ratio is below its aim.
    pub fn misses_an_aim(&self) -> bool {
        self.rows.iter().any(|row| row.reached == Some(false) && !row.noisy)
    }

    /// Each reason for a missing figure once.
    pub fn problems(&self) -> Vec<&str> {
        let mut problems: Vec<&str> = self.rows.iter().filter_map(|row| row.problem.as_deref()).collect();
        problems.sort_unstable();
        problems.dedup();
        problems
    }

    /// The table for a terminal.
    pub fn table(&self) -> String {
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(4);
        let mut text = format!("{} (medians of {} rounds)\n", self.title, self.rounds);
        let _ = writeln!(text, "{:<width$}  {:>12} {:>12} {:>8} {:>6}  ", "", "ours", "peer", "ratio", "aim");
        for row in &self.rows {
            let _ = writeln!(
                text,
                "{:<width$}  {:>12} {:>12} {:>8} {:>6}  {} (against {})",
                row.name,
                number(row.ours),
                number(row.peer),
                row.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}x")),
                row.aim.map_or("-".to_owned(), |aim| format!("{aim:.2}")),
                row.verdict(),
                row.against,
            );
        }
        text.extend(self.note.iter().map(|note| format!("{note}\n")));
        text
    }

    /// The table for a document.
    pub fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n", self.title);
        text.push_str(
            "| figure | ours | peer | ratio | quartiles | aim | |\n|---|---:|---:|---:|---:|---:|---|\n",
        );
        for row in &self.rows {
            let _ = writeln!(
                text,
                "| {} | {} | {} ({}) | {} | {} | {} | {} |",
                row.name,
                number(row.ours),
                number(row.peer),
                row.against,
                row.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}x")),
                row.quartiles.map_or("-".to_owned(), |(low, high)| format!("{low:.2} to {high:.2}")),
                row.aim.map_or("-".to_owned(), |aim| format!("{aim:.2}")),
                row.verdict(),
            );
        }
        let _ = writeln!(text, "\nMedians of {} interleaved rounds; above 1 is better for us.", self.rounds);
        text.extend(self.note.iter().map(|note| format!("{note}.\n")));
        text
    }
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value >= 10_000.0 => crate::units::show_rate(value),
        Some(value) => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(rows: Vec<Row>) -> Comparison {
        Comparison { title: "Null".to_owned(), rounds: 3, note: None, rows }
    }

    const IOPS: FigureSpec = FigureSpec { of: Figure::Iops, aim: Some(1.2) };
    const CPU: FigureSpec = FigureSpec { of: Figure::Cpu, aim: Some(1.0) };

    #[test]
    fn rows_carry_medians_ratio_aim_and_verdict_in_json() {
        let row = Row::new("QD32", "qsd", IOPS, &[3e6, 3e6, 3.3e6], &[2e6, 2e6, 2e6]);
        let json = serde_json::to_value(comparison(vec![row])).unwrap();
        let row = &json["rows"][0];
        assert_eq!(row["name"], "QD32: IOPS");
        assert_eq!((row["ours"].as_f64(), row["peer"].as_f64()), (Some(3e6), Some(2e6)));
        assert_eq!((row["ratio"].as_f64(), row["aim"].as_f64()), (Some(1.5), Some(1.2)));
        assert_eq!((row["reached"].as_bool(), row["noisy"].as_bool()), (Some(true), Some(false)));
    }

    #[test]
    fn less_cpu_time_is_a_ratio_above_one() {
        let row = Row::new("QD32", "qsd", CPU, &[0.2; 3], &[0.3; 3]);
        assert!((row.ratio.unwrap() - 1.5).abs() < 1e-9);
    }

    #[test]
    fn a_missing_peer_is_named_once_and_makes_the_comparison_incomplete() {
        let rows = vec![
            Row::failed("a", "qsd", IOPS, "qsd is missing".to_owned()),
            Row::failed("b", "qsd", IOPS, "qsd is missing".to_owned()),
        ];
        let comparison = comparison(rows);
        assert!(!comparison.is_complete());
        assert_eq!(comparison.problems(), ["qsd is missing"]);
        assert!(comparison.table().contains("no figure"));
        assert!(!comparison.misses_an_aim());
    }

    #[test]
    fn a_figure_without_an_aim_is_shown_even_if_the_peer_has_none() {
        let figure = FigureSpec { of: Figure::Kicks, aim: None };
        let comparison = comparison(vec![Row::new("pair", "testpmd", figure, &[32.0; 3], &[])]);
        assert!(comparison.is_complete() && !comparison.misses_an_aim());
        assert!(comparison.table().contains("no aim"), "{}", comparison.table());
    }

    #[test]
    fn a_missed_aim_shows_in_both_tables() {
        let comparison = comparison(vec![Row::new("QD1", "qsd", IOPS, &[1e5; 3], &[1e5; 3])]);
        assert!(comparison.misses_an_aim() && comparison.is_complete());
        assert!(comparison.table().contains("missed"));
        assert!(comparison.markdown().contains("| QD1: IOPS | 100 k | 100 k (qsd) | 1.00x |"));
    }
}
