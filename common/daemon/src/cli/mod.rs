//! Command line groups all daemons share. A daemon flattens [`Common`] (or single groups) into its own `clap` struct.

mod list;
mod parse;
mod values;
mod words;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use runtime::io::IoKind;
use runtime::policy::{PollPolicy, Preset};

pub use list::{ListError, nearest, parse_list, parse_list_after};
pub use parse::{Given, parse, parse_from};
pub use values::{ByteSize, CpuList, GroupName, MetricsAddress, SocketMode, ValueError, from_text};
pub use words::{qemu_path, shell_word};

/// Every shared group at once.
#[derive(Args, Clone, Debug, Default)]
pub struct Common {
    /// Where the frontend connects.
    #[command(flatten)]
    pub endpoint: EndpointArgs,
    /// Configuration file and discovery.
    #[command(flatten)]
    pub program: ProgramArgs,
    /// Worker threads and polling.
    #[command(flatten)]
    pub workers: WorkerArgs,
    /// Control socket, metrics, logs.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Confinement.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// How the frontend (QEMU, another VMM) reaches the device.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Socket")]
pub struct EndpointArgs {
    /// Listen on this Unix socket for the frontend
    ///
    /// QEMU's side is `-chardev socket,id=c,path=PATH,reconnect=1`, from QEMU 9.2 on `reconnect-ms=1000`. A socket left
    /// behind by a dead process is replaced, a live one is refused, and the daemon removes its own when it ends. At most 107
    /// bytes long.
    #[arg(long, value_name = "PATH", group = "endpoint")]
    pub socket_path: Option<PathBuf>,

    /// Serve the connected or listening socket inherited as this descriptor
    ///
    /// For a VMM that starts the daemon itself. Example: `--fd 3`.
    #[arg(long, value_name = "N", group = "endpoint", value_parser = clap::value_parser!(i32).range(3..))]
    pub fd: Option<i32>,

    /// Connect to a frontend that listens on this Unix socket, and again whenever it goes away
    ///
    /// QEMU's side is `-chardev socket,id=c,path=PATH,server=on,wait=off`.
    #[arg(long, value_name = "PATH", group = "endpoint")]
    pub connect: Option<PathBuf>,

    /// Permission bits of the listening socket, octal
    ///
    /// Example: `--socket-mode 0660 --socket-group kvm` lets every member of `kvm` connect.
    #[arg(long, value_name = "MODE", default_value = "0600")]
    pub socket_mode: SocketMode,

    /// Group that owns the listening socket, by name or number
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<GroupName>,
}

impl EndpointArgs {
    /// Whether one is given.
    pub fn is_given(&self) -> bool {
        self.socket_path.is_some() || self.connect.is_some() || self.fd.is_some()
    }
}

/// QEMU's back-end program conventions, and the configuration file.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Program")]
pub struct ProgramArgs {
    /// Print what this program can do as JSON and exit
    ///
    /// The answer follows QEMU's back-end program conventions; libvirt asks this before it starts the daemon.
    #[arg(long)]
    pub print_capabilities: bool,

    /// Read devices and settings from this TOML file
    ///
    /// Arguments win over the file. An unknown key is an error that names the line and the keys there are.
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
}

/// When a worker that ran out of requests spins instead of sleeping.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Poll {
    /// Sleep at once: least CPU time, one wake-up for each kick.
    Off,
    /// Spin as long as it has paid lately, then sleep; no CPU time while idle.
    #[default]
    Adaptive,
    /// Never sleep: lowest latency, one whole CPU a worker.
    Always,
}

/// Which published algorithm sizes the adaptive window.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PollPreset {
    /// KVM's halt_poll_ns: grow while wake-ups come soon after the window, shrink when they come late.
    #[default]
    Kvm,
    /// Linux's cpuidle-haltpoll governor.
    Haltpoll,
    /// QEMU's AIO context.
    QemuAio,
    /// Always --poll-max-us.
    Fixed,
}

/// What a worker submits its I/O with.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoEngine {
    /// io_uring where the kernel allows it, threads otherwise.
    #[default]
    Auto,
    /// io_uring or fail.
    Uring,
    /// A pool of blocking threads.
    Threads,
}

/// Longest `--poll-max-us`: a second.
pub const MOST_POLL_US: u32 = 1_000_000;

/// Worker threads, their CPUs and when they spin.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Workers")]
pub struct WorkerArgs {
    /// When a worker without requests spins instead of sleeping
    #[arg(long, value_enum, value_name = "WHEN", default_value = "adaptive")]
    pub poll: Poll,

