//! What becomes of data: every status of COMPRESS, DECOMPRESS and CHECKSUM (docs/compress-device.md §1.6.6).

use crate::foreign::{decode, levels, python};
use crate::frontend::{Answer, Request, SPLIT, Server, Vmm};
use crate::samples::{checksum, mixture, noise, text};
use compress_protocol::{Checksum, Format, Header, Status, compress_bound, flag, response_flag};

/// Formats whose data say where they end.
const ENDING: [Format; 5] = [Format::Deflate, Format::Zlib, Format::Gzip, Format::Zstd, Format::Lz4Frame];
/// Formats of which several may follow each other.
const JOINED: [Format; 3] = [Format::Gzip, Format::Zstd, Format::Lz4Frame];
/// A skippable frame of five bytes, for Zstandard and LZ4.
const SKIPPED: [u8; 13] = [0x5a, 0x2a, 0x4d, 0x18, 5, 0, 0, 0, 1, 2, 3, 4, 5];

pub fn compress(format: Format, src: &[u8], dst_len: usize) -> Request {
    Request::new(Header::compress(format, src.len() as u32, dst_len as u32), src)
}

pub fn decompress(format: Format, src: &[u8], dst_len: usize) -> Request {
    Request::new(Header::decompress(format, src.len() as u32, dst_len as u32), src)
}

fn bound(src: &[u8]) -> usize {
    compress_bound(src.len() as u32) as usize
}

/// The text in this format, by the device.
pub fn compressed(vmm: &mut Vmm, format: Format, text: &[u8]) -> Vec<u8> {
    vmm.ask(compress(format, text, bound(text).min(1 << 20))).result().to_vec()
}

/// A device and a driver with nothing special about them.
pub fn pair() -> (Server, Vmm) {
    let server = Server::new();
    let vmm = Vmm::running(&server, SPLIT);
    (server, vmm)
}

/// Sends all of these, as many at a time as the ring holds, and hands over the answers in their order.
fn ask_all(vmm: &mut Vmm, requests: impl IntoIterator<Item = Request>, mut each: impl FnMut(usize, Answer)) {
    let mut requests = requests.into_iter().enumerate().peekable();
    while requests.peek().is_some() {
        let part: Vec<_> =
            requests.by_ref().take(50).map(|(index, request)| (index, vmm.put(0, request))).collect();
        vmm.publish(0);
        part.into_iter().for_each(|(index, cookie)| each(index, vmm.wait(cookie)));
    }
}

#[test]
fn what_is_compressed_comes_back_in_every_format_and_size() {
    let (_server, mut vmm) = pair();
    for format in Format::ALL {
        for len in [0, 1, 2, 63, 64, 65, 1023, 1024, 1025, 4095, 4096, 4097, 65_535, 65_536, 65_537, 900_000]
        {
            for data in [text(len), noise(len), vec![0; len]] {
                let packed = compressed(&mut vmm, format, &data);
                let answer = vmm.ask(decompress(format, &packed, len));
                assert!(answer.result() == data, "{format}, {len}");
                assert_eq!(answer.response.consumed as usize, packed.len(), "{format}, {len}");
                let roomy = vmm.ask(decompress(format, &packed, len + 5000));
                assert!(roomy.result() == data, "{format}, {len}, with room to spare");
            }
        }
    }
}

#[test]
fn levels_trade_time_for_size() {
    let (_server, mut vmm) = pair();
    let data = text(200_000);
    for format in Format::ALL {
        let mut size = |level| {
            let mut request = compress(format, &data, bound(&data));
            request.header.level = level;
            vmm.ask(request).response.produced
        };
        let (low, high) = (size(1), size(*levels(format).last().unwrap()));
        assert!(high < low, "{format}: {low} at level 1, {high} at the highest");
    }
}

