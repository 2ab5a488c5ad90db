//! One source for every engine that takes it: noise, what an engine made, what an engine made and somebody changed.

use compress_offload::algorithm::{Checksum, Direction, Format, Params, bound, has_checksum, levels};
use compress_offload::checksum;
use compress_offload::engine::{Choice, Engine, Engines, NAMES, Outcome, Output, Verify, alone};
use compress_offload::stream::Stream;
use compress_protocol::Flush;

use crate::input::Input;

/// Bytes around a destination that nobody may touch.
const FENCE: usize = 64;
const CANARY: u8 = 0xa5;
/// Levels above this take long and do nothing else.
const HIGHEST: i32 = 7;
/// Longer than any window but Zstandard's.
const LONGEST: usize = 300_000;

/// Runs one input to its end.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.below(4);
    let case = Case::read(&mut input);
    match kind {
        0 => case.decode(),
        1 => case.encode(),
        2 => case.change(),
        _ => case.stream(&mut input),
    }
}

/// One input.
struct Case<'a> {
    params: Params,
    room: usize,
    place: usize,
    repeat: usize,
    cuts: [u16; 4],
    data: &'a [u8],
}

impl<'a> Case<'a> {
    fn read(input: &mut Input<'a>) -> Self {
        let format = input.choose(&Format::ALL);
        let checksum = input.choose(&Checksum::ALL);
        let range = levels(format);
        let level = (input.u8() as i8).clamp(range.min, range.max.min(HIGHEST as i8));
        let params = Params::new(format).with_level(level.into()).with_checksum(checksum);
        let (room, place) = (input.u16().into(), input.u16().into());
        let repeat = input.below(64) + 1;
        let cuts = std::array::from_fn(|_| input.u16());
        Self { params, room, place, repeat, cuts, data: input.take(usize::MAX) }
    }

    /// Data to compress: what is there, some times over, each time a little different.
    fn plain(&self) -> Vec<u8> {
        let repeated = (0..self.repeat).flat_map(|turn| {
            self.data.iter().enumerate().map(
                move |(at, &byte)| {
                    if at % 97 == turn { byte ^ turn as u8 } else { byte }
                },
            )
        });
        repeated.take(LONGEST).collect()
    }

    /// Noise is some outcome, the same for all who can do it.
    fn decode(&self) {
        self.decode_by_all(self.data, self.room);
    }

    fn decode_by_all(&self, source: &[u8], room: usize) -> Vec<(Outcome, Vec<u8>)> {
        let params = &self.params;
        let answers: Vec<_> = engines(Direction::Decompress, params)
            .map(|mut engine| attempt(&mut *engine, Direction::Decompress, params, source, room))
            .collect();
        for (outcome, _) in &answers {
            assert!(!matches!(outcome, Outcome::Incompressible | Outcome::Failed), "{params:?}: {outcome:?}");
        }
        let done = |(outcome, _): &&(Outcome, _)| matches!(outcome, Outcome::Done { .. });
        let results: Vec<_> = answers.iter().filter(done).collect();
        assert!(
            results.windows(2).all(|pair| pair[0] == pair[1]),
            "{params:?}: engines read different things"
        );
        answers
    }

    /// What is compressed comes back from everybody, and fits to the byte.
    fn encode(&self) {
        let (params, plain) = (&self.params, self.plain());
        for mut engine in engines(Direction::Compress, params) {
            let compressed = compress(&mut *engine, params, &plain);
            let (short, _) = attempt(&mut *engine, Direction::Compress, params, &plain, compressed.len() - 1);
            assert_eq!(short, Outcome::Incompressible, "{} {params:?}", engine.name());
            for (outcome, again) in self.decode_by_all(&compressed, plain.len()) {
                assert_eq!(outcome, Outcome::Done { consumed: compressed.len(), produced: plain.len() });
                assert!(again == plain, "{} {params:?}", engine.name());
            }
            if let Some(less) = plain.len().checked_sub(1 + self.place % plain.len().max(1)) {
                let all = self.decode_by_all(&compressed, less);
                assert!(
                    all.iter().all(|(outcome, _)| *outcome == Outcome::Overflow),
                    "{params:?} {less}: {all:?}"
                );
            }
        }
        self.all_together(&plain);
    }

    /// The engines as a worker has them, verifying.
    fn all_together(&self, plain: &[u8]) {
        let mut engines = Engines::new(Choice::Auto, Verify::All);
        let mut memory = vec![0; bound(plain.len())];
        let (direction, params) = (Direction::Compress, &self.params);
        let answer = engines.run(direction, params, false, plain, Output::from(&mut memory[..]));
        assert!(answer.verified && !answer.second_engine, "{answer:?}");
        assert_eq!(answer.checksum, checksum::of(params.checksum, plain));
        assert_eq!(engines.counters().mismatches, 0);
    }

