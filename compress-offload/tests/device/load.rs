//! Many requests, several workers, engines that fail, frontends that go and come back.

use crate::formats::{compress, compressed, decompress};
use crate::frontend::memory::next;
use crate::frontend::{Answer, Cut, Link, PACKED, Request, SIZE, SPLIT, Server, Setup, Vmm};
use crate::samples::{mixture, noise, text};
use compress_offload::algorithm::{Op, Params};
use compress_offload::engine::test::{Fault, Unreliable};
use compress_offload::engine::{Choice, Engine, Engines, Outcome, Output, alone};
use compress_offload::options::{Limits, Verify};
use compress_protocol::{Checksum, Format, Header, Status, flag, response_flag};
use memory::{Area, GuestAddr};
use offload::flush::Mode;
use std::os::fd::AsFd;
use std::time::Duration;
use vhost_user::message::features;
use virtqueue::driver::Segment;

#[test]
fn what_a_device_has_no_room_for_is_busy_and_can_be_tried_again() {
    let limits = Limits { max_size: 256 << 10, max_in_flight: 1 << 20, ..Limits::default() };
    let server = Server::limited(limits);
    let mut vmm = Vmm::running(&server, SPLIT);
    let data = text(250_000);
    let request = || {
        let mut request = compress(Format::Zlib, &data, 256 << 10);
        request.header.level = 9;
        request
    };
    let mut waiting: Vec<u32> = (0..40).map(|_| vmm.put(0, request())).collect();
    vmm.publish(0);
    let (mut busy, mut done) = (0, 0);
    while !waiting.is_empty() {
        let mut again = Vec::new();
        for answer in vmm.wait_all(&waiting) {
            match answer.status() {
                Status::Busy => again.push(request()),
                _ => {
                    assert_eq!(answer.result().len() as u32, answer.response.produced);
                    done += 1;
                }
            }
        }
        busy += again.len();
        waiting = again.into_iter().map(|request| vmm.put(0, request)).collect();
        vmm.publish(0);
    }
    assert_eq!(done, 40);
    assert!(busy > 0, "no request was turned away");
    assert_eq!(server.unit.totals().status(Status::Busy), busy as u64);
    assert_eq!(server.unit.in_flight_bytes(), 0);
}

#[test]
fn the_configuration_and_the_end_of_a_stream_are_never_busy() {
    let limits = Limits { max_size: 256 << 10, max_in_flight: 1 << 20, ..Limits::default() };
    let server = Server::limited(limits);
    let mut vmm = Vmm::running(&server, SPLIT);
    let ids: Vec<u64> =
        (0..20).map(|_| vmm.ask(Header::open_compressor(Format::Zlib, 0)).response.stream_id()).collect();
    let data = text(250_000);
    let mut asked = Vec::new();
    for id in ids {
        vmm.put(0, compress(Format::Zlib, &data, 256 << 10));
        asked.push(vmm.put(0, Header::get_config()));
        asked.push(vmm.put(0, Header::close(id)));
    }
    vmm.publish(0);
    assert!(vmm.wait_all(&asked).iter().all(|answer| answer.status() == Status::Ok));
}

#[test]
fn a_small_request_does_not_wait_for_another_queues_large_ones() {
    let server = Server::with(Setup { queues: 2, ..Setup::default() });
    let mut vmm = Vmm::running(&server, SPLIT);
    let large = mixture(700_000);
    for _ in 0..40 {
        vmm.put(0, compress(Format::Zlib, &large, 1 << 20));
    }
    let small = vmm.put(1, compress(Format::Zlib, &text(500), 700));
    vmm.publish(0);
    vmm.publish(1);
    assert_eq!(vmm.wait(small).status(), Status::Ok);
    vmm.harvest_queue(0);
    assert!(vmm.unanswered() >= 20, "{} of 40 large ones are left", vmm.unanswered());
    crate::frontend::eventually("the large ones come back", || {
        vmm.harvest();
        vmm.unanswered() == 0
    });
}