#[test]
fn an_empty_source_compresses_like_any_other() {
    let (_server, mut vmm) = pair();
    for format in Format::ALL {
        let packed = compressed(&mut vmm, format, &[]);
        assert!(!packed.is_empty(), "{format}");
        assert_eq!(decode(format, std::slice::from_ref(&packed)), [Vec::<u8>::new()], "{format}");
        let answer = vmm.ask(decompress(format, &packed, 0));
        assert_eq!((answer.status(), answer.response.produced), (Status::Ok, 0), "{format}, into nothing");
    }
}

#[test]
fn an_empty_source_is_truncated_in_every_format() {
    let (_server, mut vmm) = pair();
    for format in Format::ALL {
        for room in [0, 1, 5000] {
            assert_eq!(vmm.ask(decompress(format, &[], room)).status(), Status::Truncated, "{format} {room}");
        }
    }
}

#[test]
fn a_destination_of_the_bound_holds_every_result() {
    let (_server, mut vmm) = pair();
    for format in Format::ALL {
        for level in levels(format) {
            for data in [noise(1), noise(1000), noise(4096), noise(70_000), mixture(300_000)] {
                let mut request = compress(format, &data, bound(&data));
                request.header.level = level;
                assert_eq!(vmm.ask(request).status(), Status::Ok, "{format}, level {level}, {}", data.len());
            }
        }
    }
}

#[test]
fn a_result_that_is_a_byte_too_long_is_incompressible() {
    let (server, mut vmm) = pair();
    for format in Format::ALL {
        for data in [text(3000), noise(3000), vec![0; 3000], text(100_000), vec![]] {
            let needed = compressed(&mut vmm, format, &data).len();
            for room in
                [needed - 1, needed.saturating_sub(2), needed / 2, 1, 0, needed, needed + 1, needed + 9]
            {
                let answer = vmm.ask(compress(format, &data, room));
                match answer.status() {
                    // With room to spare; or LZ4, of which one text has results of several lengths.
                    Status::Ok if room >= needed || needed - room < 3 && format == Format::Lz4Frame => {
                        let back = vmm.ask(decompress(format, answer.result(), data.len()));
                        assert!(back.result() == data, "{format}, {room} of {needed}");
                    }
                    status => assert_eq!(status, Status::Incompressible, "{format}, {room} of {needed}"),
                }
            }
        }
    }
    assert_eq!(server.unit.totals().second_engine, 0, "a full destination is nobody's failure");
}

#[test]
fn a_destination_that_is_a_byte_too_short_is_an_overflow() {
    let (_server, mut vmm) = pair();
    for format in Format::ALL {
        for data in [text(1), text(3000), noise(3000), vec![0; 3000], text(100_000), vec![9; 1 << 20]] {
            let packed = compressed(&mut vmm, format, &data);
            let len = data.len();
            assert_eq!(vmm.ask(decompress(format, &packed, len)).status(), Status::Ok, "{format}");
            for room in [len - 1, len - len.min(2), len / 2, 0] {
                let answer = vmm.ask(decompress(format, &packed, room));
                assert_eq!(answer.status(), Status::Overflow, "{format}, {room} of {len}");
            }
        }
    }
}

#[test]
fn a_bomb_is_an_overflow_and_costs_no_more_than_the_destination() {
    let (_server, mut vmm) = pair();
    let zeros = vec![0; 1 << 20];
    for format in Format::ALL {
        // A hundred times what the device's largest destination holds, where several wholes can follow each other.
        let bomb = match format {
            Format::Deflate => python(&["make(b'\\0' * (100 << 20), 9, -15, 8, 0)"], &[vec![]]).remove(0),
            Format::Zlib => python(&["make(b'\\0' * (100 << 20), 9, 15, 8, 0)"], &[vec![]]).remove(0),
            Format::Lz4Block => compressed(&mut vmm, format, &zeros),
            Format::Gzip | Format::Zstd | Format::Lz4Frame => {
                compressed(&mut vmm, format, &zeros).repeat(100)
            }
        };
        for room in [0, 1, 100, 4096, 65_536, (1 << 20) - 1] {
            let answer = vmm.ask(decompress(format, &bomb, room));
            assert_eq!(answer.status(), Status::Overflow, "{format}, {room}");
        }
        assert!(!compressed(&mut vmm, format, b"still here").is_empty());
    }
}

