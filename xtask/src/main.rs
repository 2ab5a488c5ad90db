//! Project tasks: `cargo xtask <verb>`.
//!
//! Everything a contributor or CI does with this repository goes through here, so that both run the same thing.

mod bench;
mod demo;
mod fuzz;
mod lint;
mod loom;
mod miri;
mod report;
mod run;
mod test;
mod testbed;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, tests, measures and shows vhostd.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start vhostd-blk and drive it with the built-in user-space driver, checking every byte.
    Demo(demo::Args),
    /// Run everything: lints, unit, property, differential, loom, fuzz and end-to-end tests.
    Test(test::Args),
    /// Formatting, clippy, rustdoc, licences and the links of SPEC.md; warnings are errors.
    Lint,
    /// Criterion benches, then every figure: rings, comparisons with the peers installed here, what idles.
    Bench(bench::Args),
    /// Install and build what the tests need: packages, guest kernels, initramfs images, a newer QEMU.
    Testbed(testbed::Args),
    /// Run the fuzz targets for a while each.
    Fuzz(fuzz::Args),
    /// Run the memory and virtqueue tests under Miri (needs a nightly toolchain).
    Miri,
    /// Model-check the parking and hand-over code with loom.
    Loom,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Lint => lint::run(),
        Verb::Bench(args) => bench::run(&args),
        Verb::Testbed(args) => testbed::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Miri => miri::run(),
        Verb::Loom => loom::run(),
    };
    finish(outcome)
}

fn finish(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
