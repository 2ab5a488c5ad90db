//! `vhostd-bench idle`: what disks cost that nobody uses.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::blk::client::{Disk, Setup};
use crate::cpu;
use crate::process::{Process, beside_me};
use crate::units::parse_duration;

/// Resident memory an idle daemon may have.
const MEMORY_AIM: u64 = 10 << 20;
/// The kernel's accounting tick: what `/proc/PID/stat` counts in.
const TICK: Duration = Duration::from_millis(10);

/// Attaches drivers to many disks of one daemon, does nothing, and measures what that costs
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  vhostd-bench idle
  vhostd-bench idle --disks 50 --time 10 --json

Exit code 0 if the daemon used less than one tick and fits into 10 MiB when it has one disk, 1 otherwise.")]
pub struct Options {
    /// The daemon (default: vhostd-blk beside this program)
    #[arg(long, value_name = "PATH")]
    pub daemon: Option<PathBuf>,
    /// Disks in one daemon, each with a driver attached
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
    pub disks: u16,
    /// How long to watch
    #[arg(long, default_value = "10", value_parser = parse_duration, value_name = "TIME")]
    pub time: Duration,
    /// Prints JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Idle {
    /// Disks attached.
    pub disks: u16,
    /// Seconds watched.
    pub seconds: f64,
    /// CPU time of the daemon in that time, in microseconds.
    pub cpu_us: u128,
    /// The same in ticks of 10 ms.
    pub ticks: u128,
    /// Resident memory with all disks attached, in bytes.
    pub resident_bytes: u64,
    /// Resident memory with one disk attached, in bytes.
    pub resident_bytes_one_disk: u64,
    /// No tick used, and one disk fits into 10 MiB.
    pub reached: bool,
}

/// Measures and prints.
pub fn main(options: &Options) -> Result<ExitCode> {
    let daemon = options.daemon.clone().map_or_else(|| beside_me("vhostd-blk"), Ok)?;
    let one = watch(&daemon, 1, Duration::from_millis(200))?;
    let all = watch(&daemon, options.disks, options.time)?;
    let ticks = all.cpu.as_nanos() / TICK.as_nanos();
    let idle = Idle {
        disks: options.disks,
        seconds: options.time.as_secs_f64(),
        cpu_us: all.cpu.as_micros(),
        ticks,
        resident_bytes: all.resident,
        resident_bytes_one_disk: one.resident,
        reached: ticks == 0 && one.resident < MEMORY_AIM,
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&idle)?);
    } else {
        print!("{}", idle.text());
    }
    Ok(if idle.reached { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Idle {
    fn text(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        format!(
            "{} idle disks, {} s: {} us of CPU time ({} ticks), {:.1} MiB resident; with one disk {:.1} MiB\n",
            self.disks,
            self.seconds,
            self.cpu_us,
            self.ticks,
            mib(self.resident_bytes),
            mib(self.resident_bytes_one_disk),
        )
    }
}

struct Watched {
    cpu: Duration,
    resident: u64,
}

/// Starts a daemon with `disks` disks, attaches a driver to each, waits until all is quiet, and watches.
fn watch(daemon: &std::path::Path, disks: u16, time: Duration) -> Result<Watched> {
    const SETTLE: Duration = Duration::from_millis(500);
    let folder = tempfile::tempdir().context("Cannot create a temporary folder")?;
    let socket = |n: u16| folder.path().join(format!("{n}.sock"));
    let mut words = vec![daemon.display().to_string()];
    for n in 0..disks {
        words.push("--disk".to_owned());
        words.push(format!("id=disk{n},path=null:1g,socket={}", socket(n).display()));
    }
    let mut process = Process::start(&words, &[])?;
    let mut attached = Vec::new();
    for n in 0..disks {
        process.wait_for_socket(&socket(n))?;
        let setup = Setup { depth: 1, ..Setup::default() };
        attached.push(Disk::attach(&socket(n), &setup).with_context(|| format!("Disk {n}"))?);
    }
    std::thread::sleep(SETTLE);
    let before = cpu::process_cpu_time(process.pid())?;
    std::thread::sleep(time);
    let cpu = cpu::process_cpu_time(process.pid())? - before;
    let resident = cpu::resident_bytes(process.pid())?;
    for (disk, queues) in attached {
        disk.detach(queues)?;
    }
    let (status, _) = process.stop();
    ensure!(
        status.is_some_and(|status| status.success()),
        "The daemon did not exit with 0:\n{}",
        process.output()
    );
    Ok(Watched { cpu, resident })
}