    /// A bit that was changed does not pass for other data, nor does a cut or an insertion harm anybody.
    fn change(&self) {
        let (params, plain) = (&self.params, self.plain());
        let Some(mut engine) = engines(Direction::Compress, params).next() else { return };
        let whole = compress(&mut *engine, params, &plain);
        let mut changed = whole.clone();
        let at = self.place % changed.len();
        changed[at] ^= 1 << (self.room % 8);
        for (outcome, result) in self.decode_by_all(&changed, plain.len()) {
            let passes = matches!(outcome, Outcome::Done { .. });
            assert!(!passes || !has_checksum(params.format) || result == plain, "{params:?} bit {at}");
        }
        for (outcome, result) in self.decode_by_all(&whole[..at], plain.len()) {
            let fits = params.format == Format::Lz4Block && plain.starts_with(&result);
            assert!(outcome == Outcome::Truncated || fits, "{params:?} {at}: {outcome:?}");
        }
        let inserted = [&whole[..at], &self.cuts[0].to_le_bytes(), &whole[at..]].concat();
        self.decode_by_all(&inserted, self.room);
    }

    /// Streams: what goes in comes back, in whatever pieces; and noise is an outcome.
    fn stream(&self, _rest: &mut Input<'a>) {
        if !self.params.format.streams() {
            return;
        }
        let plain = self.plain();
        let compressed = self.through(Direction::Compress, &plain).expect("compressing does not fail");
        assert!(
            self.through(Direction::Decompress, &compressed).expect("its own") == plain,
            "{:?}",
            self.params
        );
        let _ = self.through(Direction::Decompress, self.data);
    }

    /// All of `source` through a stream, to its end or its failure.
    fn through(&self, direction: Direction, source: &[u8]) -> Option<Vec<u8>> {
        let mut stream = Stream::open(direction, &self.params).expect("a stream");
        let (mut rest, mut result, mut finishing) = (source, Vec::new(), false);
        for turn in 0.. {
            // Not so short that it never ends.
            let least = source.len().max(result.len()) / 64 + 1;
            let piece = if finishing {
                rest.len()
            } else {
                usize::from(self.cuts[turn % 2]).max(least).min(rest.len())
            };
            let room = usize::from(self.cuts[2 + turn % 2]).max(least);
            // What was not taken of the last source is the last source again.
            finishing = piece == rest.len();
            let flush = if finishing { Flush::Finish } else { [Flush::No, Flush::Flush][turn & 1] };
            let (outcome, end, more) = part(&mut stream, &rest[..piece], room, flush, self.params.checksum);
            let Outcome::Done { consumed, produced } = outcome else { return None };
            rest = &rest[consumed..];
            result.extend(more);
            // Noise may go on as another whole for ever so long.
            if end || result.len() > 8 * LONGEST || produced == 0 && consumed == 0 && turn > 1_000 {
                break;
            }
        }
        Some(result)
    }
}

/// One request of a stream: its outcome, whether the stream ended, and the result.
fn part(
    stream: &mut Stream,
    source: &[u8],
    room: usize,
    flush: Flush,
    kind: Checksum,
) -> (Outcome, bool, Vec<u8>) {
    let mut memory = fenced(room);
    let answer = stream.run(source, Output::from(&mut memory[FENCE..FENCE + room]), flush, kind);
    let result = inside(memory, room, answer.outcome, source.len());
    if let Outcome::Done { consumed, .. } = answer.outcome {
        let plain = if stream.direction() == Direction::Compress { &source[..consumed] } else { &result[..] };
        assert_eq!(answer.checksum, checksum::of(kind, plain));
    }
    (answer.outcome, answer.stream_end, result)
}

fn engines(direction: Direction, params: &Params) -> impl Iterator<Item = Box<dyn Engine>> {
    let all = NAMES.iter().filter_map(|name| alone(name));
    all.filter(move |engine| engine.takes(direction, params, 0))
}

fn compress(engine: &mut dyn Engine, params: &Params, plain: &[u8]) -> Vec<u8> {
    let (outcome, result) = attempt(engine, Direction::Compress, params, plain, bound(plain.len()));
    let done = Outcome::Done { consumed: plain.len(), produced: result.len() };
    assert_eq!(outcome, done, "{} {params:?}", engine.name());
    result
}

fn attempt(
    engine: &mut dyn Engine,
    direction: Direction,
    params: &Params,
    source: &[u8],
    room: usize,
) -> (Outcome, Vec<u8>) {
    let mut memory = fenced(room);
    let outcome = engine.run(direction, params, source, Output::from(&mut memory[FENCE..FENCE + room]));
    (outcome, inside(memory, room, outcome, source.len()))
}

fn fenced(room: usize) -> Vec<u8> {
    vec![CANARY; room + 2 * FENCE]
}

/// The result, with nothing written beside it.
fn inside(memory: Vec<u8>, room: usize, outcome: Outcome, source: usize) -> Vec<u8> {
    let fences = memory[..FENCE].iter().chain(&memory[FENCE + room..]);
    assert!(fences.copied().all(|byte| byte == CANARY), "written beside the destination");
    match outcome {
        Outcome::Done { consumed, produced } => {
            assert!(consumed <= source && produced <= room);
            memory[FENCE..FENCE + produced].to_vec()
        }
        _ => Vec::new(),
    }
}
