//! An engine without a device in front of it: what the core can do at most.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use crypto_offload::engine::Choice;

use super::batch::{self, Batch};
use super::client::Setup;
use super::library::{Keys, Library, LibraryError};
use super::options::Load;
use super::report::{Backend, Report};
use super::sample::{self, Sample, Samples};
use super::workload::Verified;
use crate::clock::Clock;
use crate::control::{Control, Follower, Phase};
use crate::guest::memory::PAGE;
use crate::guest::{Counts, CpuMeter, Hooks, Supervisor, Tally};
use crate::latency::Latencies;
use crate::progress::Progress;

/// What computes.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "lower")]
pub enum Engine {
    /// AWS-LC, one request after the other
    Library,
    /// The daemon's engines, as many requests at once as are in flight; the best one for each
    Auto,
    /// The daemon's multi-buffer engine
    Multibuffer,
}

/// Puts `load` on an engine, one thread a queue. Its requests lie as far apart as those of a device. With `--verify` the last
/// result of each request is held against the library's.
///
/// An engine other than the library must come before anything else of this module in its process.
pub fn run(engine: Engine, load: &Load, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    load.check()?;
    if engine != Engine::Library {
        batch::start()?;
    }
    let mut plane = Plane { cpu: CpuMeter::default() };
    let mut threads = Vec::new();
    for queue in 0..load.queues {
        threads.push(Bare::new(engine, load, queue)?);
    }
    let goal = load.pace.goal(load.queues);
    let mut supervisor = Supervisor::new(threads.len(), &load.timing, goal, &mut plane)?;
    let clock = Clock::new();
    for (index, mut bare) in threads.into_iter().enumerate() {
        let budget = load.pace.requests.unwrap_or(u64::MAX);
        supervisor.spawn(move |control| {
            let tally = bare.drive(index, clock, budget, control);
            control.finish(index);
            anyhow::Ok((tally?, bare.verify()?))
        })?;
    }
    let outcomes = supervisor.supervise(&mut plane, progress)?;
    let (mut tallies, mut verified) = (Vec::new(), Verified::default());
    for outcome in outcomes {
        let (tally, part) = outcome?;
        tallies.push(tally);
        verified.merge(part);
    }
    let backend = Backend { cpu: plane.cpu.used(), flushes: None };
    let report = Report::new(load, &tallies, verified, backend);
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
    kind: Kind,
    bytes: u64,
    /// With `--verify`.
    checker: Option<(Samples, Vec<Sample>)>,
}

enum Kind {
    Serial(Serial),
    Batch(Batch),
}

impl Bare {
    fn new(engine: Engine, load: &Load, queue: u16) -> Result<Self> {
        let (setup, seed) = (load.setup(), load.seed.wrapping_add(u64::from(queue)));
        let keys = sample::keys(setup.algorithm, seed)?;
        let mut made = Samples::new(setup.algorithm, setup.direction, setup.size, &keys, seed)?;
        let samples = (0..load.depth).map(|_| made.make()).collect::<Result<Vec<_>, _>>()?;
        let kind = match engine {
            Engine::Library => Kind::Serial(Serial::new(&setup, &keys, &samples)?),
            Engine::Auto => Kind::Batch(Batch::new(Choice::Auto, &setup, &keys, &samples)?),
            Engine::Multibuffer => Kind::Batch(Batch::new(Choice::MultiBuffer, &setup, &keys, &samples)?),
        };
        let checker = load.verify.then_some((made, samples));
        Ok(Self { kind, bytes: if setup.algorithm.is_asymmetric() { 0 } else { load.size }, checker })
    }

    /// Holds what the last round has left against the library.
    fn verify(&mut self) -> Result<Verified> {
        let mut verified = Verified::default();
        let Some((made, samples)) = &mut self.checker else { return Ok(verified) };
        for (slot, sample) in samples.iter().enumerate() {
            let (result, written) = match &mut self.kind {
                Kind::Serial(serial) => (serial.results.get(slot).to_vec(), serial.written[slot]),
                Kind::Batch(batch) => (batch.result(slot)?, usize::MAX),
            };
            verified.note(made.is_right(sample, &result, written), || format!("request {slot} is wrong"));
        }
        Ok(verified)
    }

