//! Engines that fail, and who notices.

use std::num::NonZeroU32;

use super::*;
use crate::engine::test::{Fault, Unreliable};
use crate::engine::{Answer, Choice, Counters, Engines, Verify};

/// All engines, and one in front of them that fails in a way at every so many-th request for a format.
fn engines_behind(name: &str, fault: Fault, every: u64, verify: Verify) -> Engines {
    let mut engines = Engines::new(Choice::Auto, verify);
    engines.put_first(Box::new(Unreliable::new(engine(name), fault, every)));
    engines
}

fn first_choice(format: Format) -> &'static str {
    match format {
        Format::Zstd => "zstd",
        Format::Lz4Block | Format::Lz4Frame => "lz4",
        _ => "libdeflate",
    }
}

fn answer(engines: &mut Engines, op: Op, format: Format, verify: bool, src: &[u8]) -> (Answer, Vec<u8>) {
    let mut memory = vec![0; 50_000];
    let answer = engines.run(op, &Params::new(format), verify, src, Output::from(&mut memory[..]));
    if let Outcome::Done { produced, .. } = answer.outcome {
        memory.truncate(produced);
    }
    (answer, memory)
}

#[test]
fn a_second_engine_answers_where_the_first_one_fails() {
    let data = text(20_000);
    for format in Format::ALL {
        for fault in [Fault::Refuses, Fault::Spoils] {
            let mut engines = engines_behind(first_choice(format), fault, 2, Verify::Off);
            let (first, compressed) = answer(&mut engines, Op::Compress, format, false, &data);
            assert!(!first.second_engine && matches!(first.outcome, Outcome::Done { .. }));
            let (second, again) = answer(&mut engines, Op::Decompress, format, false, &compressed);
            assert!(second.second_engine, "{format}: {second:?}");
            assert!(again == data, "{format}");
            let (_, _) = answer(&mut engines, Op::Compress, format, false, &data);
            let (second, compressed) = answer(&mut engines, Op::Compress, format, false, &data);
            assert!(
                second.second_engine
                    && decompress(&mut *engine(first_choice(format)), format, &compressed, 20_000) == data
            );
            assert_eq!(engines.counters(), Counters { fallbacks: 2, ..Counters::default() });
            let (name, counters) = engines.per_engine().next().expect("the first");
            assert_eq!((name, counters.requests, counters.failures), ("unreliable", 4, 2));
        }
    }
}

#[test]
fn a_wrong_result_is_found_out_and_made_again() {
    let data = text(20_000);
    for format in Format::ALL {
        let mut engines = Engines::with(
            vec![Box::new(Liar(engine(first_choice(format)))), engine(first_choice(format))],
            Verify::All,
        );
        let (found, compressed) = answer(&mut engines, Op::Compress, format, false, &data);
        assert!(found.second_engine && found.verified, "{format}: {found:?}");
        assert!(decompress(&mut *engine(first_choice(format)), format, &compressed, data.len()) == data);
        let counters = Counters { fallbacks: 1, verified: 2, mismatches: 1, failures: 0 };
        assert_eq!(engines.counters(), counters, "{format}");
    }
}

/// Compresses something else than it was given.
struct Liar(Box<dyn Engine>);

impl Engine for Liar {
    fn name(&self) -> &'static str {
        "liar"
    }
    fn takes(&self, op: Op, params: &Params, len: usize) -> bool {
        op == Op::Compress && self.0.takes(op, params, len)
    }
    fn compress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        let mut other = src.to_vec();
        other[src.len() / 2] ^= 1;
        self.0.compress(params, &other, dst)
    }
    fn decompress(&mut self, _params: &Params, _src: &[u8], _dst: Output<'_>) -> Outcome {
        unreachable!("does not take it")
    }
}

#[test]
fn a_result_with_a_wrong_bit_does_not_pass_verification() {
    let data = text(20_000);
    for format in Format::ALL {
        let mut engines = engines_behind(first_choice(format), Fault::Lies, 1, Verify::Off);
        // It lies about what it reads as well, so that it finds its own results wrong, one way or the other.
        let (found, compressed) = answer(&mut engines, Op::Compress, format, true, &data);
        assert_eq!(found, Answer::bare(Outcome::Failed), "{format}");
        assert!(engines.counters().mismatches >= 1 && !compressed.is_empty());
        let mut engines = engines_behind(first_choice(format), Fault::Lies, 3, Verify::Off);
        for _ in 0..4 {
            let (found, compressed) = answer(&mut engines, Op::Compress, format, true, &data);
            if let Outcome::Done { .. } = found.outcome {
                assert!(
                    decompress(&mut *engine(first_choice(format)), format, &compressed, data.len()) == data
                );
            }
        }
    }
}

