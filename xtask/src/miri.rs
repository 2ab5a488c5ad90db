//! `cargo xtask miri`: undefined behaviour in the crates that hold the unsafe code.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{run, workspace};

/// The crates whose tests run without system calls that Miri lacks.
const PACKAGES: &[&str] = &["memory", "virtqueue"];

/// Runs the unit tests under Miri, or says exactly what is missing.
pub fn run() -> Result<()> {
    require()?;
    let mut command = Command::new("cargo");
    command.args(["+nightly", "miri", "test", "--lib"]).current_dir(workspace::root());
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    command
        // Set by the cargo that runs this program; the nightly one must choose its own.
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .env("CARGO_TARGET_DIR", workspace::target()?.join("miri"))
        .env("MIRIFLAGS", "-Zmiri-disable-isolation -Zmiri-strict-provenance")
        .env("PROPTEST_CASES", "4");
    run::check(&mut command)
}

fn require() -> Result<()> {
    if !run::installed("rustup") {
        bail!(
            "Miri needs rustup with a nightly toolchain: rustup toolchain install nightly --component miri"
        );
    }
    let mut nightly = Command::new("cargo");
    if run::capture(nightly.args(["+nightly", "--version"]).env_remove("RUSTUP_TOOLCHAIN")).is_err() {
        bail!("No nightly toolchain: rustup toolchain install nightly --component miri --component rust-src");
    }
    let mut miri = Command::new("cargo");
    if run::capture(miri.args(["+nightly", "miri", "--version"]).env_remove("RUSTUP_TOOLCHAIN")).is_err() {
        bail!("The nightly toolchain has no Miri: rustup +nightly component add miri rust-src");
    }
    Ok(())
}
