//! Nothing of a request reaches the next one.

use super::*;
use crate::algorithm::{Checksum, has_checksum, levels};
use crate::engine::{Choice, Engines, Verify};

/// Requests that fail, each in its own way.
fn failing(format: Format) -> Vec<(Op, Vec<u8>, usize)> {
    let data = [text(9_000), noise(500)].concat();
    let whole = stream(format, &data);
    let mut wrong = whole.clone();
    let middle = wrong.len() / 2;
    wrong[middle..middle + 8].fill(0xff);
    vec![
        (Op::Compress, data.clone(), 0),
        (Op::Compress, data.clone(), 200),
        (Op::Compress, noise(5_000), 5_000),
        (Op::Decompress, whole.clone(), 0),
        (Op::Decompress, whole.clone(), data.len() - 1),
        (Op::Decompress, whole[..middle].to_vec(), data.len()),
        (Op::Decompress, wrong, data.len()),
        (Op::Decompress, noise(300), data.len()),
    ]
}

#[test]
fn a_failed_request_leaves_nothing_to_the_next_one() {
    let data = [text(20_000), records(2_000)].concat();
    for format in Format::ALL {
        for level in [1, 3, levels(format).max.min(9)] {
            let params = Params::new(format).with_level(level.into());
            for name in NAMES {
                let mut fresh = engine(name);
                if !fresh.takes(Op::Compress, &params, data.len()) {
                    continue;
                }
                let expected = compress(&mut *fresh, &params, &data);
                let mut used = engine(name);
                for (op, src, len) in failing(format) {
                    if !used.takes(op, &params, src.len()) {
                        continue;
                    }
                    let (outcome, _) = run(&mut *used, op, &params, &src, len);
                    let may_pass = !has_checksum(format) && op == Op::Decompress;
                    assert!(
                        may_pass || !matches!(outcome, Outcome::Done { .. }),
                        "{name} {params:?}: {outcome:?}"
                    );
                    assert!(
                        compress(&mut *used, &params, &data) == expected,
                        "{name} {params:?} after {outcome:?}"
                    );
                    if used.takes(Op::Decompress, &params, 0) {
                        assert!(
                            decompress(&mut *used, format, &expected, data.len()) == data,
                            "{name} {params:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn levels_and_formats_take_turns() {
    let data = text(30_000);
    for name in NAMES {
        let mut shared = engine(name);
        for round in 0..3i32 {
            for format in Format::ALL {
                for level in [9, 1, 3] {
                    let params = Params::new(format).with_level((level + round) % 9 + 1);
                    if shared.takes(Op::Compress, &params, data.len()) {
                        let alone = compress(&mut *engine(name), &params, &data);
                        assert!(compress(&mut *shared, &params, &data) == alone, "{name} {params:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn no_window_is_left_for_a_match_to_reach_into() {
    // A match of three bytes, one byte back, in front of everything: DEFLATE with fixed codes, and an LZ4 block.
    let deflate = [0x03, 0x02, 0x00];
    let block = [0x01, 0x01, 0x00, 0x60, 1, 2, 3, 4, 5, 6];
    for (format, source) in [(Format::Deflate, &deflate[..]), (Format::Lz4Block, &block)] {
        let whole = stream(format, &text(5_000));
        for mut engine in engines(Op::Decompress, &Params::new(format)) {
            for len in [5_000, 4_000] {
                run(&mut *engine, Op::Decompress, &Params::new(format), &whole, len);
                let (outcome, _) = run(&mut *engine, Op::Decompress, &Params::new(format), source, 100);
                assert_eq!(outcome, Outcome::BadData, "{} {format}", engine.name());
            }
        }
    }
}

#[test]
fn checksums_are_those_of_their_own_request_also_after_an_overflow() {
    let mut engines = Engines::new(Choice::Auto, Verify::Off);
    let (data, other) = (text(3_000), text(60_000));
    let mut memory = vec![0; 100_000];
    for format in Format::ALL {
        for checksum in Checksum::ALL {
            let params = Params::new(format).with_checksum(checksum);
            let short = engines.run(Op::Compress, &params, false, &other, Output::from(&mut memory[..50]));
            assert_eq!((short.outcome, short.checksum), (Outcome::Incompressible, 0));
            let answer = engines.run(Op::Compress, &params, false, &data, Output::from(&mut memory[..]));
            assert_eq!(answer.checksum, crate::checksum::of(checksum, &data), "{format} {checksum}");
            let Outcome::Done { produced, .. } = answer.outcome else { panic!("{answer:?}") };
            let compressed = memory[..produced].to_vec();
            let short =
                engines.run(Op::Decompress, &params, false, &compressed, Output::from(&mut memory[..2_999]));
            assert_eq!((short.outcome, short.checksum), (Outcome::Overflow, 0));
            let answer =
                engines.run(Op::Decompress, &params, false, &compressed, Output::from(&mut memory[..]));
            assert_eq!(answer.checksum, crate::checksum::of(checksum, &data), "{format} {checksum}");
        }
    }
}
