//! How a daemon that batches waits for work, compared: interrupts, timers, the heuristic, polling.
//!
//! Every mode is measured at every depth, round by round, each time on a fresh daemon, so that a machine that changes its
//! speed changes it for all. Medians are shown. [`Subject`] is what a device has to say for that: `vhostd-bench crypto-modes`
//! and `vhostd-bench compress-modes`.

mod plot;
pub mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::cpu::{self, CpuList};
use crate::guest::options::Timing;
use crate::process::{Process, beside_me};
use crate::units::parse_duration;
use crate::{output, progress};
use table::{Cell, Run, Table};

/// What is measured, and how long.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    /// The daemon (default: the one beside this program)
    #[arg(long, value_name = "PATH")]
    pub daemon: Option<PathBuf>,
    /// Modes, as --mode of the daemon has them
    #[arg(long, value_delimiter = ',', default_value = "interrupt,timer=1ms,timer=100us,heuristic,busy")]
    pub modes: Vec<String>,
    /// Requests in flight
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub depths: Vec<u16>,
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

/// A running daemon, as a driver finds it.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Socket of the device.
    pub socket: &'a Path,
    /// Control socket of the daemon.
    pub control: &'a Path,
}

/// A device whose daemon has modes.
pub trait Subject {
    /// Name of the daemon.
    const DAEMON: &'static str;

    /// The load without depth and time, in words.
    fn load(&self) -> &str;

    /// Holds the load against a depth; the error is a sentence.
    fn check(&self, depth: u16) -> Result<(), String>;

    /// The load at one depth.
    fn run(&self, target: Target<'_>, depth: u16, timing: Timing) -> Result<Run>;

    /// Calls `watch` while a driver is attached that does nothing.
    fn idle(&self, socket: &Path, watch: &mut dyn FnMut() -> Result<()>) -> Result<()>;
}

/// Measures, prints, writes and draws; exit code 2 for a load that makes no sense.
pub fn main<S: Subject>(subject: &S, options: &Options) -> Result<ExitCode> {
    if let Err(reason) = options.depths.iter().try_for_each(|&depth| subject.check(depth)) {
        eprintln!("vhostd-bench: {reason}");
        return Ok(ExitCode::from(2));
    }
    let daemon = options.daemon.clone().map_or_else(|| beside_me(S::DAEMON), Ok)?;
    let table = measure(subject, options, &daemon)?;
    print!("{}", table.text());
    output::write(options.json.as_ref(), || Ok(serde_json::to_string_pretty(&table)? + "\n"))?;
    output::write(options.markdown.as_ref(), || Ok(table.markdown()))?;
    output::write(options.plot.as_ref(), || plot::draw(&table))?;
    Ok(ExitCode::SUCCESS)
}

fn measure(subject: &impl Subject, options: &Options, daemon: &Path) -> Result<Table> {
    let steps = options.rounds as usize * options.modes.len() * options.depths.len() + options.modes.len();
    let bar = progress::steps(steps as u64, options.quiet);
    let cells =
        options.modes.iter().flat_map(|mode| options.depths.iter().map(|&depth| Cell::new(mode, depth)));
    let mut table = Table::new(subject.load(), options.rounds, cells.collect());
    for mode in &options.modes {
        bar.set_message(format!("{mode}, idle"));
        let idle = idle(subject, options, daemon, mode).with_context(|| format!("Mode {mode}, idle"))?;
        table.idle.insert(mode.clone(), idle);
        bar.inc(1);
    }
    for round in 1..=options.rounds {
        for cell in &mut table.cells {
            bar.set_message(format!("round {round}: {}, depth {}", cell.mode, cell.depth));
            let what = || format!("Mode {}, depth {}", cell.mode, cell.depth);
            cell.runs.push(once(subject, options, daemon, cell).with_context(what)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(table)
}

/// A daemon of its own with its sockets.
struct Running {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    control: PathBuf,
    process: Process,
}

impl Running {
    fn start(options: &Options, daemon: &Path, mode: &str) -> Result<Self> {
        let folder = tempfile::tempdir().context("Cannot create a temporary folder")?;
        let [socket, control] = ["device.sock", "control.sock"].map(|name| folder.path().join(name));
        let words = [
            daemon.display().to_string(),
            format!("--socket-path={}", socket.display()),
            format!("--control-socket={}", control.display()),
            format!("--mode={mode}"),
            "--workers=1".to_owned(),
            format!("--cpus={}", options.backend_cpus),
        ];
        let mut process = Process::start(&words, &options.backend_cpus.0)?;
        process.wait_for_socket(&socket)?;
        Ok(Self { _folder: folder, socket, control, process })
    }
}

fn once(subject: &impl Subject, options: &Options, daemon: &Path, cell: &Cell) -> Result<Run> {
    let running = Running::start(options, daemon, &cell.mode)?;
    let target = Target { socket: &running.socket, control: &running.control };
    let cpus = Some(options.driver_cpus.clone());
    let timing = Timing { runtime: options.runtime, warmup: options.warmup, cpus };
    subject.run(target, cell.depth, timing).with_context(|| running.process.output())
}

/// The share of a CPU that the daemon takes while its driver does nothing.
fn idle(subject: &impl Subject, options: &Options, daemon: &Path, mode: &str) -> Result<f64> {
    const SETTLE: Duration = Duration::from_millis(300);
    let running = Running::start(options, daemon, mode)?;
    let mut used = Duration::ZERO;
    subject.idle(&running.socket, &mut || {
        std::thread::sleep(SETTLE);
        let before = cpu::process_cpu_time(running.process.pid())?;
        std::thread::sleep(options.idle);
        used = cpu::process_cpu_time(running.process.pid())? - before;
        Ok(())
    })?;
    Ok(used.as_secs_f64() / options.idle.as_secs_f64().max(1e-9))
}
