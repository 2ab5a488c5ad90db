//! `cargo xtask fuzz`: the libFuzzer targets of `fuzz/`, built by the stable toolchain.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::report::Tally;
use crate::{run, testbed, workspace};

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Args {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Targets to run; all when none is named.
    targets: Vec<String>,
}

/// Runs the chosen targets.
pub fn run(args: &Args) -> Result<()> {
    let all = targets()?;
    if let Some(unknown) = args.targets.iter().find(|name| !all.contains(name)) {
        bail!("No fuzz target `{unknown}`; there are: {}", all.join(", "));
    }
    let chosen = if args.targets.is_empty() { all } else { args.targets.clone() };
    check(&chosen, args.seconds, &mut Tally::default())
}

/// Builds all targets, then runs `chosen` for `seconds` each, as many at a time as there are processors.
pub fn check(chosen: &[String], seconds: u32, tally: &mut Tally) -> Result<()> {
    let tool = testbed::cargo_fuzz()?;
    pin_versions()?;
    println!("building {} fuzz targets", chosen.len());
    run::check(cargo_fuzz(&tool)?.arg("build"))?;

    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let at_a_time = std::thread::available_parallelism().map_or(1, Into::into).min(chosen.len());
    std::thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                while let Some(target) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = run_one(&tool, target, seconds)
                        && let Ok(mut failures) = failures.lock()
                    {
                        failures.push(format!("{target}: {error:#}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_default();
    tally.failed += failures.len() as u32;
    tally.passed += (chosen.len() - failures.len()) as u32;
    if !failures.is_empty() {
        bail!("Fuzzing found something:\n{}", failures.join("\n"));
    }
    Ok(())
}

/// Names of the fuzz targets: the binaries of the `fuzz` package.
pub fn targets() -> Result<Vec<String>> {
    let manifest = workspace::root().join("fuzz/Cargo.toml");
    let text = run::capture(
        run::cargo(["metadata", "--format-version=1", "--no-deps", "--manifest-path"]).arg(&manifest),
    )?;
    let metadata: Value = serde_json::from_str(&text)?;
    let bins = metadata["packages"][0]["targets"].as_array().context("The fuzz package has no targets")?;
    let names: Vec<String> = bins
        .iter()
        .filter(|target| target["kind"][0] == "bin")
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    if names.is_empty() {
        bail!("{} declares no fuzz target", manifest.display());
    }
    Ok(names)
}

/// The fuzz targets are a workspace of their own, but with the versions of the real one: its lock file is where they start.
fn pin_versions() -> Result<()> {
    let lock = workspace::root().join("fuzz/Cargo.lock");
    fs::copy(workspace::root().join("Cargo.lock"), &lock)
        .with_context(|| format!("Cannot write {}", lock.display()))?;
    Ok(())
}

fn cargo_fuzz(tool: &std::path::Path) -> Result<Command> {
    let mut command = Command::new(tool);
    command
        .current_dir(workspace::root())
        // cargo-fuzz passes unstable compiler flags; this lets the stable compiler take them.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", workspace::target()?.join("fuzz"))
        .arg("fuzz");
    Ok(command)
}

fn run_one(tool: &std::path::Path, target: &str, seconds: u32) -> Result<()> {
    // What is found goes into the first folder, which is not kept; the second holds the inputs to start from.
    let (corpus, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
    for folder in [&corpus, &seeds] {
        fs::create_dir_all(workspace::root().join(folder))?;
    }
    let mut command = cargo_fuzz(tool)?;
    command.args([
        "run",
        target,
        &corpus,
        &seeds,
        "--",
        &format!("-max_total_time={seconds}"),
        "-timeout=10",
        "-rss_limit_mb=4096",
    ]);
    let output = command.stdin(Stdio::null()).output()?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let from =
            log.lines().position(|line| line.contains("ERROR") || line.contains("panicked")).unwrap_or(0);
        bail!("{}", log.lines().skip(from).take(60).collect::<Vec<_>>().join("\n"));
    }
    let done = log.lines().rev().find(|line| line.starts_with("Done ")).unwrap_or("done");
    println!("fuzz {target}: {done}");
    Ok(())
}
