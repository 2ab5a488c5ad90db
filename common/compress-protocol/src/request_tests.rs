//! Every header gets its meaning or its status.

use crate::config::tests::example;
use crate::*;
use proptest::prelude::*;

/// One thing that is changed.
type Change<T> = fn(&mut T);

fn parse(header: Header) -> Result<Request, Status> {
    Request::parse(&header, &example(), feature::ALL)
}

fn operation(header: Header) -> Operation {
    parse(header).unwrap_or_else(|status| panic!("{header:?} gets {status:?}")).operation
}

/// One of each operation.
fn good() -> Vec<Header> {
    vec![
        Header::get_config(),
        Header::compress(Format::Zlib, 100, 200).with_level(3).with_flags(flag::VERIFY),
        Header::decompress(Format::Zstd, 100, 200),
        Header::checksum(Checksum::Xxh64, 100),
        Header::open_compressor(Format::Gzip, 5),
        Header::open_decompressor(Format::Gzip),
        Header::stream(Opcode::Compress, 7, flag::FLUSH, 100, 200),
        Header::stream(Opcode::Decompress, 7, flag::FINISH, 100, 200),
        Header::close(7),
    ]
}

#[test]
fn each_operation_is_understood() {
    let expected = [
        Operation::GetConfig,
        Operation::Compress { format: Format::Zlib, level: 3, verify: true },
        Operation::Decompress { format: Format::Zstd },
        Operation::Checksum,
        Operation::Open { direction: Direction::Compress, format: Format::Gzip, level: 5 },
        Operation::Open { direction: Direction::Decompress, format: Format::Gzip, level: 0 },
        Operation::Stream { id: 7, direction: Direction::Compress, flush: Flush::Flush },
        Operation::Stream { id: 7, direction: Direction::Decompress, flush: Flush::Finish },
        Operation::Close { id: 7 },
    ];
    for (header, expected) in good().into_iter().zip(expected) {
        assert_eq!(operation(header), expected);
    }
    let request =
        parse(Header::decompress(Format::Zstd, 100, 200).with_tag(9).with_checksum(Checksum::Crc32));
    let Request { checksum, src_len, dst_len, user_tag, .. } = request.unwrap();
    assert_eq!((checksum, src_len, dst_len, user_tag), (Checksum::Crc32, 100, 200, 9));
}

#[test]
fn every_format_goes_both_ways_and_a_block_makes_no_stream() {
    for format in Format::ALL {
        assert_eq!(
            operation(Header::compress(format, 0, 0)),
            Operation::Compress { format, level: 0, verify: false }
        );
        assert_eq!(operation(Header::decompress(format, 0, 0)), Operation::Decompress { format });
        let open = parse(Header::open_compressor(format, 0));
        assert_eq!(open.is_ok(), format != Format::Lz4Block);
        assert_eq!(open.err().unwrap_or(Status::NotSupported), Status::NotSupported);
        assert_eq!(parse(Header::open_decompressor(format)).is_ok(), format != Format::Lz4Block);
    }
}

/// A good header with one thing changed.
fn changed(index: usize, change: impl FnOnce(&mut Header)) -> Result<Request, Status> {
    let mut header = good()[index];
    change(&mut header);
    parse(header)
}

#[test]
fn what_the_device_does_not_know_is_not_supported() {
    for index in 0..good().len() {
        let unknown: [(&str, Change<Header>); 8] = [
            ("opcode", |header| header.opcode = 6),
            ("last opcode", |header| header.opcode = u16::MAX),
            ("format", |header| header.format = 7),
            ("checksum", |header| header.checksum = 5),
            ("flag", |header| header.flags |= 1 << 5),
            ("last flag", |header| header.flags |= 1 << 31),
            ("reserved field", |header| header.reserved = 1),
            ("last reserved byte", |header| header.reserved_tail[23] = 1),
        ];
        for (what, change) in unknown {
            assert_eq!(changed(index, change), Err(Status::NotSupported), "{what} of {index}");
        }
    }
}

#[test]
fn what_the_device_does_not_offer_is_not_supported() {
    let with = |change: Change<Config>, header: Header| {
        let mut config = example();
        change(&mut config);
        Request::parse(&header, &config, feature::ALL)
    };
    let refused: [(Change<Config>, Header); 6] = [
        (|config| config.compress_formats &= !Format::Zstd.bit(), Header::compress(Format::Zstd, 1, 1)),
        (|config| config.compress_formats &= !Format::Zstd.bit(), Header::open_compressor(Format::Zstd, 0)),
        (|config| config.decompress_formats &= !Format::Zstd.bit(), Header::decompress(Format::Zstd, 1, 1)),
        (|config| config.decompress_formats &= !Format::Zstd.bit(), Header::open_decompressor(Format::Zstd)),
        (|config| config.checksums &= !Checksum::Xxh32.bit(), Header::checksum(Checksum::Xxh32, 1)),
        (
            |config| config.checksums &= !Checksum::Xxh32.bit(),
            Header::compress(Format::Zlib, 1, 1).with_checksum(Checksum::Xxh32),
        ),
    ];
    for (change, header) in refused {
        assert!(parse(header).is_ok());
        assert_eq!(with(change, header), Err(Status::NotSupported), "{header:?}");
    }
    let other_way = with(|config| config.compress_formats = 0, Header::decompress(Format::Zstd, 1, 1));
    assert!(other_way.is_ok(), "the other direction is still there");
}

