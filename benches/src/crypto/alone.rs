//! An engine without a device in front of it: what the core can do at most.

use anyhow::Result;
use clap::ValueEnum;
use crypto_offload::engine::Choice;

use super::batch::{self, Batch};
use super::client::Setup;
use super::library::{Keys, Library, LibraryError};
use super::options::Load;
use super::report::Report;
use super::sample::{self, Sample, Samples};
use crate::clock::Clock;
use crate::guest::alone::{self, Alone, Buffers, Round, Rounds};
use crate::guest::{Observed, Verified};
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
    let threads = (0..load.queues).map(|queue| Bare::new(engine, load, queue)).collect::<Result<_>>()?;
    let Alone { threads, cpu } = alone::run(threads, &load.timing, &load.pace, progress)?;
    let (mut tallies, mut verified) = (Vec::new(), Verified::default());
    for (mut bare, tally) in threads {
        tallies.push(tally);
        verified.merge(bare.verify()?);
    }
    let report = Report::new(load, &tallies, verified, Observed { cpu, flushes: None });
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
}

impl Rounds for Bare {
    /// Those of a batch begin together.
    fn round(&mut self, clock: Clock, latencies: &mut Latencies) -> Result<Round> {
        let mut begin = clock.now();
        let requests = match &mut self.kind {
            Kind::Serial(serial) => {
                for slot in 0..serial.ivs.len() {
                    serial.run(slot)?;
                    let end = clock.now();
                    latencies.record(clock.nanos(end - begin));
                    begin = end;
                }
                serial.ivs.len() as u64
            }
            Kind::Batch(batch) => {
                batch.round(|| latencies.record(clock.nanos(clock.now() - begin)))?;
                batch.len() as u64
            }
        };
        Ok(Round { requests, bytes: requests * self.bytes })
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
