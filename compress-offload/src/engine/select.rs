//! Which engine does which request, and what happens when one fails.

#![expect(unsafe_code, reason = "sums up a guest's range")]

use std::fmt;
use std::num::NonZeroU32;
use std::panic::AssertUnwindSafe;
use std::str::FromStr;

use super::scratch::Scratch;
use super::{Engine, Outcome, Output, libdeflate, lz4, lz4_flex, zlib_rs, zstd};
use crate::algorithm::{MAX_LEN, Op, Params};
use crate::checksum::{of, of_range, reads_ranges};

/// Which engine is the first choice for DEFLATE.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Choice {
    /// The fastest for each level that this build has.
    #[default]
    Auto,
    /// libdeflate.
    Libdeflate,
    /// zlib-rs.
    ZlibRs,
    /// ISA-L where it has the level. Only in builds with the feature `isal`.
    Isal,
}

impl Choice {
    /// Every choice of this build, as the command line spells it.
    pub const NAMES: &'static [&'static str] = if cfg!(feature = "isal") {
        &["auto", "libdeflate", "zlib-rs", "isal"]
    } else {
        &["auto", "libdeflate", "zlib-rs"]
    };

    /// As the command line spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Libdeflate => "libdeflate",
            Self::ZlibRs => "zlib-rs",
            Self::Isal => "isal",
        }
    }
}

/// Not the name of an engine of this build.
#[derive(Debug, thiserror::Error)]
#[error("Unknown engine {0:?}: this build has {names}", names = Choice::NAMES.join(", "))]
pub struct UnknownChoice(pub String);

impl FromStr for Choice {
    type Err = UnknownChoice;

    fn from_str(name: &str) -> Result<Self, UnknownChoice> {
        [Self::Auto, Self::Libdeflate, Self::ZlibRs, Self::Isal]
            .into_iter()
            .find(|choice| choice.name() == name && Self::NAMES.contains(&name))
            .ok_or_else(|| UnknownChoice(name.to_owned()))
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which results are decompressed again and compared with the source before anybody relies on them, besides those of
/// requests that ask for it. Costs about the time of decompressing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    /// None.
    #[default]
    Off,
    /// All.
    All,
    /// One in so many.
    OneIn(NonZeroU32),
}

/// Not a way to verify.
#[derive(Debug, thiserror::Error)]
#[error("Unknown verification {0:?}: off, all, or 1/N with N from 1 on")]
pub struct UnknownVerify(pub String);

impl FromStr for Verify {
    type Err = UnknownVerify;

    fn from_str(text: &str) -> Result<Self, UnknownVerify> {
        let one_in = || text.strip_prefix("1/")?.parse().ok().map(Self::OneIn);
        match text {
            "off" => Ok(Self::Off),
            "all" => Ok(Self::All),
            _ => one_in().ok_or_else(|| UnknownVerify(text.to_owned())),
        }
    }
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.pad("off"),
            Self::All => f.pad("all"),
            Self::OneIn(count) => write!(f, "1/{count}"),
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The outcome; [`Outcome::Failed`] when every engine that takes the request failed.
    pub outcome: Outcome,
    /// The checksum of the uncompressed data that was asked for; 0 unless the request was done.
    pub checksum: u64,
    /// The engine of first choice failed, and another one gave this answer.
    pub second_engine: bool,
    /// The result was decompressed again and is what the source was.
    pub verified: bool,
    /// Only of streams: the stream, or this member of it, is complete.
    pub stream_end: bool,
}

impl Answer {
    /// An outcome and nothing else.
    pub const fn bare(outcome: Outcome) -> Self {
        Self { outcome, checksum: 0, second_engine: false, verified: false, stream_end: false }
    }
}

/// What one engine did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EngineCounters {
    /// Requests that it was given.
    pub requests: u64,
    /// Those at which it failed, wrong results among them.
    pub failures: u64,
}

