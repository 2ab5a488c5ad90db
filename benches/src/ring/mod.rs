//! `vhostd-bench ring`: what a chain costs on our rings, and on `virtio-queue` under `vhost-user-backend`.
//!
//! Only the device side is timed. Both sides see the same memory layout and do the same work: take, walk, check and
//! translate every buffer, put a used element, decide about the interrupt once per burst of 32.

mod baseline;
mod case;
mod instructions;
mod layout;
mod ours;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::clock::Clock;
use crate::cpu::{self, CpuList};
pub use baseline::Baseline;
pub use case::Case;
pub use ours::Ours;

/// Ratio of times that the geometric mean over the headline shapes should reach.
pub const AIM: f64 = 6.0;
/// Ratio of times below which `--gate` fails.
pub const GATE: f64 = 4.0;
/// Ratio of instruction counts below which `--gate` fails: the library also waits for locks and shared counters,
/// which cost more time than instructions.
pub const INSTRUCTION_GATE: f64 = 2.5;

/// A device side that can be driven lap by lap.
pub trait Subject {
    /// The driver makes one lap of chains available; not timed.
    fn refill(&mut self);
    /// The device takes and completes them all; returns the bytes in their buffers.
    fn lap(&mut self) -> u64;
}

/// Measures the cost of a chain on our rings against virtio-queue under vhost-user-backend
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  vhostd-bench ring --cpus 1
  vhostd-bench ring --json | jq .ratio
  vhostd-bench ring --instructions        # needs valgrind; steady where time is not")]
pub struct Options {
    /// Prints JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Counts instructions under valgrind instead of measuring time
    #[arg(long)]
    pub instructions: bool,
    /// Samples per shape and side, taken in turns
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(3..))]
    pub samples: u32,
    /// Fails if our lead over the headline shapes falls below the gate
    #[arg(long)]
    pub gate: bool,
    /// CPU to run on
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,
    /// Runs only this many laps of one shape, unmeasured (what --instructions starts under valgrind)
    #[arg(long, value_name = "CASE:SIDE:LAPS", hide = true)]
    pub laps: Option<String>,
}

/// All shapes.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// `ns` or `instructions`, per chain.
    pub unit: &'static str,
    /// Geometric mean of the ratios over split, direct shapes; above 1 we are cheaper.
    pub ratio: f64,
    /// Smallest of those ratios.
    pub worst: f64,
    /// What `ratio` should reach; there is no aim for instructions.
    pub aim: Option<f64>,
    /// `ratio` reaches it.
    pub reached: Option<bool>,
    /// `ratio` below this fails the gate.
    pub gate: f64,
    /// One entry a shape.
    pub cases: Vec<CaseFigures>,
}

/// One shape.
#[derive(Clone, Debug, Serialize)]
pub struct CaseFigures {
    /// Its name.
    pub name: String,
    /// Its parameters.
    #[serde(flatten)]
    pub case: Case,
    /// Ours per chain.
    pub ours: f64,
    /// The baseline (on a split ring) per chain.
    pub baseline: f64,
    /// Baseline divided by ours.
    pub ratio: f64,
}

impl Figures {
    fn times(cases: Vec<CaseFigures>) -> Self {
        let figures = Self::new("ns", GATE, cases);
        Self { aim: Some(AIM), reached: Some(figures.ratio >= AIM), ..figures }
    }

    fn instructions(cases: Vec<CaseFigures>) -> Self {
        Self::new("instructions", INSTRUCTION_GATE, cases)
    }

    fn new(unit: &'static str, gate: f64, cases: Vec<CaseFigures>) -> Self {
        let headline: Vec<f64> =
            cases.iter().filter(|figures| figures.case.is_headline()).map(|figures| figures.ratio).collect();
        let ratio = geometric_mean(&headline);
        let worst = headline.iter().copied().fold(f64::INFINITY, f64::min);
        Self { unit, ratio, worst, aim: None, reached: None, gate, cases }
    }

    fn table(&self) -> String {
        let mut text = format!(
            "{:<22} {:>10} {:>14} {:>8}\n",
            format!("{} per chain", self.unit),
            "ours",
            "virtio-queue",
            "ratio"
        );
        for case in &self.cases {
            text += &format!(
                "{:<22} {:>10.1} {:>14.1} {:>7.1}x\n",
                case.name, case.ours, case.baseline, case.ratio
            );
        }
        text +=
            &format!("split, direct: {:.1}x in the geometric mean, {:.1}x at least", self.ratio, self.worst);
        if let (Some(aim), Some(reached)) = (self.aim, self.reached) {
            text += &format!("; aim {aim:.0}x {}", if reached { "reached" } else { "missed" });
        }
        text.push('\n');
        text
    }
}

