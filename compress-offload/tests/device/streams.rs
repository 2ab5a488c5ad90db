//! Streams (docs/compress-device.md §1.6.8).

use crate::foreign::{decode, pipe};
use crate::formats::{compress, compressed, decompress, pair};
use crate::frontend::memory::next;
use crate::frontend::{Answer, Cut, PACKED, Request, SPLIT, Server, Setup, Vmm};
use crate::samples::{checksum, mixture, noise, text};
use compress_offload::options::Limits;
use compress_protocol::{Checksum, Format, Header, Opcode, Status, flag, response_flag};

/// Formats that streams have.
const FORMATS: [Format; 5] = [Format::Deflate, Format::Zlib, Format::Gzip, Format::Zstd, Format::Lz4Frame];

fn open(vmm: &mut Vmm, header: Header) -> u64 {
    let answer = vmm.ask(header);
    assert_eq!(answer.status(), Status::Ok);
    assert_ne!(answer.response.stream_id(), 0);
    answer.response.stream_id()
}

fn compressor(vmm: &mut Vmm, format: Format) -> u64 {
    open(vmm, Header::open_compressor(format, 0))
}

fn decompressor(vmm: &mut Vmm, format: Format) -> u64 {
    open(vmm, Header::open_decompressor(format))
}

fn more(opcode: Opcode, id: u64, flags: u32, src: &[u8], room: usize) -> Request {
    Request::new(Header::stream(opcode, id, flags, src.len() as u32, room as u32), src)
}

fn ended(answer: &Answer) -> bool {
    answer.response.flags & response_flag::STREAM_END != 0
}

/// Gives all of `src` to a stream that compresses, with so much room at a time; the last flag is repeated until it is done.
fn deflate(vmm: &mut Vmm, id: u64, src: &[u8], room: usize, flags: u32) -> Vec<u8> {
    let (mut rest, mut out) = (src, Vec::new());
    loop {
        let answer = vmm.ask(more(Opcode::Compress, id, flags, rest, room));
        rest = &rest[answer.response.consumed as usize..];
        out.extend(answer.result());
        let full = answer.result().len() == room;
        assert!(full || rest.is_empty(), "all is consumed unless the destination is full");
        let done = match flags {
            0 => rest.is_empty(),
            flag::FLUSH => !full,
            _ => ended(&answer),
        };
        assert_eq!(ended(&answer), flags == flag::FINISH && done);
        if done {
            return out;
        }
    }
}

/// Gives `src` to a stream that decompresses until it has ended or nothing more comes out; what came, and what is left.
fn inflate<'a>(vmm: &mut Vmm, id: u64, src: &'a [u8], step: usize, room: usize) -> (Vec<u8>, &'a [u8], bool) {
    let (mut rest, mut out) = (src, Vec::new());
    loop {
        let here = &rest[..rest.len().min(step)];
        let answer = vmm.ask(more(Opcode::Decompress, id, 0, here, room));
        rest = &rest[answer.response.consumed as usize..];
        out.extend(answer.result());
        let full = answer.result().len() == room;
        let end = ended(&answer);
        assert!(full || end || answer.response.consumed as usize == here.len(), "it stops only for a reason");
        if end || rest.is_empty() && !full {
            return (out, rest, end);
        }
    }
}

#[test]
fn a_text_that_is_compressed_in_pieces_is_one_whole_for_everybody() {
    let server = Server::new();
    for wanted in [SPLIT, PACKED] {
        let mut vmm = Vmm::running(&server, wanted);
        let data = [mixture(90_000), text(40_000)].concat();
        for format in FORMATS {
            for room in [100_000, 1500, 61] {
                let id = compressor(&mut vmm, format);
                let (mut seed, mut at, mut packed) = (room as u64, 0, Vec::new());
                let data = &data[..if room < 100 { 20_000 } else { data.len() }];
                while at < data.len() {
                    let piece = &data[at..data.len().min(at + 1 + next(&mut seed) as usize % 30_000)];
                    let flags = if next(&mut seed).is_multiple_of(4) { flag::FLUSH } else { 0 };
                    packed.extend(deflate(&mut vmm, id, piece, room, flags));
                    at += piece.len();
                }
                packed.extend(deflate(&mut vmm, id, &[], room, flag::FINISH));
                assert!(decode(format, &[packed.clone()]) == [data], "{format}, {room}");
                let whole = vmm.ask(decompress(format, &packed, data.len()));
                assert!(whole.result() == data, "{format}, {room}");
                assert_eq!(vmm.ask(Header::close(id)).status(), Status::Ok);
            }
        }
    }
    assert_eq!(server.unit.open_streams(), 0);
}

