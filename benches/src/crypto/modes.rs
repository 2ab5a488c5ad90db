//! `vhostd-bench crypto-modes`: how vhostd-crypto waits for work, compared.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::client::Crypto;
use super::options::Load;
use super::run::{Target, run};
use super::sample;
use crate::guest::Shown;
use crate::guest::options::Timing;
use crate::modes::table::Run;
use crate::modes::{self, Subject};

/// Measures each mode of vhostd-crypto at several depths: throughput, latency, CPU time, interrupts, why batches were submitted
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  vhostd-bench crypto-modes
  vhostd-bench crypto-modes --rounds 3 --runtime 1 --markdown modes.md --plot modes.svg
  vhostd-bench crypto-modes --modes heuristic,busy --depths 16,64 --load '--algorithm aes-128-gcm --size 16k --indirect --poll'

Exit codes: 0 everything ran, 1 a run failed, 2 bad usage.")]
pub struct Options {
    /// Load, in the options of `vhostd-bench crypto`; by default the driver sleeps as a guest does
    #[arg(
        long,
        allow_hyphen_values = true,
        default_value = "--algorithm aes-128-cbc --size 4k --indirect --interrupt"
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
    const DAEMON: &'static str = "vhostd-crypto";

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
        let (crypto, queues) = Crypto::attach(socket, &setup, &sample::keys(setup.algorithm, 1)?)?;
        watch()?;
        Ok(crypto.detach(queues)?)
    }
}
