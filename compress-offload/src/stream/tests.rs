use proptest::prelude::*;

use super::*;
use crate::algorithm::{default_level, levels};
use crate::engine::{Choice, Engines, Verify};

fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|format| format.streams())
}

fn open(direction: Direction, format: Format) -> Stream {
    Stream::open(direction, &Params::new(format)).expect("a stream")
}

/// One request: what it consumed, what it produced, and whether that was the end.
#[track_caller]
fn request(stream: &mut Stream, src: &[u8], room: usize, flush: Flush) -> (usize, Vec<u8>, bool) {
    let mut memory = vec![0xa5; room + 64];
    let answer = stream.run(src, Output::from(&mut memory[..room]), flush, Checksum::Xxh64);
    assert!(memory[room..].iter().all(|&byte| byte == 0xa5), "behind the destination");
    let Outcome::Done { consumed, produced } = answer.outcome else { panic!("{answer:?}") };
    memory.truncate(produced);
    let plain = if stream.direction() == Direction::Compress { &src[..consumed] } else { &memory[..] };
    assert_eq!(answer.checksum, checksum::of(Checksum::Xxh64, plain), "of this request alone");
    (consumed, memory, answer.stream_end)
}

/// All of `data` through a stream, with requests of at most `piece` bytes of source and `room` of destination. `flush` goes
/// with the last piece, until there is nothing more to come.
#[track_caller]
fn all(stream: &mut Stream, data: &[u8], piece: usize, room: usize, flush: Flush) -> Vec<u8> {
    let (mut rest, mut result) = (data, Vec::new());
    loop {
        let source = &rest[..rest.len().min(piece)];
        let last = source.len() == rest.len();
        let (consumed, more, end) = request(stream, source, room, if last { flush } else { Flush::No });
        rest = &rest[consumed..];
        let full = more.len() == room;
        result.extend(more);
        if end || last && rest.is_empty() && !full {
            assert!(rest.is_empty(), "it ended before its source did");
            assert!(flush != Flush::Finish || end, "it did not end");
            return result;
        }
    }
}

/// What one request without a stream makes of it.
fn whole(direction: Direction, format: Format, src: &[u8], len: usize) -> (Outcome, Vec<u8>) {
    let mut memory = vec![0; len];
    let mut engines = Engines::new(Choice::Auto, Verify::Off);
    let outcome =
        engines.run(direction, &Params::new(format), false, src, Output::from(&mut memory[..])).outcome;
    if let Outcome::Done { produced, .. } = outcome {
        memory.truncate(produced);
    }
    (outcome, memory)
}

fn text(len: usize) -> Vec<u8> {
    include_str!("../stream.rs")
        .bytes()
        .cycle()
        .zip(0u32..)
        .map(|(byte, i)| byte ^ (i >> 13) as u8 & 1)
        .take(len)
        .collect()
}

#[test]
fn what_streams_write_is_read_at_once_and_the_other_way_round() {
    let data = text(300_000);
    for format in formats() {
        for data in [&data[..], &data[..1], &[]] {
            let written = all(&mut open(Direction::Compress, format), data, 10_000, 1_000, Flush::Finish);
            let (outcome, again) = whole(Direction::Decompress, format, &written, data.len());
            assert_eq!(outcome, Outcome::Done { consumed: written.len(), produced: data.len() }, "{format}");
            assert!(again == data, "{format}");
            let (_, compressed) = whole(Direction::Compress, format, data, 400_000);
            let read = all(&mut open(Direction::Decompress, format), &compressed, 777, 5_000, Flush::Finish);
            assert!(read == data, "{format}");
        }
    }
}

#[test]
fn history_goes_on_from_request_to_request() {
    let line: Vec<u8> =
        (0..1_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()).collect();
    for format in formats() {
        let mut stream = open(Direction::Compress, format);
        let first = all(&mut stream, &line, 4_000, 10_000, Flush::Flush);
        let second = all(&mut stream, &line, 4_000, 10_000, Flush::Flush);
        assert!(second.len() * 10 < first.len(), "{format}: {} then {}", first.len(), second.len());
        let mut reader = open(Direction::Decompress, format);
        assert_eq!(all(&mut reader, &first, 100, 10_000, Flush::No), line, "{format}: all that was flushed");
        assert_eq!(all(&mut reader, &second, 100, 10_000, Flush::No), line, "{format}");
    }
}

