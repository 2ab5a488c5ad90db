//! A run of several steps: headers with the time, counts, and one table at the end.

use std::time::{Duration, Instant};

use anyhow::{Error, Result, bail};

/// Checks that passed and failed within one step.
#[derive(Clone, Copy, Default)]
pub struct Tally {
    /// Checks that passed.
    pub passed: u32,
    /// Checks that failed.
    pub failed: u32,
    /// Tests that were not run; any is a failure.
    pub ignored: u32,
}

impl Tally {
    /// Counts one check by its outcome.
    pub fn check(&mut self, outcome: Result<()>) -> Result<()> {
        match outcome {
            Ok(()) => self.passed += 1,
            Err(_) => self.failed += 1,
        }
        outcome
    }

    /// Adds the figures of a `test result: ok. 3 passed; 0 failed; 0 ignored; ...` line; other lines count nothing.
    pub fn add_libtest_line(&mut self, line: &str) {
        let Some(rest) = line.trim().strip_prefix("test result: ") else { return };
        let figure = |word: &str| {
            rest.split([';', '.'])
                .filter_map(|part| part.trim().strip_suffix(word))
                .find_map(|number| number.trim().parse::<u32>().ok())
                .unwrap_or(0)
        };
        self.passed += figure("passed");
        self.failed += figure("failed");
        self.ignored += figure("ignored");
    }
}

struct Step {
    name: &'static str,
    took: Duration,
    tally: Tally,
    ok: bool,
}

/// The steps done so far.
pub struct Report {
    started: Instant,
    planned: usize,
    steps: Vec<Step>,
}

impl Report {
    /// A report of `planned` steps.
    pub fn new(planned: usize) -> Self {
        Self { started: Instant::now(), planned, steps: Vec::new() }
    }

    /// Runs one step. Its failure is returned with `advice`, what to do about it; the caller stops there.
    pub fn step(
        &mut self,
        name: &'static str,
        advice: &str,
        body: impl FnOnce(&mut Tally) -> Result<()>,
    ) -> Result<()> {
        let number = self.steps.len() + 1;
        println!("\n=== [{number}/{}] {name}   (at {})", self.planned, clock(self.started.elapsed()));
        let started = Instant::now();
        let mut tally = Tally::default();
        let outcome = body(&mut tally).and_then(|()| refuse_gaps(tally));
        if outcome.is_err() && tally.failed == 0 {
            tally.failed = 1;
        }
        let took = started.elapsed();
        let ok = outcome.is_ok();
        println!("=== {name}: {} in {}", if ok { "ok" } else { "FAILED" }, clock(took));
        self.steps.push(Step { name, took, tally, ok });
        outcome.map_err(|error: Error| error.context(format!("Step `{name}` failed. {advice}")))
    }

    /// Prints the table, then `outcome`'s error if any, then the totals as the last line.
    pub fn finish(self, outcome: Result<()>) -> Result<()> {
        println!("\n{:<28} {:>8} {:>8} {:>8}", "step", "time", "passed", "failed");
        for step in &self.steps {
            let mark = if step.ok { "" } else { "  <- failed" };
            let Tally { passed, failed, .. } = step.tally;
            println!("{:<28} {:>8} {passed:>8} {failed:>8}{mark}", step.name, clock(step.took));
        }
        let not_run = self.planned - self.steps.len();
        if not_run > 0 {
            println!("{not_run} step(s) not run");
        }
        println!("{:<28} {:>8}", "total", clock(self.started.elapsed()));
        if let Err(error) = &outcome {
            println!("\nerror: {error:#}");
        }
        let passed: u32 = self.steps.iter().map(|step| step.tally.passed).sum();
        let failed: u32 = self.steps.iter().map(|step| step.tally.failed).sum();
        println!("{passed} passed, {failed} failed");
        if outcome.is_err() {
            std::process::exit(1);
        }
        Ok(())
    }
}

fn refuse_gaps(tally: Tally) -> Result<()> {
    if tally.ignored > 0 {
        bail!("{} test(s) were ignored; every test must run", tally.ignored);
    }
    Ok(())
}

/// `m:ss`.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_libtest_line_is_added_to_the_tally() {
        let mut tally = Tally::default();
        tally.add_libtest_line("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out");
        tally.add_libtest_line(
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        );
        tally.add_libtest_line("running 4 tests");
        assert_eq!((tally.passed, tally.failed, tally.ignored), (15, 2, 1));
    }

    #[test]
    fn an_ignored_test_fails_its_step() {
        let mut report = Report::new(1);
        let outcome = report.step("x", "Run it.", |tally| {
            tally.ignored = 1;
            Ok(())
        });
        assert!(outcome.is_err());
    }

    #[test]
    fn times_are_minutes_and_seconds() {
        assert_eq!(clock(Duration::from_secs(605)), "10:05");
    }
}
