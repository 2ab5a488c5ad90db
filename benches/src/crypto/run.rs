//! One run from attach to report.

use std::path::Path;

use anyhow::Result;

use super::client::{Crypto, Queue, Setup};
use super::library::Keys;
use super::options::Load;
use super::report::Report;
use super::sample;
use super::workload::Requests;
use crate::clock::Clock;
use crate::guest::{Job, Outcome, Plane, Supervisor, Verified};
use crate::progress::Progress;

/// Where the load goes.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Socket of the backend.
    pub socket: &'a Path,
    /// Control socket of vhostd-crypto, if it is to be asked.
    pub control: Option<&'a Path>,
}

/// Puts `load` on the backend; calls `progress` some 20 times a second.
pub fn run(target: Target<'_>, load: &Load, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    load.check()?;
    let setup = load.setup();
    let keys = all_keys(load)?;
    let (mut crypto, queues) = Crypto::attach(target.socket, &setup, &keys[0])?;
    let mut workloads = Vec::new();
    for (index, queue) in queues.into_iter().enumerate() {
        let first = index * usize::from(load.jobs);
        let keys = &keys[first..first + usize::from(load.jobs)];
        workloads.push(workload(index as u16, queue, &mut crypto, &setup, load, keys)?);
    }
    let mut plane = Plane::new(crypto, target.control);
    let goal = load.pace.goal(load.queues);
    let mut supervisor = Supervisor::new(workloads.len(), &load.timing, goal, &mut plane)?;
    let clock = Clock::new();
    for (index, workload) in workloads.into_iter().enumerate() {
        let job = Job::new(index, workload, clock, &load.pace, load.rings.interrupt);
        supervisor.spawn(move |control| job.run(control))?;
    }
    let outcomes = supervisor.supervise(&mut plane, progress)?;
    finish(plane, outcomes, load)
}

/// Keys for every job of every queue. Those of public-key algorithms take their time: all jobs share them.
fn all_keys(load: &Load) -> Result<Vec<Keys>> {
    let jobs = u64::from(load.queues) * u64::from(load.jobs);
    if load.algorithm.is_asymmetric() {
        return Ok(vec![sample::keys(load.algorithm, load.seed)?; jobs as usize]);
    }
    let of = |job: u64| sample::keys(load.algorithm, load.seed.wrapping_mul(0x9e37_79b9).wrapping_add(job));
    Ok((0..jobs).map(of).collect::<Result<_, _>>()?)
}

/// A queue with its sessions.
fn workload(
    index: u16,
    queue: Queue,
    crypto: &mut Crypto,
    setup: &Setup,
    load: &Load,
    keys: &[Keys],
) -> Result<Requests> {
    let mut jobs = Vec::new();
    for keys in keys {
        let session = if load.stateless { None } else { Some(crypto.create_session(keys, index)?) };
        jobs.push((keys.clone(), session));
    }
    Ok(Requests::new(index, queue, setup, load, &jobs)?)
}

/// Detaches and adds up.
fn finish(plane: Plane<Crypto>, outcomes: Vec<Outcome<Requests>>, load: &Load) -> Result<Report> {
    let (mut queues, mut tallies, mut verified) = (Vec::new(), Vec::new(), Verified::default());
    for Outcome { workload, tally, failure } in outcomes {
        if let Some(failure) = failure {
            return Err(failure.into());
        }
        let (queue, part) = workload.into_parts()?;
        queues.push(queue);
        tallies.push(tally);
        verified.merge(part);
    }
    let (crypto, observed) = plane.into_parts();
    crypto.detach(queues)?;
    Ok(Report::new(load, &tallies, verified, observed))
}
