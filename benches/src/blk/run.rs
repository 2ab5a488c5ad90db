//! One run from attach to report: threads, phases, supervision.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::access::Blocks;
use super::client::{Disk, Queue, Setup};
use super::job::{Job, Outcome};
use super::options::Load;
use super::report::Report;
use crate::clock::Clock;
use crate::control::{Control, Phase};
use crate::cpu;
use crate::progress::Progress;

/// How often the supervisor looks at the phases and reports progress.
const TICK: Duration = Duration::from_millis(50);
/// How long a backend may stay away with `--reconnect`.
const PATIENCE: Duration = Duration::from_secs(30);

/// Puts `load` on the backend at `socket`; calls `progress` some 20 times a second.
pub fn run(socket: &std::path::Path, load: &Load, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    load.check()?;
    let (disk, queues) = Disk::attach(socket, &setup(load))?;
    let blocks = share_blocks(&disk, load)?;
    ensure!(
        !load.reconnect || disk.has_inflight(),
        "The backend does not track requests in flight (INFLIGHT_SHMFD): --reconnect would lose some"
    );
    let supervisor = Supervisor::start(disk, queues, blocks, load)?;
    supervisor.supervise(progress)
}

fn setup(load: &Load) -> Setup {
    Setup {
        queues: load.numjobs,
        queue_size: load.rings.queue_size,
        depth: load.iodepth,
        block: load.bs as usize,
        segments: usize::from(load.segments),
        packed: load.rings.packed,
        in_order: load.rings.in_order,
        indirect: load.rings.indirect,
        event_idx: !load.rings.no_event_idx,
    }
}

/// Gives each queue a part of the disk of its own.
fn share_blocks(disk: &Disk, load: &Load) -> Result<Vec<Blocks>> {
    ensure!(
        !(load.rw.writes() && disk.is_read_only()),
        "The disk is read-only, --rw {} writes",
        load.rw.name()
    );
    let bytes = load.size.unwrap_or(u64::MAX).min(disk.capacity());
    let per_queue = bytes / load.bs / u64::from(load.numjobs);
    let needed = if load.verify { u64::from(load.iodepth) } else { 1 };
    if per_queue < needed {
        bail!(
            "{bytes} bytes give each of {} queues {per_queue} blocks, at least {needed} are needed",
            load.numjobs
        );
    }
    let part = |n| Blocks::new(load.rw.order(), n * per_queue, per_queue);
    Ok((0..u64::from(load.numjobs)).map(part).collect())
}

/// Owns the control plane while the queues' threads run.
struct Supervisor {
    disk: Disk,
    threads: Vec<JoinHandle<Outcome>>,
    control: Arc<Control>,
    load: Load,
    began: Instant,
    cpu_before: Option<Duration>,
    cpu_used: Option<Duration>,
    outages: Vec<f64>,
}

impl Supervisor {
    fn start(disk: Disk, queues: Vec<Queue>, blocks: Vec<Blocks>, load: &Load) -> Result<Self> {
        let mut supervisor = Self {
            disk,
            threads: Vec::new(),
            control: Arc::new(Control::new(queues.len())),
            load: load.clone(),
            began: Instant::now(),
            cpu_before: None,
            cpu_used: None,
            outages: Vec::new(),
        };
        if load.warmup.is_zero() {
            // Before the first request, so that each of them counts.
            supervisor.enter(Phase::Measure);
        }
        let clock = Clock::new();
        for (index, (queue, blocks)) in queues.into_iter().zip(blocks).enumerate() {
            let job = Job::new(index, queue, clock, load, blocks);
            supervisor.spawn(index, job)?;
        }
        supervisor.began = Instant::now();
        Ok(supervisor)
    }

    fn spawn(&mut self, index: usize, job: Job) -> Result<()> {
        let pinned = self.load.cpus.as_ref().map(|cpus| cpus.0[index % cpus.0.len()]);
        let control = Arc::clone(&self.control);
        let body = move || {
            if let Some(cpu) = pinned
                && let Err(error) = cpu::pin_current_thread(&[cpu])
            {
                eprintln!("vhostd-bench: cannot pin queue {index} to CPU {cpu}: {error}");
            }
            job.run(&control)
        };
        self.threads.push(std::thread::Builder::new().name(format!("queue-{index}")).spawn(body)?);
        Ok(())
    }

