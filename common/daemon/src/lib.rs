//! What a daemon has besides its device: command line, configuration file, control socket, metrics, logs, signals,
//! systemd, sandbox, and the order in which they come up and go down.
//!
//! A device crate implements [`Application`] and its `main` is one line:
//!
//! ```no_run
//! # use std::{sync::Arc, time::Instant, process::ExitCode};
//! # use daemon::{Application, Failure, Program, Setup, Supervisor, cli, control, stats};
//! # #[derive(clap::Parser)] struct Args { #[command(flatten)] common: cli::Common }
//! # impl AsRef<cli::Common> for Args { fn as_ref(&self) -> &cli::Common { &self.common } }
//! # struct Null;
//! # impl control::Handler for Null {
//! #     fn methods(&self) -> &'static [control::Method] { &[] }
//! #     fn call(&self, _: &str, _: serde_json::Value) -> Result<serde_json::Value, control::RpcError> { Err(control::RpcError::internal("none")) }
//! # }
//! # impl Application for Null {
//! #     type Args = Args;
//! #     const PROGRAM: Program = Program { name: "vhostd-null", version: "0", kind: "block", features: &[] };
//! #     type Config = daemon::config::Settings;
//! #     fn open(_: Args, _: Self::Config, _: &mut Setup) -> Result<Self, Failure> { Ok(Null) }
//! #     fn start(self: &Arc<Self>, _: &Arc<Supervisor>) -> Result<(), Failure> { Ok(()) }
//! #     fn stats(&self) -> stats::Snapshot { stats::Snapshot::default() }
//! #     fn drain(&self, _: Instant) -> bool { true }
//! # }
//! fn main() -> ExitCode {
//!     daemon::main::<Null>()
//! }
//! ```
//!
//! # Order of events
//!
//! 1. Signals are blocked, arguments parsed, logs started ([`cli`], [`config`], [`logging`]).
//! 2. [`Application::open`] opens every file and binds every socket, on the only thread there is.
//! 3. The sandbox closes ([`sandbox`]): each thread started later inherits it.
//! 4. [`Application::start`] starts workers and one session thread a device ([`session`]).
//! 5. Control socket and metrics answer, systemd hears `READY=1` ([`control`], [`metrics`], [`systemd`]).
//! 6. SIGTERM: sessions stop, workers drain, sockets are unlinked, exit 0 in under a second ([`signals`]).
//!
//! # Threads
//!
//! The main thread waits for signals, the watchdog timer and metrics clients; `control` answers JSON-RPC and may
//! block in a device's method; one `session-NAME` thread a device speaks vhost-user. None of them touches a ring, and
//! all of them sleep while nothing happens.

pub mod cli;
mod clock;
pub mod config;
pub mod control;
pub mod device;
pub mod exit;
pub mod logging;
pub mod metrics;
pub mod sandbox;
pub mod session;
pub mod signals;
pub mod stats;
pub mod supervisor;
pub mod systemd;
#[cfg(feature = "testing")]
pub mod testing;
pub mod workers;

pub use exit::Failure;
pub use supervisor::{
    Application, Configured, EndpointSpec, Phase, Program, Setup, Supervisor, main, main_with, run,
};