#[test]
fn levels_outside_their_range_are_not_supported() {
    for (level, good) in [(-8, false), (-7, true), (0, true), (19, true), (20, false), (i32::MIN, false)] {
        let expected = if good { None } else { Some(Status::NotSupported) };
        assert_eq!(parse(Header::compress(Format::Zstd, 1, 1).with_level(level)).err(), expected, "{level}");
        assert_eq!(parse(Header::open_compressor(Format::Zstd, level)).err(), expected, "{level}");
    }
}

#[test]
fn each_feature_opens_what_it_stands_for_and_nothing_else() {
    let needs = [
        0,
        feature::VERIFY,
        0,
        feature::CHECKSUM,
        feature::STREAM,
        feature::STREAM,
        feature::STREAM,
        feature::STREAM,
        feature::STREAM,
    ];
    for (header, needed) in good().into_iter().zip(needs) {
        for features in 0..=feature::ALL {
            let expected = if features & needed == needed { None } else { Some(Status::NotSupported) };
            assert_eq!(Request::parse(&header, &example(), features).err(), expected, "{header:?}");
        }
    }
    let summed = Header::compress(Format::Zlib, 1, 1).with_checksum(Checksum::Adler32);
    let without = feature::ALL & !feature::CHECKSUM;
    assert_eq!(Request::parse(&summed, &example(), without), Err(Status::NotSupported));
}

#[test]
fn a_field_the_operation_does_not_use_has_to_be_zero() {
    //                     format level checksum src   dst    id
    let uses: [[bool; 6]; 9] = [
        [false, false, false, false, true, false],
        [true, true, true, true, true, false],
        [true, false, true, true, true, false],
        [false, false, true, true, false, false],
        [true, true, false, false, false, false],
        [true, false, false, false, false, false],
        [false, false, true, true, true, true],
        [false, false, true, true, true, true],
        [false, false, false, false, false, true],
    ];
    let set: [fn(&mut Header); 6] = [
        |header| header.format = Format::Gzip.wire(),
        |header| header.level = 1,
        |header| header.checksum = Checksum::Crc32.wire(),
        |header| header.src_len = 1,
        |header| header.dst_len = 64,
        |header| header.stream_id = 1,
    ];
    for (index, uses) in uses.into_iter().enumerate() {
        for (field, (used, set)) in uses.into_iter().zip(set).enumerate() {
            let expected = if used { None } else { Some(Status::BadRequest) };
            assert_eq!(changed(index, set).err(), expected, "field {field} of {index}");
        }
    }
}

#[test]
fn flags_that_do_not_go_together_are_a_bad_request() {
    let sensible: [&[u32]; 9] = [
        &[0],
        &[0, flag::VERIFY],
        &[0],
        &[0],
        &[0],
        &[0, flag::DECOMPRESS],
        &[flag::STREAM, flag::STREAM | flag::FLUSH, flag::STREAM | flag::FINISH],
        &[flag::STREAM, flag::STREAM | flag::FINISH],
        &[0],
    ];
    for (index, sensible) in sensible.into_iter().enumerate() {
        for flags in 0..=flag::ALL {
            let expected = if sensible.contains(&flags) { None } else { Some(Status::BadRequest) };
            let outcome = changed(index, |header| header.flags = flags);
            assert_eq!(outcome.err(), expected, "{flags:#b} of {index}");
        }
    }
    let both = flag::FLUSH | flag::FINISH;
    let header = Header::stream(Opcode::Compress, 1, both, 1, 1);
    assert_eq!(parse(header), Err(Status::BadRequest), "flush and finish");
    let header = Header::stream(Opcode::Compress, 1, flag::VERIFY, 1, 1);
    assert_eq!(parse(header), Err(Status::BadRequest), "streams are not verified");
    for alone in [flag::FINISH, flag::FLUSH, flag::DECOMPRESS] {
        let header = Header::compress(Format::Zlib, 1, 1).with_flags(alone);
        assert_eq!(parse(header), Err(Status::BadRequest), "{alone} without a stream");
    }
}

