//! `vhostd-bench compare`: ours against a peer, interleaved A B A B, medians, ratios.

pub mod driver;
pub mod figure;
pub mod fio;
mod result;
mod runner;
pub mod spec;
pub mod statistics;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::progress;
use crate::units::parse_duration;
pub use result::{Comparison, Row};
use spec::Spec;

/// Runs both sides of every row of a specification in turns and compares the medians.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  vhostd-bench compare benches/specs/blk-null.toml
  vhostd-bench compare benches/specs/blk-null.toml --rounds 3 --runtime 1 --json null.json --markdown null.md

Exit codes: 0 everything ran, 1 a peer is missing or a run failed, 2 bad usage; with --gate also 1 if an aim was missed.")]
pub struct Options {
    /// The specification (benches/specs/*.toml)
    #[arg(value_name = "SPEC.toml")]
    pub spec: PathBuf,
    /// Writes the rows as JSON (- for standard output)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes the table as Markdown (- for standard output)
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Rounds instead of the specification's
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// Measured time of a run instead of the specification's
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub runtime: Option<std::time::Duration>,
    /// Only rows whose name contains this text
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Where sockets and the disk image go (default: a new folder in the temporary directory)
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// Fails if a conclusive ratio misses its aim
    #[arg(long)]
    pub gate: bool,
    /// Shows no progress
    #[arg(long, short)]
    pub quiet: bool,
}

/// Runs the comparison and writes its results.
pub fn main(options: &Options) -> Result<ExitCode> {
    let spec = load_spec(options)?;
    let bar = progress::steps(runner::step_count(&spec), options.quiet);
    let comparison = runner::run(&spec, options.folder.as_deref(), &bar)?;
    bar.finish_and_clear();
    if options.json.as_deref() != Some(Path::new("-")) && options.markdown.as_deref() != Some(Path::new("-"))
    {
        print!("{}", comparison.table());
    }
    if let Some(file) = &options.json {
        write_or_print(file, &(serde_json::to_string_pretty(&comparison)? + "\n"))?;
    }
    if let Some(file) = &options.markdown {
        write_or_print(file, &comparison.markdown())?;
    }
    for problem in comparison.problems() {
        eprintln!("vhostd-bench: {problem}");
    }
    let missed = options.gate && comparison.misses_an_aim();
    Ok(if comparison.is_complete() && !missed { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn load_spec(options: &Options) -> Result<Spec> {
    let name = options.spec.display();
    let text = std::fs::read_to_string(&options.spec).with_context(|| format!("Cannot read {name}"))?;
    let mut spec = Spec::parse(&text).with_context(|| format!("{name} is no valid specification"))?;
    spec.rounds = options.rounds.unwrap_or(spec.rounds);
    spec.runtime = options.runtime.unwrap_or(spec.runtime);
    if let Some(only) = &options.only {
        spec.rows.retain(|row| row.name.contains(only.as_str()));
        anyhow::ensure!(!spec.rows.is_empty(), "No row of {name} has '{only}' in its name");
    }
    Ok(spec)
}

fn write_or_print(file: &Path, text: &str) -> Result<()> {
    if file == Path::new("-") {
        print!("{text}");
        return Ok(());
    }
    std::fs::write(file, text).with_context(|| format!("Cannot write {}", file.display()))
}
