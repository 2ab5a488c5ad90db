//! Requests of every shape, good and bad (docs/compress-device.md §1.6 and §1.6.5.1).

use crate::formats::{compress, decompress, pair};
use crate::frontend::{Cut, Link, PACKED, Request, SPLIT, Server, Setup, Vmm};
use crate::samples::{mixture, text};
use compress_offload::options::Limits;
use compress_protocol::{Checksum, Config, Format, Header, Opcode, Status, compress_bound, flag};

/// One of each operation that takes a source to a destination, with what they have to give.
fn round_trip(vmm: &mut Vmm, data: &[u8], shape: impl Fn(Request) -> Request) {
    let bound = compress_bound(data.len() as u32) as usize;
    for format in [Format::Gzip, Format::Zstd, Format::Lz4Block] {
        let mut request = shape(compress(format, data, bound));
        request.header.checksum = Checksum::Crc32.wire();
        let packed = vmm.ask(request.clone());
        let said = format!("{format}, {} bytes, {:?}", data.len(), request.cut);
        assert_eq!(packed.status(), Status::Ok, "{said}");
        let mut request = shape(decompress(format, packed.result(), data.len()));
        request.header.checksum = Checksum::Crc32.wire();
        let back = vmm.ask(request);
        assert!(back.result() == data, "{said}");
        assert_eq!(back.response.checksum, packed.response.checksum, "{said}");
    }
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let server = Server::new();
    for wanted in [SPLIT, PACKED] {
        let mut vmm = Vmm::running(&server, wanted);
        let data = text(500);
        let cuts = [Cut::Parts, Cut::Whole, Cut::Every(16), Cut::Every(32), Cut::Every(33), Cut::Every(64)];
        for cut in cuts.into_iter().chain((0..60).map(|seed| Cut::Random(seed, 20 + seed as usize))) {
            round_trip(&mut vmm, &data, |request| request.cut(cut));
            round_trip(&mut vmm, &data, |request| request.cut(cut).indirect());
        }
        for cut in [Cut::Every(1), Cut::Every(3), Cut::Random(5, 4)] {
            round_trip(&mut vmm, &text(300), |request| request.cut(cut).indirect());
        }
        round_trip(&mut vmm, &[], |request| request.cut(Cut::Every(7)));
    }
}

#[test]
fn pages_may_lie_anywhere_and_be_used_in_part() {
    let server = Server::new();
    for (wanted, zero_copy) in [(SPLIT, false), (PACKED, false), (SPLIT, true)] {
        let server = if zero_copy { &Server::with(Setup { zero_copy, ..Setup::default() }) } else { &server };
        let mut vmm = Vmm::running(server, wanted);
        for offset in [0, 1, 2047, 4032, 4095] {
            for len in [1, 4095, 4096, 4097, 8191, 12_345, 100_000] {
                round_trip(&mut vmm, &mixture(len), |request| request.cut(Cut::Pages(offset)));
            }
        }
        round_trip(&mut vmm, &mixture(1_000_000 - 130_000), |request| request.cut(Cut::Pages(77)).indirect());
    }
}

#[test]
fn a_request_may_have_as_many_descriptors_as_the_device_says() {
    let server = Server::new();
    let mut vmm = Vmm::running(&server, SPLIT);
    let most = usize::from(server.unit.config().max_segments);
    let data = text(30_000);
    let packed = vmm.ask(compress(Format::Zlib, &data, 40_000)).result().to_vec();
    for descriptors in [2, 3, 4, 17, 256, 257, 1000, most] {
        // All of them but one to read: the writable part is one.
        let readable = packed.len() + 64;
        let cut = Cut::Every(readable.div_ceil(descriptors - 1).max(40));
        let request = decompress(Format::Zlib, &packed, data.len()).cut(cut).indirect();
        assert!(vmm.ask(request).result() == data, "{descriptors} descriptors");
    }
    // As many as there may be, most of them with a few bytes to write.
    let total = 64 + packed.len() + data.len() + 32;
    for count in [most - 3, most] {
        let cut = Cut::Every(total.div_ceil(count) + 1);
        let answer = vmm.ask(decompress(Format::Zlib, &packed, data.len()).cut(cut).indirect());
        assert!(answer.result() == data, "about {count} descriptors");
    }
}

#[test]
fn more_readable_and_writable_bytes_than_the_header_says_are_left_alone() {
    let (_server, mut vmm) = pair();
    let data = text(3000);
    let packed = vmm.ask(compress(Format::Gzip, &data, 4000)).result().to_vec();
    for behind in [1, 64, 5000] {
        let mut request = decompress(Format::Gzip, &packed, data.len());
        // What follows would be another member.
        request.src.extend(packed.iter().cycle().take(behind));
        let answer = vmm.ask(request.clone().room(data.len() + behind));
        assert!(answer.result() == data, "{behind} more");
        assert_eq!(answer.response.consumed as usize, packed.len());
        let cut = vmm.ask(request.room(data.len() + behind).cut(Cut::Every(500)));
        assert!(cut.result() == data, "{behind} more, in pieces");
    }
    let sum = vmm.ask(Request::from(Header::checksum(Checksum::Crc32, 0)).room(100));
    assert_eq!((sum.status(), sum.response.checksum), (Status::Ok, 0));
}