#[test]
fn a_history_makes_the_second_copy_small() {
    let (_server, mut vmm) = pair();
    let data = noise(20_000);
    for format in FORMATS {
        let id = compressor(&mut vmm, format);
        let first = deflate(&mut vmm, id, &data, 50_000, flag::FLUSH);
        let second = deflate(&mut vmm, id, &data, 50_000, flag::FLUSH);
        assert!(first.len() > 19_000 && second.len() < 1000, "{format}: {} {}", first.len(), second.len());
    }
}

#[test]
fn what_was_flushed_can_be_read_at_once() {
    let (_server, mut vmm) = pair();
    for format in FORMATS {
        let (there, back) = (compressor(&mut vmm, format), decompressor(&mut vmm, format));
        for index in 0..20 {
            let line = text(1 + 97 * index);
            let packed = deflate(&mut vmm, there, &line, 64 << 10, flag::FLUSH);
            let (read, rest, end) = inflate(&mut vmm, back, &packed, 1000, 64 << 10);
            assert!(read == line && rest.is_empty() && !end, "{format}, line {index}");
        }
    }
}

#[test]
fn data_are_read_in_pieces_into_whatever_room_there_is() {
    let (_server, mut vmm) = pair();
    let data = mixture(40_000);
    for format in FORMATS {
        let packed = compressed(&mut vmm, format, &data);
        for (step, room) in
            [(packed.len(), data.len()), (777, 1 << 20), (packed.len(), 1000), (1 << 16, 4096)]
        {
            let id = decompressor(&mut vmm, format);
            let (read, rest, end) = inflate(&mut vmm, id, &packed, step, room);
            let end = end || ended(&vmm.ask(more(Opcode::Decompress, id, 0, &[], room)));
            assert!(read == data && rest.is_empty() && end, "{format}, {step} {room}");
            vmm.ask(Header::close(id));
        }
        let id = decompressor(&mut vmm, format);
        let short = &packed[..400];
        let (read, ..) = inflate(&mut vmm, id, short, 1, 100);
        assert!(data.starts_with(&read), "{format}, byte by byte");
    }
}

#[test]
fn a_stream_reads_one_whole_after_the_other() {
    let (_server, mut vmm) = pair();
    let texts = [text(3000), text(100), mixture(50_000)];
    for format in FORMATS {
        let parts: Vec<_> = texts.iter().map(|text| compressed(&mut vmm, format, text)).collect();
        let file = parts.concat();
        let id = decompressor(&mut vmm, format);
        let (mut rest, mut left) = (&file[..], file.len());
        for (text, part) in texts.iter().zip(&parts) {
            let (read, behind, end) = inflate(&mut vmm, id, rest, file.len(), 60_000);
            assert!(end && read == *text, "{format}");
            left -= part.len();
            assert_eq!(behind.len(), left, "{format}: what is behind was not looked at");
            rest = behind;
        }
    }
}

#[test]
fn a_stream_writes_one_whole_after_the_other() {
    let (_server, mut vmm) = pair();
    for format in FORMATS {
        let id = compressor(&mut vmm, format);
        let text = text(5000);
        let first = deflate(&mut vmm, id, &text, 9000, flag::FINISH);
        let second = deflate(&mut vmm, id, &text, 9000, flag::FINISH);
        // One that still knew the first would be much shorter.
        assert!(second.len() * 10 > first.len() * 9, "{format}: {} and {}", first.len(), second.len());
        assert!(decode(format, &[second]) == [text], "{format}");
    }
}

#[test]
fn a_checksum_on_a_stream_is_of_its_own_request() {
    let (_server, mut vmm) = pair();
    for format in FORMATS {
        let (there, back) = (compressor(&mut vmm, format), decompressor(&mut vmm, format));
        for text in [text(1000), text(50), mixture(9000)] {
            let mut request = more(Opcode::Compress, there, flag::FLUSH, &text, 20_000);
            request.header.checksum = Checksum::Crc32.wire();
            let packed = vmm.ask(request);
            let expected = checksum(Checksum::Crc32, &text);
            assert_eq!(packed.response.checksum, expected, "{format}");
            let mut request = more(Opcode::Decompress, back, 0, packed.result(), 20_000);
            request.header.checksum = Checksum::Crc32.wire();
            assert_eq!(vmm.ask(request).response.checksum, expected, "{format}");
        }
        // Of what was consumed, not of what was offered.
        let noise = noise(200_000);
        let mut request = more(Opcode::Compress, there, 0, &noise, 100);
        request.header.checksum = Checksum::Crc32.wire();
        let part = vmm.ask(request);
        let consumed = part.response.consumed as usize;
        assert_eq!(part.response.checksum, checksum(Checksum::Crc32, &noise[..consumed]), "{format}");
    }
}

