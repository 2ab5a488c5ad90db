//! The threads of a run: started, pinned, moved from phase to phase, waited for.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::options::Timing;
use crate::control::{Control, Phase};
use crate::cpu;
use crate::progress::Progress;

/// How often the supervisor looks at the phases and reports progress.
const TICK: Duration = Duration::from_millis(50);
/// How long a backend may stay away with `--reconnect`.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the supervisor asks of the owner of the control plane.
pub trait Hooks {
    /// The run moves on. Takes readings, and calls [`Control::advance`] with `phase` as near to them as it can.
    fn enter(&mut self, phase: Phase, control: &Control) -> Result<()>;

    /// Wakes every thread that sleeps for an interrupt.
    fn wake_all(&self);

    /// Waits up to `limit` for the backend to close the connection; `true` when it has.
    fn hung_up_within(&self, limit: Duration) -> bool;

    /// The backend is gone: an error that says so, or stay until there is another one. `waiting` is to be called now and then.
    fn outage(&mut self, waiting: &mut dyn FnMut()) -> Result<()>;

    /// The run has failed: threads that wait for the supervisor are let go.
    fn give_up(&mut self) {}
}

/// Owns the threads of a run.
pub struct Supervisor<T> {
    threads: Vec<JoinHandle<T>>,
    control: Arc<Control>,
    timing: Timing,
    /// Requests after which the run is over.
    goal: Option<u64>,
    began: Instant,
}

impl<T: Send + 'static> Supervisor<T> {
    /// A run of `threads` threads.
    pub fn new(threads: usize, timing: &Timing, goal: Option<u64>, hooks: &mut dyn Hooks) -> Result<Self> {
        let supervisor = Self {
            threads: Vec::new(),
            control: Arc::new(Control::new(threads)),
            timing: timing.clone(),
            goal,
            began: Instant::now(),
        };
        if timing.warmup.is_zero() {
            // Before the first request, so that each of them counts.
            supervisor.enter(Phase::Measure, hooks)?;
        }
        Ok(supervisor)
    }

    /// Starts the next thread on the next of the CPUs.
    pub fn spawn(&mut self, job: impl FnOnce(&Control) -> T + Send + 'static) -> Result<()> {
        let index = self.threads.len();
        let pinned = self.timing.cpus.as_ref().map(|cpus| cpus.0[index % cpus.0.len()]);
        let control = Arc::clone(&self.control);
        let body = move || {
            if let Some(cpu) = pinned
                && let Err(error) = cpu::pin_current_thread(&[cpu])
            {
                eprintln!("vhostd-bench: cannot pin thread {index} to CPU {cpu}: {error}");
            }
            job(&control)
        };
        self.threads.push(std::thread::Builder::new().name(format!("queue-{index}")).spawn(body)?);
        Ok(())
    }

    /// Stays until all threads have ended, and returns what they have.
    pub fn supervise(mut self, hooks: &mut dyn Hooks, progress: &mut dyn FnMut(Progress)) -> Result<Vec<T>> {
        self.began = Instant::now();
        let watched = self.watch_phases(hooks, progress);
        if watched.is_err() {
            self.control.advance(Phase::Abort);
            hooks.give_up();
        }
        hooks.wake_all();
        let join =
            |thread: JoinHandle<T>| thread.join().map_err(|_| anyhow!("A thread of the driver panicked"));
        let outcomes = self.threads.drain(..).map(join).collect::<Result<Vec<_>>>()?;
        watched.map(|()| outcomes)
    }

    /// Moves from phase to phase until all threads have ended.
    fn watch_phases(&self, hooks: &mut dyn Hooks, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let Timing { warmup, runtime, .. } = self.timing;
        while !self.control.all_finished() {
            let elapsed = self.began.elapsed();
            if elapsed >= warmup && self.control.phase() == Phase::Warmup {
                self.enter(Phase::Measure, hooks)?;
            }
            if elapsed >= warmup + runtime && self.control.phase() == Phase::Measure {
                self.enter(Phase::Drain, hooks)?;
            }
            if self.control.phase() >= Phase::Drain {
                // A thread that ended the run has told no one who sleeps.
                hooks.wake_all();
            }
            progress(self.progress(false));
            if hooks.hung_up_within(self.nap(elapsed)) && !self.control.all_finished() {
                hooks.outage(&mut || progress(self.progress(true)))?;
            }
        }
        // Short loads can end before the measured time is over.
        self.enter(Phase::Drain, hooks)
    }

    fn enter(&self, phase: Phase, hooks: &mut dyn Hooks) -> Result<()> {
        hooks.enter(phase, &self.control)?;
        hooks.wake_all();
        Ok(())
    }

    /// Sleeps until the next phase begins, at most a tick.
    fn nap(&self, elapsed: Duration) -> Duration {
        let Timing { warmup, runtime, .. } = self.timing;
        let next = if elapsed < warmup { warmup } else { warmup + runtime };
        next.checked_sub(elapsed)
            .filter(|left| !left.is_zero())
            .map_or(Duration::from_millis(2), |left| left.min(TICK))
    }

    fn progress(&self, outage: bool) -> Progress {
        let (elapsed, completed) = (self.began.elapsed(), self.control.completed());
        let total = (self.timing.warmup + self.timing.runtime).as_secs_f64().max(1e-9);
        let of_time = elapsed.as_secs_f64() / total;
        let of_requests = self.goal.map_or(0.0, |goal| completed as f64 / goal.max(1) as f64);
        Progress { elapsed, completed, outage, fraction: of_time.max(of_requests).min(1.0) }
    }
}

/// An outage is an error unless `--reconnect` was given.
pub fn ensure_reconnect(reconnect: bool) -> Result<()> {
    ensure!(reconnect, "The backend closed the connection (--reconnect waits for it to come back)");
    Ok(())
}

/// Calls `reattach` until it works; an outage for [`Hooks::outage`]. Returns how long it took in milliseconds.
pub fn come_back<E: std::error::Error + Send + Sync + 'static>(
    begin: Instant,
    pause: Duration,
    waiting: &mut dyn FnMut(),
    mut reattach: impl FnMut() -> Result<(), E>,
) -> Result<f64> {
    while let Err(error) = reattach() {
        if begin.elapsed() > PATIENCE {
            return Err(error).context(format!("The backend did not come back within {PATIENCE:?}"));
        }
        waiting();
        std::thread::sleep(pause);
    }
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

/// CPU time of the backend's process in the measured time.
#[derive(Debug, Default)]
pub struct CpuMeter {
    before: Option<Duration>,
    used: Option<Duration>,
    ended: bool,
}

impl CpuMeter {
    /// Takes the reading that belongs to the beginning of `phase`; `pid` is the backend's, if it is visible from here.
    pub fn enter(&mut self, phase: Phase, pid: Option<i32>) {
        let now = pid.and_then(|pid| cpu::process_cpu_time(pid).ok());
        if phase == Phase::Measure {
            self.before = now;
        } else if !std::mem::replace(&mut self.ended, true) {
            self.used = now.zip(self.before).and_then(|(now, before)| now.checked_sub(before));
        }
    }

    /// The backend is another process now, with a clock of its own: no figure for this run.
    pub fn forget(&mut self) {
        self.before = None;
    }

    /// CPU time between the two readings.
    pub fn used(&self) -> Option<Duration> {
        self.used
    }
}