/// Measures and prints.
pub fn main(options: &Options) -> Result<ExitCode> {
    if let Some(cpus) = &options.cpus {
        cpu::pin_current_thread(&cpus.0).with_context(|| format!("Cannot run on CPU {cpus}"))?;
    }
    if let Some(what) = &options.laps {
        run_laps(what)?;
        return Ok(ExitCode::SUCCESS);
    }
    let figures = if options.instructions { instructions::count()? } else { time(options.samples) };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print!("{}", figures.table());
    }
    let failed = options.gate && figures.ratio < figures.gate;
    if failed {
        eprintln!("vhostd-bench: the ratio {:.1} is below the gate of {}", figures.ratio, figures.gate);
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Nanoseconds per chain for all shapes: both sides in turns, the fastest sample of each counts.
pub fn time(samples: u32) -> Figures {
    let clock = Clock::new();
    let cases = Case::all().into_iter().map(|case| time_case(case, samples, &clock)).collect();
    Figures::times(cases)
}

fn time_case(case: Case, samples: u32, clock: &Clock) -> CaseFigures {
    /// Chains in a sample: long enough for the clock, short enough to find a quiet moment.
    const SAMPLE: u64 = 64 * 1024;
    let (mut ours, mut baseline) = (Ours::new(case), Baseline::new(case.baseline()));
    let (mut best_ours, mut best_baseline) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..samples {
        best_ours = best_ours.min(sample(&mut ours, case, SAMPLE, clock));
        best_baseline = best_baseline.min(sample(&mut baseline, case.baseline(), SAMPLE, clock));
    }
    let ratio = best_baseline / best_ours;
    CaseFigures { name: case.name(), case, ours: best_ours, baseline: best_baseline, ratio }
}

/// Nanoseconds per chain over at least `chains` chains.
fn sample(subject: &mut impl Subject, case: Case, chains: u64, clock: &Clock) -> f64 {
    let laps = chains.div_ceil(u64::from(case.chains()));
    let ticks = timed_laps(subject, laps, clock);
    clock.nanos(ticks) as f64 / (laps * u64::from(case.chains())) as f64
}

/// Ticks the device side spends on `laps` laps.
pub fn timed_laps(subject: &mut impl Subject, laps: u64, clock: &Clock) -> u64 {
    let mut ticks = 0;
    for _ in 0..laps {
        subject.refill();
        let begin = clock.now();
        std::hint::black_box(subject.lap());
        ticks += clock.now() - begin;
    }
    ticks
}

/// `split-1-direct-1:ours:1000`
fn run_laps(what: &str) -> Result<()> {
    let mut parts = what.split(':');
    let (Some(name), Some(side), Some(laps), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        bail!("'{what}' is not CASE:SIDE:LAPS");
    };
    let case = Case::parse(name).with_context(|| format!("There is no case '{name}'"))?;
    let laps: u64 = laps.parse().with_context(|| format!("'{laps}' is no number"))?;
    match side {
        "ours" => instructions::laps(&mut Ours::new(case), laps),
        "baseline" => instructions::laps(&mut Baseline::new(case.baseline()), laps),
        _ => bail!("'{side}' is neither ours nor baseline"),
    }
    Ok(())
}

fn geometric_mean(values: &[f64]) -> f64 {
    let logs: f64 = values.iter().map(|value| value.ln()).sum();
    (logs / values.len().max(1) as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_walk_the_same_bytes_in_every_shape_lap_after_lap() {
        for case in Case::all() {
            let (mut ours, mut baseline) = (Ours::new(case), Baseline::new(case.baseline()));
            let chains = u64::from(case.chains());
            let chain_bytes: u64 = (0..case.buffers).map(|buffer| u64::from(case.buffer(0, buffer).1)).sum();
            for lap in 0..300 {
                ours.refill();
                assert_eq!(ours.lap(), chains * chain_bytes, "{} lap {lap}", case.name());
                baseline.refill();
                assert_eq!(
                    baseline.lap(),
                    u64::from(case.baseline().chains()) * chain_bytes,
                    "{}",
                    case.name()
                );
            }
            assert_eq!(ours.lap(), 0, "nothing is left after the laps");
        }
    }

    #[test]
    fn the_headline_is_the_geometric_mean_of_split_direct_shapes() {
        let figures =
            |case: Case, ratio| CaseFigures { name: case.name(), case, ours: 1.0, baseline: ratio, ratio };
        let cases = Case::all().into_iter().enumerate();
        let cases =
            cases.map(|(n, case)| figures(case, if case.is_headline() { [4.0, 9.0][n % 2] } else { 1.0 }));
        let figures = Figures::times(cases.collect());
        assert!((figures.ratio - 6.0).abs() < 1e-9, "{}", figures.ratio);
        assert_eq!((figures.worst, figures.reached), (4.0, Some(true)));
        assert!(figures.table().contains("aim 6x reached"));
    }

    #[test]
    fn malformed_lap_requests_are_refused() {
        for what in ["", "split-1-direct-1", "split-1-direct-1:ours", "x:ours:1", "split-1-direct-1:theirs:1"]
        {
            assert!(run_laps(what).is_err(), "{what}");
        }
        run_laps("split-3-indirect-8:baseline:2").unwrap();
    }
}
