//! Tests of what every engine has to do, over all of them.

mod exchange;
mod fallback;
mod foreign;
mod guest;
mod limits;
mod spoiled;
mod state;

use super::{Engine, NAMES, Outcome, Output, alone};
use crate::algorithm::{Format, Op, Params, bound};

/// Bytes around a destination that nobody may touch.
const FENCE: usize = 64;
const CANARY: u8 = 0xa5;

/// The engines that take such a request.
fn engines(op: Op, params: &Params) -> Vec<Box<dyn Engine>> {
    let all = NAMES.iter().map(|name| alone(name).expect("in the list"));
    all.filter(|engine| engine.takes(op, params, 0)).collect()
}

/// The engine of a name.
fn engine(name: &str) -> Box<dyn Engine> {
    alone(name).expect("an engine of this build")
}

/// Runs a request with `len` bytes of destination between two fences: the outcome and the result, empty unless it is done.
fn run(engine: &mut dyn Engine, op: Op, params: &Params, src: &[u8], len: usize) -> (Outcome, Vec<u8>) {
    let mut memory = vec![CANARY; len + 2 * FENCE];
    let outcome = engine.run(op, params, src, Output::from(&mut memory[FENCE..FENCE + len]));
    let whole = memory[..FENCE].iter().chain(&memory[FENCE + len..]).all(|&byte| byte == CANARY);
    assert!(whole, "{} wrote beside its destination: {op:?} {params:?}, {len} bytes", engine.name());
    let result = match outcome {
        Outcome::Done { consumed, produced } => {
            assert!(consumed <= src.len() && produced <= len, "{outcome:?}");
            memory[FENCE..FENCE + produced].to_vec()
        }
        _ => Vec::new(),
    };
    (outcome, result)
}

/// What `src` is compressed to.
#[track_caller]
fn compress(engine: &mut dyn Engine, params: &Params, src: &[u8]) -> Vec<u8> {
    let (outcome, result) = run(engine, Op::Compress, params, src, bound(src.len()));
    let done = Outcome::Done { consumed: src.len(), produced: result.len() };
    assert_eq!(outcome, done, "{} {params:?} of {} bytes", engine.name(), src.len());
    result
}

/// What `src`, all of it, is decompressed to, with just as much room as that takes.
#[track_caller]
fn decompress(engine: &mut dyn Engine, format: Format, src: &[u8], len: usize) -> Vec<u8> {
    let (outcome, result) = run(engine, Op::Decompress, &Params::new(format), src, len);
    assert_eq!(outcome, Outcome::Done { consumed: src.len(), produced: len }, "{} {format}", engine.name());
    result
}

/// Some engine's result, with what the format itself has (checksum, content size).
fn stream(format: Format, src: &[u8]) -> Vec<u8> {
    let params = Params::new(format);
    compress(&mut *engines(Op::Compress, &params)[0], &params, src)
}

/// Numbers that look random, the same ones each time.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Text: what somebody wrote.
fn text(len: usize) -> Vec<u8> {
    let sources =
        [include_str!("../mod.rs"), include_str!("../select.rs"), include_str!("../../stream.rs")].concat();
    sources.bytes().cycle().take(len).collect()
}

/// Records as a binary has them: mostly small numbers, some repeating, some not.
fn records(len: usize) -> Vec<u8> {
    let noise = noise(len);
    (0..len)
        .map(|i| match i % 8 {
            0 | 1 => noise[i],
            2 => (i / 64) as u8,
            _ => 0,
        })
        .collect()
}

/// Data of every kind, short enough to be tried at every level.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("nothing", Vec::new()),
        ("a byte", vec![7]),
        ("a line", b"to be or not to be, that is the question".to_vec()),
        ("zeros", vec![0; 70_000]),
        ("text", text(40_000)),
        ("noise", noise(20_000)),
        ("records", records(30_000)),
    ]
}