#[test]
fn without_verification_a_liar_is_believed() {
    let mut engines = Engines::with(vec![Box::new(Liar(engine("zstd"))), engine("zstd")], Verify::Off);
    let (believed, _) = answer(&mut engines, Op::Compress, Format::Zstd, false, &text(100));
    assert!(!believed.verified && !believed.second_engine);
    let (asked, _) = answer(&mut engines, Op::Compress, Format::Zstd, true, &text(100));
    assert!(asked.verified && asked.second_engine);
}

#[test]
fn one_in_three_is_verified() {
    let mut engines = Engines::new(Choice::Auto, "1/3".parse().expect("a way to verify"));
    let verified: Vec<bool> =
        (0..7).map(|_| answer(&mut engines, Op::Compress, Format::Gzip, false, b"data").0.verified).collect();
    assert_eq!(verified, [false, false, true, false, false, true, false]);
    assert_eq!(engines.counters().verified, 2);
}

#[test]
fn a_request_at_which_all_engines_fail_has_failed() {
    let dead = || Box::new(Unreliable::new(engine("zstd"), Fault::Spoils, 1));
    let mut engines = Engines::with(vec![dead(), dead()], Verify::Off);
    let (answer, _) = answer(&mut engines, Op::Compress, Format::Zstd, false, b"data");
    assert_eq!(answer, Answer::bare(Outcome::Failed));
    assert_eq!(engines.counters(), Counters { failures: 1, ..Counters::default() });
}

#[test]
fn an_outcome_of_the_data_is_no_failure() {
    let mut engines = Engines::new(Choice::Auto, Verify::Off);
    for format in Format::ALL {
        let (bad, _) = answer(&mut engines, Op::Decompress, format, false, &[0xff; 40]);
        assert!(matches!(bad.outcome, Outcome::BadData | Outcome::Truncated), "{format}: {bad:?}");
    }
    assert_eq!(engines.counters(), Counters::default());
    assert!(engines.per_engine().all(|(_, counters)| counters.failures == 0));
}

/// Panics at everything.
struct Panics;

impl Engine for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }
    fn takes(&self, _op: Op, _params: &Params, _len: usize) -> bool {
        true
    }
    fn compress(&mut self, _params: &Params, _src: &[u8], _dst: Output<'_>) -> Outcome {
        panic!("as it does")
    }
    fn decompress(&mut self, _params: &Params, _src: &[u8], _dst: Output<'_>) -> Outcome {
        unreachable!("it is not asked again")
    }
}

#[test]
fn an_engine_that_panics_is_not_asked_again() {
    let mut engines = Engines::with(vec![Box::new(Panics), engine("zstd")], Verify::Off);
    let (made, compressed) = answer(&mut engines, Op::Compress, Format::Zstd, true, b"data");
    assert!(made.second_engine && made.verified, "{made:?}");
    let (read, data) = answer(&mut engines, Op::Decompress, Format::Zstd, false, &compressed);
    assert!(read.second_engine && data == b"data", "{read:?}");
    assert_eq!(answer(&mut engines, Op::Compress, Format::Gzip, false, b"").0.outcome, Outcome::Failed);
}

#[test]
fn what_no_engine_does_is_not_supported() {
    let mut engines = Engines::with(vec![engine("zstd")], Verify::All);
    assert_eq!(answer(&mut engines, Op::Compress, Format::Gzip, false, b"").0.outcome, Outcome::NotSupported);
    let mut engines = Engines::new(Choice::Auto, Verify::All);
    for (format, level) in [
        (Format::Gzip, -1),
        (Format::Gzip, 13),
        (Format::Zstd, 20),
        (Format::Lz4Block, -65),
        (Format::Zstd, i32::MIN),
    ] {
        let params = Params::new(format).with_level(level);
        let answer = engines.run(Op::Compress, &params, false, b"data", Output::from(&mut [0; 200][..]));
        assert_eq!(answer.outcome, Outcome::NotSupported, "{params:?}");
    }
}

#[test]
fn the_first_choice_is_asked_first() {
    for name in Choice::NAMES {
        let choice: Choice = name.parse().expect("its name");
        assert_eq!(choice.to_string(), *name);
        let engines = Engines::new(choice, Verify::Off);
        let first = engines.per_engine().next().expect("one").0;
        let auto = if cfg!(feature = "isal") { "isal" } else { "libdeflate" };
        assert_eq!(first, if choice == Choice::Auto { auto } else { choice.name() });
    }
    assert!("gzip".parse::<Choice>().is_err());
    assert_eq!("isal".parse::<Choice>().is_ok(), cfg!(feature = "isal"));
}

#[test]
fn ways_to_verify_are_written_as_they_are_read() {
    let three = NonZeroU32::new(3).expect("not zero");
    for (text, verify) in [("off", Verify::Off), ("all", Verify::All), ("1/3", Verify::OneIn(three))] {
        assert_eq!(text.parse::<Verify>().expect(text), verify);
        assert_eq!(verify.to_string(), text);
    }
    for text in ["", "on", "1/0", "2/3", "1/-1", "1/"] {
        assert!(text.parse::<Verify>().is_err(), "{text}");
    }
}