/// What the engines of one worker did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests that a second engine answered because the first one failed.
    pub fallbacks: u64,
    /// Requests at which every engine failed.
    pub failures: u64,
    /// Results that were decompressed again.
    pub verified: u64,
    /// Those that were wrong.
    pub mismatches: u64,
}

struct Slot {
    engine: Box<dyn Engine>,
    /// It panicked. What state it is in, nobody knows: it is not asked again.
    broken: bool,
    counters: EngineCounters,
    complaints: Complaints,
}

/// The engines of one worker.
pub struct Engines {
    /// In the order in which they are asked.
    slots: Vec<Slot>,
    sampler: Sampler,
    /// Results on their way to where an engine does not write itself.
    result: Scratch,
    /// What a result decompresses to.
    again: Scratch,
    counters: Counters,
}

impl Engines {
    /// Those of a choice.
    pub fn new(choice: Choice, verify: Verify) -> Self {
        let mut engines: Vec<Box<dyn Engine>> = Vec::new();
        #[cfg(feature = "isal")]
        if matches!(choice, Choice::Auto | Choice::Isal) {
            engines.push(Box::new(super::isal::Isal::new()));
        }
        let libdeflate = Box::new(libdeflate::Libdeflate::new());
        let zlib_rs = Box::new(zlib_rs::ZlibRs::new());
        let deflate: [Box<dyn Engine>; 2] =
            if choice == Choice::ZlibRs { [zlib_rs, libdeflate] } else { [libdeflate, zlib_rs] };
        engines.extend(deflate);
        engines.push(Box::new(zstd::Zstd::new()));
        engines.push(Box::new(zstd::Zstd::second()));
        engines.push(Box::new(lz4::Lz4::new()));
        engines.push(Box::new(lz4_flex::Lz4Flex::new()));
        engines.push(Box::new(lz4::Lz4::second()));
        Self::with(engines, verify)
    }

    /// These, the first that takes a request first.
    pub fn with(engines: Vec<Box<dyn Engine>>, verify: Verify) -> Self {
        Self {
            slots: engines.into_iter().map(Slot::new).collect(),
            sampler: Sampler::new(verify),
            result: Scratch::default(),
            again: Scratch::default(),
            counters: Counters::default(),
        }
    }

    /// One more, which is asked before all others.
    pub fn put_first(&mut self, engine: Box<dyn Engine>) {
        self.slots.insert(0, Slot::new(engine));
    }

    /// Changes which results are verified.
    pub fn set_verify(&mut self, verify: Verify) {
        self.sampler = Sampler::new(verify);
    }

    /// Does a request, with the first engine that takes it and does not fail. With `verify`, a compressed result is verified
    /// in any case.
    pub fn run(&mut self, op: Op, params: &Params, verify: bool, src: &[u8], dst: Output<'_>) -> Answer {
        if src.len() > MAX_LEN || op == Op::Compress && !params.level_is_known() {
            return Answer::bare(Outcome::NotSupported);
        }
        let verify = op == Op::Compress && (self.sampler.takes_one() | verify);
        let mut dst = dst.at_most(MAX_LEN);
        let mut failed = false;
        for index in 0..self.slots.len() {
            if !self.slots[index].takes(op, params, src.len()) {
                continue;
            }
            let mut answer = self.attempt(index, op, params, verify, src, dst.again());
            if answer.outcome != Outcome::Failed {
                answer.second_engine = failed;
                self.counters.fallbacks += u64::from(failed);
                return answer;
            }
            failed = true;
        }
        self.counters.failures += u64::from(failed);
        Answer::bare(if failed { Outcome::Failed } else { Outcome::NotSupported })
    }

    /// Whether a guest's range as the destination of such a request is written to at once. If not, the result is made in
    /// private memory and copied; the caller may as well bring that memory.
    pub fn may_write_to_guest(&self, op: Op, params: &Params, verify: bool) -> bool {
        let first = self.slots.iter().find(|slot| slot.takes(op, params, 0));
        !verify && in_place(op, params, false) && first.is_some_and(|slot| slot.engine.may_write_to_guest(op))
    }

