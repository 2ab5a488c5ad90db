//! Sources that were cut, changed, or never were what they should be.

use proptest::prelude::*;

use super::*;
use crate::algorithm::has_checksum;

#[test]
fn a_source_that_was_cut_anywhere_is_truncated() {
    let data = [text(700), noise(40), vec![0; 300]].concat();
    for format in Format::ALL {
        let whole = stream(format, &data);
        for mut engine in engines(Op::Decompress, &Params::new(format)) {
            for len in 0..whole.len() {
                let (outcome, result) =
                    run(&mut *engine, Op::Decompress, &Params::new(format), &whole[..len], data.len());
                // A block does not know where it ends.
                let fits =
                    format == Format::Lz4Block && data.starts_with(&result) && outcome != Outcome::Overflow;
                assert!(
                    outcome == Outcome::Truncated || fits,
                    "{} {format} {len}: {outcome:?}",
                    engine.name()
                );
            }
        }
    }
}

#[test]
fn a_cut_source_is_truncated_where_the_data_written_so_far_fill_the_destination() {
    // Stored blocks: what was read is what was written.
    let data = noise(100);
    for format in [Format::Deflate, Format::Zlib, Format::Gzip] {
        let whole = stream(format, &data);
        let trailer = [0, 4, 8][usize::from(format.wire()) - 1];
        for mut engine in engines(Op::Decompress, &Params::new(format)) {
            for cut in 1..=trailer {
                let (outcome, _) =
                    run(&mut *engine, Op::Decompress, &Params::new(format), &whole[..whole.len() - cut], 100);
                assert_eq!(outcome, Outcome::Truncated, "{} {format} {cut}", engine.name());
            }
        }
    }
}

#[test]
fn no_bit_that_is_changed_passes_for_other_data() {
    let data = [&text(400)[..], &noise(60)].concat();
    for format in Format::ALL {
        let whole = stream(format, &data);
        for mut engine in engines(Op::Decompress, &Params::new(format)) {
            for bit in 0..whole.len() * 8 {
                let mut changed = whole.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                let (outcome, result) =
                    run(&mut *engine, Op::Decompress, &Params::new(format), &changed, data.len());
                let passes = matches!(outcome, Outcome::Done { .. });
                assert!(
                    !passes || !has_checksum(format) || result == data,
                    "{} {format} bit {bit}",
                    engine.name()
                );
                assert_ne!(outcome, Outcome::Failed, "{} {format} bit {bit}", engine.name());
            }
            assert_eq!(decompress(&mut *engine, format, &whole, data.len()), data, "after all that");
        }
    }
}

#[test]
fn wrong_checksums_and_lengths_are_bad_data() {
    let data = text(500);
    for (format, trailer) in [(Format::Zlib, 4), (Format::Gzip, 8), (Format::Zstd, 4), (Format::Lz4Frame, 4)]
    {
        let whole = stream(format, &data);
        for mut engine in engines(Op::Decompress, &Params::new(format)) {
            for byte in whole.len() - trailer..whole.len() {
                let mut changed = whole.clone();
                changed[byte] ^= 0x40;
                let (outcome, _) =
                    run(&mut *engine, Op::Decompress, &Params::new(format), &changed, data.len());
                assert_eq!(outcome, Outcome::BadData, "{} {format} {byte}", engine.name());
            }
        }
    }
}

#[test]
fn other_formats_are_bad_data() {
    let data = text(500);
    for format in Format::ALL.into_iter().filter(|&format| has_checksum(format)) {
        for other in Format::ALL.into_iter().filter(|&other| other != format) {
            let source = stream(other, &data);
            for mut engine in engines(Op::Decompress, &Params::new(format)) {
                for len in 1..10 {
                    let (outcome, _) =
                        run(&mut *engine, Op::Decompress, &Params::new(format), &source[..len], 1_000);
                    let could_be_zlib = format == Format::Zlib && len == 1 && source[0] & 0x0f == 8;
                    let expected = if could_be_zlib { Outcome::Truncated } else { Outcome::BadData };
                    assert_eq!(outcome, expected, "{other} as {format}, {len}");
                }
                let (outcome, _) = run(&mut *engine, Op::Decompress, &Params::new(format), &source, 1_000);
                assert_eq!(outcome, Outcome::BadData, "{other} as {format} by {}", engine.name());
            }
        }
    }
}

