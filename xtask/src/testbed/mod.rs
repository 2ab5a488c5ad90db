//! The testbed: everything the tests need that a fresh machine lacks.
//!
//! - Debian packages: QEMU, its storage daemon, DPDK, fio, iperf3, a static busybox, file system and network tools, a C++
//!   compiler for fuzzing.
//! - Two guest kernels: downloaded as packages and unpacked, never installed.
//! - Two initramfs images: busybox, the virtio modules, and the tools of the tests with their libraries; for disks and
//!   networks, and for crypto devices.
//! - A QEMU newer than the release's, beside the one that is installed.
//!
//! It is idempotent, and everything but the packages lands in `$VHOSTD_TESTBED` (default `target/testbed`), outside
//! git. Where it may not install (not root, or no apt) it names what is missing and what to run by hand.

mod cpio;
mod image;
mod kernel;
mod packages;
mod qemu;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{run, workspace};

const NEW_QEMU: &str = "newest QEMU";

/// Options of `cargo xtask testbed`.
#[derive(clap::Args)]
pub struct Args {
    /// Say what is there and what is missing; change nothing.
    #[arg(long)]
    check: bool,
    /// Start over: download and build everything again, but for the packages.
    #[arg(long)]
    force: bool,
}

/// Sets the testbed up, or only looks at it.
pub fn run(args: &Args) -> Result<()> {
    if args.check {
        return check();
    }
    if args.force {
        let dir = workspace::testbed();
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("Cannot remove {}", dir.display()))?;
        }
    }
    set_up()
}

/// Brings the testbed up to date. Quick when there is nothing to do.
pub fn set_up() -> Result<()> {
    let dir = workspace::testbed();
    std::fs::create_dir_all(&dir).with_context(|| format!("Cannot create {}", dir.display()))?;
    println!("testbed directory: {}", dir.display());

    stage("packages", packages::set_up)?;
    let programs = stage("guest programs", guest_programs)?;
    let kernel = stage(kernel::CLOUD.name, || kernel::set_up(&dir, &kernel::CLOUD))?;
    stage(image::GENERAL.name, || image::set_up(&dir, &image::GENERAL, &kernel, &programs))?;
    let kernel = stage(kernel::GENERIC.name, || kernel::set_up(&dir, &kernel::GENERIC))?;
    stage(image::CRYPTO.name, || image::set_up(&dir, &image::CRYPTO, &kernel, &programs))?;
    stage(NEW_QEMU, || qemu::set_up(&dir))?;
    Ok(())
}

/// Builds our own programs for the guests: static ones, so that they run beside any user space.
fn guest_programs() -> Result<Vec<PathBuf>> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    const PACKAGES: [&str; 4] = ["--package", "guest-tools", "--package", "vhostd-guest"];
    let mut build = run::cargo(["build", "--quiet", "--release", "--locked"]);
    build.args(PACKAGES).args(["--target", TARGET]).env_remove("CARGO_ENCODED_RUSTFLAGS");
    // A guest has its image in memory twice while it starts: symbols are five times the programs.
    build.env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    run::capture(build.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let release = workspace::target()?.join(TARGET).join("release");
    Ok(["af-alg", "vhostd-guest"].map(|name| release.join(name)).into())
}

/// Installs cargo-fuzz into the testbed (not into the user's own tools) unless there is one.
pub fn cargo_fuzz() -> Result<PathBuf> {
    if let Some(path) = run::find("cargo-fuzz") {
        return Ok(path);
    }
    let tools = workspace::testbed().join("tools");
    let binary = tools.join("bin/cargo-fuzz");
    if !binary.is_file() {
        println!("cargo-fuzz: building into {} (about half a minute)", tools.display());
        let mut install = run::cargo(["install", "--quiet", "--locked", "cargo-fuzz", "--root"]);
        run::check(install.arg(&tools).env_remove("RUSTFLAGS"))
            .context("Install it by hand: cargo install --locked cargo-fuzz")?;
    }
    Ok(binary)
}

fn check() -> Result<()> {
    let missing = packages::missing();
    for package in packages::PACKAGES {
        let state = if missing.contains(&package.name) { "missing" } else { "ok" };
        println!("{:<20} {:<8} {}", package.name, state, package.purpose);
    }
    let dir = workspace::testbed();
    let mut complete = missing.is_empty();
    for (name, file) in [
        (kernel::CLOUD.name, kernel::CLOUD.file),
        (image::GENERAL.name, image::GENERAL.file),
        (kernel::GENERIC.name, kernel::GENERIC.file),
        (image::CRYPTO.name, image::CRYPTO.file),
        (NEW_QEMU, qemu::FILE),
    ] {
        let there = dir.join(file).is_file();
        let state = if there { "ok" } else { "missing" };
        println!("{name:<20} {state:<8} {}", dir.join(file).display());
        complete &= there;
    }
    if !complete {
        anyhow::bail!("Something is missing; run: cargo xtask testbed");
    }
    Ok(())
}

/// What a stage did, in a few words.
trait Outcome {
    fn summary(&self) -> String;
}

impl Outcome for String {
    fn summary(&self) -> String {
        self.clone()
    }
}

impl Outcome for Vec<PathBuf> {
    fn summary(&self) -> String {
        self.iter().filter_map(|path| path.file_name()?.to_str()).collect::<Vec<_>>().join(", ")
    }
}

/// Runs one stage with a spinner, and leaves one line about it.
fn stage<T: Outcome>(name: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.set_message(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    let outcome = body();
    bar.finish_and_clear();
    if let Ok(done) = &outcome {
        println!("{name}: {}", done.summary());
    }
    outcome.with_context(|| format!("Testbed stage `{name}`"))
}
