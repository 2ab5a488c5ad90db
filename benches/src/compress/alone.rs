//! Engines without a device in front of them: the daemon's own, and zlib.

use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use compress_protocol::Format;

use super::algorithm::Operation;
use super::foreign::{self, Zlib};
use super::material::{Material, Sizes};
use super::options::Load;
use super::ours::Ours;
use super::report::Report;
use super::workload::Findings;
use crate::clock::Clock;
use crate::guest::alone::{self, Alone, Buffers, Round, Rounds};
use crate::guest::{Observed, Verified};
use crate::latency::Latencies;
use crate::progress::Progress;

/// What computes.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "kebab-case")]
pub enum Engine {
    /// The daemon's engines, the best one for each request
    Auto,
    /// libdeflate
    Libdeflate,
    /// zlib-rs
    ZlibRs,
    /// ISA-L, where it was built in
    Isal,
    /// zlib, the C library
    Zlib,
}

/// Puts `load` on an engine, one thread a queue. Its requests read and write memory that lies as that of a device's requests
/// does. With `--verify` the last result in each slot is held against another implementation.
pub fn run(engine: Engine, load: &Load, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    load.check()?;
    let material = Arc::new(Material::new(load)?);
    let threads = (0..load.queues).map(|queue| Bare::new(engine, load, &material, queue));
    let threads = threads.collect::<Result<_>>()?;
    let Alone { threads, cpu } = alone::run(threads, &load.timing, &load.pace, progress)?;
    let (mut tallies, mut findings, mut name) = (Vec::new(), Vec::new(), String::new());
    for (mut bare, tally) in threads {
        tallies.push(tally);
        findings.push(bare.find());
        name = bare.coder.name();
    }
    let report = Report::new(load, &material, &tallies, findings, Observed { cpu, flushes: None })?;
    Ok(Report { load: format!("{name} alone: {}", report.load), ..report })
}

/// The requests of one thread.
struct Bare {
    load: Load,
    material: Arc<Material>,
    coder: Coder,
    next: usize,
    outputs: Buffers,
    /// By slot: block and result of the last request.
    last: Vec<Option<(usize, Answer)>>,
    sizes: Sizes,
    incompressible: u64,
}

/// What an engine has made of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// Bytes of the result; `None` when it does not fit.
    pub produced: Option<usize>,
    /// The checksum that was asked for.
    pub checksum: u64,
}

enum Coder {
    Zlib(Zlib),
    Ours(Ours),
}

impl Bare {
    fn new(engine: Engine, load: &Load, material: &Arc<Material>, queue: u16) -> Result<Self> {
        let (blocks, depth) = (material.len(), usize::from(load.depth));
        Ok(Self {
            load: load.clone(),
            coder: Coder::new(engine, load)?,
            next: blocks * usize::from(queue) / usize::from(load.queues),
            outputs: Buffers::new(depth, load.room()),
            last: vec![None; depth],
            sizes: Sizes::new(blocks, material.size()),
            incompressible: 0,
            material: Arc::clone(material),
        })
    }

    fn request(&mut self, slot: usize) -> Result<()> {
        let block = self.next;
        self.next = if block + 1 < self.material.len() { block + 1 } else { 0 };
        let input = self.material.input(block);
        let answer = self.coder.run(&self.load, input, self.outputs.get(slot))?;
        let packed = match (self.load.op, answer.produced) {
            (Operation::Compress, Some(produced)) => produced,
            (Operation::Compress, None) => {
                self.incompressible += 1;
                self.material.size()
            }
            _ => input.len(),
        };
        if self.load.op != Operation::Checksum {
            self.sizes.note(block, packed as u32);
        }
        self.last[slot] = Some((block, answer));
        Ok(())
    }

    /// What there is to know in the end.
    fn find(&mut self) -> Findings {
        let mut verified = Verified::default();
        for slot in 0..self.last.len() {
            if let (true, Some((block, answer))) = (self.load.verify, self.last[slot]) {
                let wrong = self.mismatch(slot, block, answer);
                verified.note(wrong.is_none(), || format!("slot {slot}: {}", wrong.unwrap_or_default()));
            }
        }
        let (sizes, incompressible) = (self.sizes.clone(), self.incompressible);
        Findings { sizes, incompressible, second_engine: 0, verified }
    }

