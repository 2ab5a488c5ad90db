//! One run from attach to report.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};

use super::algorithm::Operation;
use super::client::Compressor;
use super::material::{Material, Outputs};
use super::options::Load;
use super::report::Report;
use super::workload::{Findings, Requests, Shared};
use crate::clock::Clock;
use crate::guest::{AttachError, Job, Outcome, Plane, Supervisor};
use crate::progress::Progress;

/// Where the load goes.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Socket of the backend.
    pub socket: &'a Path,
    /// Control socket of vhostd-compress, if it is to be asked.
    pub control: Option<&'a Path>,
}

/// Puts `load` on the backend; calls `progress` some 20 times a second.
pub fn run(target: Target<'_>, load: &Load, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    load.check()?;
    let material = Material::new(load)?;
    let outputs = Outputs::footprint(load.depth, load.room()) * usize::from(load.queues);
    let (device, queues) = Compressor::attach(target.socket, &load.setup(), material.footprint() + outputs)?;
    check_abilities(&device, load, &material)?;
    let inputs = material.place(device.memory())?;
    let shared = Arc::new(Shared { load: load.clone(), material, inputs });
    let mut workloads = Vec::new();
    for (index, queue) in (0..).zip(queues) {
        let outputs = Outputs::new(device.memory(), load.depth, load.room()).map_err(AttachError::from)?;
        workloads.push(Requests::new(index, queue, outputs, &shared));
    }
    let mut plane = Plane::new(device, target.control);
    let goal = load.pace.goal(load.queues);
    let mut supervisor = Supervisor::new(workloads.len(), &load.timing, goal, &mut plane)?;
    let clock = Clock::new();
    for (index, workload) in workloads.into_iter().enumerate() {
        let job = Job::new(index, workload, clock, &load.pace, load.rings.interrupt);
        supervisor.spawn(move |control| job.run(control))?;
    }
    let outcomes = supervisor.supervise(&mut plane, progress)?;
    finish(plane, outcomes, &shared)
}

/// Holds the load against what the device says it can do.
fn check_abilities(device: &Compressor, load: &Load, material: &Material) -> Result<()> {
    let (config, format) = (device.config(), load.format);
    let knows = match load.op {
        Operation::Compress => config.compresses(format),
        Operation::Decompress => config.decompresses(format),
        Operation::Checksum => true,
    };
    ensure!(knows, "The backend does not {} {}", load.op.name(), format.name());
    ensure!(config.sums(load.checksum), "The backend does not calculate {}", load.checksum.name());
    let levels = config.levels(format);
    ensure!(
        load.op != Operation::Compress || levels.contain(load.level),
        "The backend has levels {} to {} of {}, {} is asked for",
        levels.min,
        levels.max,
        format.name(),
        load.level
    );
    let source = u32::try_from(material.longest_input()).unwrap_or(u32::MAX);
    AttachError::unless_enough("bytes of source", config.max_src, source)?;
    AttachError::unless_enough("bytes of destination", config.max_dst, load.room() as u32)?;
    Ok(())
}

/// Detaches and adds up.
fn finish(plane: Plane<Compressor>, outcomes: Vec<Outcome<Requests>>, shared: &Shared) -> Result<Report> {
    let (mut queues, mut tallies, mut findings) = (Vec::new(), Vec::new(), Vec::<Findings>::new());
    for Outcome { workload, tally, failure } in outcomes {
        if let Some(failure) = failure {
            return Err(failure.into());
        }
        let (queue, found) = workload.into_parts();
        queues.push(queue);
        tallies.push(tally);
        findings.push(found);
    }
    let (device, observed) = plane.into_parts();
    device.detach(queues)?;
    Report::new(&shared.load, &shared.material, &tallies, findings, observed)
}