#[test]
fn after_its_end_a_stream_begins_anew_without_history() {
    let data = text(20_000);
    for format in formats() {
        let mut writer = open(Direction::Compress, format);
        let first = all(&mut writer, &data, 20_000, 30_000, Flush::Finish);
        let second = all(&mut writer, &data, 20_000, 30_000, Flush::Finish);
        // LZ4 may choose other matches, but none in what came before.
        assert!(first == second || format == Format::Lz4Frame, "{format}");
        assert!(second.len() * 10 > first.len() * 9, "{format}: {} then {}", first.len(), second.len());
        assert!(whole(Direction::Decompress, format, &second, data.len()).1 == data, "{format}");
        let mut reader = open(Direction::Decompress, format);
        let both = [&first[..], &second].concat();
        let (consumed, read, end) = request(&mut reader, &both, 50_000, Flush::No);
        assert!(
            (consumed, end) == (first.len(), true) && read == data,
            "{format}: the first and nothing of the second"
        );
        assert!(all(&mut reader, &both[consumed..], 1_000, 1_000, Flush::Finish) == data, "{format}");
    }
}

#[test]
fn a_window_of_an_earlier_whole_is_out_of_reach() {
    // A match in front of everything.
    let mut reader = open(Direction::Decompress, Format::Deflate);
    let (_, compressed) = whole(Direction::Compress, Format::Deflate, &text(5_000), 6_000);
    all(&mut reader, &compressed, 500, 500, Flush::Finish);
    let answer = reader.run(&[0x03, 0x02, 0x00], Output::from(&mut [0; 100][..]), Flush::No, Checksum::None);
    assert_eq!(answer, Answer::bare(Outcome::BadData));
}

#[test]
fn a_source_that_ends_early_is_truncated_only_when_it_was_the_last() {
    let data = text(5_000);
    for format in formats() {
        let (_, compressed) = whole(Direction::Compress, format, &data, 6_000);
        for len in (0..compressed.len()).step_by(97) {
            let mut reader = open(Direction::Decompress, format);
            let mut memory = vec![0; 6_000];
            let waits =
                reader.run(&compressed[..len], Output::from(&mut memory[..]), Flush::No, Checksum::None);
            assert!(
                matches!(waits.outcome, Outcome::Done { .. }) && !waits.stream_end,
                "{format} {len}: {waits:?}"
            );
            let cut = reader.run(&[], Output::from(&mut memory[..]), Flush::Finish, Checksum::None);
            assert_eq!(cut, Answer::bare(Outcome::Truncated), "{format} {len}");
            assert!(reader.failed());
        }
    }
}

#[test]
fn a_failed_stream_stays_failed() {
    for format in formats().filter(|&format| format != Format::Deflate) {
        let mut reader = open(Direction::Decompress, format);
        let mut memory = [0; 100];
        let bad = reader.run(&[0xee; 40], Output::from(&mut memory[..]), Flush::No, Checksum::Crc32);
        assert_eq!(bad, Answer::bare(Outcome::BadData), "{format}");
        let (_, good) = whole(Direction::Compress, format, b"data", 100);
        let after = reader.run(&good, Output::from(&mut memory[..]), Flush::No, Checksum::Crc32);
        assert!(reader.failed() && after == Answer::bare(Outcome::Failed), "{format}");
    }
}

#[test]
fn no_room_and_no_source_are_no_progress_and_no_failure() {
    for format in formats() {
        for direction in [Direction::Compress, Direction::Decompress] {
            let mut stream = open(direction, format);
            for _ in 0..40 {
                assert_eq!(request(&mut stream, &[], 0, Flush::No), (0, Vec::new(), false), "{format}");
                assert!(!request(&mut stream, &[], 100, Flush::No).2, "{format}");
            }
        }
        let data = text(3_000);
        let (_, compressed) = whole(Direction::Compress, format, &data, 4_000);
        let mut reader = open(Direction::Decompress, format);
        let mut consumed = 0;
        for _ in 0..40 {
            consumed += request(&mut reader, &compressed[consumed..], 0, Flush::No).0;
        }
        assert!(all(&mut reader, &compressed[consumed..], 4_000, 100, Flush::No) == data, "{format}");
    }
}

#[test]
fn dictionaries_and_large_windows_are_not_supported() {
    let zlib = [0x78, 0xbb, 0, 0, 0, 1, 0x03, 0x00];
    // Frames without content size: windows of 16 MiB and of 8 MiB, then an empty last block.
    let zstd = |log: u8| [0x28, 0xb5, 0x2f, 0xfd, 0x00, (log - 10) << 3, 1, 0, 0];
    let lz4 = [4, 0x22, 0x4d, 0x18, 0x41, 0x40, 7, 0, 0, 0, 0];
    let answer = |format, source: &[u8]| {
        let mut reader = open(Direction::Decompress, format);
        let mut answer = Answer::bare(Outcome::Failed);
        for byte in source {
            answer = reader.run(&[*byte], Output::from(&mut [0; 100][..]), Flush::No, Checksum::None);
            if reader.failed() {
                break;
            }
        }
        answer
    };
    assert_eq!(answer(Format::Zlib, &zlib).outcome, Outcome::NotSupported);
    assert_eq!(answer(Format::Zstd, &zstd(24)).outcome, Outcome::NotSupported);
    assert!(answer(Format::Zstd, &zstd(23)).stream_end);
    assert_eq!(answer(Format::Lz4Frame, &lz4).outcome, Outcome::NotSupported);
}

