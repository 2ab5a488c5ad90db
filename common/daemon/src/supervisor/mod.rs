//! The order in which a daemon comes up and goes down, written once for all of them.

mod dispatch;
mod event_loop;
mod run;
mod setup;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use vhost_user::{Device, Notifier, Transport};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::cli::SandboxMode;
use crate::session::{Sessions, State};
use crate::{Failure, cli, config, control, logging, metrics, stats};

pub use run::Configured;
use run::configured;
pub use setup::{EndpointSpec, Setup};

/// How long a drain may take after SIGTERM.
pub const DRAIN_LIMIT: Duration = Duration::from_millis(700);
/// When a process whose drain hangs is ended anyway.
pub const EXIT_LIMIT: Duration = Duration::from_millis(900);

/// What a daemon is, for `--print-capabilities`, `version`, logs and metrics.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Program {
    /// Binary name, `vhostd-blk`.
    pub name: &'static str,
    /// `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// QEMU's name of the device type: `block`, `net`, ... (`VhostUserBackendType` of QEMU's `vhost-user.json`).
    pub kind: &'static str,
    /// Optional arguments of the back-end program conventions it has (`read-only`, `blk-file`).
    pub features: &'static [&'static str],
}

impl Program {
    /// The answer to `--print-capabilities` (QEMU, "Backend program conventions").
    pub fn capabilities(&self) -> Value {
        serde_json::json!({"type": self.kind, "features": self.features})
    }
}

/// A device crate, as the process sees it. All methods but [`open`](Self::open) are called from several threads.
pub trait Application: control::Handler + Sized + 'static {
    /// The command line.
    type Args: clap::Parser + AsRef<cli::Common>;
    /// The configuration file; its default stands for no file.
    type Config: serde::de::DeserializeOwned + Default + AsRef<config::Settings>;
    /// What this daemon is.
    const PROGRAM: Program;

    /// Opens every file and binds every socket; nothing else runs yet, and no thread may be started here.
    ///
    /// Whatever it made must go away when it is dropped, so that a failure leaves nothing behind. The settings of
    /// command line and file together are in [`Setup::common`].
    fn open(args: Self::Args, config: Self::Config, setup: &mut Setup) -> Result<Self, Failure>;

    /// Starts workers and sessions, inside the sandbox. Keep `supervisor` to add devices later.
    fn start(self: &Arc<Self>, supervisor: &Arc<Supervisor>) -> Result<(), Failure>;

    /// What `status` shows under `details`; must not block.
    fn status(&self) -> Value {
        Value::Null
    }

    /// All counters now; must not block, and touches no ring.
    fn stats(&self) -> stats::Snapshot;

    /// Metrics beyond those made from [`stats`](Self::stats).
    fn metrics(&self, _out: &mut metrics::Exposition) {}

    /// Whether every worker answers within this time; false keeps systemd's watchdog from being fed.
    fn responsive(&self, _within: Duration) -> bool {
        true
    }

    /// Called when all sessions have ended: finishes and flushes what is left, until `deadline`; false if it could not.
    fn drain(&self, deadline: Instant) -> bool;
}

/// The part of a running process that device crates use.
pub struct Supervisor {
    program: Program,
    started: Instant,
    sessions: Sessions,
    log: logging::Control,
    sandbox: SandboxMode,
    phase: AtomicU8,
    wake: EventFd,
    failure: Mutex<Option<String>>,
}

/// What the process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Phase {
    /// Serving.
    Running,
    /// Ending sessions, finishing what is in flight.
    Draining,
    /// Nothing runs any more; the process stays for inspection.
    Drained,
    /// About to exit.
    Stopping,
}

