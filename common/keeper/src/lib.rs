//! Keeps vhost-user frontends connected while the process that serves them dies and comes back.
//!
//! Many frontends do not survive the end of their back-end. QEMU's cryptodev, for one, connects again but never sends its
//! memory table and rings a second time, so the guest hangs for good. A keeper is a small process between the two: it owns
//! what a back-end must not lose, and serves no ring itself.
//!
//! ```text
//!   frontend ── socket ── keeper ── socketpair ── worker process
//!       └──────── memory, kick and call eventfds ────────┘
//! ```
//!
//! # What it does
//!
//! - It passes each message of a frontend on to the worker, with its descriptors, and records what the worker has accepted.
//!   Requests go from guest to worker as ever; the keeper maps no guest memory and sleeps.
//! - It gives the worker an inflight region that it keeps itself, when the frontend has none of its own.
//! - When the worker dies (`kill -9`, a panic, no memory) it starts another, replays the record as a frontend would after
//!   a reconnection, and sends the message that was under way again. The region tells the new worker which requests to
//!   do again. Messages that come meanwhile wait. The frontend and the guest notice a pause.
//! - It holds memory that each worker finds again, for state that no frontend sends twice ([`Memory`]).
//! - A worker that dies as soon as it serves, again and again, is given up with a message ([`Respawn`]).
//!
//! The worker is any daemon of the suite: it is given a descriptor as `--fd` over which its connections are handed over
//! ([`Endpoint::Handover`](vhost_user::Endpoint::Handover)). Nothing here knows what the device does.
//!
//! # Process
//!
//! | event | effect |
//! |---|---|
//! | SIGTERM, SIGINT | the worker drains, frontends are disconnected, sockets removed, exit 0 in under a second |
//! | SIGUSR1 | goes to the worker, which logs its counters |
//! | the worker exits with 0 | it was told to: exit 0 |
//! | the worker exits with 1 or 2 before any has served | its command line cannot work: the same exit code |
//! | the worker ends otherwise | it is started again |
//! | the worker gives no sign of life (`WatchdogSec=`) | it is killed, and started again |
//! | the keeper dies | the worker gets SIGTERM |
//!
//! What the worker tells systemd is passed on, so that the keeper can be the main process of a unit of `Type=notify`.
//!
//! # Threads
//!
//! The main thread starts workers and hears of signals. Each device has a thread of its own, confined to sockets and memory
//! of its own. All of them sleep while nothing happens.

mod arguments;
mod back_channel;
mod child;
mod config;
mod inflight;
mod line;
mod link;
mod memories;
mod messages;
mod notify;
mod record;
mod replay;
mod respawn;
mod sandbox;
mod session;
mod shared;
mod sources;
mod supervise;
mod sys;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use daemon::Failure;
use daemon::signals::Signals;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use arguments::{HandedArgs, HandedDevice};
pub use config::{Arguments, Handed, KeeperConfig, Kept, Memory};
pub use respawn::Respawn;
pub use sys::inherited;

use line::{LineContext, Source};
use link::Handover;
use memories::Held;
use notify::Relay;
use shared::Shared;
use supervise::Supervisor;

/// The program of this process, for [`KeeperConfig::executable`].
pub fn own_executable() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"))
}

/// Keeps the devices until SIGTERM, or until the worker process ends for good. To be called before anything else: on the only
/// thread of the process, with no logging or signal handling set up.
pub fn run(config: KeeperConfig) -> ExitCode {
    match keep(&config) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.report(config.program);
            ExitCode::from(failure.code())
        }
    }
}

fn keep(config: &KeeperConfig) -> Result<u8, Failure> {
    let signals = Signals::new().map_err(refused("Signals cannot be handled"))?;
    daemon::logging::init(config.log_level, config.log_format)?;
    daemon::sandbox::raise_limits();
    let memories = config.memories.iter().map(Held::new).collect::<io::Result<Vec<_>>>();
    let memories = memories.map_err(refused("Memory for the workers cannot be made"))?;
    let relay = Relay::new().map_err(refused("The worker's notification socket cannot be made"))?;
    let shared = Arc::new(Shared::new(config.devices.len()).map_err(refused("No eventfd can be made"))?);
    let (sources, _files) = sources::open(&config.devices)?;

    let named = memories.iter().map(|held| (held.name, held.file.as_raw_fd()));
    let mut handed = Handed { devices: Vec::new(), memories: named.collect() };
    let (mut deaths, mut channels): (Vec<Arc<EventFd>>, Vec<OwnedFd>) = Default::default();
    for (device, source) in config.devices.iter().zip(sources) {
        let (ours, theirs) = sys::message_sockets().map_err(refused("No socket can be made"))?;
        let death = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(refused("No eventfd can be made"))?;
        let death = Arc::new(death);
        handed.devices.push((device.name.clone(), theirs.as_raw_fd()));
        let handover = Handover::new(ours, Arc::clone(&death), Arc::clone(&shared));
        let (name, queue_size) = (device.name.clone(), device.queue_size);
        start(LineContext { name, queue_size, handover, shared: Arc::clone(&shared) }, source, config)?;
        deaths.push(death);
        // Open as long as workers are started.
        channels.push(theirs);
    }
    let ends = Arc::clone(&shared);
    let outcome =
        Supervisor { config, handed, memories, shared, relay, signals, deaths, watchdog: notify::watchdog() }
            .run();
    ends.stop();
    outcome
}

/// Starts the thread of a device.
fn start(context: LineContext, source: Source, config: &KeeperConfig) -> Result<(), Failure> {
    let (mode, shared) = (config.sandbox, Arc::clone(&context.shared));
    let body = move || {
        let _end = LineEnd(shared);
        match sandbox::enter(mode) {
            Ok(()) => context.run(source),
            Err(error) => tracing::error!(device = context.name, %error, "the sandbox cannot be closed"),
        }
    };
    let name = format!("keep-{}", config.devices.len());
    std::thread::Builder::new().name(name).spawn(body).map_err(refused("No thread can be started"))?;
    Ok(())
}

/// Says that the thread of a device has ended, be it by a panic.
struct LineEnd(Arc<Shared>);

impl Drop for LineEnd {
    fn drop(&mut self) {
        self.0.line_ended();
    }
}

fn refused(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::runtime(format!("{what}: {error}"))
}
