//! `vhostd-bench crypto-modes`: how vhostd-crypto waits for work, compared: interrupts, timers, the heuristic, polling.
//!
//! Every mode is measured at every depth, round by round, each time on a fresh daemon, so that a machine that changes its
//! speed changes it for all. Medians are shown.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use super::client::Crypto;
use super::options::Load;
use super::plot;
use super::run::{Target, run};
use super::sample;
use super::table::{Cell, Run, Table};
use crate::cpu::{self, CpuList};
use crate::guest::Shown;
use crate::guest::options::Timing;
use crate::process::{Process, beside_me};
use crate::progress;
use crate::units::parse_duration;

/// Measures each mode of vhostd-crypto at several depths: throughput, latency, CPU time, interrupts, why batches were submitted
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  vhostd-bench crypto-modes
  vhostd-bench crypto-modes --rounds 3 --runtime 1 --markdown modes.md --plot modes.svg
  vhostd-bench crypto-modes --modes heuristic,busy --depths 16,64 --load '--algorithm aes-128-gcm --size 16k --indirect --poll'

Exit codes: 0 everything ran, 1 a run failed, 2 bad usage.")]
pub struct Options {
    /// The daemon (default: vhostd-crypto beside this program)
    #[arg(long, value_name = "PATH")]
    pub daemon: Option<PathBuf>,
    /// Modes, as vhostd-crypto --mode has them
    #[arg(long, value_delimiter = ',', default_value = "interrupt,timer=1ms,timer=100us,heuristic,busy")]
    pub modes: Vec<String>,
    /// Requests in flight
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub depths: Vec<u16>,
    /// Load, in the options of `vhostd-bench crypto`; by default the driver sleeps as a guest does
    #[arg(
        long,
        allow_hyphen_values = true,
        default_value = "--algorithm aes-128-cbc --size 4k --indirect --interrupt"
    )]
    pub load: String,
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Measured time of a run
    #[arg(long, default_value = "2", value_parser = parse_duration, value_name = "TIME")]
    pub runtime: Duration,
    /// Time before
    #[arg(long, default_value = "0.3", value_parser = parse_duration, value_name = "TIME")]
    pub warmup: Duration,
    /// How long each mode is watched with a driver that does nothing
    #[arg(long, default_value = "2", value_parser = parse_duration, value_name = "TIME")]
    pub idle: Duration,
    /// CPU of the driver
    #[arg(long, default_value = "0", value_name = "LIST")]
    pub driver_cpus: CpuList,
    /// CPU of the daemon
    #[arg(long, default_value = "1", value_name = "LIST")]
    pub backend_cpus: CpuList,
    /// Writes the table as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes the table as Markdown
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Draws throughput and latency by depth
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Shows no progress
    #[arg(long, short)]
    pub quiet: bool,
}

/// Measures, prints, writes and draws.
pub fn main(options: &Options) -> Result<ExitCode> {
    if let Err(reason) = options.depths.iter().try_for_each(|&depth| options.load_at(depth).map(drop)) {
        eprintln!("vhostd-bench: {reason}");
        return Ok(ExitCode::from(2));
    }
    let daemon = options.daemon.clone().map_or_else(|| beside_me("vhostd-crypto"), Ok)?;
    let table = measure(options, &daemon)?;
    print!("{}", table.text());
    let write = |file: &Option<PathBuf>, text: &str| match file {
        Some(file) => std::fs::write(file, text).with_context(|| format!("Cannot write {}", file.display())),
        None => Ok(()),
    };
    write(&options.json, &(serde_json::to_string_pretty(&table)? + "\n"))?;
    write(&options.markdown, &table.markdown())?;
    if let Some(file) = &options.plot {
        let drawn = plot::draw(&table)?;
        write(&Some(file.clone()), &drawn)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Options {
    /// The load at one depth; the error is a sentence.
    fn load_at(&self, depth: u16) -> Result<Load, String> {
        let load = Load::parse(&format!("{} --depth {depth}", self.load))?;
        let cpus = Some(self.driver_cpus.clone());
        Ok(Load { timing: Timing { runtime: self.runtime, warmup: self.warmup, cpus }, ..load })
    }
}

fn measure(options: &Options, daemon: &Path) -> Result<Table> {
    let steps = options.rounds as usize * options.modes.len() * options.depths.len() + options.modes.len();
    let bar = progress::steps(steps as u64, options.quiet);
    let cells =
        options.modes.iter().flat_map(|mode| options.depths.iter().map(|&depth| Cell::new(mode, depth)));
    let mut table = Table::new(&options.load, options.rounds, cells.collect());
    for mode in &options.modes {
        bar.set_message(format!("{mode}, idle"));
        let idle = idle(options, daemon, mode).with_context(|| format!("Mode {mode}, idle"))?;
        table.idle.insert(mode.clone(), idle);
        bar.inc(1);
    }
    for round in 1..=options.rounds {
        for cell in &mut table.cells {
            bar.set_message(format!("round {round}: {}, depth {}", cell.mode, cell.depth));
            let what = || format!("Mode {}, depth {}", cell.mode, cell.depth);
            cell.runs.push(once(options, daemon, &cell.mode, cell.depth).with_context(what)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(table)
}

/// A daemon of its own with its sockets.
struct Subject {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    control: PathBuf,
    process: Process,
}

impl Subject {
    fn start(options: &Options, daemon: &Path, mode: &str) -> Result<Self> {
        let folder = tempfile::tempdir().context("Cannot create a temporary folder")?;
        let [socket, control] = ["crypto.sock", "control.sock"].map(|name| folder.path().join(name));
        let cpus = options.backend_cpus.to_string();
        let words = [
            daemon.display().to_string(),
            format!("--socket-path={}", socket.display()),
            format!("--control-socket={}", control.display()),
            format!("--mode={mode}"),
            "--workers=1".to_owned(),
            format!("--cpus={cpus}"),
        ];
        let mut process = Process::start(&words, &options.backend_cpus.0)?;
        process.wait_for_socket(&socket)?;
        Ok(Self { _folder: folder, socket, control, process })
    }
}

fn once(options: &Options, daemon: &Path, mode: &str, depth: u16) -> Result<Run> {
    let load = options.load_at(depth).map_err(anyhow::Error::msg)?;
    let subject = Subject::start(options, daemon, mode)?;
    let target = Target { socket: &subject.socket, control: Some(&subject.control) };
    let report = run(target, &load, &mut |_| {}).with_context(|| subject.process.output())?;
    Ok(Run::of(&report.unless_wrong()?))
}

/// The share of a CPU that the daemon takes while its driver does nothing.
fn idle(options: &Options, daemon: &Path, mode: &str) -> Result<f64> {
    const SETTLE: Duration = Duration::from_millis(300);
    let subject = Subject::start(options, daemon, mode)?;
    let setup = options.load_at(1).map_err(anyhow::Error::msg)?.setup();
    let (crypto, queues) = Crypto::attach(&subject.socket, &setup, &sample::keys(setup.algorithm, 1)?)?;
    std::thread::sleep(SETTLE);
    let before = cpu::process_cpu_time(subject.process.pid())?;
    std::thread::sleep(options.idle);
    let used = cpu::process_cpu_time(subject.process.pid())? - before;
    crypto.detach(queues)?;
    Ok(used.as_secs_f64() / options.idle.as_secs_f64().max(1e-9))
}