#[test]
fn workers_share_what_one_queue_asks_for() {
    let server = Server::with(Setup { workers: 2, ..Setup::default() });
    for wanted in [SPLIT, PACKED] {
        let mut vmm = Vmm::running(&server, wanted);
        let before = server.unit.totals().stolen;
        for round in 0.. {
            assert!(round < 100, "nobody has stolen anything");
            let texts: Vec<_> = (0..24).map(|index| mixture(100_000 + 1000 * index)).collect();
            let sent: Vec<u32> =
                texts.iter().map(|text| vmm.put(0, compress(Format::Zlib, text, 150_000))).collect();
            vmm.publish(0);
            let packed: Vec<_> =
                vmm.wait_all(&sent).into_iter().map(|answer| answer.result().to_vec()).collect();
            let sent: Vec<u32> =
                packed.iter().map(|packed| vmm.put(0, decompress(Format::Zlib, packed, 150_000))).collect();
            vmm.publish(0);
            for (text, answer) in texts.iter().zip(vmm.wait_all(&sent)) {
                assert!(answer.result() == text);
            }
            if server.unit.totals().stolen > before {
                break;
            }
        }
    }
}

/// Requests of every kind, good and bad.
fn everything(vmm: &mut Vmm) -> Vec<Request> {
    let mut requests = vec![Header::get_config().into(), Header { opcode: 99, ..Header::default() }.into()];
    for format in Format::ALL {
        for data in [text(30), text(3000), mixture(40_000), noise(9000)] {
            let packed = compressed(vmm, format, &data);
            let (len, half) = (data.len(), packed.len() / 2);
            let summed = |mut request: Request, kind: Checksum| {
                request.header.checksum = kind.wire();
                request
            };
            requests.extend([
                summed(compress(format, &data, len + 2000), Checksum::Crc32),
                compress(format, &data, half),
                summed(decompress(format, &packed, len), Checksum::Xxh64),
                decompress(format, &packed, len - 1),
                decompress(format, &packed[..half], len),
                decompress(format, &data, 50_000),
                summed(Request::new(Header::checksum(Checksum::None, len as u32), &data), Checksum::Adler32),
            ]);
        }
    }
    requests
}

#[test]
fn everything_at_once_gives_what_each_request_gives_alone() {
    let server = Server::with(Setup { queues: 3, workers: 3, ..Setup::default() });
    for wanted in [SPLIT, PACKED] {
        let mut vmm = Vmm::running(&server, wanted);
        let requests = everything(&mut vmm);
        let alone: Vec<Answer> = requests.iter().map(|request| vmm.ask(request.clone())).collect();
        let mut seed = 3;
        for round in 0..4 {
            let mut sent = Vec::new();
            for step in 0..150 {
                let index = next(&mut seed) as usize % requests.len();
                let cut =
                    [Cut::Parts, Cut::Whole, Cut::Pages(step * 29), Cut::Random(step as u64, 3000)][step % 4];
                sent.push((index, vmm.put(step % 3, requests[index].clone().cut(cut).indirect())));
                if step % 10 == 9 {
                    (0..3).for_each(|queue| vmm.publish(queue));
                }
            }
            for (index, cookie) in sent {
                let (answer, alone) = (vmm.wait(cookie), &alone[index]);
                let header = &requests[index].header;
                // What LZ4 makes of a text depends on what its tables were used for before.
                let format = Format::from_wire(header.format);
                let varies =
                    header.opcode == 1 && matches!(format, Some(Format::Lz4Block | Format::Lz4Frame));
                if varies && answer.status() == Status::Ok {
                    assert_eq!(answer.response.checksum, alone.response.checksum, "{header:?}");
                } else {
                    assert_eq!(answer.response, alone.response, "round {round}: {header:?}");
                    let produced = answer.response.produced as usize;
                    assert!(answer.dst[..produced] == alone.dst[..produced], "round {round}: {header:?}");
                }
            }
        }
    }
}

