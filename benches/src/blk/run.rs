//! One run from attach to report.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::access::Blocks;
use super::client::{Disk, Setup};
use super::options::Load;
use super::report::Report;
use super::workload::Requests;
use crate::clock::Clock;
use crate::control::{Control, Phase};
use crate::guest::{CpuMeter, Hooks, Job, Outcome, Supervisor, come_back, ensure_reconnect};
use crate::progress::Progress;

/// Puts `load` on the backend at `socket`; calls `progress` some 20 times a second.
pub fn run(socket: &Path, load: &Load, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    load.check()?;
    let (disk, queues) = Disk::attach(socket, &setup(load))?;
    let blocks = share_blocks(&disk, load)?;
    ensure!(
        !load.reconnect || disk.has_inflight(),
        "The backend does not track requests in flight (INFLIGHT_SHMFD): --reconnect would lose some"
    );
    let mut plane = Plane { disk, reconnect: load.reconnect, cpu: CpuMeter::default(), outages: Vec::new() };
    let mut supervisor =
        Supervisor::new(queues.len(), &load.timing, load.pace.goal(load.numjobs), &mut plane)?;
    let clock = Clock::new();
    for (index, (queue, blocks)) in queues.into_iter().zip(blocks).enumerate() {
        let job = Job::new(
            index,
            Requests::new(index, queue, load, blocks),
            clock,
            &load.pace,
            load.rings.interrupt,
        );
        supervisor.spawn(move |control| job.run(control))?;
    }
    let outcomes = supervisor.supervise(&mut plane, progress)?;
    finish(plane, outcomes, load)
}

/// Detaches and adds up.
fn finish(plane: Plane, outcomes: Vec<Outcome<Requests>>, load: &Load) -> Result<Report> {
    let (mut queues, mut tallies) = (Vec::new(), Vec::new());
    for Outcome { workload, tally, failure } in outcomes {
        if let Some(failure) = failure {
            return Err(failure.into());
        }
        let (queue, verified) = workload.into_parts();
        queues.push(queue);
        tallies.push((tally, verified));
    }
    plane.disk.detach(queues)?;
    let mut report = Report::new(load, tallies, plane.cpu.used());
    report.outages_ms = plane.outages;
    Ok(report)
}

fn setup(load: &Load) -> Setup {
    Setup {
        queues: load.numjobs,
        depth: load.iodepth,
        block: load.bs as usize,
        segments: usize::from(load.segments),
        shape: load.rings.shape(),
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

/// The control plane while the queues' threads run.
struct Plane {
    disk: Disk,
    reconnect: bool,
    cpu: CpuMeter,
    outages: Vec<f64>,
}

impl Hooks for Plane {
    fn enter(&mut self, phase: Phase, control: &Control) -> Result<()> {
        self.cpu.enter(phase, self.disk.backend_pid());
        control.advance(phase);
        Ok(())
    }

    fn wake_all(&self) {
        self.disk.wake_all();
    }

    fn hung_up_within(&self, limit: Duration) -> bool {
        self.disk.hung_up_within(limit)
    }

    fn outage(&mut self, waiting: &mut dyn FnMut()) -> Result<()> {
        ensure_reconnect(self.reconnect)?;
        let pause = Duration::from_millis(5);
        let took = come_back(Instant::now(), pause, waiting, || self.disk.reattach())?;
        self.outages.push(took);
        self.cpu.forget();
        Ok(())
    }
}