    fn mismatch(&mut self, slot: usize, block: usize, answer: Answer) -> Option<String> {
        let (load, plain) = (&self.load, self.material.plain(block));
        let produced = answer.produced?;
        let result = self.outputs.get(slot).get(..produced).unwrap_or_default();
        let right = match load.op {
            Operation::Compress => {
                foreign::decode(load.format, result, plain.len()).is_ok_and(|restored| restored == plain)
            }
            Operation::Decompress => result == plain,
            Operation::Checksum => true,
        };
        let sum = foreign::sum(load.checksum, plain);
        (!right || answer.checksum != sum).then(|| format!("block {block} is wrong, or its checksum"))
    }
}

impl Rounds for Bare {
    fn round(&mut self, clock: Clock, latencies: &mut Latencies) -> Result<Round> {
        let slots = self.last.len();
        let mut begin = clock.now();
        for slot in 0..slots {
            self.request(slot)?;
            let end = clock.now();
            latencies.record(clock.nanos(end - begin));
            begin = end;
        }
        Ok(Round { requests: slots as u64, bytes: (slots * self.material.size()) as u64 })
    }
}

impl Coder {
    fn new(engine: Engine, load: &Load) -> Result<Self> {
        Ok(match engine {
            Engine::Zlib => {
                let format = if load.op == Operation::Checksum { Format::Zlib } else { load.format };
                Self::Zlib(Zlib::new(format, load.level)?)
            }
            ours => Self::Ours(Ours::new(&ours.name(), load)?),
        })
    }

    fn name(&self) -> String {
        match self {
            Self::Zlib(_) => Zlib::name(),
            Self::Ours(ours) => ours.name(),
        }
    }

    fn run(&mut self, load: &Load, src: &[u8], dst: &mut [u8]) -> Result<Answer> {
        match self {
            Self::Ours(ours) => ours.run(src, dst),
            Self::Zlib(zlib) => {
                let produced = match load.op {
                    Operation::Compress => zlib.compress(src, dst)?,
                    Operation::Decompress => Some(zlib.decompress(src, dst)?),
                    Operation::Checksum => Some(0),
                };
                let plain = match load.op {
                    Operation::Decompress => &dst[..produced.unwrap_or(0)],
                    _ => src,
                };
                Ok(Answer { produced, checksum: foreign::sum(load.checksum, plain) })
            }
        }
    }
}

impl Engine {
    /// Name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_alone_do_what_is_asked_and_say_how_fast() {
        for (engine, options) in [
            (Engine::Zlib, "--format gzip --checksum crc32"),
            (Engine::Zlib, "--op decompress --format deflate"),
            (Engine::Auto, "--format zstd --checksum xxh64"),
            (Engine::Auto, "--op decompress --format lz4"),
            (Engine::Auto, "--op checksum --checksum adler32"),
            (Engine::Libdeflate, "--format zlib --queues 2"),
            (Engine::ZlibRs, "--format gzip --level 6"),
        ] {
            let text = format!("--size 8k --corpus-size 128k --requests 64 --depth 16 --verify {options}");
            let load = Load::parse(&text).unwrap();
            let report = run(engine, &load, &mut |_| {}).unwrap();
            let queues = u64::from(load.queues);
            assert_eq!(report.operations, 64 * queues, "{options}");
            assert_eq!(
                (report.verified, report.wrong),
                (16 * queues, 0),
                "{options}: {:?}",
                report.mismatches
            );
            assert_eq!(report.ratio.is_some_and(|ratio| ratio > 1.2), load.op != Operation::Checksum);
            assert!(report.mb_per_second > 0.0 && report.load.contains(" alone: "), "{}", report.load);
        }
    }

    #[test]
    fn random_bytes_are_incompressible_and_count_as_they_are() {
        let text = "--size 8k --corpus random --corpus-size 64k --requests 16 --format deflate";
        for engine in [Engine::Zlib, Engine::Auto] {
            let report = run(engine, &Load::parse(text).unwrap(), &mut |_| {}).unwrap();
            assert_eq!((report.incompressible, report.ratio), (16, Some(1.0)), "{}", report.load);
        }
    }
}
