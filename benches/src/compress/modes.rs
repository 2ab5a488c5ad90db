//! `vhostd-bench compress-modes`: how vhostd-compress waits for work, compared.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::client::Compressor;
use super::options::Load;
use super::run::{Target, run};
use crate::guest::Shown;
use crate::guest::options::Timing;
use crate::modes::table::Run;
use crate::modes::{self, Subject};

/// Measures each mode of vhostd-compress at several depths: throughput, latency, CPU time, interrupts, why batches were submitted
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  vhostd-bench compress-modes
  vhostd-bench compress-modes --rounds 3 --runtime 1 --markdown modes.md --plot modes.svg
  vhostd-bench compress-modes --modes heuristic,busy --depths 16,64 --load '--format lz4-block --bs 64k --indirect --poll'

Exit codes: 0 everything ran, 1 a run failed, 2 bad usage.")]
pub struct Options {
    /// Load, in the options of `vhostd-bench compress`; by default the driver sleeps as a guest does
    #[arg(
        long,
        allow_hyphen_values = true,
        default_value = "--format zlib --level 1 --bs 4k --indirect --interrupt"
    )]
    pub load: String,
    /// What is measured
    #[command(flatten)]
    pub modes: modes::Options,
}

/// Measures, prints, writes and draws.
pub fn main(options: &Options) -> Result<ExitCode> {
    modes::main(options, &options.modes)
}

impl Options {
    /// The load at one depth; the error is a sentence.
    fn load_at(&self, depth: u16) -> Result<Load, String> {
        Load::parse(&format!("{} --depth {depth}", self.load))
    }
}

impl Subject for Options {
    const DAEMON: &'static str = "vhostd-compress";

    fn load(&self) -> &str {
        &self.load
    }

    fn check(&self, depth: u16) -> Result<(), String> {
        self.load_at(depth).map(drop)
    }

    fn run(&self, target: modes::Target<'_>, depth: u16, timing: Timing) -> Result<Run> {
        let load = Load { timing, ..self.load_at(depth).map_err(anyhow::Error::msg)? };
        let target = Target { socket: target.socket, control: Some(target.control) };
        let report = run(target, &load, &mut |_| {})?.unless_wrong()?;
        Ok(Run::new(report.ops_per_second, &report, report.flushes.clone()))
    }

    fn idle(&self, socket: &Path, watch: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let setup = self.load_at(1).map_err(anyhow::Error::msg)?.setup();
        let (device, queues) = Compressor::attach(socket, &setup, 0)?;
        watch()?;
        Ok(device.detach(queues)?)
    }
}