#[test]
fn streams_that_are_mixed_keep_apart() {
    let server = Server::with(Setup { workers: 2, queues: 2, ..Setup::default() });
    let mut vmm = Vmm::running(&server, SPLIT);
    let mut streams: Vec<_> = (0..20)
        .map(|index| {
            let (format, queue) = (FORMATS[index % FORMATS.len()], index % 2);
            let id = vmm.ask_on(queue, Header::open_compressor(format, 0)).response.stream_id();
            (format, queue, id, mixture(40_000 + 999 * index), Vec::new())
        })
        .collect();
    for step in 0..10 {
        let sent: Vec<u32> = streams
            .iter()
            .map(|(_, queue, id, data, _)| {
                let piece = data.chunks(data.len().div_ceil(10)).nth(step).unwrap();
                let end = if step == 9 { flag::FINISH } else { 0 };
                vmm.send(*queue, more(Opcode::Compress, *id, end, piece, 60_000))
            })
            .collect();
        let answers = vmm.wait_all(&sent);
        streams.iter_mut().zip(answers).for_each(|(stream, answer)| stream.4.extend(answer.result()));
    }
    for (format, _, _, data, packed) in streams {
        assert!(vmm.ask(decompress(format, &packed, data.len())).result() == data, "{format}");
    }
}

#[test]
fn requests_of_a_stream_are_executed_in_their_order() {
    let server = Server::with(Setup { workers: 3, ..Setup::default() });
    let mut vmm = Vmm::running(&server, SPLIT);
    for format in FORMATS {
        let id = compressor(&mut vmm, format);
        let data = mixture(300_000);
        // More at a time than a driver should, each with room for anything, among others that take longer or not at all.
        let mut sent = Vec::new();
        for (index, piece) in data.chunks(10_000).enumerate() {
            sent.push(vmm.put(0, more(Opcode::Compress, id, flag::FLUSH, piece, 30_000)));
            let other = text(1 + 20_000 * (index % 3));
            vmm.put(0, compress(Format::Zlib, &other, 30_000));
        }
        sent.push(vmm.put(0, more(Opcode::Compress, id, flag::FINISH, &[], 1000)));
        vmm.publish(0);
        let answers = vmm.wait_all(&sent);
        let packed: Vec<u8> = answers.iter().flat_map(|answer| answer.result().to_vec()).collect();
        assert!(vmm.ask(decompress(format, &packed, data.len())).result() == data, "{format}");
    }
}

#[test]
fn requests_may_be_cut_anywhere_also_on_streams() {
    let (_server, mut vmm) = pair();
    let data = text(3000);
    for format in FORMATS {
        for cut in [Cut::Whole, Cut::Every(50), Cut::Random(4, 90), Cut::Pages(4000)] {
            let id = compressor(&mut vmm, format);
            let packed = vmm.ask(more(Opcode::Compress, id, flag::FINISH, &data, 4000).cut(cut));
            let back = decompressor(&mut vmm, format);
            let read = vmm.ask(more(Opcode::Decompress, back, flag::FINISH, packed.result(), 3000).cut(cut));
            assert!(read.result() == data, "{format}, {cut:?}");
            for id in [id, back] {
                assert_eq!(vmm.ask(Header::close(id)).status(), Status::Ok);
            }
        }
    }
}

