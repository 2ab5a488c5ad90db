//! `cargo xtask demo`: the first thing to run.

use std::process::Command;

use anyhow::Result;

use crate::{run, testbed, workspace};

/// Options of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Boot a Linux guest in QEMU on the disk instead of the built-in driver (sets the testbed up first).
    #[arg(long)]
    qemu: bool,
    /// Passed on to `vhostd-bench demo`.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Builds the daemon and shows it at work.
pub fn run(args: &Args) -> Result<()> {
    println!("Building vhostd-blk and its driver (release, some minutes the first time) ...");
    run::check(&mut run::cargo(["build", "--release", "--package", "blk-backend", "--package", "benches"]))?;
    let daemon = workspace::release_binary("vhostd-blk")?;
    if args.qemu {
        testbed::set_up()?;
        let mut guest = run::cargo(["run", "--quiet", "--package", "e2e", "--bin", "qemu-demo"]);
        return run::check(guest.env("VHOSTD_BIN_DIR", workspace::target()?.join("release")));
    }
    let mut demo = Command::new(workspace::release_binary("vhostd-bench")?);
    run::check(demo.arg("demo").arg("--daemon").arg(daemon).args(&args.rest))
}