#[test]
fn every_mode_gives_the_same_bytes() {
    let data = mixture(30_000);
    let mut results = Vec::new();
    let modes = [Mode::Interrupt, Mode::Heuristic, Mode::Busy, Mode::Timer(Duration::from_micros(200))];
    for mode in modes {
        for (inline_bytes, zero_copy) in [(0, false), (1 << 20, false), (1024, true)] {
            let server = Server::with(Setup { mode, inline_bytes, zero_copy, ..Setup::default() });
            let mut vmm = Vmm::running(&server, SPLIT);
            let packed: Vec<_> =
                Format::ALL.into_iter().map(|format| compressed(&mut vmm, format, &data)).collect();
            for (format, packed) in Format::ALL.into_iter().zip(&packed) {
                assert!(vmm.ask(decompress(format, packed, data.len())).result() == data, "{format}");
            }
            results.push(packed);
        }
    }
    assert!(results.iter().all(|result| *result == results[0]));
}

/// A device whose first engine for DEFLATE fails like this, at every so many-th request.
fn unreliable(fault: Fault, every: u64, make: fn() -> Box<dyn Engine>) -> Server {
    Server::with_engines(Setup::default(), move || {
        let mut engines = Engines::new(Choice::default(), compress_offload::engine::Verify::Off);
        engines.put_first(Box::new(Unreliable::new(make(), fault, every)));
        engines
    })
}

fn libdeflate() -> Box<dyn Engine> {
    alone("libdeflate").unwrap()
}

/// An engine that does not decompress, so that others check what it has done.
struct Compressor(Box<dyn Engine>);

impl Engine for Compressor {
    fn name(&self) -> &'static str {
        "compressor"
    }

    fn takes(&self, op: Op, params: &Params, len: usize) -> bool {
        op == Op::Compress && self.0.takes(op, params, len)
    }

    fn compress(&mut self, params: &Params, src: &[u8], dst: Output<'_>) -> Outcome {
        self.0.compress(params, src, dst)
    }

    fn decompress(&mut self, _: &Params, _: &[u8], _: Output<'_>) -> Outcome {
        Outcome::Failed
    }
}

#[test]
fn another_engine_does_what_the_first_one_failed_to() {
    for fault in [Fault::Refuses, Fault::Spoils] {
        let server = unreliable(fault, 3, libdeflate);
        let mut vmm = Vmm::running(&server, SPLIT);
        let data = mixture(20_000);
        let mut second = 0;
        for _ in 0..12 {
            for format in [Format::Deflate, Format::Zlib, Format::Gzip] {
                let packed = vmm.ask(compress(format, &data, 30_000));
                let back = vmm.ask(decompress(format, packed.result(), data.len()));
                assert!(back.result() == data, "{format}, {fault:?}");
                for answer in [packed, back] {
                    second += u64::from(answer.response.flags & response_flag::SECOND_ENGINE != 0);
                }
            }
        }
        assert_eq!(second, 24, "a third of all");
        assert_eq!(server.unit.totals().second_engine, second);
    }
}

#[test]
fn a_wrong_result_that_was_to_be_verified_never_reaches_the_guest() {
    let server = unreliable(Fault::Lies, 1, || Box::new(Compressor(libdeflate())));
    let mut vmm = Vmm::running(&server, SPLIT);
    let data = text(20_000);
    for format in [Format::Deflate, Format::Zlib, Format::Gzip] {
        let mut request = compress(format, &data, 30_000);
        request.header.flags = flag::VERIFY;
        let answer = vmm.ask(request);
        let expected = response_flag::VERIFIED | response_flag::SECOND_ENGINE;
        assert_eq!(answer.response.flags, expected, "{format}");
        assert!(crate::foreign::decode(format, &[answer.result().to_vec()]) == [data.clone()], "{format}");
    }
}

#[test]
fn the_operator_may_have_everything_verified() {
    let server = Server::limited(Limits { verify: Verify::All, ..Limits::default() });
    let mut vmm = Vmm::running(&server, SPLIT);
    for format in Format::ALL {
        let answer = vmm.ask(compress(format, &text(3000), 4000));
        assert_eq!(answer.response.flags, response_flag::VERIFIED, "{format}");
    }
    let third = Verify::OneIn(3.try_into().unwrap());
    server.unit.set_limits(Limits { verify: third, ..Limits::default() });
    let flags: u32 = (0..30).map(|_| vmm.ask(compress(Format::Zstd, &text(3000), 4000)).response.flags).sum();
    assert_eq!(flags, 10 * response_flag::VERIFIED);
}