    /// Longest time to spin before sleeping, in microseconds
    ///
    /// Adaptive polling stays below it and usually far below. Example: `--poll-max-us 200`. 0 is the same as
    /// `--poll off`.
    #[arg(long, value_name = "US", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=i64::from(MOST_POLL_US)))]
    pub poll_max_us: u32,

    /// How the adaptive window grows and shrinks
    #[arg(long, value_enum, value_name = "NAME", default_value = "kvm")]
    pub poll_preset: PollPreset,

    /// Number of worker threads shared by all devices
    ///
    /// Queues are spread over them. Default: one; for disks, one for each queue asked for, at most one for each CPU the
    /// process may use.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,

    /// Pin the workers to these CPUs, one after another
    ///
    /// Example: `--cpus 2-5,8`.
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,

    /// How workers do their I/O
    #[arg(long, value_enum, value_name = "ENGINE", default_value = "auto")]
    pub io: IoEngine,
}

impl WorkerArgs {
    /// How a worker waits.
    pub fn poll_policy(&self) -> PollPolicy {
        poll_policy(self.poll, self.poll_preset, self.poll_max_us)
    }

    /// What a worker does its I/O with.
    pub fn io_kind(&self) -> IoKind {
        match self.io {
            IoEngine::Auto => IoKind::Auto,
            IoEngine::Uring => IoKind::Uring,
            IoEngine::Threads => IoKind::Threads,
        }
    }
}

/// The runtime's policy for three settings, wherever they come from.
pub fn poll_policy(poll: Poll, preset: PollPreset, max_us: u32) -> PollPolicy {
    let preset = match preset {
        PollPreset::Kvm => Preset::Kvm,
        PollPreset::Haltpoll => Preset::Haltpoll,
        PollPreset::QemuAio => Preset::QemuAio,
        PollPreset::Fixed => Preset::Fixed,
    };
    match poll {
        Poll::Always => PollPolicy::Always,
        Poll::Adaptive if max_us > 0 => PollPolicy::Adaptive { preset, max_us: u64::from(max_us) },
        Poll::Adaptive | Poll::Off => PollPolicy::Off,
    }
}

/// Form of log lines on standard error.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How much is logged.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What ends a connection or a device.
    Error,
    /// And what the operator should look at.
    Warn,
    /// And connections, negotiations, starts and stops.
    #[default]
    Info,
    /// And every vhost-user message.
    Debug,
    /// Everything; never on a production host.
    Trace,
}

/// How operators watch and steer a running daemon.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Service")]
pub struct ServiceArgs {
    /// Answer `vhostctl` on this Unix socket (JSON-RPC 2.0, mode 0600)
    ///
    /// `vhostctl` finds sockets in /run/vhostd by itself. Example: `--control-socket /run/vhostd/disk0.sock`.
    #[arg(long, value_name = "PATH")]
    pub control_socket: Option<PathBuf>,

    /// Serve Prometheus metrics on a TCP address or a Unix socket
    ///
    /// Examples: `--metrics 127.0.0.1:9100`, `--metrics unix:/run/vhostd/disk0.metrics`. There is no
    /// authentication: keep a TCP address local.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<MetricsAddress>,

    /// How much to log; `vhostctl log-level` changes it later
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,

    /// Form of the log lines on standard error
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// What happens when the process tries something a daemon never does.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxMode {
    /// No confinement.
    Off,
    /// Forbidden system calls are allowed and appear in the audit log.
    Log,
    /// Forbidden system calls fail, the worst of them kill the process; files outside the configuration stay closed.
    #[default]
    Enforce,
}

/// Confinement after the devices are open.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sandbox")]
pub struct SandboxArgs {
    /// How strictly the process is confined once its devices are open
    ///
    /// Capabilities are dropped, system calls filtered (seccomp) and files outside the configuration closed off
    /// (Landlock, where the kernel has it).
    #[arg(long, value_enum, value_name = "MODE", default_value = "enforce")]
    pub sandbox: SandboxMode,

    /// Same as --sandbox off
    #[arg(long, conflicts_with = "sandbox")]
    pub no_sandbox: bool,

    /// Directory in which files may be opened later, for devices added while running; repeatable
    ///
    /// Example: `--allow-path /var/lib/images` lets `vhostctl add` open any image there.
    #[arg(long = "allow-path", value_name = "DIR")]
    pub allow_paths: Vec<PathBuf>,
}

impl SandboxArgs {
    /// The mode both flags together ask for.
    pub fn mode(&self) -> SandboxMode {
        if self.no_sandbox { SandboxMode::Off } else { self.sandbox }
    }
}
