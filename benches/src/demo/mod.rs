//! `vhostd-bench demo`: the first minute of a user. Every step proves something and says what.

mod daemon;
mod steps;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::process::beside_me;
use crate::units::{parse_duration, parse_size};
use daemon::Daemon;
use steps::Stage;

/// Shows vhostd-blk at work: every byte verified, a kill survived, idle without CPU time
#[derive(Args, Clone, Debug)]
#[command(after_help = "Exit code 0: every byte was right and every promise held; 1 otherwise.")]
pub struct Options {
    /// The daemon (default: vhostd-blk beside this program)
    #[arg(long, value_name = "PATH")]
    pub daemon: Option<PathBuf>,
    /// Size of the disk image
    #[arg(long, default_value = "128m", value_parser = parse_size, value_name = "SIZE")]
    pub size: u64,
    /// How long each load runs
    #[arg(long, default_value = "3", value_parser = parse_duration, value_name = "TIME")]
    pub runtime: Duration,
    /// Where the disk image goes (default: a new folder in the temporary directory)
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// Shows no live progress
    #[arg(long, short)]
    pub quiet: bool,
}

/// Smallest disk that gives every queue enough blocks for its depth.
const MIN_SIZE: u64 = 1 << 20;

/// Runs the demo.
pub fn main(options: &Options) -> Result<ExitCode> {
    anyhow::ensure!(options.size >= MIN_SIZE, "--size must be at least 1m");
    let program = match &options.daemon {
        Some(path) => path.clone(),
        None => beside_me("vhostd-blk")?,
    };
    let temporary = tempfile::tempdir().context("Cannot create a temporary folder")?;
    let folder = options.folder.as_deref().unwrap_or(temporary.path());
    let daemon = Daemon::new(program, folder, options.size)?;
    let mut stage = Stage::new(daemon, options);
    stage.start()?;
    stage.write_and_read_back()?;
    stage.discard_and_zero()?;
    stage.survive_kill()?;
    stage.idle()?;
    stage.speed()?;
    stage.stop()?;
    stage.finish();
    Ok(ExitCode::SUCCESS)
}
