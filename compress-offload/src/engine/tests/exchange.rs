//! Every engine against every other one.

use proptest::prelude::*;

use super::*;
use crate::algorithm::levels;

#[test]
fn all_engines_read_what_any_engine_wrote_at_any_level() {
    for format in Format::ALL {
        let levels = levels(format);
        for level in (levels.min..=levels.max).filter(|level| *level > -8 || level % 16 == 0) {
            let params = Params::new(format).with_level(level.into());
            for mut writer in engines(Op::Compress, &params) {
                for (name, data) in samples() {
                    let compressed = compress(&mut *writer, &params, &data);
                    for mut reader in engines(Op::Decompress, &params) {
                        let again = decompress(&mut *reader, format, &compressed, data.len());
                        assert!(again == data, "{name}, {} to {}, {params:?}", writer.name(), reader.name());
                    }
                }
            }
        }
    }
}

#[test]
fn higher_levels_make_text_no_longer() {
    let data = text(200_000);
    for (format, low, high) in [
        (Format::Gzip, 1, 9),
        (Format::Zstd, -5, 1),
        (Format::Zstd, 1, 15),
        (Format::Lz4Block, -20, 1),
        (Format::Lz4Frame, 1, 9),
    ] {
        let len = |level| {
            let params = Params::new(format).with_level(level);
            compress(&mut *engines(Op::Compress, &params)[0], &params, &data).len()
        };
        assert!(len(high) * 20 < len(low) * 19, "{format}: {} at {high}, {} at {low}", len(high), len(low));
    }
}

#[test]
fn members_and_frames_that_follow_on_each_other_are_one_result() {
    let (first, second) = (text(5_000), records(3_000));
    for format in Format::ALL.into_iter().filter(|format| format.joins()) {
        let mut both = stream(format, &first);
        let cut = both.len();
        both.extend(stream(format, &second));
        let whole = [&first[..], &second].concat();
        for mut engine in engines(Op::Decompress, &Params::new(format)) {
            assert!(
                decompress(&mut *engine, format, &both, whole.len()) == whole,
                "{} {format}",
                engine.name()
            );
            let mut outcome =
                |src: &[u8], len| run(&mut *engine, Op::Decompress, &Params::new(format), src, len).0;
            assert_eq!(outcome(&both, whole.len() - 1), Outcome::Overflow, "{format}");
            assert_eq!(outcome(&both, first.len()), Outcome::Overflow, "{format}");
            assert_eq!(outcome(&both[..both.len() - 1], whole.len()), Outcome::Truncated, "{format}");
            assert_eq!(outcome(&both[..cut + 6], whole.len()), Outcome::Truncated, "{format}");
            let alone = Outcome::Done { consumed: cut, produced: first.len() };
            assert_eq!(outcome(&both[..cut], whole.len()), alone, "{format}");
            assert_eq!(outcome(&both[..cut + 1], whole.len()), alone, "{format}");
        }
    }
}

#[test]
fn skippable_frames_are_skipped() {
    let data = text(1_000);
    for format in [Format::Zstd, Format::Lz4Frame] {
        let skip = [0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let source = [&skip[..], &stream(format, &data), &skip].concat();
        for mut engine in engines(Op::Decompress, &Params::new(format)) {
            assert_eq!(decompress(&mut *engine, format, &source, data.len()), data, "{format}");
            assert_eq!(decompress(&mut *engine, format, &skip, 0), b"", "{format}");
        }
    }
}

#[test]
fn what_follows_on_a_stream_and_is_none_is_left_alone() {
    let data = text(1_000);
    for format in Format::ALL.into_iter().filter(|&format| format != Format::Lz4Block) {
        let compressed = stream(format, &data);
        for tail in [&[0u8; 9][..], b"tail", &[0x1f], &[0x28, 0xb5]] {
            let source = [&compressed[..], tail].concat();
            for mut engine in engines(Op::Decompress, &Params::new(format)) {
                let (outcome, result) =
                    run(&mut *engine, Op::Decompress, &Params::new(format), &source, 2_000);
                let done = Outcome::Done { consumed: compressed.len(), produced: data.len() };
                assert_eq!(outcome, done, "{} {format} {tail:x?}", engine.name());
                assert_eq!(result, data);
            }
        }
    }
}

/// Data that is in part like what came before, as much as `sameness` says.
fn data(len: usize, sameness: u8, seed: &[u8]) -> Vec<u8> {
    let (noise, text) = (noise(len), text(len));
    let mut data: Vec<u8> =
        (0..len).map(|i| if noise[i] < sameness { text[i] } else { noise[len - 1 - i] }).collect();
    let seeded = seed.len().min(len);
    data[..seeded].copy_from_slice(&seed[..seeded]);
    data
}

fn any_len() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0usize..300, 3 => 300usize..20_000, 2 => 20_000usize..140_000, 1 => 140_000usize..=1 << 20]
}

fn any_params() -> impl Strategy<Value = Params> {
    prop::sample::select(&Format::ALL[..]).prop_flat_map(|format| {
        let levels = levels(format);
        (i32::from(levels.min)..=i32::from(levels.max))
            .prop_map(move |level| Params::new(format).with_level(level))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_data_comes_back_and_fits_to_the_byte(
        params in any_params(),
        len in any_len(),
        sameness: u8,
        seed in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let data = data(len, sameness, &seed);
        for mut writer in engines(Op::Compress, &params) {
            let compressed = compress(&mut *writer, &params, &data);
            let (outcome, exact) = run(&mut *writer, Op::Compress, &params, &data, compressed.len());
            prop_assert_eq!(outcome, Outcome::Done { consumed: data.len(), produced: compressed.len() });
            prop_assert!(exact == compressed);
            let (outcome, _) = run(&mut *writer, Op::Compress, &params, &data, compressed.len() - 1);
            prop_assert_eq!(outcome, Outcome::Incompressible, "{} {:?}", writer.name(), params);
            for mut reader in engines(Op::Decompress, &params) {
                prop_assert!(decompress(&mut *reader, params.format, &compressed, data.len()) == data);
                if let Some(short) = data.len().checked_sub(1) {
                    let (outcome, _) = run(&mut *reader, Op::Decompress, &params, &compressed, short);
                    prop_assert_eq!(outcome, Outcome::Overflow, "{} {:?}", reader.name(), params);
                }
            }
        }
    }
}