#[test]
fn an_operation_without_what_it_needs_is_a_bad_request() {
    for index in [1, 2, 4, 5] {
        assert_eq!(changed(index, |header| header.format = 0), Err(Status::BadRequest), "{index}");
    }
    assert_eq!(changed(3, |header| header.checksum = 0), Err(Status::BadRequest));
    assert_eq!(changed(0, |header| header.dst_len = 63), Err(Status::BadRequest));
    assert!(changed(0, |header| header.dst_len = 65).is_ok());
}

#[test]
fn limits_are_inclusive() {
    let limit = 1 << 20;
    for index in [1, 2, 3, 6, 7] {
        assert!(changed(index, |header| header.src_len = limit).is_ok());
        for len in [limit + 1, u32::MAX] {
            assert_eq!(changed(index, |header| header.src_len = len), Err(Status::BadRequest));
        }
    }
    for index in [0, 1, 2, 6, 7] {
        assert!(changed(index, |header| header.dst_len = limit).is_ok());
        for len in [limit + 1, u32::MAX] {
            assert_eq!(changed(index, |header| header.dst_len = len), Err(Status::BadRequest));
        }
    }
}

#[test]
fn not_supported_comes_before_bad_request() {
    let header = Header { dst_len: u32::MAX, stream_id: 4, format: 9, ..Header::get_config() };
    assert_eq!(parse(header), Err(Status::NotSupported));
}

#[test]
fn a_chain_fits_when_it_holds_at_least_both_lengths() {
    let request = parse(Header::compress(Format::Zlib, 100, 200)).unwrap();
    for (readable, writable, fits) in
        [(100, 200, true), (99, 200, false), (100, 199, false), (u64::MAX, u64::MAX, true)]
    {
        assert_eq!(request.fits(readable, writable), fits, "{readable} {writable}");
    }
}

#[test]
fn the_bound_is_above_what_formats_add() {
    assert_eq!(compress_bound(0), 128);
    for len in (0..=1 << 20).step_by(997).chain([u32::MAX]) {
        let (len64, bound) = (u64::from(len), compress_bound(len));
        assert!(bound >= len64 + len64 / 255 + 16, "an LZ4 block of {len}");
        assert!(bound >= len64 + 5 * (len64 / 5000 + 1) + 1 + 8 + 18, "gzip of {len}");
        let edge = if len64 < 128 << 10 { ((128 << 10) - len64) >> 11 } else { 0 };
        assert!(bound >= len64 + (len64 >> 8) + edge, "a Zstandard frame of {len}");
    }
}

proptest! {
    /// Any header is something to any device, and what is understood keeps to the device's word.
    #[test]
    fn any_header_is_a_request_or_a_status(
        opcode in 0u16..8,
        format in 0u8..9,
        checksum in 0u8..7,
        flags in 0u32..64,
        level in -30i32..30,
        lens in (0u32..3000, 0u32..3000),
        id in 0u64..3,
        reserved in prop_oneof![9 => Just(0u32), 1 => any::<u32>()],
        masks in (any::<u32>(), any::<u32>(), any::<u32>()),
        features in 0u64..8,
    ) {
        let header = Header {
            opcode, format, checksum, flags, level, src_len: lens.0, dst_len: lens.1, reserved, stream_id: id,
            ..Header::default()
        };
        let config = Config {
            compress_formats: masks.0, decompress_formats: masks.1, checksums: masks.2,
            max_src: 2000, max_dst: 2000, ..example()
        };
        match Request::parse(&header, &config, features) {
            Ok(request) => {
                prop_assert!(request.src_len <= 2000 && request.dst_len <= 2000);
                prop_assert!(config.sums(request.checksum));
                prop_assert!(header.reserved == 0);
                let streams = features & feature::STREAM != 0;
                match request.operation {
                    Operation::Compress { format, level, verify } => {
                        prop_assert!(config.compresses(format) && config.levels(format).contain(level));
                        prop_assert!(!verify || features & feature::VERIFY != 0);
                    }
                    Operation::Decompress { format } => prop_assert!(config.decompresses(format)),
                    Operation::GetConfig => prop_assert!(request.dst_len >= 64),
                    Operation::Checksum => prop_assert!(request.checksum != Checksum::None),
                    Operation::Open { direction, format, .. } => {
                        prop_assert!(streams && format.streams());
                        let offered = match direction {
                            Direction::Compress => config.compresses(format),
                            Direction::Decompress => config.decompresses(format),
                        };
                        prop_assert!(offered);
                    }
                    Operation::Stream { .. } | Operation::Close { .. } => prop_assert!(streams),
                }
            }
            Err(status) => {
                let expected = [Status::NotSupported, Status::BadRequest].contains(&status);
                prop_assert!(expected, "{:?}", status);
            }
        }
    }
}
