//! Guests that break the rules (docs/compress-device.md §1.6.6.5): nobody else notices, and nothing is written beside a buffer.

use crate::formats::{compress, compressed, decompress};
use crate::frontend::memory::next;
use crate::frontend::{Cut, Request, SPLIT, Server, Setup, Vmm, eventually};
use crate::samples::{mixture, noise, text};
use compress_protocol::{Format, Header, Status, feature};
use memory::GuestAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use virtqueue::driver::Segment;

/// The device still does what it should.
fn check_alive(vmm: &mut Vmm, queue: usize) {
    let data = text(4000);
    let packed = vmm.ask_on(queue, compress(Format::Zstd, &data, 5000));
    assert!(vmm.ask_on(queue, decompress(Format::Zstd, packed.result(), 4000)).result() == data);
}

/// Part of a segment.
fn part(segment: Segment, from: u32, len: u32) -> Segment {
    assert!(from + len <= segment.len);
    Segment { addr: GuestAddr(segment.addr.0 + u64::from(from)), len }
}

#[test]
fn buffers_that_overlap_harm_nobody_but_their_request() {
    let server = Server::new();
    let mut vmm = Vmm::running(&server, SPLIT);
    let data = mixture(6000);
    for format in Format::ALL {
        let packed = compressed(&mut vmm, format, &data);
        for (source, header) in [
            (&data, Header::compress(format, 6000, 6000)),
            (&packed, Header::decompress(format, packed.len() as u32, 6000)),
        ] {
            let all = vmm.scratch(20_000);
            let (front, src) = (part(all, 0, 64), part(all, 64, source.len() as u32));
            let apart = part(all, 13_000, 6000);
            let responses = [part(all, 19_500, 32), part(all, 0, 32), part(all, 100, 32)];
            let destinations = [
                apart,
                part(all, 64, 6000),
                part(all, 0, 6000),
                part(all, 65, 6000),
                part(all, 2000, 6000),
                part(all, 13_016, 6000),
            ];
            for (dst, response) in
                destinations.iter().flat_map(|dst| responses.map(|response| (*dst, response)))
            {
                let bytes = [&header.encode()[..], source].concat();
                vmm.memory.slice(all.addr, all.len as usize).unwrap().fill(0x77);
                vmm.memory.slice(all.addr, bytes.len()).unwrap().write(0, &bytes);
                let used = vmm.raw(0, &[front, src], &[dst, response]);
                assert!(used <= 6032, "{format}");
                // Two pieces of the destination in one place, too.
                vmm.memory.slice(all.addr, bytes.len()).unwrap().write(0, &bytes);
                let half = part(dst, 0, 3000);
                assert!(vmm.raw(0, &[front, src], &[half, half, response]) <= 6032, "{format}");
                let mut behind = vec![0; 400];
                vmm.memory.slice(part(all, 19_550, 400).addr, 400).unwrap().read(0, &mut behind);
                assert!(behind.iter().all(|byte| *byte == 0x77), "{format}: beside every buffer");
            }
            check_alive(&mut vmm, 0);
        }
    }
}

#[test]
fn a_source_may_be_read_where_the_result_goes_when_it_is_read_before() {
    // Sources are copied first unless the guest is trusted: then a request in place is as good as any.
    let server = Server::new();
    let mut vmm = Vmm::running(&server, SPLIT);
    let data = text(6000);
    for format in Format::ALL {
        let expected = vmm.ask(compress(format, &data, 6000)).result().to_vec();
        let all = vmm.scratch(7000);
        let bytes = [&Header::compress(format, 6000, 6000).encode()[..], &data].concat();
        vmm.memory.slice(all.addr, bytes.len()).unwrap().write(0, &bytes);
        let readable = [part(all, 0, 64), part(all, 64, 6000)];
        let used = vmm.raw(0, &readable, &[part(all, 64, 6000), part(all, 6500, 32)]);
        assert_eq!(used as usize, expected.len(), "{format}");
        let mut result = vec![0; expected.len()];
        vmm.memory.slice(part(all, 64, 1).addr, result.len()).unwrap().read(0, &mut result);
        assert!(result[..] == expected[..], "{format}");
    }
}

