//! The main thread: starts workers, hears of their end, of signals and of what a worker tells the service manager.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::Failure;
use daemon::signals::{Signal, Signals};
use vmm_sys_util::eventfd::EventFd;

use crate::child::{Worker, describe};
use crate::config::{Handed, KeeperConfig};
use crate::memories::Held;
use crate::notify::Relay;
use crate::respawn::{Death, Deaths, Verdict};
use crate::shared::Shared;
use crate::sys;

/// How long a worker may take to end, and whole with it the process.
const EXIT_LIMIT: Duration = Duration::from_millis(950);

/// Everything the main thread owns.
pub(crate) struct Supervisor<'c> {
    pub config: &'c KeeperConfig,
    pub handed: Handed,
    pub memories: Vec<Held>,
    pub shared: Arc<Shared>,
    pub relay: Relay,
    pub signals: Signals,
    /// The events by which the devices' threads hear of a death.
    pub deaths: Vec<Arc<EventFd>>,
    /// How long a worker may be silent.
    pub watchdog: Option<Duration>,
}

/// What goes on.
enum Phase {
    /// A worker runs.
    Running(Worker),
    /// One will be started then.
    Pausing(Instant),
    /// The worker was told to end, and is given until then.
    Leaving(Worker, Instant),
    /// There is nothing left to do; the exit code.
    Over(u8),
}