#[test]
fn data_that_end_early_are_truncated_wherever_they_end() {
    let (_server, mut vmm) = pair();
    for format in ENDING {
        for data in [text(400), noise(150), vec![0; 5000]] {
            let packed = compressed(&mut vmm, format, &data);
            let cut = |len: usize| decompress(format, &packed[..len], data.len());
            ask_all(&mut vmm, (0..packed.len()).map(cut), |len, answer| {
                assert_eq!(answer.status(), Status::Truncated, "{format}, {len} of {}", packed.len());
            });
        }
    }
    // Larger ones, at places of which each engine has others.
    for format in ENDING {
        let data = mixture(300_000);
        let packed = compressed(&mut vmm, format, &data);
        let places = [1, 2, 9, 1000, 65_536, packed.len() / 2, packed.len() - 9, packed.len() - 1];
        let cut = |len: usize| decompress(format, &packed[..len], data.len());
        ask_all(&mut vmm, places.map(cut), |place, answer| {
            assert_eq!(answer.status(), Status::Truncated, "{format}, {} bytes", places[place]);
        });
    }
}

#[test]
fn a_block_that_was_cut_is_shorter_or_refused() {
    let (_server, mut vmm) = pair();
    let data = text(2000);
    let packed = compressed(&mut vmm, Format::Lz4Block, &data);
    let cut = |len: usize| decompress(Format::Lz4Block, &packed[..len], data.len());
    ask_all(&mut vmm, (1..packed.len()).map(cut), |len, answer| match answer.status() {
        Status::Ok => assert!(answer.result().len() < data.len(), "{len}"),
        status => assert!([Status::Truncated, Status::BadData].contains(&status), "{len}: {status}"),
    });
}

/// Whether data of this format, made by the device, carry a checksum of their content.
fn is_checked(format: Format) -> bool {
    !matches!(format, Format::Deflate | Format::Lz4Block)
}

#[test]
fn a_flipped_bit_is_noticed_where_the_format_has_a_checksum_and_harms_nobody_elsewhere() {
    let (server, mut vmm) = pair();
    for format in Format::ALL {
        let data = [text(300), noise(60)].concat();
        let packed = compressed(&mut vmm, format, &data);
        let flip = |bit: usize| {
            let mut bad = packed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            decompress(format, &bad, data.len() + 100)
        };
        let (bits, mut bad) = (packed.len() * 8, 0);
        ask_all(&mut vmm, (0..bits).map(flip), |bit, answer| match answer.status() {
            // Bits that say nothing about the content: the time in a gzip header.
            Status::Ok => assert!(!is_checked(format) || answer.result() == data, "{format}, bit {bit}"),
            Status::BadData => bad += 1,
            status => {
                let other = [Status::Truncated, Status::Overflow, Status::NotSupported].contains(&status);
                assert!(other, "{format}, bit {bit}: {status}");
            }
        });
        assert!(!is_checked(format) || bad * 4 > bits * 3, "{format}: {bad} of {bits} are bad data");
        assert!(vmm.ask(decompress(format, &packed, data.len())).result() == data, "{format}, unharmed");
    }
    assert_eq!(server.unit.totals().second_engine, 0, "bad data are no engine's failure");
}