#[test]
fn a_request_that_every_engine_fails_at_is_an_error() {
    let server = Server::with_engines(Setup::default(), || {
        Engines::with(
            vec![Box::new(Unreliable::new(libdeflate(), Fault::Spoils, 2))],
            compress_offload::engine::Verify::Off,
        )
    });
    let mut vmm = Vmm::running(&server, SPLIT);
    let data = text(5000);
    for round in 0..10 {
        let answer = vmm.ask(compress(Format::Zlib, &data, 6000));
        let expected = if round % 2 == 1 { Status::Error } else { Status::Ok };
        assert_eq!(answer.status(), expected, "round {round}");
    }
}

#[test]
fn a_frontend_that_goes_and_comes_back_gets_every_answer_once() {
    let server = Server::with(Setup { workers: 2, ..Setup::default() });
    for wanted in [SPLIT, PACKED] {
        let mut vmm = Vmm::running(&server, Link { inflight: true, ..Link::from(wanted) });
        let data = mixture(60_000);
        let packed = compressed(&mut vmm, Format::Zstd, &data);
        for round in 0..5 {
            let requests = |index: usize| match index % 2 {
                0 => compress(Format::Zstd, &data, 70_000),
                _ => decompress(Format::Zstd, &packed, data.len()),
            };
            let sent: Vec<u32> = (0..30).map(|index| vmm.put(0, requests(index))).collect();
            vmm.publish(0);
            std::thread::sleep(Duration::from_millis(round));
            vmm.reconnect(&server);
            // A second answer to any of them would be to a request that nobody knows.
            for (index, mut answer) in vmm.wait_all(&sent).into_iter().enumerate() {
                if answer.status() == Status::Busy {
                    // It could not be given back to the ring when that stopped.
                    answer = vmm.ask(requests(index));
                }
                let expected = if index % 2 == 0 { &packed } else { &data };
                assert!(answer.result() == expected, "round {round}, request {index}");
            }
            vmm.harvest();
        }
    }
}

/// Makes it look as if requests that the ring shows from `base` on had been taken by a device that then died.
fn take_and_die(vmm: &Vmm, base: u32, count: u16) {
    const HEADER: usize = 16;
    const ENTRY: usize = 16;
    let inflight = vmm.session.inflight().unwrap();
    let region = Area::map(&inflight.fd, inflight.size as usize, inflight.offset).unwrap();
    let driver = vmm.session.rings[0].addresses.driver;
    // A ring that was stopped in good order has left nothing behind.
    region.write(8, 1u16);
    for index in 0..count {
        let slot = u64::from((base as u16).wrapping_add(index) % SIZE);
        let entry = vmm.memory.slice(GuestAddr(driver.0 + 4 + 2 * slot), 2).unwrap();
        let head = usize::from(entry.read_obj::<u16>(0).unwrap());
        region.write(HEADER + ENTRY * head + 8, 1_000_000 + u64::from(index));
        region.write(HEADER + ENTRY * head, 1u8);
    }
}

#[test]
fn requests_in_flight_at_a_crash_are_done_by_the_successor() {
    let server = Server::new();
    let mut vmm = Vmm::running(&server, Link { inflight: true, ..Link::from(SPLIT) });
    let data = mixture(60_000);
    let packed = compressed(&mut vmm, Format::Gzip, &data);
    let id = vmm.ask(Header::open_compressor(Format::Gzip, 0)).response.stream_id();
    let base = vmm.session.stop_queue(0).unwrap();
    let requests: [Request; 4] = [
        compress(Format::Gzip, &data, 90_000),
        decompress(Format::Gzip, &packed, data.len()),
        Header::stream(compress_protocol::Opcode::Compress, id, 0, 0, 0).into(),
        decompress(Format::Gzip, &packed, data.len() - 1),
    ];
    let sent: Vec<u32> = requests.into_iter().map(|request| vmm.put(0, request)).collect();
    // Shown to nobody but the ring.
    let _ = vmm.session.rings[0].ring.publish();
    take_and_die(&vmm, base, 3);
    vmm.reconnect(&server);
    let answers = vmm.wait_all(&sent);
    assert!(answers[0].result() == packed && answers[1].result() == data);
    assert_eq!(answers[2].status(), Status::BadStream, "streams do not survive");
    assert_eq!(answers[3].status(), Status::Overflow, "one that nobody had taken");
    assert_eq!(server.unit.totals().resubmitted, 3);
    vmm.harvest();
}

