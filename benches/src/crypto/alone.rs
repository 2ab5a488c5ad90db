//! An engine without a device in front of it: what the core can do at most.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use super::library::{Library, LibraryError};
use super::options::Load;
use super::report::{Backend, Report};
use super::sample::{self, Sample, Samples};
use super::workload::Verified;
use crate::clock::Clock;
use crate::control::{Control, Phase};
use crate::guest::memory::PAGE;
use crate::guest::{Counts, CpuMeter, Hooks, Supervisor, Tally};
use crate::progress::Progress;

/// What computes.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "lower")]
pub enum Engine {
    /// AWS-LC, one request after the other
    Library,
}

/// Puts `load` on an engine, one thread a queue. Its requests lie as far apart as those of a device.
pub fn run(engine: Engine, load: &Load, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    load.check()?;
    let mut plane = Plane { cpu: CpuMeter::default() };
    let mut threads = Vec::new();
    for queue in 0..load.queues {
        threads.push(Bare::new(engine, load, queue)?);
    }
    let goal = load.requests.map(|each| each * u64::from(load.queues));
    let mut supervisor = Supervisor::new(threads.len(), &load.timing, goal, &mut plane)?;
    let clock = Clock::new();
    for (index, mut bare) in threads.into_iter().enumerate() {
        let budget = load.requests.unwrap_or(u64::MAX);
        supervisor.spawn(move |control| {
            let tally = bare.drive(index, clock, budget, control);
            control.finish(index);
            tally
        })?;
    }
    let outcomes = supervisor.supervise(&mut plane, progress)?;
    let tallies = outcomes.into_iter().collect::<Result<Vec<_>, _>>()?;
    let backend = Backend { cpu: plane.cpu.used(), flushes: None };
    let report = Report::new(load, &tallies, Verified::default(), backend);
    Ok(Report { load: format!("{} alone: {}", engine.name(), report.load), ..report })
}

impl Engine {
    /// Name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// The requests of one thread.
struct Bare {
    library: Library,
    samples: Vec<Sample>,
    sources: Buffers,
    results: Buffers,
    bytes: u64,
}

impl Bare {
    fn new(engine: Engine, load: &Load, queue: u16) -> Result<Self> {
        let Engine::Library = engine;
        let (setup, seed) = (load.setup(), load.seed.wrapping_add(u64::from(queue)));
        let keys = sample::keys(setup.algorithm, seed)?;
        let mut made = Samples::new(setup.algorithm, setup.direction, setup.size, &keys, seed)?;
        let depth = usize::from(load.depth);
        let samples = (0..depth).map(|_| made.next()).collect::<Result<Vec<_>, _>>()?;
        let sizes = setup.algorithm.sizes(setup.direction, setup.size);
        let mut sources = Buffers::new(depth, sizes.src);
        for (slot, sample) in samples.iter().enumerate() {
            sources.get(slot).copy_from_slice(&sample.src);
        }
        Ok(Self {
            library: Library::new(setup.algorithm, setup.direction, &keys)?,
            samples,
            sources,
            results: Buffers::new(depth, sizes.dst + sizes.digest),
            bytes: if setup.algorithm.is_asymmetric() { 0 } else { load.size },
        })
    }

    /// Round after round over all slots until the supervisor says stop or `budget` is used up.
    fn drive(
        &mut self,
        index: usize,
        clock: Clock,
        budget: u64,
        control: &Control,
    ) -> Result<Tally, LibraryError> {
        let (mut counts, mut since, mut completed) = (Counts::default(), clock.now(), 0);
        let mut phase = Phase::Warmup;
        while phase < Phase::Drain && completed < budget {
            let now = control.phase();
            if now != phase && now == Phase::Measure {
                (counts, since) = (Counts::default(), clock.now());
            }
            phase = now;
            let mut begin = clock.now();
            for slot in 0..self.samples.len() {
                let (iv, result) = (&self.samples[slot].iv, self.results.get(slot));
                self.library.run(iv, self.sources.get(slot), result)?;
                let end = clock.now();
                counts.latencies.record(clock.nanos(end - begin));
                begin = end;
            }
            completed += self.samples.len() as u64;
            counts.operations += self.samples.len() as u64;
            counts.bytes += self.samples.len() as u64 * self.bytes;
            counts.bursts += 1;
            control.report(index, completed);
        }
        let seconds = clock.nanos(clock.now() - since) as f64 / 1e9;
        Ok(Tally { counts, seconds, completed, ..Tally::default() })
    }
}

/// Buffers that begin on pages of their own, as those of requests do.
struct Buffers {
    bytes: Vec<u8>,
    first: usize,
    stride: usize,
    len: usize,
}

impl Buffers {
    fn new(count: usize, len: usize) -> Self {
        let stride = len.next_multiple_of(PAGE);
        let bytes = vec![0; count * stride + PAGE];
        let first = bytes.as_ptr().align_offset(PAGE);
        Self { bytes, first, stride, len }
    }

    fn get(&mut self, slot: usize) -> &mut [u8] {
        &mut self.bytes[self.first + slot * self.stride..][..self.len]
    }
}

/// The measured process is this one.
struct Plane {
    cpu: CpuMeter,
}

impl Hooks for Plane {
    fn enter(&mut self, phase: Phase, control: &Control) -> Result<()> {
        self.cpu.enter(phase, Some(std::process::id() as i32));
        control.advance(phase);
        Ok(())
    }

    fn wake_all(&self) {}

    /// There is nobody who could go.
    fn hung_up_within(&self, limit: Duration) -> bool {
        std::thread::sleep(limit);
        false
    }

    fn outage(&mut self, _waiting: &mut dyn FnMut()) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_alone_does_what_is_asked_and_says_how_fast() {
        for options in
            ["--size 1k --requests 320 --depth 16", "--algorithm rsa-1024 --requests 8 --depth 4 --queues 2"]
        {
            let load = Load::parse(options).unwrap();
            let report = run(Engine::Library, &load, &mut |_| {}).unwrap();
            let requests = load.requests.unwrap() * u64::from(load.queues);
            assert_eq!(report.operations, requests, "{options}");
            assert!(report.ops_per_second > 0.0 && report.latency.p50_us > 0.0, "{report:?}");
            assert_eq!(report.mb_per_second > 0.0, !load.algorithm.is_asymmetric());
            assert!(report.load.starts_with("library alone: "), "{}", report.load);
        }
    }
}