#[test]
fn bad_data_are_bad_data_also_when_they_are_long() {
    let (_server, mut vmm) = pair();
    let data = mixture(500_000);
    for format in ENDING.into_iter().filter(|format| is_checked(*format)) {
        let packed = compressed(&mut vmm, format, &data);
        for place in [packed.len() / 3, packed.len() / 2, packed.len() - 2] {
            let mut bad = packed.clone();
            bad[place] ^= 0x55;
            let status = vmm.ask(decompress(format, &bad, data.len() + 1000)).status();
            // A length that was changed can call for more than there is, of either.
            let expected = [Status::BadData, Status::Overflow, Status::Truncated];
            assert!(expected.contains(&status), "{format}, byte {place}: {status}");
        }
    }
    // The checksum itself, behind everything else.
    for (format, from_end) in [(Format::Zlib, 4), (Format::Gzip, 8), (Format::Zstd, 4), (Format::Lz4Frame, 4)]
    {
        let mut bad = compressed(&mut vmm, format, &data);
        let place = bad.len() - from_end;
        bad[place] ^= 1;
        let status = vmm.ask(decompress(format, &bad, data.len())).status();
        assert_eq!(status, Status::BadData, "{format}");
    }
}

#[test]
fn data_of_another_format_are_bad_data() {
    let (_server, mut vmm) = pair();
    let data = text(3000);
    for written in Format::ALL {
        let packed = compressed(&mut vmm, written, &data);
        for read in Format::ALL.into_iter().filter(|read| *read != written) {
            let answer = vmm.ask(decompress(read, &packed, data.len()));
            if is_checked(read) {
                assert_eq!(answer.status(), Status::BadData, "{written} read as {read}");
            } else {
                // Nothing in these formats says what they are.
                assert!(answer.status() != Status::Ok || answer.result() != data, "{written} as {read}");
            }
        }
    }
    for read in ENDING.into_iter().filter(|format| is_checked(*format)) {
        assert_eq!(vmm.ask(decompress(read, &data, 9000)).status(), Status::BadData, "text as {read}");
    }
    let legacy = [0x02, 0x21, 0x4c, 0x18, 1, 0, 0, 0, 0];
    assert_eq!(
        vmm.ask(decompress(Format::Lz4Frame, &legacy, 9)).status(),
        Status::BadData,
        "of the old kind"
    );
}

#[test]
fn wholes_that_follow_each_other_are_one_text() {
    let (_server, mut vmm) = pair();
    let texts = [text(1000), vec![], noise(500), text(70_000)];
    let all = texts.concat();
    for format in JOINED {
        let parts: Vec<_> = texts.iter().map(|text| compressed(&mut vmm, format, text)).collect();
        let mut files = vec![parts.concat()];
        if format != Format::Gzip {
            let skipped = |part: &Vec<u8>| [&SKIPPED[..], part].concat();
            files.push(parts.iter().flat_map(skipped).chain(SKIPPED).collect());
        }
        for file in files {
            let answer = vmm.ask(decompress(format, &file, all.len()));
            assert!(answer.result() == all, "{format}");
            assert_eq!(answer.response.consumed as usize, file.len(), "{format}");
            let short = vmm.ask(decompress(format, &file, all.len() - 1));
            assert_eq!(short.status(), Status::Overflow, "{format}: the last one does not fit");
            let cut = vmm.ask(decompress(format, &file[..parts[0].len() + 9], all.len()));
            let expected = if file.starts_with(&SKIPPED) { None } else { Some(Status::Truncated) };
            assert!(
                expected.is_none_or(|expected| cut.status() == expected),
                "{format}: the second one is cut"
            );
            assert!(decode(format, &[file]).concat() == all, "as {format}'s own tool has it");
        }
        let mut bad = parts[..2].concat();
        bad.extend(&parts[2]);
        let place = bad.len() - 3;
        bad[place] ^= 0x10;
        assert_eq!(vmm.ask(decompress(format, &bad, all.len())).status(), Status::BadData, "{format}");
    }
}