/// Pages of these segments that hold any of the first `result` bytes or of the last `response` ones.
fn pages(segments: &[Segment], result: u64, response: u64) -> Vec<u64> {
    let total: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
    let (mut at, mut pages) = (0, Vec::new());
    for segment in segments {
        let place = |offset: u64| segment.addr.0 + offset - at;
        let end = at + u64::from(segment.len);
        for part in [at..end.min(result), at.max(total - response)..end] {
            if !part.is_empty() {
                pages.extend(place(part.start) / 4096..=place(part.end - 1) / 4096);
            }
        }
        at = end;
    }
    pages
}

#[test]
fn pages_with_results_and_responses_are_in_the_dirty_log() {
    const LOG: usize = 8192;
    let server = Server::with(Setup { workers: 2, ..Setup::default() });
    let data = mixture(100_000);
    for wanted in [SPLIT, PACKED] {
        let mut vmm = Vmm::running(&server, wanted);
        let (log, fd) = Area::shared(LOG, "log").unwrap();
        vmm.session.frontend.set_log_base(LOG as u64, 0, fd.as_fd()).unwrap();
        vmm.session.frontend.set_features(vmm.session.features() | features::LOG_ALL).unwrap();
        let packed = compressed(&mut vmm, Format::Lz4Frame, &data);
        for cut in [Cut::Parts, Cut::Whole, Cut::Pages(4090), Cut::Random(3, 9000)] {
            let requests = [
                decompress(Format::Lz4Frame, &packed, data.len()),
                decompress(Format::Lz4Frame, &packed, data.len() - 1),
                decompress(Format::Lz4Frame, &packed, data.len() + 20_000),
                compress(Format::Zlib, &data, 120_000),
            ];
            (0..LOG).for_each(|at| log.write(at, 0u8));
            let sent = requests.map(|request| vmm.put(0, request.cut(cut).indirect()));
            let places = sent.map(|cookie| vmm.writable(cookie).to_vec());
            vmm.publish(0);
            for (answer, segments) in vmm.wait_all(&sent).into_iter().zip(places) {
                for page in pages(&segments, answer.response.produced.into(), 32) {
                    let marked = log.read::<u8>(page as usize / 8) >> (page % 8) & 1;
                    assert_eq!(marked, 1, "page {page:#x} after {:?}, {cut:?}", answer.response);
                }
            }
        }
    }
}

#[test]
fn a_device_that_goes_away_with_work_to_do_ends_it_first() {
    let server = Server::with(Setup { workers: 2, queues: 2, ..Setup::default() });
    let mut vmm = Vmm::running(&server, SPLIT);
    let data = mixture(300_000);
    let sent: Vec<u32> =
        (0..40).map(|index| vmm.put(index % 2, compress(Format::Zlib, &data, 400_000))).collect();
    vmm.publish(0);
    vmm.publish(1);
    for queue in 0..2 {
        vmm.session.stop_queue(queue).unwrap();
    }
    // What was taken is answered; what was not stays in the ring for the next start.
    vmm.harvest();
    let bases: Vec<u32> = vmm.session.rings.iter().map(|queue| queue.ring.base_for_restart()).collect();
    for (queue, base) in (0..).zip(bases) {
        vmm.start_queue(queue, base);
        vmm.session.rings[usize::from(queue)].kick.write(1).unwrap();
    }
    assert!(vmm.wait_all(&sent).iter().all(|answer| answer.status() == Status::Ok));
}