    /// Has one engine do it, and looks after what it did.
    fn attempt(
        &mut self,
        index: usize,
        op: Op,
        params: &Params,
        verify: bool,
        src: &[u8],
        dst: Output<'_>,
    ) -> Answer {
        let direct = !dst.is_guest()
            || in_place(op, params, verify) && self.slots[index].engine.may_write_to_guest(op);
        let mut answer = if direct {
            self.compute(index, op, params, verify, src, dst)
        } else {
            self.compute_and_copy(index, op, params, verify, src, dst)
        };
        let slot = &mut self.slots[index];
        slot.counters.requests += 1;
        if answer.outcome == Outcome::Failed {
            slot.counters.failures += 1;
            slot.complaints.add(slot.engine.name());
            answer = Answer::bare(Outcome::Failed);
        }
        answer
    }

    /// By way of private memory.
    fn compute_and_copy(
        &mut self,
        index: usize,
        op: Op,
        params: &Params,
        verify: bool,
        src: &[u8],
        mut dst: Output<'_>,
    ) -> Answer {
        let mut scratch = std::mem::take(&mut self.result);
        let memory = scratch.get(dst.len());
        let answer = self.compute(index, op, params, verify, src, Output::from(&mut *memory));
        if let Outcome::Done { produced, .. } = answer.outcome {
            dst.write(&memory[..produced]);
        }
        self.result = scratch;
        answer
    }

    fn compute(
        &mut self,
        index: usize,
        op: Op,
        params: &Params,
        verify: bool,
        src: &[u8],
        mut dst: Output<'_>,
    ) -> Answer {
        let outcome = self.slots[index].run(op, params, src, dst.again());
        let Outcome::Done { consumed, produced } = outcome else { return Answer::bare(outcome) };
        if consumed > src.len() || produced > dst.len() {
            return Answer::bare(Outcome::Failed);
        }
        if verify && !self.is_right(params, src, dst.again().at_most(produced)) {
            return Answer::bare(Outcome::Failed);
        }
        let checksum = match op {
            Op::Compress => Some(of(params.checksum, &src[..consumed])),
            Op::Decompress => sum_of(params, dst.at_most(produced)),
        };
        match checksum {
            Some(checksum) => Answer { checksum, verified: verify, ..Answer::bare(outcome) },
            None => Answer::bare(Outcome::Failed),
        }
    }

    /// Whether a result, in private memory, decompresses to `src`.
    fn is_right(&mut self, params: &Params, src: &[u8], mut result: Output<'_>) -> bool {
        let Some(result) = result.private_mut() else { return false };
        self.counters.verified += 1;
        let again = self.again.get(src.len());
        let decoder = self
            .slots
            .iter_mut()
            .find(|slot| !slot.broken && slot.takes(Op::Decompress, params, result.len()));
        let outcome = decoder.map(|slot| slot.run(Op::Decompress, params, result, Output::from(&mut *again)));
        let right =
            outcome == Some(Outcome::Done { consumed: result.len(), produced: src.len() }) && again == src;
        self.counters.mismatches += u64::from(!right);
        right
    }

    /// What they did.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What each did, in the order in which they are asked.
    pub fn per_engine(&self) -> impl Iterator<Item = (&'static str, EngineCounters)> {
        self.slots.iter().map(|slot| (slot.engine.name(), slot.counters))
    }
}

impl fmt::Debug for Engines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.per_engine().map(|(name, _)| name)).finish()
    }
}

impl Slot {
    fn new(engine: Box<dyn Engine>) -> Self {
        let counters = EngineCounters::default();
        Self { engine, broken: false, counters, complaints: Complaints::default() }
    }

    fn takes(&self, op: Op, params: &Params, len: usize) -> bool {
        self.engine.takes(op, params, len)
    }