#[test]
fn what_is_behind_the_data_is_left_alone() {
    let (_server, mut vmm) = pair();
    let data = text(2000);
    for format in ENDING {
        let packed = compressed(&mut vmm, format, &data);
        let magic: &[u8] = match format {
            Format::Gzip => &[0x1f],
            Format::Zstd => &[0x28, 0xb5, 0x2f],
            Format::Lz4Frame => &[0x04, 0x22, 0x4d],
            _ => &packed,
        };
        for behind in [&[0][..], &[0; 512], b"more text", &noise(5000), magic] {
            let answer = vmm.ask(decompress(format, &[&packed, behind].concat(), data.len()));
            assert!(answer.result() == data, "{format}, {} bytes behind", behind.len());
            assert_eq!(answer.response.consumed as usize, packed.len(), "{format}");
        }
    }
    for format in [Format::Deflate, Format::Zlib] {
        let packed = compressed(&mut vmm, format, &data);
        let answer = vmm.ask(decompress(format, &packed.repeat(2), 2 * data.len()));
        assert!(answer.result() == data, "{format} has one stream");
        assert_eq!(answer.response.consumed as usize, packed.len(), "{format}");
    }
}

#[test]
fn what_begins_like_another_whole_has_to_be_one() {
    let (_server, mut vmm) = pair();
    let data = text(2000);
    let cases: [(Format, &[u8], Status); 6] = [
        (Format::Gzip, &[0x1f, 0x8b], Status::Truncated),
        (Format::Gzip, &[0x1f, 0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Status::BadData),
        (Format::Zstd, &[0x28, 0xb5, 0x2f, 0xfd], Status::Truncated),
        (Format::Zstd, &SKIPPED[..9], Status::Truncated),
        (Format::Lz4Frame, &[0x04, 0x22, 0x4d, 0x18], Status::Truncated),
        (Format::Lz4Frame, &SKIPPED[..12], Status::Truncated),
    ];
    for (format, behind, status) in cases {
        let packed = compressed(&mut vmm, format, &data);
        let answer = vmm.ask(decompress(format, &[&packed, behind].concat(), data.len()));
        assert_eq!(answer.status(), status, "{format}, {behind:x?}");
    }
}

#[test]
fn data_that_need_a_dictionary_are_not_supported() {
    let (_server, mut vmm) = pair();
    let zlib = python(&["dictionary(piece)"], &[b"a dictionary of a dictionary".to_vec()]).remove(0);
    assert_eq!(vmm.ask(decompress(Format::Zlib, &zlib, 100)).status(), Status::NotSupported);
    // A frame of three bytes as they are, with dictionary number 5.
    let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0x21, 5, 3, 0x19, 0, 0, b'a', b'b', b'c'];
    assert_eq!(vmm.ask(decompress(Format::Zstd, &zstd, 100)).status(), Status::NotSupported);
    let without = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 3, 0x19, 0, 0, b'a', b'b', b'c'];
    assert_eq!(vmm.ask(decompress(Format::Zstd, &without, 100)).result(), b"abc");
    for (flags, dictionary, status) in
        [(0x61, &[5, 0, 0, 0][..], Status::NotSupported), (0x60, &[], Status::Ok)]
    {
        let descriptor = [&[flags, 0x40], dictionary].concat();
        let sum =
            vmm.ask(Request::new(Header::checksum(Checksum::Xxh32, descriptor.len() as u32), &descriptor));
        let check = (sum.response.checksum >> 8) as u8;
        let frame = [&[0x04, 0x22, 0x4d, 0x18], &descriptor[..], &[check], &[3, 0, 0, 0x80], b"abc", &[0; 4]];
        let answer = vmm.ask(decompress(Format::Lz4Frame, &frame.concat(), 100));
        assert_eq!(answer.status(), status, "flags {flags:#x}");
    }
}

/// Values that others have published, for seed 0.
const PUBLISHED: [(&[u8], u64, u64); 3] = [
    (b"", 0x02cc_5d05, 0xef46_db37_51d8_e999),
    (b"abc", 0x32d1_53ff, 0x44bc_2cf5_ad77_0999),
    (b"Nobody inspects the spammish repetition", 0xe229_3b2f, 0xfbce_a83c_8a37_8bf1),
];