#[test]
fn streams_have_the_levels_of_their_formats_and_bounded_memory() {
    let data = text(3 << 20);
    for format in formats() {
        let range = levels(format);
        for level in (range.min..=range.max).filter(|level| *level > -8).map(i32::from) {
            let params = Params::new(format).with_level(level);
            let mut writer = Stream::open(Direction::Compress, &params).expect("a level");
            let compressed = all(
                &mut writer,
                &data[..if level > 9 { 2 << 20 } else { 3 << 20 }],
                1 << 18,
                1 << 18,
                Flush::Finish,
            );
            assert!(writer.memory() <= MAX_MEMORY, "{params:?}: {}", writer.memory());
            let mut reader = open(Direction::Decompress, format);
            let again = all(&mut reader, &compressed, 1 << 18, 1 << 18, Flush::Finish);
            assert!(data.starts_with(&again), "{params:?}");
            assert!(reader.memory() <= MAX_MEMORY, "{format}: {}", reader.memory());
        }
        let beyond = Params::new(format).with_level(i32::from(range.max) + 1);
        assert_eq!(Stream::open(Direction::Compress, &beyond).map(drop), Err(Outcome::NotSupported));
        assert!(
            Stream::open(Direction::Decompress, &beyond).is_ok(),
            "a level says nothing when decompressing"
        );
    }
    let block = Params::new(Format::Lz4Block).with_level(default_level(Format::Lz4Block));
    assert_eq!(Stream::open(Direction::Decompress, &block).map(drop), Err(Outcome::NotSupported));
}

#[test]
fn a_guests_range_gets_the_same() {
    let data = text(2_000);
    let guest: Vec<std::sync::atomic::AtomicU8> = (0..4_000).map(|_| 0.into()).collect();
    let range = memory::HostRange { base: guest.as_ptr().cast_mut().cast(), len: guest.len() };
    let mut stream = open(Direction::Compress, Format::Zlib);
    #[expect(unsafe_code, reason = "a guest's range")]
    // SAFETY: the range is there until the end of the test, and is made of atomics.
    let output = unsafe { Output::guest(range) };
    let answer = stream.run(&data, output, Flush::Finish, Checksum::None);
    let Outcome::Done { produced, .. } = answer.outcome else { panic!("{answer:?}") };
    let compressed: Vec<u8> =
        guest[..produced].iter().map(|byte| byte.load(std::sync::atomic::Ordering::Relaxed)).collect();
    assert!(answer.stream_end && whole(Direction::Decompress, Format::Zlib, &compressed, 2_000).1 == data);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_pieces_give_back_the_data(
        format in prop::sample::select(formats().collect::<Vec<_>>()),
        len in 0usize..200_000,
        pieces in (1usize..70_000, 1usize..70_000),
        rooms in (1usize..70_000, 1usize..70_000),
        flush in prop::sample::select(&[Flush::Flush, Flush::Finish][..]),
    ) {
        // Tiny pieces of long data take long and show nothing that those of short data do not.
        let len = len.min(pieces.0.min(pieces.1).min(rooms.0).min(rooms.1) * 300);
        let data = text(len);
        let compressed = all(&mut open(Direction::Compress, format), &data, pieces.0, rooms.0, flush);
        let end = if flush == Flush::Finish { Flush::Finish } else { Flush::No };
        let again = all(&mut open(Direction::Decompress, format), &compressed, pieces.1, rooms.1, end);
        prop_assert!(again == data);
    }

    #[test]
    fn noise_is_an_outcome_and_no_more(
        format in prop::sample::select(formats().collect::<Vec<_>>()),
        noise in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
        room in 0usize..3_000,
    ) {
        let mut reader = open(Direction::Decompress, format);
        let mut memory = vec![0xa5; room + 64];
        for source in noise {
            let answer = reader.run(&source, Output::from(&mut memory[..room]), Flush::No, Checksum::Adler32);
            prop_assert!(!matches!(answer.outcome, Outcome::Overflow | Outcome::Incompressible));
        }
        prop_assert!(memory[room..].iter().all(|&byte| byte == 0xa5));
    }
}

/// A coder with a mistake in it.
struct Mistaken;

impl Coder for Mistaken {
    fn go_on(&mut self, src: &[u8], _: &mut [u8], _: Flush) -> Result<Progress, Outcome> {
        panic!("{} bytes", src.len());
    }

    fn memory(&self) -> usize {
        0
    }
}

#[test]
fn a_coder_that_panics_fails_its_stream_and_not_the_worker() {
    let (direction, format) = (Direction::Compress, Format::Zlib);
    let mut stream = Stream { coder: Box::new(Mistaken), direction, format, failed: false };
    let mut memory = [0; 100];
    let answer = stream.run(b"abc", Output::from(&mut memory[..]), Flush::Finish, Checksum::None);
    assert!(answer.outcome == Outcome::Failed && stream.failed());
}