impl Supervisor {
    fn new(program: Program, log: logging::Control, sandbox: SandboxMode) -> Result<Arc<Self>, Failure> {
        let wake = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
            .map_err(|error| Failure::runtime(format!("No eventfd can be made: {error}")))?;
        let phase = AtomicU8::new(Phase::Running as u8);
        let (started, sessions, failure) = (Instant::now(), Sessions::default(), Mutex::default());
        Ok(Arc::new(Self { program, started, sessions, log, sandbox, phase, wake, failure }))
    }

    /// What this daemon is.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The session threads.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// What the process is doing.
    pub fn phase(&self) -> Phase {
        let phases = [Phase::Running, Phase::Draining, Phase::Drained];
        let now = self.phase.load(Ordering::Acquire);
        phases.into_iter().find(|phase| *phase as u8 == now).unwrap_or(Phase::Stopping)
    }

    /// Serves frontends on this device in a thread of its own, until [`Sessions::stop`].
    ///
    /// When the last session ends by itself (the connection of `--fd` was closed, or its thread failed), the process
    /// ends too.
    pub fn serve(
        self: &Arc<Self>,
        name: &str,
        transport: Transport,
        mut device: Box<dyn Device>,
    ) -> Result<Notifier, Failure> {
        let failed = |error| Failure::runtime(format!("Device '{name}' cannot be served: {error}"));
        let (notifier, handle) = Notifier::new().map_err(failed)?;
        // At the highest level, so that whatever is logged inside says which device it is about.
        let span = tracing::error_span!("device", name);
        let body = move || {
            let _inside = span.enter();
            vhost_user::serve(transport, &mut *device, handle, &vhost_user::Options::default())
                .map_err(|error| format!("its socket failed: {error}"))
        };
        let (stop, supervisor) = (notifier.clone(), Arc::downgrade(self));
        let ended = move |name: &str, state: &State| {
            if let Some(supervisor) = supervisor.upgrade() {
                supervisor.ended_by_itself(name, state);
            }
        };
        self.sessions.spawn(name, body, move || stop.shutdown(), ended).map_err(failed)?;
        Ok(notifier)
    }

    fn ended_by_itself(&self, name: &str, state: &State) {
        if self.sessions.running() > 0 || self.phase() != Phase::Running {
            return;
        }
        if let State::Failed(reason) = state {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            *failure = Some(format!("Device '{name}' ended: {reason}"));
        }
        tracing::info!("the last session has ended");
        self.shutdown();
    }

    /// Why the process ends although nobody asked for it.
    fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the process as SIGTERM does; returns at once.
    pub fn shutdown(&self) {
        self.set_phase(Phase::Stopping);
        // A counter at its limit wakes the main loop just as well.
        let _ = self.wake.write(1);
    }

    /// Moves on to a later phase; never back.
    fn set_phase(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// Ends all sessions, then lets the application finish; the names of what did not end until `deadline`.
    fn drain(&self, application: &impl Application, deadline: Instant) -> Vec<String> {
        self.set_phase(Phase::Draining);
        let mut late = self.sessions.stop_all(deadline);
        if !application.drain(deadline) {
            late.push("workers".to_owned());
        }
        self.set_phase(Phase::Drained);
        late
    }
}

/// Runs a daemon from its arguments to its exit code: 0 done, 1 failed while running, 2 bad usage or configuration.
pub fn main<A: Application>() -> ExitCode {
    main_with(run::<A>)
}

/// [`main`] for a daemon that may do something else with what the user asked for, such as running it in another process.
pub fn main_with<A: Application>(run: impl FnOnce(Configured<A>) -> Result<ExitCode, Failure>) -> ExitCode {
    let done = configured::<A>().and_then(|configured| configured.map_or(Ok(ExitCode::SUCCESS), run));
    done.unwrap_or_else(|failure| {
        failure.report(A::PROGRAM.name);
        ExitCode::from(failure.code())
    })
}

/// Runs a daemon until it has ended.
pub fn run<A: Application>(configured: Configured<A>) -> Result<ExitCode, Failure> {
    run::run(configured).map(|()| ExitCode::SUCCESS)
}