    fn supervise(mut self, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
        let watched = self.watch_phases(progress);
        if watched.is_err() {
            self.control.advance(Phase::Abort);
        }
        self.disk.wake_all();
        let mut outcomes = Vec::new();
        for thread in self.threads.drain(..) {
            outcomes.push(thread.join().map_err(|_| anyhow::anyhow!("A queue's thread panicked"))?);
        }
        watched?;
        if let Some(failure) = outcomes.iter_mut().find_map(|outcome| outcome.failure.take()) {
            return Err(failure.into());
        }
        let (queues, tallies): (Vec<_>, Vec<_>) =
            outcomes.into_iter().map(|outcome| (outcome.queue, outcome.tally)).unzip();
        self.disk.detach(queues)?;
        let mut report = Report::new(&self.load, tallies, self.cpu_used);
        report.outages_ms = self.outages;
        Ok(report)
    }

    /// Moves from phase to phase until all queues have ended.
    fn watch_phases(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let total = self.load.warmup + self.load.runtime;
        while !self.control.all_finished() {
            let elapsed = self.began.elapsed();
            if elapsed >= self.load.warmup && self.control.phase() == Phase::Warmup {
                self.enter(Phase::Measure);
            }
            if elapsed >= total && self.control.phase() == Phase::Measure {
                self.enter(Phase::Drain);
            }
            if self.control.phase() >= Phase::Drain {
                // A queue that ended the run has told no one who sleeps.
                self.disk.wake_all();
            }
            progress(self.progress(false));
            if self.disk.hung_up_within(self.nap(elapsed, total)) {
                self.outage(progress)?;
            }
        }
        // Short loads can end before the measured time is over.
        self.enter(Phase::Drain);
        Ok(())
    }

    fn progress(&self, outage: bool) -> Progress {
        let (elapsed, completed) = (self.began.elapsed(), self.control.completed());
        let total = (self.load.warmup + self.load.runtime).as_secs_f64().max(1e-9);
        let of_time = elapsed.as_secs_f64() / total;
        let goal = self.load.number_ios.map(|each| each as f64 * f64::from(self.load.numjobs));
        let of_requests = goal.map_or(0.0, |goal| completed as f64 / goal.max(1.0));
        Progress { elapsed, completed, outage, fraction: of_time.max(of_requests).min(1.0) }
    }

    /// Sleeps until the next phase begins, at most a tick.
    fn nap(&self, elapsed: Duration, total: Duration) -> Duration {
        let next = if elapsed < self.load.warmup { self.load.warmup } else { total };
        next.checked_sub(elapsed)
            .filter(|left| !left.is_zero())
            .map_or(Duration::from_millis(2), |left| left.min(TICK))
    }

    fn enter(&mut self, phase: Phase) {
        let cpu = self.disk.backend_pid().and_then(|pid| cpu::process_cpu_time(pid).ok());
        match phase {
            Phase::Measure => self.cpu_before = cpu,
            _ if self.cpu_used.is_none() => {
                self.cpu_used = cpu.zip(self.cpu_before).and_then(|(now, before)| now.checked_sub(before));
            }
            _ => {}
        }
        self.control.advance(phase);
        self.disk.wake_all();
    }

    /// The backend has closed the connection: wait for the next one, or give up.
    fn outage(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        if self.control.all_finished() {
            return Ok(());
        }
        ensure!(
            self.load.reconnect,
            "The backend closed the connection (--reconnect waits for it to come back)"
        );
        let begin = Instant::now();
        loop {
            progress(self.progress(true));
            match self.disk.reattach() {
                Ok(()) => break,
                Err(error) if begin.elapsed() > PATIENCE => {
                    return Err(error).context(format!("The backend did not come back within {PATIENCE:?}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        self.outages.push(begin.elapsed().as_secs_f64() * 1e3);
        // The new process has its own CPU clock: no figure for this run.
        self.cpu_before = None;
        Ok(())
    }
}
