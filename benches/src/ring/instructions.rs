//! Instructions per chain, counted by valgrind: the same on a busy machine as on a quiet one.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Case, CaseFigures, Figures, Subject};
use crate::process::find_program;

/// Laps of the two runs whose difference is counted: start-up and refills of the first laps cancel out.
const LAPS: [u64; 2] = [20, 120];

/// Runs `laps` laps; callgrind counts inside [`counted_lap`] only.
pub(super) fn laps(subject: &mut dyn Subject, laps: u64) {
    for _ in 0..laps {
        subject.refill();
        counted_lap(subject);
    }
}

/// The name is what `--toggle-collect` looks for.
#[inline(never)]
fn counted_lap(subject: &mut dyn Subject) {
    std::hint::black_box(subject.lap());
}

/// Counts all shapes.
pub(super) fn count() -> Result<Figures> {
    ensure!(find_program("valgrind").is_some(), "valgrind is not there; install the Debian package valgrind");
    let mut cases = Vec::new();
    for case in Case::all() {
        let ours = per_chain(case, "ours")?;
        let baseline = per_chain(case.baseline(), "baseline")?;
        cases.push(CaseFigures { name: case.name(), case, ours, baseline, ratio: baseline / ours });
    }
    Ok(Figures::instructions(cases))
}

fn per_chain(case: Case, side: &str) -> Result<f64> {
    let [few, many] = LAPS;
    let difference = collected(case, side, many)?.saturating_sub(collected(case, side, few)?);
    Ok(difference as f64 / ((many - few) * u64::from(case.chains())) as f64)
}

fn collected(case: Case, side: &str, laps: u64) -> Result<u64> {
    let own = std::env::current_exe().context("Cannot find my own program file")?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted_lap*"])
        .arg(own)
        .args(["ring", "--laps", &format!("{}:{side}:{laps}", case.name())])
        .output()
        .context("Cannot start valgrind")?;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind ended with {}:\n{log}", output.status);
    parse_collected(&log).with_context(|| format!("valgrind printed no instruction count:\n{log}"))
}

/// `==123== Collected : 4567`
fn parse_collected(log: &str) -> Option<u64> {
    let line = log.lines().find_map(|line| line.split_once("Collected :"))?;
    line.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_from_callgrinds_summary() {
        assert_eq!(parse_collected("==9== Events    : Ir\n==9== Collected : 123456\n"), Some(123_456));
        assert_eq!(parse_collected("==9== nothing"), None);
    }
}