#[test]
fn a_stream_that_is_not_there_is_a_bad_stream() {
    let server = Server::with(Setup { queues: 2, ..Setup::default() });
    let mut vmm = Vmm::running(&server, SPLIT);
    let id = compressor(&mut vmm, Format::Zlib);
    let data = text(100);
    let request = |opcode, id| more(opcode, id, 0, &data, 300);
    for wrong in [0, 1, id + 1, id ^ 1 << 32, u64::MAX] {
        assert_eq!(vmm.ask(request(Opcode::Compress, wrong)).status(), Status::BadStream, "{wrong:#x}");
        assert_eq!(vmm.ask(Header::close(wrong)).status(), Status::BadStream, "{wrong:#x}");
    }
    assert_eq!(vmm.ask(request(Opcode::Decompress, id)).status(), Status::BadStream, "the other way");
    assert_eq!(vmm.ask_on(1, request(Opcode::Compress, id)).status(), Status::BadStream, "another queue's");
    assert_eq!(vmm.ask_on(1, Header::close(id)).status(), Status::BadStream, "another queue's");
    let packed = vmm.ask(more(Opcode::Compress, id, flag::FINISH, &data, 300));
    assert!(vmm.ask(decompress(Format::Zlib, packed.result(), 100)).result() == data, "none of it did harm");
    assert_eq!(vmm.ask(Header::close(id)).status(), Status::Ok);
    assert_eq!(vmm.ask(request(Opcode::Compress, id)).status(), Status::BadStream, "closed");
    assert_eq!(vmm.ask(Header::close(id)).status(), Status::BadStream, "closed twice");
    let next = compressor(&mut vmm, Format::Zlib);
    assert_ne!(next, id, "a new stream has a new number");
    assert_eq!(vmm.ask(request(Opcode::Compress, id)).status(), Status::BadStream, "the old number");
}

#[test]
fn a_block_has_no_streams() {
    let (_server, mut vmm) = pair();
    for header in [Header::open_compressor(Format::Lz4Block, 0), Header::open_decompressor(Format::Lz4Block)]
    {
        assert_eq!(vmm.ask(header).status(), Status::NotSupported);
    }
}

#[test]
fn streams_are_limited_over_all_queues() {
    let server = Server::with(Setup {
        queues: 2,
        limits: Limits { streams: 3, ..Limits::default() },
        ..Setup::default()
    });
    let mut vmm = Vmm::running(&server, SPLIT);
    assert_eq!(server.unit.config().max_streams, 3);
    let ids: Vec<u64> = (0..3)
        .map(|index| vmm.ask_on(index % 2, Header::open_decompressor(Format::Zstd)).response.stream_id())
        .collect();
    for queue in 0..2 {
        assert_eq!(vmm.ask_on(queue, Header::open_compressor(Format::Zlib, 0)).status(), Status::NoSpace);
    }
    assert_eq!(vmm.ask_on(1, Header::close(ids[1])).status(), Status::Ok);
    assert_eq!(vmm.ask_on(0, Header::open_compressor(Format::Zlib, 0)).status(), Status::Ok);
    assert_eq!(server.unit.open_streams(), 3);
}

#[test]
fn a_request_that_can_do_nothing_is_ok_and_changes_nothing() {
    let (_server, mut vmm) = pair();
    let data = text(3000);
    for format in FORMATS {
        let (there, back) = (compressor(&mut vmm, format), decompressor(&mut vmm, format));
        let mut packed = Vec::new();
        for piece in [&data[..1000], &data[1000..]] {
            let idle = vmm.ask(more(Opcode::Compress, there, 0, &[], 0));
            assert_eq!((idle.status(), idle.response.flags), (Status::Ok, 0), "{format}");
            packed.extend(deflate(&mut vmm, there, piece, 4000, 0));
            // There is something to write, and no room.
            for flags in [flag::FLUSH, flag::FINISH] {
                let full = vmm.ask(more(Opcode::Compress, there, flags, &[], 0));
                assert_eq!((full.status(), full.response.flags), (Status::Ok, 0), "{format}");
                // What was begun is to be ended the same way.
                packed.extend(deflate(&mut vmm, there, &[], 4000, flags));
            }
        }
        let mut rest = &packed[..];
        let mut read: Vec<u8> = Vec::new();
        while !rest.is_empty() {
            for room in [0, 100] {
                let idle = vmm.ask(more(Opcode::Decompress, back, 0, &[], room));
                read.extend(idle.result());
            }
            let answer = vmm.ask(more(Opcode::Decompress, back, 0, &rest[..rest.len().min(500)], 700));
            read.extend(answer.result());
            rest = &rest[answer.response.consumed as usize..];
        }
        read.extend(vmm.ask(more(Opcode::Decompress, back, 0, &[], 4000)).result());
        assert!(read == data, "{format}: two wholes with a part each");
        let nothing = vmm.ask(more(Opcode::Decompress, back, flag::FINISH, &[], 100));
        assert_eq!(nothing.status(), Status::Truncated, "{format}: another whole that never comes");
    }
}