#[test]
fn a_source_that_is_rewritten_under_the_decoder_harms_nobody() {
    let server = Server::with(Setup { queues: 2, workers: 2, ..Setup::default() });
    let mut vmm = Vmm::running(&server, SPLIT);
    let data = mixture(60_000);
    let stop = AtomicBool::new(false);
    for format in Format::ALL {
        let packed = compressed(&mut vmm, format, &data);
        let good = vmm.ask_on(1, compress(format, &data, 80_000)).result().to_vec();
        let mut targets = Vec::new();
        let mut sent: Vec<u32> = Vec::new();
        for index in 0..30 {
            let request = match index % 3 {
                0 => compress(format, &data, 80_000),
                _ => decompress(format, &packed, data.len()),
            };
            let cookie = vmm.put(0, request.cut(Cut::Pages(index * 131)).indirect());
            vmm.hand_over(cookie);
            // Headers as well: what was judged is what counts.
            targets.extend(vmm.readable(cookie).to_vec());
            sent.push(cookie);
        }
        let table = vmm.memory.table().clone();
        stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut seed = 5;
                while !stop.load(Ordering::Relaxed) {
                    for target in &targets {
                        let at = next(&mut seed) % u64::from(target.len);
                        let slice = table.slice(GuestAddr(target.addr.0 + at), 1).unwrap();
                        slice.write(0, &[next(&mut seed) as u8]);
                    }
                }
            });
            vmm.publish(0);
            // Whatever comes back keeps to what is promised of every answer, except for what the header now says.
            let mut left = sent.len();
            eventually("all come back", || {
                while let Some(used) = vmm.session.rings[0].ring.pop() {
                    assert!(used.len as usize <= 80_032);
                    left -= 1;
                }
                left == 0
            });
            stop.store(true, Ordering::Relaxed);
        });
        vmm.forget(&sent);
        let after = vmm.ask_on(1, compress(format, &data, 80_000));
        assert!(after.result() == good, "{format}: the other queue's requests are as they were");
        check_alive(&mut vmm, 0);
    }
}

#[test]
fn a_destination_that_is_rewritten_meanwhile_harms_nobody() {
    // Results may be computed where they go, and decoders read what they have written.
    let server = Server::new();
    let mut vmm = Vmm::running(&server, SPLIT);
    let data = mixture(200_000);
    for format in Format::ALL {
        let packed = compressed(&mut vmm, format, &data);
        let stop = AtomicBool::new(false);
        for round in 0..6 {
            let request = match round % 2 {
                0 => compress(format, &data, 300_000),
                _ => decompress(format, &packed, data.len()),
            };
            let cookie = vmm.put(0, request);
            let target = vmm.writable(cookie)[0];
            let table = vmm.memory.table().clone();
            stop.store(false, Ordering::Relaxed);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut seed = round;
                    while !stop.load(Ordering::Relaxed) {
                        let at = next(&mut seed) % u64::from(target.len);
                        let slice = table.slice(GuestAddr(target.addr.0 + at), 1).unwrap();
                        slice.write(0, &[next(&mut seed) as u8]);
                    }
                });
                vmm.publish(0);
                let answer = vmm.wait(cookie);
                stop.store(true, Ordering::Relaxed);
                assert!(answer.response.produced <= answer.dst.len() as u32, "{format}");
            });
        }
        check_alive(&mut vmm, 0);
    }
}

#[test]
fn a_chain_that_leaves_the_memory_breaks_its_queue_and_no_other() {
    let server = Server::with(Setup { queues: 2, ..Setup::default() });
    let mut vmm = Vmm::running(&server, SPLIT);
    check_alive(&mut vmm, 0);
    let header = vmm.scratch(64);
    let nowhere = Segment { addr: GuestAddr(1 << 40), len: 4096 };
    vmm.session.rings[0].ring.add(&[header], &[nowhere], 9).unwrap();
    vmm.publish(0);
    eventually("the ring is broken", || server.queue(0).broken == 1);
    check_alive(&mut vmm, 1);
    vmm.session.stop_queue(0).unwrap();
    vmm.renew_queue(0);
    check_alive(&mut vmm, 0);
}

#[test]
fn noise_as_a_request_gets_a_status_and_stays_inside_its_buffers() {
    let server = Server::new();
    let mut vmm = Vmm::running(&server, SPLIT);
    let (mut seed, mut done) = (1, 0);
    for round in 0..3000u64 {
        let mut bytes = noise(64 + (next(&mut seed) as usize % 300));
        // Close to sense, else everything is an unknown operation.
        bytes[..8].copy_from_slice(&[
            [0, 1, 1, 1, 2, 2, 2, 3, 4, 5, 6][next(&mut seed) as usize % 11],
            0,
            next(&mut seed) as u8 % 8,
            0,
            0,
            0,
            0,
            0,
        ]);
        if round % 4 != 0 {
            bytes[8..64].fill(0);
            bytes[12] = next(&mut seed) as u8;
            bytes[16..18].copy_from_slice(&(next(&mut seed) as u16 % 700).to_le_bytes());
            bytes[4] = [0, 0, 0, 1, 2, 6, 10][next(&mut seed) as usize % 7];
        }
        let header = Header::decode(bytes[..64].try_into().unwrap());
        let room = next(&mut seed) as usize % 1500;
        let sense = compress_protocol::Request::parse(&header, &server.unit.config(), feature::ALL);
        let refused = match sense {
            Err(status) => Some(status),
            Ok(sense) if !sense.fits(bytes.len() as u64 - 64, room as u64) => Some(Status::BadRequest),
            Ok(_) => None,
        };
        let answer = vmm.ask(Request::new(header, &bytes[64..]).room(room).cut(Cut::Random(round, 100)));
        match refused {
            Some(status) => assert_eq!(answer.status(), status, "{header:?}"),
            None => done += 1,
        }
    }
    assert!(done > 100, "only {done} of 3000 made sense");
    check_alive(&mut vmm, 0);
}