#[test]
fn checksums_are_those_of_their_definitions() {
    let (_server, mut vmm) = pair();
    let mut sum = |kind: Checksum, data: &[u8]| {
        let answer = vmm.ask(Request::new(Header::checksum(kind, data.len() as u32), data));
        let response = answer.response;
        assert_eq!((answer.status(), response.produced), (Status::Ok, 0));
        assert_eq!(response.consumed as usize, data.len());
        response.checksum
    };
    for (data, xxh32, xxh64) in PUBLISHED {
        assert_eq!(sum(Checksum::Xxh32, data), xxh32);
        assert_eq!(sum(Checksum::Xxh64, data), xxh64);
    }
    for data in [vec![], vec![0], text(3), noise(4097), text(1 << 20)] {
        for kind in [Checksum::Crc32, Checksum::Adler32] {
            assert_eq!(sum(kind, &data), checksum(kind, &data), "{kind} of {}", data.len());
        }
    }
}

#[test]
fn a_checksum_is_of_the_uncompressed_data_both_ways() {
    let (_server, mut vmm) = pair();
    let data = mixture(50_000);
    for kind in &Checksum::ALL[1..] {
        let alone =
            vmm.ask(Request::new(Header::checksum(*kind, data.len() as u32), &data)).response.checksum;
        for format in Format::ALL {
            let mut request = compress(format, &data, bound(&data));
            request.header.checksum = kind.wire();
            let packed = vmm.ask(request);
            assert_eq!(packed.response.checksum, alone, "{kind}, to {format}");
            let mut request = decompress(format, packed.result(), data.len());
            request.header.checksum = kind.wire();
            assert_eq!(vmm.ask(request).response.checksum, alone, "{kind}, from {format}");
        }
    }
}

#[test]
fn a_checksum_is_of_its_own_request_after_ones_that_did_not_fit() {
    let (_server, mut vmm) = pair();
    let (good, other) = (text(20_000), mixture(60_000));
    for format in Format::ALL {
        let (packed, others) = (compressed(&mut vmm, format, &good), compressed(&mut vmm, format, &other));
        for kind in [Checksum::Crc32, Checksum::Adler32, Checksum::Xxh32, Checksum::Xxh64] {
            let summed = |mut request: Request| {
                request.header.checksum = kind.wire();
                request
            };
            let alone = vmm.ask(summed(compress(format, &good, bound(&good))));
            // Ones that fail late, after most of their data have been through a checksum; together with ones that do not.
            let failing = [
                summed(compress(format, &other, others.len() - 1)),
                summed(decompress(format, &others, other.len() - 1)),
                summed(decompress(format, &others[..others.len() - 5], other.len())),
            ];
            let mut requests = Vec::new();
            for bad in failing {
                requests.extend([bad, summed(compress(format, &good, bound(&good)))]);
                requests.push(summed(decompress(format, &packed, good.len())));
            }
            let cookies: Vec<_> = requests.into_iter().map(|request| vmm.put(0, request)).collect();
            vmm.publish(0);
            let answers = vmm.wait_all(&cookies);
            for part in answers.chunks(3) {
                assert_ne!(part[0].status(), Status::Ok, "{format}");
                assert_eq!(part[1].response.checksum, alone.response.checksum, "{format}, {kind}");
                assert_eq!(part[1].result(), alone.result(), "{format}: nothing is left of the one before");
                assert_eq!(part[2].response.checksum, alone.response.checksum, "{format}, {kind}");
                assert!(part[2].result() == good, "{format}");
            }
        }
    }
}

#[test]
fn a_result_that_was_to_be_verified_says_that_it_was() {
    let (server, mut vmm) = pair();
    for format in Format::ALL {
        for data in [text(5000), noise(100_000), vec![]] {
            let plain = vmm.ask(compress(format, &data, bound(&data)));
            assert_eq!(plain.response.flags, 0, "{format}");
            let mut request = compress(format, &data, bound(&data));
            request.header.flags = flag::VERIFY;
            let verified = vmm.ask(request);
            assert_eq!(verified.response.flags, response_flag::VERIFIED, "{format}");
            assert_eq!(verified.result(), plain.result(), "{format}");
        }
    }
    assert_eq!(server.unit.totals().verified, 18);
}