impl Supervisor<'_> {
    /// Runs until the process shall end; its exit code.
    pub fn run(mut self) -> Result<u8, Failure> {
        let mut history = Deaths::new(self.config.respawn);
        let mut phase = Phase::Running(self.start()?);
        // Once a worker has served, failures are no longer those of the command line.
        let mut settled = false;
        loop {
            phase = match phase {
                Phase::Over(code) => return Ok(code),
                phase => self.turn(phase, &mut history, &mut settled)?,
            };
        }
    }

    fn start(&self) -> Result<Worker, Failure> {
        let worker = Worker::start(self.config, &self.handed, &self.relay).map_err(|error| {
            let executable = self.config.executable.display();
            Failure::runtime(format!("The worker process {executable} cannot be started: {error}"))
        })?;
        tracing::info!(pid = worker.pid(), "worker started");
        Ok(worker)
    }

    fn turn(&mut self, phase: Phase, history: &mut Deaths, settled: &mut bool) -> Result<Phase, Failure> {
        let (worker, deadline) = match &phase {
            Phase::Running(worker) => {
                (Some(worker.as_fd()), self.watchdog.map(|limit| worker.hangs_at(limit)))
            }
            Phase::Leaving(worker, deadline) => (Some(worker.as_fd()), Some(*deadline)),
            Phase::Pausing(until) => (None, Some(*until)),
            Phase::Over(_) => (None, None),
        };
        let [signal, ended, words, bell] = self.wait(worker, deadline)?;
        if bell {
            let _ = self.shared.bell().read();
        }
        let phase = self.listen(phase, words || ended, settled);
        let phase = if signal { self.take_signals(phase) } else { phase };
        let idle = self.shared.lines() == 0;
        match phase {
            Phase::Running(_) if idle => {
                tracing::info!("the last device has ended");
                Ok(self.leave(phase))
            }
            Phase::Running(mut worker) => match ended.then(|| worker.ended()) {
                Some(Ok(Some(status))) => self.bury(&worker, status, history, *settled),
                _ => {
                    self.look_after(&mut worker);
                    Ok(Phase::Running(worker))
                }
            },
            Phase::Leaving(mut worker, deadline) => match worker.ended() {
                Ok(Some(status)) => Ok(Phase::Over(u8::from(status.code() != Some(0)))),
                _ if Instant::now() >= deadline => {
                    Err(Failure::runtime("The worker process did not end in time and was killed"))
                }
                _ => Ok(Phase::Leaving(worker, deadline)),
            },
            Phase::Pausing(_) if idle => Ok(Phase::Over(0)),
            Phase::Pausing(until) if Instant::now() >= until => self.start().map(Phase::Running),
            phase => Ok(phase),
        }
    }

    fn wait(&self, worker: Option<BorrowedFd<'_>>, deadline: Option<Instant>) -> Result<[bool; 4], Failure> {
        let mut fds = [
            sys::readable(Some(sys::event(&self.signals))),
            sys::readable(worker),
            sys::readable(Some(self.relay.as_fd())),
            sys::readable(Some(sys::event(self.shared.bell()))),
        ];
        sys::wait(&mut fds, deadline)
            .map_err(|error| Failure::runtime(format!("Waiting failed: {error}")))?;
        Ok(fds.map(|fd| fd.revents != 0))
    }

    /// Hears what the worker says: that it serves, for one thing.
    fn listen(&self, mut phase: Phase, words: bool, settled: &mut bool) -> Phase {
        let (Phase::Running(worker) | Phase::Leaving(worker, _)) = &mut phase else {
            while words && self.relay.take(0).is_some() {}
            return phase;
        };
        let mut ready = self.shared.served();
        while words && let Some(says) = self.relay.take(worker.pid()) {
            ready |= says.ready;
            if says.alive {
                worker.is_alive();
            }
        }
        if ready {
            worker.is_ready();
            *settled = true;
        }
        phase
    }

    /// A worker that hangs is killed: systemd would end the keeper, and with it the frontends' devices.
    fn look_after(&self, worker: &mut Worker) {
        if self.watchdog.is_some_and(|limit| Instant::now() >= worker.hangs_at(limit)) {
            tracing::error!(pid = worker.pid(), "the worker gives no sign of life and is killed");
            worker.signal(libc::SIGKILL);
            worker.is_alive();
        }
    }

    fn take_signals(&mut self, mut phase: Phase) -> Phase {
        while let Some(signal) = self.signals.take() {
            phase = match (signal, phase) {
                (Signal::Terminate, Phase::Leaving(worker, _)) => Phase::Leaving(worker, Instant::now()),
                (Signal::Terminate, phase) => self.leave(phase),
                (Signal::Dump, Phase::Running(worker)) => {
                    worker.signal(libc::SIGUSR1);
                    Phase::Running(worker)
                }
                (_, phase) => phase,
            };
        }
        phase
    }

    /// Begins the end: the worker drains and closes its connections, and with them the frontends' are closed.
    fn leave(&self, phase: Phase) -> Phase {
        self.shared.leave();
        self.relay.say(b"STOPPING=1");
        match phase {
            Phase::Running(worker) => {
                worker.signal(libc::SIGTERM);
                Phase::Leaving(worker, Instant::now() + EXIT_LIMIT)
            }
            Phase::Pausing(_) => Phase::Over(0),
            phase => phase,
        }
    }

    /// A worker has ended by itself.
    fn bury(
        &self,
        worker: &Worker,
        status: ExitStatus,
        history: &mut Deaths,
        settled: bool,
    ) -> Result<Phase, Failure> {
        // It ended on purpose: told to over its control socket, or because nothing of what it was asked to do can be done.
        let deliberate = match status.code() {
            Some(0) => true,
            Some(1 | 2) => !settled,
            _ => false,
        };
        if deliberate {
            self.shared.leave();
            tracing::info!(end = describe(status), "the worker has ended by itself");
            return Ok(Phase::Over(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
        }
        let served = worker.served();
        self.shared.died();
        self.deaths.iter().for_each(|death| drop(death.write(1)));
        // After the devices have heard of it: they do not wait for long, and this takes its time when memory is scarce.
        self.memories.iter().for_each(Held::hold);
        let killed = status.signal() == Some(libc::SIGKILL);
        match history.died(Death { served, killed }) {
            Verdict::After(pause) => {
                let (end, pid) = (describe(status), worker.pid());
                tracing::warn!(
                    pid,
                    end,
                    served_ms = served.map(|served| served.as_millis()),
                    "the worker has died"
                );
                self.relay.say(b"WATCHDOG=1\nSTATUS=The worker has died and is started again");
                if pause.is_zero() {
                    self.start().map(Phase::Running)
                } else {
                    Ok(Phase::Pausing(Instant::now() + pause))
                }
            }
            Verdict::GiveUp(times) => {
                let end = describe(status);
                Err(Failure::runtime(format!("The worker has died {times} times in a row as soon as it served, last by {end}"))
                    .hint("its messages above say why; frontends are disconnected, and reconnect when the daemon is started again"))
            }
        }
    }
}