#[test]
fn nothing_is_the_beginning_of_anything() {
    for format in Format::ALL {
        for mut engine in engines(Op::Decompress, &Params::new(format)) {
            for len in [0, 1, 100] {
                let (outcome, _) = run(&mut *engine, Op::Decompress, &Params::new(format), b"", len);
                let empty_block = format == Format::Lz4Block && len == 0 && outcome == Outcome::Overflow;
                assert!(
                    outcome == Outcome::Truncated || empty_block,
                    "{} {format} {len}: {outcome:?}",
                    engine.name()
                );
            }
        }
    }
}

#[test]
fn dictionaries_are_not_supported() {
    // RFC 1950: FDICT and the dictionary's Adler-32; RFC 8878: a dictionary ID of one byte; LZ4: a dictionary ID.
    let zlib = [0x78, 0xbb, 0, 0, 0, 1, 0x03, 0x00];
    let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 1, 0x09, 0, 0, 1];
    let lz4 = {
        let mut frame = vec![4, 0x22, 0x4d, 0x18, 0x41, 0x40, 7, 0, 0, 0];
        frame.push((crate::checksum::of(crate::algorithm::Checksum::Xxh32, &frame[4..]) >> 8) as u8);
        frame.extend([0; 4]);
        frame
    };
    for (format, source) in [(Format::Zlib, &zlib[..]), (Format::Zstd, &zstd), (Format::Lz4Frame, &lz4)] {
        for mut engine in engines(Op::Decompress, &Params::new(format)) {
            let (outcome, _) = run(&mut *engine, Op::Decompress, &Params::new(format), source, 100);
            assert_eq!(outcome, Outcome::NotSupported, "{} {format}", engine.name());
        }
    }
}

/// What every stream of the format begins with.
fn magic(format: Format) -> &'static [u8] {
    match format {
        Format::Deflate | Format::Lz4Block => &[],
        Format::Zlib => &[0x78, 0x9c],
        Format::Gzip => &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3],
        Format::Zstd => &[0x28, 0xb5, 0x2f, 0xfd],
        Format::Lz4Frame => &[0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn noise_is_some_outcome_and_stays_inside(
        format in prop::sample::select(&Format::ALL[..]),
        with_magic: bool,
        noise in prop::collection::vec(any::<u8>(), 0..2_000),
        len in 0usize..5_000,
    ) {
        let magic = if with_magic { magic(format) } else { &[] };
        let source = [magic, &noise].concat();
        for mut engine in engines(Op::Decompress, &Params::new(format)) {
            let (outcome, _) = run(&mut *engine, Op::Decompress, &Params::new(format), &source, len);
            prop_assert!(!matches!(outcome, Outcome::Incompressible | Outcome::Failed), "{:?}", outcome);
        }
    }

    #[test]
    fn engines_agree_on_changed_data(
        format in prop::sample::select(&[Format::Deflate, Format::Zlib, Format::Gzip, Format::Lz4Block][..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        len in 0usize..3_000,
    ) {
        let mut source = stream(format, &text(2_000));
        for (place, value) in changes {
            let place = place.index(source.len());
            source[place] = value;
        }
        let answers: Vec<_> = engines(Op::Decompress, &Params::new(format))
            .iter_mut()
            .map(|engine| run(&mut **engine, Op::Decompress, &Params::new(format), &source, len))
            .collect();
        let (done, others): (Vec<_>, Vec<_>) = answers.iter().partition(|(outcome, _)| matches!(outcome, Outcome::Done { .. }));
        prop_assert!(done.is_empty() || others.is_empty() || format == Format::Lz4Block, "{:?}", answers);
        prop_assert!(done.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
