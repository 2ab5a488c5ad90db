//! Destinations that are too short, and data that means to be more than fits.

use super::*;
use crate::algorithm::levels;

#[test]
fn a_result_of_n_bytes_fits_into_n_and_into_nothing_shorter() {
    let data = [&b"a line and a line and a line"[..], &noise(90)].concat();
    for format in Format::ALL {
        for level in [levels(format).min, 1, 3, levels(format).max] {
            let params = Params::new(format).with_level(level.into());
            for mut engine in engines(Op::Compress, &params) {
                let whole = compress(&mut *engine, &params, &data);
                for len in 0..whole.len() {
                    let (outcome, _) = run(&mut *engine, Op::Compress, &params, &data, len);
                    assert_eq!(outcome, Outcome::Incompressible, "{} {params:?} {len}", engine.name());
                }
                let (outcome, result) = run(&mut *engine, Op::Compress, &params, &data, whole.len());
                assert!(matches!(outcome, Outcome::Done { .. }), "{} {params:?}: {outcome:?}", engine.name());
                assert_eq!(result, whole);
            }
        }
    }
}

#[test]
fn noise_does_not_fit_into_its_own_length() {
    for len in [1, 100, 4_096, 65_536, 70_000, 300_000] {
        let data = noise(len);
        for format in Format::ALL {
            for level in [levels(format).min, 1, 2, 3, levels(format).max] {
                let params = Params::new(format).with_level(level.into());
                for mut engine in engines(Op::Compress, &params) {
                    let (outcome, _) = run(&mut *engine, Op::Compress, &params, &data, len);
                    assert_eq!(outcome, Outcome::Incompressible, "{} {params:?} {len}", engine.name());
                    assert!(compress(&mut *engine, &params, &data).len() > len);
                }
            }
        }
    }
}

#[test]
fn every_destination_shorter_than_the_data_overflows() {
    let data = [&vec![b'x'; 300][..], &text(200), &noise(200)].concat();
    for format in Format::ALL {
        let compressed = stream(format, &data);
        for mut engine in engines(Op::Decompress, &Params::new(format)) {
            for len in 0..data.len() {
                let (outcome, _) = run(&mut *engine, Op::Decompress, &Params::new(format), &compressed, len);
                assert_eq!(outcome, Outcome::Overflow, "{} {format} {len}", engine.name());
            }
            assert_eq!(decompress(&mut *engine, format, &compressed, data.len()), data);
        }
    }
}

#[test]
fn nothing_needs_no_room() {
    for format in Format::ALL {
        let compressed = stream(format, b"");
        for mut engine in engines(Op::Decompress, &Params::new(format)) {
            assert_eq!(decompress(&mut *engine, format, &compressed, 0), b"", "{} {format}", engine.name());
        }
    }
}

#[test]
fn a_bomb_ends_at_the_destination() {
    let bomb = vec![0; 8 << 20];
    for format in Format::ALL {
        let compressed = stream(format, &bomb);
        assert!(compressed.len() < bomb.len() / 200, "{format}: {}", compressed.len());
        for mut engine in engines(Op::Decompress, &Params::new(format)) {
            for len in [0, 1, 4_096, 65_536, (8 << 20) - 1] {
                let (outcome, _) = run(&mut *engine, Op::Decompress, &Params::new(format), &compressed, len);
                assert_eq!(outcome, Outcome::Overflow, "{} {format} {len}", engine.name());
            }
        }
    }
}

#[test]
fn a_content_size_that_is_not_true_is_bad_data() {
    // A Zstandard frame of a raw block of four bytes, whose header says three or five; and LZ4's, checksum of the header right.
    let zstd = |size| [0x28, 0xb5, 0x2f, 0xfd, 0x20, size, 0x21, 0, 0, 1, 2, 3, 4];
    let outcome =
        |src: &[u8]| run(&mut *engine("zstd"), Op::Decompress, &Params::new(Format::Zstd), src, 100).0;
    assert_eq!(outcome(&zstd(4)), Outcome::Done { consumed: 13, produced: 4 });
    assert_eq!(outcome(&zstd(3)), Outcome::BadData);
    assert_eq!(outcome(&zstd(5)), Outcome::BadData);
    let mut frame = stream(Format::Lz4Frame, b"four");
    assert_eq!(frame[6], 4, "the content size");
    frame[6] = 5;
    frame[14] = (crate::checksum::of(crate::algorithm::Checksum::Xxh32, &frame[4..14]) >> 8) as u8;
    let outcome = run(&mut *engine("lz4"), Op::Decompress, &Params::new(Format::Lz4Frame), &frame, 100).0;
    assert_eq!(outcome, Outcome::BadData);
}