    /// Has the engine do it; a panic is its failure, and its last.
    fn run(&mut self, op: Op, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        if self.broken {
            return Outcome::Failed;
        }
        let run = || self.engine.run(op, params, src, dst);
        std::panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            self.broken = true;
            let engine = self.engine.name();
            tracing::error!(engine, "The engine panicked, and is not asked any more");
            Outcome::Failed
        })
    }
}

/// Whether what is done after the engine can be done in a guest's range: a decoder for verification, and those checksums
/// that are safe Rust, read private memory only.
fn in_place(op: Op, params: &Params, verify: bool) -> bool {
    !verify && (op == Op::Compress || reads_ranges(params.checksum))
}

/// The checksum of what was decompressed; `None` when it cannot be computed where it is.
fn sum_of(params: &Params, mut result: Output<'_>) -> Option<u64> {
    match result.private_mut() {
        Some(result) => Some(of(params.checksum, result)),
        None => {
            let (start, len) = (result.as_mut_ptr(), result.len());
            // SAFETY: an output is mapped for its length.
            unsafe { of_range(params.checksum, start, len) }
        }
    }
}

/// Picks the results to verify.
struct Sampler {
    verify: Verify,
    since: u32,
}

impl Sampler {
    fn new(verify: Verify) -> Self {
        Self { verify, since: 0 }
    }

    fn takes_one(&mut self) -> bool {
        match self.verify {
            Verify::Off => false,
            Verify::All => true,
            Verify::OneIn(count) => {
                self.since += 1;
                let takes = self.since >= count.get();
                if takes {
                    self.since = 0;
                }
                takes
            }
        }
    }
}

/// Says in the log that an engine fails: the first time, and then each time it has failed ten times as often.
#[derive(Default)]
struct Complaints {
    failures: u64,
    next: u64,
}

impl Complaints {
    fn add(&mut self, engine: &str) {
        self.failures += 1;
        if self.failures > self.next {
            self.next = self.failures.saturating_mul(10);
            let total = self.failures;
            tracing::warn!(engine, total, "The engine failed, and the next one was asked");
        }
    }
}

/// The engines of this build by name, for [`alone`].
pub const NAMES: &[&str] = if cfg!(feature = "isal") {
    &["libdeflate", "zlib-rs", "zstd", "lz4", "lz4_flex", "isal"]
} else {
    &["libdeflate", "zlib-rs", "zstd", "lz4", "lz4_flex"]
};

/// One engine by itself, without anything around it: for benches, and for tests of what an engine does.
pub fn alone(name: &str) -> Option<Box<dyn Engine>> {
    match name {
        "libdeflate" => Some(Box::new(libdeflate::Libdeflate::new())),
        "zlib-rs" => Some(Box::new(zlib_rs::ZlibRs::new())),
        "zstd" => Some(Box::new(zstd::Zstd::new())),
        "lz4" => Some(Box::new(lz4::Lz4::new())),
        "lz4_flex" => Some(Box::new(lz4_flex::Lz4Flex::new())),
        #[cfg(feature = "isal")]
        "isal" => Some(Box::new(super::isal::Isal::new())),
        _ => None,
    }
}

/// An engine that a worker can have in this build.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Description {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub detail: &'static str,
    /// What it takes.
    pub takes: &'static str,
}

/// The engines of this build, in the order in which a request is offered to them.
pub fn list() -> Vec<Description> {
    let describe = |(name, detail, takes)| Description { name, detail, takes };
    let isal = ("isal", "ISA-L, the system's", "deflate, zlib, gzip: compressing at levels 1 to 3");
    let others = [
        ("libdeflate", "libdeflate 1.26", "deflate, zlib, gzip"),
        ("zlib-rs", "zlib-rs 0.6", "deflate, zlib, gzip, also as streams"),
        ("zstd", "Zstandard 1.5.7", "zstd, also as streams"),
        ("lz4", "LZ4 1.10", "lz4, also as streams, lz4-block"),
        ("lz4_flex", "lz4_flex 0.14", "lz4 (compressing), lz4-block"),
    ];
    cfg!(feature = "isal").then_some(isal).into_iter().chain(others).map(describe).collect()
}
