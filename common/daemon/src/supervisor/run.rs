//! One daemon's life, from arguments to exit code.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use super::dispatch::Methods;
use super::event_loop::{EventLoop, Listeners, MetricsListener};
use super::setup::{CONTROL_NAME, METRICS_NAME, Setup};
use super::{Application, DRAIN_LIMIT, EXIT_LIMIT, Supervisor};
use crate::cli::{Common, MetricsAddress};
use crate::signals::{self, Signals};
use crate::{Failure, cli, config, logging, sandbox, systemd};

/// What the user asked a daemon for.
pub struct Configured<A: Application> {
    /// The command line.
    pub args: A::Args,
    /// The configuration file.
    pub config: A::Config,
    /// The settings all daemons share: arguments first, then the file, then defaults.
    pub common: Common,
}

/// Reads the command line and the configuration file it names; nothing when help, version or capabilities were all that was
/// asked for, which it prints.
pub fn configured<A: Application>() -> Result<Option<Configured<A>>, Failure> {
    let Some((args, given)) = cli::parse::<A::Args>()? else { return Ok(None) };
    let mut common = args.as_ref().clone();
    if common.program.print_capabilities {
        println!("{:#}", A::PROGRAM.capabilities());
        return Ok(None);
    }
    let config: A::Config =
        common.program.config.as_deref().map_or(Ok(A::Config::default()), config::load)?;
    config.as_ref().apply(&mut common, &given);
    Ok(Some(Configured { args, config, common }))
}

pub(super) fn run<A: Application>(configured: Configured<A>) -> Result<(), Failure> {
    let (program, Configured { args, config, common }) = (A::PROGRAM, configured);
    // Before the first thread: every thread inherits the blocked signals and, later, the sandbox.
    let signals =
        Signals::new().map_err(|error| Failure::runtime(format!("Signals cannot be handled: {error}")))?;
    let passed = systemd::Passed::take()?;
    let log = logging::init(common.service.log_level, common.service.log_format)?;
    let mode = common.sandbox.mode();
    sandbox::raise_limits();
    memory::sigbus::install()
        .map_err(|error| Failure::runtime(format!("SIGBUS cannot be handled: {error}")))?;

    let mut setup = Setup::new(common, passed)?;
    let application = Arc::new(A::open(args, config, &mut setup)?);
    let listeners = listeners(&mut setup)?;
    let supervisor = Supervisor::new(program, log, mode)?;
    let event_loop = EventLoop::new(signals, listeners, &supervisor)
        .map_err(|error| Failure::runtime(format!("The event loop cannot be made: {error}")))?;
    sandbox::enter(mode, &setup.finish())?;

    if let Err(failure) = application.start(&supervisor) {
        // Some sessions may run already, and their sockets must go.
        supervisor.drain(&*application, Instant::now() + DRAIN_LIMIT);
        return Err(failure);
    }
    tracing::info!(version = program.version, sandbox = ?mode, "{} is ready", program.name);
    systemd::ready("Serving");
    let methods =
        Arc::new(Methods { application: Arc::clone(&application), supervisor: Arc::clone(&supervisor) });
    let outcome = event_loop.run(&methods);
    leave(&supervisor, &*application)?;
    if let Some(reason) = supervisor.failure() {
        return Err(Failure::runtime(reason));
    }
    outcome.map_err(|error| Failure::runtime(format!("The event loop failed: {error}")))
}

fn listeners(setup: &mut Setup) -> Result<Listeners, Failure> {
    let service = setup.common().service.clone();
    let control = setup.service(CONTROL_NAME, service.control_socket.as_deref())?;
    let metrics = match service.metrics {
        Some(MetricsAddress::Tcp(address)) => {
            let refused =
                |error| Failure::usage(format!("Metrics address {address} cannot be used: {error}"));
            Some(MetricsListener::Tcp(TcpListener::bind(address).map_err(refused)?))
        }
        Some(MetricsAddress::Unix(path)) => {
            setup.service(METRICS_NAME, Some(&path))?.map(MetricsListener::Unix)
        }
        None => setup.service(METRICS_NAME, None)?.map(MetricsListener::Unix),
    };
    Ok(Listeners { control, metrics })
}

/// Drains within [`DRAIN_LIMIT`]; whatever hangs is cut off by the process's end after [`EXIT_LIMIT`].
fn leave(supervisor: &Supervisor, application: &impl Application) -> Result<(), Failure> {
    let start = Instant::now();
    systemd::stopping();
    tracing::info!("draining");
    if let Err(error) = signals::force_exit_after(EXIT_LIMIT, supervisor.program.name) {
        tracing::warn!(%error, "no thread for the exit deadline");
    }
    let late = supervisor.drain(application, start + DRAIN_LIMIT);
    if !late.is_empty() {
        return Err(Failure::runtime(format!("I/O did not drain in time on {}", late.join(", "))));
    }
    tracing::info!(ms = start.elapsed().as_millis(), "drained");
    Ok(())
}