    /// Round after round over all slots until the supervisor says stop or `budget` is used up.
    fn drive(&mut self, index: usize, clock: Clock, budget: u64, control: &Control) -> Result<Tally> {
        let (mut counts, mut since, mut completed) = (Counts::default(), clock.now(), 0);
        let mut follower = Follower::default();
        while completed < budget {
            let (phase, begins) = follower.look(control);
            if begins {
                (counts, since) = (Counts::default(), clock.now());
            }
            if phase >= Phase::Drain {
                break;
            }
            let requests = self.round(clock, &mut counts.latencies)?;
            completed += requests;
            counts.operations += requests;
            counts.bytes += requests * self.bytes;
            counts.bursts += 1;
            control.report(index, completed);
        }
        let seconds = clock.nanos(clock.now() - since) as f64 / 1e9;
        Ok(Tally { counts, seconds, completed, ..Tally::default() })
    }

    /// Each request once; returns how many there are. Those of a batch begin together.
    fn round(&mut self, clock: Clock, latencies: &mut Latencies) -> Result<u64> {
        let mut begin = clock.now();
        match &mut self.kind {
            Kind::Serial(serial) => {
                for slot in 0..serial.ivs.len() {
                    serial.run(slot)?;
                    let end = clock.now();
                    latencies.record(clock.nanos(end - begin));
                    begin = end;
                }
                Ok(serial.ivs.len() as u64)
            }
            Kind::Batch(batch) => {
                batch.round(|| latencies.record(clock.nanos(clock.now() - begin)))?;
                Ok(batch.len() as u64)
            }
        }
    }
}

/// The library with its requests.
struct Serial {
    library: Library,
    ivs: Vec<Vec<u8>>,
    sources: Buffers,
    results: Buffers,
    /// Bytes of each result.
    written: Vec<usize>,
}

impl Serial {
    fn new(setup: &Setup, keys: &Keys, samples: &[Sample]) -> Result<Self, LibraryError> {
        let sizes = setup.algorithm.sizes(setup.direction, setup.size);
        let mut sources = Buffers::new(samples.len(), sizes.src);
        for (slot, sample) in samples.iter().enumerate() {
            sources.get(slot).copy_from_slice(&sample.src);
        }
        Ok(Self {
            library: Library::new(setup.algorithm, setup.direction, keys)?,
            ivs: samples.iter().map(|sample| sample.iv.clone()).collect(),
            sources,
            results: Buffers::new(samples.len(), sizes.dst + sizes.digest),
            written: vec![0; samples.len()],
        })
    }

    fn run(&mut self, slot: usize) -> Result<(), LibraryError> {
        let (iv, result) = (&self.ivs[slot], self.results.get(slot));
        self.written[slot] = self.library.run(iv, self.sources.get(slot), result)?;
        Ok(())
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
        for options in [
            "--size 1k --requests 320 --depth 16 --verify",
            "--algorithm rsa-1024 --requests 8 --depth 4 --queues 2",
        ] {
            let load = Load::parse(options).unwrap();
            let report = run(Engine::Library, &load, &mut |_| {}).unwrap();
            let requests = load.pace.requests.unwrap() * u64::from(load.queues);
            assert_eq!(report.operations, requests, "{options}");
            assert!(report.ops_per_second > 0.0 && report.latency.p50_us > 0.0, "{report:?}");
            assert_eq!(report.mb_per_second > 0.0, !load.algorithm.is_asymmetric());
            assert_eq!((report.verified, report.wrong), (if load.verify { 16 } else { 0 }, 0));
            assert!(report.load.starts_with("library alone: "), "{}", report.load);
        }
    }
}