#[test]
fn the_end_of_the_source_is_the_end_of_the_data_or_they_are_truncated() {
    let (_server, mut vmm) = pair();
    let data = text(5000);
    for format in FORMATS {
        let packed = compressed(&mut vmm, format, &data);
        let id = decompressor(&mut vmm, format);
        let whole = vmm.ask(more(Opcode::Decompress, id, flag::FINISH, &packed, 6000));
        assert!(whole.result() == data && ended(&whole), "{format}");
        // Room that is full says nothing about the end.
        let part = vmm.ask(more(Opcode::Decompress, id, flag::FINISH, &packed[..packed.len() - 1], 100));
        assert_eq!((part.status(), part.response.produced), (Status::Ok, 100), "{format}");
        let rest = &packed[part.response.consumed as usize..packed.len() - 1];
        let cut = vmm.ask(more(Opcode::Decompress, id, flag::FINISH, rest, 6000));
        assert_eq!(cut.status(), Status::Truncated, "{format}");
        assert_eq!(vmm.ask(more(Opcode::Decompress, id, 0, &packed, 6000)).status(), Status::BadStream);
        assert_eq!(
            vmm.ask(Header::close(id)).status(),
            Status::Ok,
            "{format}: what has failed can be closed"
        );
    }
}

#[test]
fn bad_data_fail_their_stream_and_no_other() {
    let (server, mut vmm) = pair();
    let data = text(5000);
    for format in FORMATS {
        let packed = compressed(&mut vmm, format, &data);
        let mut bad = packed.clone();
        let middle = if format == Format::Deflate { 0 } else { bad.len() - 2 };
        // A block type that there is not; a checksum that is wrong.
        bad[middle] ^= if format == Format::Deflate { !packed[0] & 6 } else { 0x40 };
        let (id, good) = (decompressor(&mut vmm, format), decompressor(&mut vmm, format));
        let answer = vmm.ask(more(Opcode::Decompress, id, 0, &bad, 6000));
        assert_eq!(answer.status(), Status::BadData, "{format}");
        let after = vmm.ask(more(Opcode::Decompress, id, 0, &packed, 6000));
        assert_eq!(after.status(), Status::BadStream, "{format}: there is no going on");
        let other = vmm.ask(more(Opcode::Decompress, good, 0, &packed, 6000));
        assert!(other.result() == data && ended(&other), "{format}");
        for id in [id, good] {
            assert_eq!(vmm.ask(Header::close(id)).status(), Status::Ok);
        }
    }
    assert_eq!(server.unit.open_streams(), 0);
}

#[test]
fn windows_of_8_mib_are_read_and_larger_ones_are_not_supported() {
    let server = Server::limited(Limits { max_size: 16 << 20, ..Limits::default() });
    let mut vmm = Vmm::running(&server, SPLIT);
    // The second copy of the noise is almost the whole window away.
    let data = [noise(1 << 20), vec![0; 6_900_000], noise(1 << 20)].concat();
    let packed = pipe("zstd", &["--long=23", "-c", "-q"], &data);
    assert!(packed.len() < 1_500_000, "the window is used");
    let id = decompressor(&mut vmm, Format::Zstd);
    let (read, rest, end) = inflate(&mut vmm, id, &packed, 100_000, 1 << 20);
    assert!(read == data && rest.is_empty() && end);
    assert!(vmm.ask(decompress(Format::Zstd, &packed, data.len())).result() == data);
    let larger = pipe("zstd", &["--long=24", "-c", "-q"], &data);
    let id = decompressor(&mut vmm, Format::Zstd);
    let answer = vmm.ask(more(Opcode::Decompress, id, 0, &larger[..5000], 5000));
    assert_eq!(answer.status(), Status::NotSupported);
    assert_eq!(vmm.ask(Header::close(id)).status(), Status::Ok);
}

#[test]
fn a_guest_that_was_paused_finds_its_streams_again() {
    let (_server, mut vmm) = pair();
    let data = text(9000);
    let id = compressor(&mut vmm, Format::Gzip);
    let mut packed = deflate(&mut vmm, id, &data[..4000], 9000, 0);
    let base = vmm.session.stop_queue(0).unwrap();
    vmm.start_queue(0, base);
    packed.extend(deflate(&mut vmm, id, &data[4000..], 9000, flag::FINISH));
    assert!(vmm.ask(decompress(Format::Gzip, &packed, 9000)).result() == data);
}

#[test]
fn another_guest_finds_no_streams() {
    let server = Server::new();
    let mut vmm = Vmm::running(&server, SPLIT);
    let id = compressor(&mut vmm, Format::Gzip);
    drop(vmm);
    let mut vmm = Vmm::running(&server, SPLIT);
    assert_eq!(vmm.ask(Header::close(id)).status(), Status::BadStream);
    assert_eq!(server.unit.open_streams(), 0);
}
