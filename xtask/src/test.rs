//! `cargo xtask test`: everything there is, in the order that fails soonest. CI runs this and nothing else.

use anyhow::{Result, bail};

use crate::report::{Report, Tally};
use crate::{fuzz, lint, loom, run, testbed, workspace};

/// Seconds each fuzz target gets here; `cargo xtask fuzz --seconds` runs them for longer.
const FUZZ_SECONDS: u32 = 10;

/// What a run on a fresh checkout leaves in the target directory, and a little more.
const DISK_BYTES: u64 = 12 << 30;

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Let the end-to-end tests run for much longer: more kills, more reconnects, larger loads.
    #[arg(long)]
    soak: bool,
}

/// Runs all steps; the first that fails ends the run.
pub fn run(args: &Args) -> Result<()> {
    workspace::warn_of_little_space(DISK_BYTES)?;
    let mut report = Report::new(7);
    let outcome = steps(&mut report, args);
    report.finish(outcome)
}

fn steps(report: &mut Report, args: &Args) -> Result<()> {
    report.step("lint", "Run it alone: cargo xtask lint", lint::check)?;
    report.step("testbed", "Run it alone: cargo xtask testbed", |tally| tally.check(testbed::set_up()))?;
    report
        .step("release build", "Run it alone: cargo build --release", |tally| tally.check(release_build()))?;
    report.step(
        "unit and property tests",
        "Run one crate alone: cargo test -p <crate>, with a test's name to narrow it.",
        unit_tests,
    )?;
    report.step("loom", "Run it alone: cargo xtask loom", loom::check)?;
    report.step(
        "fuzz",
        "The input is in fuzz/artifacts/<target>; run it alone: cargo xtask fuzz <target>",
        |tally| fuzz::check(&fuzz::targets()?, FUZZ_SECONDS, tally),
    )?;
    report.step(
        "end-to-end",
        "Run one alone: cargo build --release && cargo test -p e2e --test <file> <test>",
        |tally| end_to_end(args, tally),
    )
}

fn release_build() -> Result<()> {
    run::check(&mut run::cargo([
        "build",
        "--release",
        "--workspace",
        "--exclude",
        "xtask",
        "--exclude",
        "guest-tools",
        "--bins",
        "--locked",
    ]))
}

fn unit_tests(tally: &mut Tally) -> Result<()> {
    let all = ["test", "--workspace", "--exclude", "e2e", "--locked", "--no-fail-fast"];
    // The engines once more, with the one that is there by choice.
    let isal =
        ["test", "--package", "compress-offload", "--features", "isal", "--lib", "--locked", "engine::"];
    for tests in [&all[..], &isal] {
        // With it a test that lacks something fails instead of saying so and passing.
        libtest(run::cargo(tests).env("CI", "1"), tally)?;
    }
    Ok(())
}

fn end_to_end(args: &Args, tally: &mut Tally) -> Result<()> {
    let mut command = run::cargo(["test", "--package", "e2e", "--locked", "--no-fail-fast"]);
    command
        .env("VHOSTD_BIN_DIR", workspace::target()?.join("release"))
        .env("VHOSTD_TESTBED", workspace::testbed())
        .env("RUST_BACKTRACE", "0");
    if args.soak {
        command.env("VHOSTD_SOAK", "1");
    }
    libtest(&mut command, tally)
}

fn libtest(command: &mut std::process::Command, tally: &mut Tally) -> Result<()> {
    let mut failed = Vec::new();
    let ok = run::watch(command, |line| {
        tally.add_libtest_line(line);
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            failed.push(name.to_owned());
        }
    })?;
    match (ok, failed.is_empty()) {
        (true, _) => Ok(()),
        (false, true) => bail!("`{}` failed", run::shown(command)),
        (false, false) => bail!("These tests failed: {}", failed.join(", ")),
    }
}
