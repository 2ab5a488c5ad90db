//! `vhostd-bench idle`: what devices cost that nobody uses.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::blk::client::Disk;
use crate::guest::{Shape, Socket};
use crate::net::client::{Port, Setup as PortSetup, Stamp};
use crate::process::{Process, beside_me};
use crate::units::parse_duration;
use crate::{blk, compress, cpu, crypto};

/// Resident memory an idle daemon may have.
const MEMORY_AIM: u64 = 10 << 20;
/// The kernel's accounting tick: what `/proc/PID/stat` counts in.
const TICK: Duration = Duration::from_millis(10);

/// Attaches drivers to many devices of one daemon, does nothing, and measures what that costs
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  vhostd-bench idle
  vhostd-bench idle --net
  vhostd-bench idle --crypto
  vhostd-bench idle --compress
  vhostd-bench idle --disks 50 --time 10 --json

Exit code 0 if the daemon used less than one tick and fits into 10 MiB when it has one device, 1 otherwise.")]
pub struct Options {
    /// The ports of vhostd-net instead of the disks of vhostd-blk
    #[arg(long)]
    pub net: bool,
    /// The crypto devices of vhostd-crypto instead of the disks of vhostd-blk
    #[arg(long, conflicts_with = "net")]
    pub crypto: bool,
    /// The compression devices of vhostd-compress instead of the disks of vhostd-blk
    #[arg(long, conflicts_with_all = ["net", "crypto"])]
    pub compress: bool,
    /// The daemon (default: the one beside this program)
    #[arg(long, value_name = "PATH")]
    pub daemon: Option<PathBuf>,
    /// Disks, ports or other devices in one daemon, each with a driver attached
    #[arg(long, visible_aliases = ["ports", "devices"], default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
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
    /// Disks or ports attached.
    pub devices: u16,
    /// Seconds watched.
    pub seconds: f64,
    /// CPU time of the daemon in that time, in microseconds.
    pub cpu_us: u128,
    /// The same in ticks of 10 ms.
    pub ticks: u128,
    /// Resident memory with all of them attached, in bytes.
    pub resident_bytes: u64,
    /// Resident memory with one of them attached, in bytes.
    pub resident_bytes_one: u64,
    /// No tick used, and one device fits into 10 MiB.
    pub reached: bool,
}

/// Measures and prints.
pub fn main(options: &Options) -> Result<ExitCode> {
    let kind = match (options.net, options.crypto, options.compress) {
        (true, ..) => Kind::Port,
        (_, true, _) => Kind::Crypto,
        (.., true) => Kind::Compress,
        _ => Kind::Disk,
    };
    let daemon = options.daemon.clone().map_or_else(|| beside_me(kind.daemon()), Ok)?;
    let one = watch(kind, &daemon, 1, Duration::from_millis(200))?;
    let all = watch(kind, &daemon, options.disks, options.time)?;
    let ticks = all.cpu.as_nanos() / TICK.as_nanos();
    let idle = Idle {
        devices: options.disks,
        seconds: options.time.as_secs_f64(),
        cpu_us: all.cpu.as_micros(),
        ticks,
        resident_bytes: all.resident,
        resident_bytes_one: one.resident,
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
            "{} idle devices, {} s: {} us of CPU time ({} ticks), {:.1} MiB resident; with one {:.1} MiB\n",
            self.devices,
            self.seconds,
            self.cpu_us,
            self.ticks,
            mib(self.resident_bytes),
            mib(self.resident_bytes_one),
        )
    }
}

struct Watched {
    cpu: Duration,
    resident: u64,
}

/// What the daemon serves.
#[derive(Clone, Copy)]
enum Kind {
    Disk,
    Port,
    Crypto,
    Compress,
}

impl Kind {
    fn daemon(self) -> &'static str {
        match self {
            Self::Disk => "vhostd-blk",
            Self::Port => "vhostd-net",
            Self::Crypto => "vhostd-crypto",
            Self::Compress => "vhostd-compress",
        }
    }

    fn arguments(self, n: u16, socket: &Path) -> [String; 2] {
        let socket = socket.display();
        match self {
            Self::Disk => ["--disk".to_owned(), format!("id=disk{n},path=null:1g,socket={socket}")],
            Self::Port => ["--port".to_owned(), format!("id=port{n},socket={socket}")],
            Self::Crypto => ["--device".to_owned(), format!("id=crypto{n},socket={socket}")],
            Self::Compress => ["--device".to_owned(), format!("id=compress{n},socket={socket}")],
        }
    }

    /// Attaches a driver; what is returned detaches it.
    fn attach(self, socket: &Path) -> Result<Box<dyn FnOnce() -> Result<()>>> {
        Ok(match self {
            Self::Disk => {
                let setup = blk::client::Setup { depth: 1, ..blk::client::Setup::default() };
                let (disk, queues) = Disk::attach(socket, &setup)?;
                Box::new(move || Ok(disk.detach(queues)?))
            }
            Self::Port => {
                let (port, pairs) = Port::attach(Socket::Connect(socket), &idle_guest())?;
                Box::new(move || Ok(port.detach(pairs)?))
            }
            Self::Crypto => {
                let setup = crypto::Load::default().setup();
                let keys = crypto::sample::keys(setup.algorithm, 1)?;
                let (mut device, queues) = crypto::client::Crypto::attach(socket, &setup, &keys)?;
                device.create_session(&keys, 0)?;
                Box::new(move || Ok(device.detach(queues)?))
            }
            Self::Compress => {
                let setup = compress::Load::default().setup();
                let (device, queues) = compress::client::Compressor::attach(socket, &setup, 0)?;
                Box::new(move || Ok(device.detach(queues)?))
            }
        })
    }
}

/// A guest with one pair of queues, all of its receive buffers in the ring.
fn idle_guest() -> PortSetup {
    PortSetup {
        guest: 0,
        to: 1,
        queues: 1,
        frame: 64,
        tso: false,
        checksum: false,
        rx_buffer: 2048,
        mergeable: true,
        shape: Shape::default(),
        stamp: Stamp::Tag,
    }
}

/// Starts a daemon with `count` devices, attaches a driver to each, waits until all is quiet, and watches.
fn watch(kind: Kind, daemon: &Path, count: u16, time: Duration) -> Result<Watched> {
    const SETTLE: Duration = Duration::from_millis(500);
    let folder = tempfile::tempdir().context("Cannot create a temporary folder")?;
    let socket = |n: u16| folder.path().join(format!("{n}.sock"));
    let mut words = vec![daemon.display().to_string()];
    words.extend((0..count).flat_map(|n| kind.arguments(n, &socket(n))));
    let mut process = Process::start(&words, &[])?;
    let mut attached = Vec::new();
    for n in 0..count {
        process.wait_for_socket(&socket(n))?;
        attached.push(kind.attach(&socket(n)).with_context(|| format!("Device {n}"))?);
    }
    std::thread::sleep(SETTLE);
    let before = cpu::process_cpu_time(process.pid())?;
    std::thread::sleep(time);
    let cpu = cpu::process_cpu_time(process.pid())? - before;
    let resident = cpu::resident_bytes(process.pid())?;
    attached.into_iter().try_for_each(|detach| detach())?;
    let (status, _) = process.stop();
    ensure!(
        status.is_some_and(|status| status.success()),
        "The daemon did not exit with 0:\n{}",
        process.output()
    );
    Ok(Watched { cpu, resident })
}