/// A request and the status it must get.
type Case = (&'static str, Request, Status);

/// One thing changed in a header.
fn with(header: Header, change: impl FnOnce(&mut Header)) -> Header {
    let mut header = header;
    change(&mut header);
    header
}

fn bad_headers() -> Vec<Case> {
    let src = text(100);
    let good = Header::compress(Format::Zlib, 100, 300);
    let case = |what, change: fn(&mut Header), status| (what, Request::new(with(good, change), &src), status);
    vec![
        case("an unknown operation", |header| header.opcode = 6, Status::NotSupported),
        case("an unknown format", |header| header.format = 7, Status::NotSupported),
        case("an unknown checksum", |header| header.checksum = 5, Status::NotSupported),
        case("an unknown flag", |header| header.flags = 32, Status::NotSupported),
        case("a reserved field", |header| header.reserved = 1, Status::NotSupported),
        case("a reserved byte", |header| header.reserved_tail[23] = 1, Status::NotSupported),
        case("a level too high", |header| header.level = 13, Status::NotSupported),
        case("a level too low", |header| header.level = i32::MIN, Status::NotSupported),
        case("no format", |header| header.format = 0, Status::BadRequest),
        case("a stream without the flag", |header| header.stream_id = 1, Status::BadRequest),
        case("FINISH without a stream", |header| header.flags = flag::FINISH, Status::BadRequest),
        case("a stream and a format", |header| header.flags = flag::STREAM, Status::BadRequest),
        case(
            "a level to decompress with",
            |header| (header.opcode, header.level) = (2, 1),
            Status::BadRequest,
        ),
        case("VERIFY to decompress", |header| (header.opcode, header.flags) = (2, 1), Status::BadRequest),
        case("a source longer than the buffer", |header| header.src_len = 101, Status::BadRequest),
        case("a source of 4 GiB", |header| header.src_len = u32::MAX, Status::BadRequest),
        case("a source longer than max_src", |header| header.src_len = (1 << 20) + 1, Status::BadRequest),
    ]
}

#[test]
fn a_header_that_makes_no_sense_gets_its_status_and_touches_nothing() {
    let (_server, mut vmm) = pair();
    for (what, request, status) in bad_headers() {
        for cut in [Cut::Parts, Cut::Every(13)] {
            let answer = vmm.ask(request.clone().cut(cut));
            assert_eq!(answer.status(), status, "{what}");
            assert!(answer.dst.iter().all(|byte| *byte == 0xee), "{what}: the destination was touched");
            assert_eq!(answer.used, 0, "{what}");
        }
    }
    let long = Request::new(Header::compress(Format::Zlib, 100, 301), &text(100)).room(300);
    assert_eq!(vmm.ask(long).status(), Status::BadRequest, "a destination longer than the buffer");
    let small = Request::from(with(Header::get_config(), |header| header.dst_len = 63));
    assert_eq!(vmm.ask(small).status(), Status::BadRequest, "no room for the configuration");
    let no_sum = Request::from(Header::checksum(Checksum::None, 0));
    assert_eq!(vmm.ask(no_sum).status(), Status::BadRequest, "a checksum of no kind");
    round_trip(&mut vmm, &text(100), |request| request);
}

#[test]
fn one_bad_request_never_stops_the_batch() {
    let (_server, mut vmm) = pair();
    let data = text(5000);
    let mut cookies = Vec::new();
    for (_, bad, status) in bad_headers() {
        cookies.push((vmm.put(0, compress(Format::Zlib, &data, 6000)), Status::Ok));
        cookies.push((vmm.put(0, bad), status));
    }
    vmm.publish(0);
    for (cookie, status) in cookies {
        assert_eq!(vmm.wait(cookie).status(), status);
    }
}

#[test]
fn sizes_are_allowed_to_the_limit_and_not_beyond() {
    let limits = Limits { max_size: 8192, ..Limits::default() };
    let server = Server::limited(limits);
    let mut vmm = Vmm::running(&server, SPLIT);
    let data = text(8193);
    let ask =
        |vmm: &mut Vmm, src: usize, dst: usize| vmm.ask(compress(Format::Zlib, &data[..src], dst)).status();
    assert_eq!(ask(&mut vmm, 8192, 8192), Status::Ok);
    assert_eq!(ask(&mut vmm, 8193, 8192), Status::BadRequest);
    assert_eq!(ask(&mut vmm, 8192, 8193), Status::BadRequest);
    // A limit that is raised is that of the next request.
    server.unit.set_limits(Limits { max_size: 16_384, ..limits });
    assert_eq!(ask(&mut vmm, 8193, 8193), Status::Ok);
    let mut bytes = [0; 64];
    vmm.session.get_config(0, &mut bytes).unwrap();
    assert_eq!(Config::decode(&bytes).max_src, 16_384);
}

#[test]
fn a_request_that_ends_inside_its_header_is_bad_and_has_no_tag() {
    let (_server, mut vmm) = pair();
    for len in 0..64 {
        let header = Header::compress(Format::Zlib, 0, 100).with_tag(0x1234);
        let request = Request { readable: Some(len), ..Request::from(header) };
        let answer = vmm.ask(request.clone());
        assert_eq!((answer.status(), answer.response.user_tag), (Status::BadRequest, 0), "{len} bytes");
        assert_eq!(
            vmm.ask(request.cut(Cut::Every(10))).status(),
            Status::BadRequest,
            "{len} bytes, in pieces"
        );
    }
}

#[test]
fn a_request_without_room_for_a_response_comes_back_without_one() {
    let (server, mut vmm) = pair();
    let data = text(100);
    for len in 0..32 {
        for cut in [Cut::Whole, Cut::Every(5)] {
            let request = compress(Format::Zlib, &data, 0).cut(cut);
            assert_eq!(vmm.ask(Request { writable: Some(len), ..request }).used, 0, "{len} bytes");
        }
    }
    assert_eq!(server.unit.totals().malformed, 64);
    round_trip(&mut vmm, &data, |request| request);
}

#[test]
fn tags_come_back_with_their_requests_in_any_order() {
    let server = Server::with(Setup { workers: 2, ..Setup::default() });
    let mut vmm = Vmm::running(&server, SPLIT);
    // Each answer is held against the tag of its own request.
    let cookies: Vec<u32> = (0..60)
        .map(|index: u64| {
            let mut request = compress(Format::Zstd, &text(100 + 3000 * (index as usize % 7)), 30_000);
            request.header.user_tag = !index << 7;
            vmm.put(0, request)
        })
        .collect();
    vmm.publish(0);
    for (index, answer) in vmm.wait_all(&cookies).into_iter().enumerate() {
        assert_eq!(answer.response.user_tag, !(index as u64) << 7);
    }
}

#[test]
fn the_configuration_can_be_asked_for_on_any_queue() {
    let server = Server::with(Setup { queues: 3, ..Setup::default() });
    for link in [Link::from(SPLIT), Link::from(PACKED), Link::from(0), Link::carrier()] {
        let mut vmm = Vmm::running(&server, link);
        let expected = server.unit.config();
        assert_eq!((expected.num_queues, expected.check()), (3, Ok(())));
        for queue in 0..3 {
            let answer = vmm.ask_on(queue, Header::get_config());
            assert_eq!(Config::decode(answer.result().try_into().unwrap()), expected);
            let roomy = Request::from(Header { dst_len: 100, ..Header::get_config() }).cut(Cut::Every(9));
            assert_eq!(vmm.ask_on(queue, roomy).result(), expected.encode());
        }
        if link.protocol & vhost_user::message::protocol::CONFIG != 0 {
            let mut bytes = [0xff; 80];
            vmm.session.get_config(0, &mut bytes).unwrap();
            assert_eq!((&bytes[..64], &bytes[64..]), (&expected.encode()[..], &[0; 16][..]));
        }
    }
}

#[test]
fn behind_a_file_systems_front_everything_is_in_force() {
    let server = Server::with(Setup { queues: 2, ..Setup::default() });
    let mut vmm = Vmm::running(&server, Link::carrier());
    assert_eq!(vmm.session.features() & compress_protocol::feature::ALL, 0);
    let data = text(4000);
    // The first queue, that of a file system's urgent requests, is like the other.
    for queue in 0..2 {
        let mut request = compress(Format::Gzip, &data, 5000);
        request.header.checksum = Checksum::Adler32.wire();
        request.header.flags = flag::VERIFY;
        let packed = vmm.ask_on(queue, request);
        assert_eq!(packed.status(), Status::Ok);
        assert!(vmm.ask_on(queue, decompress(Format::Gzip, packed.result(), 4000)).result() == data);
        let stream = vmm.ask_on(queue, Header::open_compressor(Format::Zlib, 0));
        assert_eq!(stream.status(), Status::Ok);
        let close = vmm.ask_on(queue, Header::close(stream.response.stream_id()));
        assert_eq!((close.status(), server.unit.open_streams()), (Status::Ok, 0));
    }
}

#[test]
fn every_operation_is_counted_under_its_status() {
    let (server, mut vmm) = pair();
    let data = text(5000);
    vmm.ask(compress(Format::Zlib, &data, 6000));
    vmm.ask(compress(Format::Zlib, &data, 10));
    vmm.ask(decompress(Format::Zlib, &data, 10));
    vmm.ask(Header { opcode: 77, ..Header::default() });
    vmm.ask(Header::stream(Opcode::Compress, 5, 0, 0, 0));
    let totals = server.unit.totals();
    let expected =
        [Status::Ok, Status::Incompressible, Status::BadData, Status::NotSupported, Status::BadStream];
    for status in expected {
        assert_eq!(totals.status(status), 1, "{status}");
    }
}
