//! `cargo xtask bench`: the figures of the README.

use anyhow::{Context, Result};

use crate::{run, workspace};

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Only the criterion benches.
    #[arg(long, conflicts_with = "peers")]
    micro: bool,
    /// Only the comparison with the installed peers.
    #[arg(long)]
    peers: bool,
    /// Passed on to `vhostd-bench compare`.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs the criterion benches and then the comparison set.
pub fn run(args: &Args) -> Result<()> {
    if !args.peers {
        run::check(&mut run::cargo(["bench", "--package", "benches", "--benches"]))?;
    }
    if !args.micro {
        run::check(&mut run::cargo([
            "build",
            "--release",
            "--package",
            "blk-backend",
            "--package",
            "benches",
        ]))?;
        let bench = workspace::release_binary("vhostd-bench")?;
        let daemon = workspace::release_binary("vhostd-blk")?;
        let mut compare = std::process::Command::new(bench);
        run::check(compare.arg("compare").arg("--daemon").arg(daemon).args(&args.rest))
            .context("Peers come from: cargo xtask testbed")?;
    }
    Ok(())
}
