//! Requests of every kind and shape, against every backend, from a driver beside the device.

mod support;

use blk_backend::bounce::BOUNCE_LEN;
use blk_backend::limit::{Limits, Rate};
use blk_backend::options::{DiskOptions, Source};
use blk_backend::request::*;
use blk_backend::stats::{Fault, Op};
use memory::{GuestAddr, OwnMemory};
use runtime::io::IoKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use support::*;
use vhost_user::Device;
use virtqueue::driver::Segment;

const MIB: u64 = 1 << 20;

fn segment(addr: GuestAddr, len: u32) -> Segment {
    Segment { addr, len }
}

#[test]
fn what_is_written_to_a_file_is_in_the_file() {
    let file = image(4 * MIB);
    let mut rig = Rig::new(file_disk(file.path()));
    let data = pattern(9, 64 << 10);
    assert_eq!(rig.write(100, &data).status, OK);
    let mut found = vec![0; data.len()];
    file.as_file().read_exact_at(&mut found, 100 * 512).unwrap();
    assert!(found == data);
    rig.check_round_trip(0, 512);
    rig.check_round_trip(8191, 512);
    assert_eq!(rig.flush().status, OK);
}

#[test]
fn the_thread_engine_serves_files_as_well() {
    let file = image(4 * MIB);
    let mut rig = Rig::with(file_disk(file.path()), Config { io: IoKind::Threads, ..Config::default() });
    rig.check_round_trip(0, 256 << 10);
    assert_eq!(rig.flush().status, OK);
    assert_eq!(rig.ranges(VIRTIO_BLK_T_DISCARD, &[range(0, 512, 0)]).status, OK);
    assert_eq!(rig.read(0, 512).data, vec![0; 512]);
}

#[test]
fn memory_disks_read_what_was_written() {
    let mut rig = Rig::new(mem_disk(4 * MIB));
    rig.check_round_trip(7, 32 << 10);
    assert_eq!(rig.read(1000, 512).data, vec![0; 512]);
    assert_eq!(rig.flush().status, OK);
}

#[test]
fn null_disks_answer_and_leave_the_buffer_alone() {
    let mut rig = Rig::new(DiskOptions::new("n", Source::Null(1 << 40)));
    assert_eq!(rig.write(1 << 30, &[1; 4096]).status, OK);
    let read = rig.read(1 << 30, 4096);
    assert_eq!((read.status, read.len), (OK, 4097));
    assert_eq!(rig.read((1 << 40) / 512, 512).status, IOERR);
}

#[test]
fn a_full_ring_of_requests_comes_back_with_its_own_data() {
    let file = image(4 * MIB);
    let mut rig = Rig::new(file_disk(file.path()));
    let content = pattern(3, 4 << 20);
    file.as_file().write_all_at(&content, 0).unwrap();
    for round in 0..20u64 {
        let sectors: Vec<u64> = (0..40).map(|i| (i * 197 + round * 31) % 8000).collect();
        let tickets: Vec<_> = sectors.iter().map(|s| rig.add(0, VIRTIO_BLK_T_IN, *s, &[], 4096)).collect();
        rig.publish(0);
        for (done, sector) in rig.finish(0, &tickets).iter().zip(sectors) {
            let at = sector as usize * 512;
            assert_eq!((done.status, done.len), (OK, 4097));
            assert!(done.data == content[at..at + 4096]);
        }
    }
    assert_eq!(rig.stats().op(Op::Read), 800);
}

#[test]
fn any_descriptor_layout_is_understood() {
    for options in [mem_disk(MIB), file_disk(image(MIB).path())] {
        let mut rig = Rig::new(options);
        let data = pattern(1, 1024);
        let header = rig.header(VIRTIO_BLK_T_OUT, 5);
        let body = rig.alloc(1024, 1);
        rig.fill(body, &data);
        let status = rig.alloc(1, 1);
        // The header over three descriptors, the last of which holds data as well.
        let joined = rig.alloc(106, 1);
        rig.fill(joined, &rig.bytes(GuestAddr(header.0 + 10), 6));
        rig.fill(GuestAddr(joined.0 + 6), &data[..100]);
        let readable = [
            segment(header, 3),
            segment(GuestAddr(header.0 + 3), 7),
            segment(joined, 106),
            segment(GuestAddr(body.0 + 100), 924),
        ];
        rig.add_segments(0, &readable, &[segment(status, 1)]);
        rig.publish(0);
        assert_eq!(rig.wait(0).len, 1);
        assert_eq!(rig.bytes(status, 1), [OK]);
        // The status as the last byte of the data's own descriptor, data in odd pieces.
        let header = rig.header(VIRTIO_BLK_T_IN, 5);
        let target = rig.alloc(1025, 1);
        let writable = [
            segment(target, 1),
            segment(GuestAddr(target.0 + 1), 510),
            segment(GuestAddr(target.0 + 511), 514),
        ];
        rig.add_segments(0, &[segment(header, 16)], &writable);
        rig.publish(0);
        assert_eq!(rig.wait(0).len, 1025);
        assert!(rig.bytes(target, 1024) == data);
        assert_eq!(rig.bytes(GuestAddr(target.0 + 1024), 1), [OK]);
    }
}

#[test]
fn requests_of_more_than_a_thousand_segments_are_served() {
    let file = image(4 * MIB);
    for options in [file_disk(file.path()), mem_disk(4 * MIB)] {
        let mut rig = Rig::with(options, Config { size: 4096, ..Config::default() });
        for count in [1024u64, 1500, 3000] {
            let data = pattern(count, count as usize * 512);
            let buffer = rig.alloc(2 * data.len(), 4096);
            // Every other 512 bytes, so that no two segments touch.
            let places: Vec<_> = (0..count).map(|i| GuestAddr(buffer.0 + i * 1024)).collect();
            for (place, piece) in places.iter().zip(data.chunks(512)) {
                rig.fill(*place, piece);
            }
            let pieces: Vec<_> = places.iter().map(|place| segment(*place, 512)).collect();
            let (header, status) = (rig.header(VIRTIO_BLK_T_OUT, 3), rig.alloc(1, 1));
            let readable: Vec<_> = [segment(header, 16)].into_iter().chain(pieces.iter().copied()).collect();
            rig.add_segments(0, &readable, &[segment(status, 1)]);
            rig.publish(0);
            assert_eq!(rig.wait(0).len, 1);
            places.iter().for_each(|place| rig.fill(*place, &[0; 512]));
            let header = rig.header(VIRTIO_BLK_T_IN, 3);
            let writable: Vec<_> = pieces.iter().copied().chain([segment(status, 1)]).collect();
            rig.add_segments(0, &[segment(header, 16)], &writable);
            rig.publish(0);
            assert_eq!(rig.wait(0).len, data.len() as u32 + 1);
            let read: Vec<u8> = places.iter().flat_map(|place| rig.bytes(*place, 512)).collect();
            assert!(read == data, "{count} segments");
        }
    }
}

#[test]
fn queues_and_workers_count_what_they_did_whatever_the_backend() {
    let file = image(MIB);
    let null = DiskOptions::new("n", Source::Null(MIB));
    for (options, timed) in [(file_disk(file.path()), 40), (mem_disk(MIB), 3), (null, 3)] {
        let mut rig = Rig::new(options);
        (0..40).for_each(|i| assert_eq!(rig.write(i, &[7; 512]).status, OK));
        // Bursts of one request; what is counted behind a publication may lack the last one.
        let (queue, ring, worker) = (rig.stats(), rig.counters[0].snapshot(), rig.worker());
        let write = Op::Write as usize;
        assert_eq!((queue.ops[write], queue.bytes[write], queue.errors[write]), (40, 40 * 512, 0));
        assert_eq!(queue.latency_ns[write].count(), timed, "the first of each sixteen bursts to memory");
        assert!(queue.latency_ns[write].sum > 0);
        assert_eq!((ring.requests, ring.completions, ring.batch.count()), (40, 40, 40));
        assert!(ring.interrupts + ring.interrupts_suppressed >= 39);
        assert_eq!((worker.requests, worker.bytes, worker.batch.count()), (40, 40 * 512, 40));
        assert_eq!(worker.latency_ns, queue.latency_ns[write]);
        assert!(worker.kicks > 0 && worker.kicks + worker.kicks_suppressed >= 39, "{worker:?}");
        assert_eq!(worker.kicks, ring.kicks);
    }
}

#[test]
fn a_worker_sleeps_while_a_queue_with_work_waits_for_its_time() {
    let file = image(MIB);
    for options in [file_disk(file.path()), mem_disk(MIB)] {
        let iops = Rate { rate: 20, burst: 1 };
        let mut rig = Rig::new(DiskOptions { limits: Limits { iops, ..Limits::default() }, ..options });
        let tickets: Vec<_> = (0..6).map(|i| rig.add(0, VIRTIO_BLK_T_IN, i, &[], 512)).collect();
        rig.publish(0);
        assert!(rig.finish(0, &tickets).iter().all(|done| done.status == OK));
        assert!(rig.stats().limited > 0);
        let worker = rig.worker();
        assert!(worker.busy_rounds + worker.parks + worker.parks_avoided < 500, "{worker:?}");
    }
}

#[test]
fn old_memory_is_let_go_once_its_requests_have_ended() {
    let file = image(MIB);
    for options in [file_disk(file.path()), mem_disk(MIB)] {
        let mut rig = Rig::new(options);
        rig.check_round_trip(0, 4096);
        assert_eq!(rig.flush().status, OK);
        drop(rig.device().stop_queue(0));
        let next = OwnMemory::new(MIB as usize, GuestAddr(0)).unwrap();
        let unused = Arc::strong_count(next.table());
        rig.device().set_memory(next.table().clone());
        assert_eq!(Arc::strong_count(rig.memory.table()), unused, "nobody else has the old one");
    }
}

#[test]
fn ranges_and_lengths_outside_the_disk_are_errors() {
    for options in [mem_disk(MIB), file_disk(image(MIB).path())] {
        let mut rig = Rig::new(options);
        assert_eq!(rig.read(2047, 512).status, OK);
        for (sector, len) in [(2048, 512), (2047, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 100)] {
            let read = rig.read(sector, len);
            assert_eq!((read.status, read.len), (IOERR, 1), "sector {sector}");
            assert_eq!(rig.write(sector, &vec![1; len]).status, IOERR, "sector {sector}");
        }
        assert_eq!(rig.stats().fault(Fault::Invalid), 10);
        assert_eq!(rig.read(0, 0).status, OK, "nothing at all");
    }
}

#[test]
fn unknown_types_are_unsupported_and_the_queue_goes_on() {
    let mut rig = Rig::new(mem_disk(MIB));
    for kind in [2, 9, 10, 99, u32::MAX] {
        assert_eq!(rig.request(kind, 0, &[], 512).status, UNSUPP, "type {kind}");
    }
    rig.check_round_trip(0, 4096);
}

#[test]
fn malformed_requests_are_answered_as_well_as_they_can_be() {
    for options in [mem_disk(MIB), file_disk(image(MIB).path())] {
        let mut rig = Rig::new(options);
        let header = rig.header(VIRTIO_BLK_T_IN, 0);
        let (buffer, status) = (rig.alloc(512, 1), rig.alloc(1, 1));
        // No writable byte at all: nowhere to put a status.
        rig.add_segments(0, &[segment(header, 16), segment(buffer, 512)], &[]);
        rig.publish(0);
        assert_eq!(rig.wait(0).len, 0);
        // A header of 15 bytes.
        rig.add_segments(0, &[segment(header, 15)], &[segment(buffer, 512), segment(status, 1)]);
        rig.publish(0);
        assert_eq!(rig.wait(0).len, 1);
        assert_eq!(rig.bytes(status, 1), [IOERR]);
        assert_eq!(rig.stats().fault(Fault::Malformed), 2);
        rig.check_round_trip(0, 4096);
    }
}

#[test]
fn get_id_returns_the_serial_in_twenty_bytes() {
    for source in [Source::Mem(MIB), Source::File(image(MIB).path().into())] {
        let options =
            DiskOptions { serial: Some("VHOSTD-0001".into()), ..DiskOptions::new("d", source.clone()) };
        if let Source::File(path) = &source {
            std::fs::write(path, vec![0; MIB as usize]).unwrap();
        }
        let mut rig = Rig::new(options);
        let done = rig.request(VIRTIO_BLK_T_GET_ID, 0, &[], 20);
        assert_eq!((done.status, done.len), (OK, 21));
        assert_eq!(done.data, b"VHOSTD-0001\0\0\0\0\0\0\0\0\0");
        let short = rig.request(VIRTIO_BLK_T_GET_ID, 0, &[], 6);
        assert_eq!((short.status, short.data), (OK, b"VHOSTD".to_vec()));
    }
}

#[test]
fn a_file_shorter_than_the_disk_is_an_error_where_it_ends() {
    let file = image(4 * MIB);
    let mut rig = Rig::new(file_disk(file.path()));
    file.as_file().set_len(MIB + 512).unwrap();
    assert_eq!(rig.read(0, 4096).status, OK);
    assert_eq!(rig.read(2048 + 8, 4096).status, IOERR);
    assert_eq!(rig.read(2048, 4096).status, IOERR, "half of it is missing");
    assert_eq!(rig.stats().fault(Fault::EndOfFile), 2);
    assert!(rig.stats().partial >= 1);
    assert_eq!(rig.write(4096, &[7; 512]).status, OK, "a write brings the file back");
    assert_eq!(rig.read(2048 + 8, 4096).status, OK);
}

#[test]
fn misaligned_buffers_are_bounced_for_direct_io() {
    let file = image(8 * MIB);
    let options = DiskOptions { direct: true, ..file_disk(file.path()) };
    let mut rig = match blk_backend::disk::Disk::open(options.clone()) {
        Ok(_) => Rig::new(options),
        Err(error) => return skip("misaligned_buffers_are_bounced_for_direct_io", &error.to_string()),
    };
    let block = u64::from(rig.disk.config().blk_size.get());
    rig.check_round_trip(0, 64 << 10);
    assert_eq!(rig.stats().bounced, 0, "aligned buffers go straight");
    // Longer than a bounce buffer, at an odd address, in odd pieces.
    let len = (1 << 20) + block as usize;
    let data = pattern(5, len);
    let buffer = rig.alloc(len + 3, 4096);
    let odd = GuestAddr(buffer.0 + 3);
    rig.fill(odd, &data);
    let (header, status) = (rig.header(VIRTIO_BLK_T_OUT, block / 512 * 3), rig.alloc(1, 1));
    let pieces = [segment(odd, 1001), segment(GuestAddr(odd.0 + 1001), len as u32 - 1001)];
    rig.add_segments(0, &[segment(header, 16), pieces[0], pieces[1]], &[segment(status, 1)]);
    rig.publish(0);
    rig.wait(0);
    assert_eq!(rig.bytes(status, 1), [OK]);
    rig.fill(odd, &vec![0; len]);
    let header = rig.header(VIRTIO_BLK_T_IN, block / 512 * 3);
    rig.add_segments(0, &[segment(header, 16)], &[pieces[0], pieces[1], segment(status, 1)]);
    rig.publish(0);
    assert_eq!(rig.wait(0).len, len as u32 + 1);
    assert!(rig.bytes(odd, len) == data);
    assert_eq!(rig.stats().bounced, 2);
    let mut found = vec![0; len];
    file.as_file().read_exact_at(&mut found, block * 3).unwrap();
    assert!(found == data);
}

#[test]
fn more_bounced_requests_than_buffers_wait_for_each_other() {
    let file = image(16 * MIB);
    let options = DiskOptions { direct: true, ..file_disk(file.path()) };
    if let Err(error) = blk_backend::disk::Disk::open(options.clone()) {
        return skip("more_bounced_requests_than_buffers_wait_for_each_other", &error.to_string());
    }
    let mut rig = Rig::with(options, Config { size: 1024, ..Config::default() });
    let content = pattern(11, 16 << 20);
    file.as_file().write_all_at(&content, 0).unwrap();
    let count = 200u64;
    let status = rig.alloc(count as usize, 1);
    let mut buffers = Vec::new();
    for i in 0..count {
        let header = rig.header(VIRTIO_BLK_T_IN, i * 64);
        let buffer = GuestAddr(rig.alloc(8192 + 1, 4096).0 + 1);
        buffers.push(buffer);
        let writable = [segment(buffer, 8192), segment(GuestAddr(status.0 + i), 1)];
        rig.add_segments(0, &[segment(header, 16)], &writable);
    }
    rig.publish(0);
    for _ in 0..count {
        assert_eq!(rig.wait(0).len, 8193);
    }
    for (i, buffer) in buffers.iter().enumerate() {
        assert!(rig.bytes(*buffer, 8192) == content[i * 32768..i * 32768 + 8192], "request {i}");
    }
    assert_eq!(rig.stats().bounced, count);
    // Each of these holds its buffer for 32 rounds, and a round takes 4 of them: all buffers are given out before the
    // first one comes back.
    let (count, len) = (96, 32 * BOUNCE_LEN);
    let buffer = GuestAddr(rig.alloc(len + 1, 4096).0 + 1);
    for _ in 0..count {
        let header = rig.header(VIRTIO_BLK_T_IN, 64);
        rig.add_segments(0, &[segment(header, 16)], &[segment(buffer, len as u32), segment(status, 1)]);
    }
    rig.publish(0);
    for _ in 0..count {
        assert_eq!(rig.wait(0).len, len as u32 + 1);
    }
    assert!(rig.bytes(buffer, len) == content[32768..32768 + len]);
    assert!(rig.stats().bounce_waits > 0);
}

#[test]
fn discarding_gives_space_back_to_the_filesystem() {
    let file = image(8 * MIB);
    let mut rig = Rig::new(file_disk(file.path()));
    assert_eq!(rig.write(0, &pattern(2, 4 << 20)).status, OK);
    file.as_file().sync_all().unwrap();
    let before = file.as_file().metadata().unwrap().blocks();
    let done = rig.ranges(VIRTIO_BLK_T_DISCARD, &[range(0, 2048, 0), range(4096, 2048, 0)]);
    assert_eq!((done.status, done.len), (OK, 1));
    let after = file.as_file().metadata().unwrap().blocks();
    assert!(before >= 8192 && before - after >= 4096, "{before} {after}");
    assert_eq!(rig.read(0, 512).data, vec![0; 512]);
    assert!(rig.read(2048, 512).data == pattern(2, 4 << 20)[MIB as usize..MIB as usize + 512]);
    assert_eq!(rig.stats().bytes[Op::Discard as usize], 2 * MIB);
}

#[test]
fn zeroes_are_written_with_and_without_unmap_on_any_filesystem() {
    let shm = std::path::Path::new("/dev/shm");
    let mut places = vec![std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"))];
    // tmpfs knows PUNCH_HOLE but not ZERO_RANGE.
    places.extend(shm.is_dir().then(|| shm.to_owned()));
    for place in places {
        let file = tempfile::NamedTempFile::new_in(&place).unwrap();
        file.as_file().set_len(8 * MIB).unwrap();
        let mut rig = Rig::new(file_disk(file.path()));
        let data = pattern(4, 4 << 20);
        assert_eq!(rig.write(0, &data).status, OK);
        let ranges = [range(8, 4088, 0), range(4096 + 1, 7, 1), range(5000, 0, 0)];
        assert_eq!(rig.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &ranges).status, OK, "{place:?}");
        let found = rig.read(0, 4 << 20).data;
        let mut expected = data;
        expected[8 * 512..4096 * 512].fill(0);
        expected[4097 * 512..4104 * 512].fill(0);
        assert!(found == expected, "{place:?}");
    }
}

#[test]
fn one_bad_range_spoils_the_request_and_nothing_is_touched() {
    for options in [mem_disk(MIB), file_disk(image(MIB).path())] {
        let mut rig = Rig::new(options);
        let data = pattern(6, 4096);
        assert_eq!(rig.write(0, &data).status, OK);
        let good = range(0, 8, 0);
        let zeroes = VIRTIO_BLK_T_WRITE_ZEROES;
        assert_eq!(rig.ranges(zeroes, &[good, range(2048, 1, 0)]).status, IOERR);
        assert_eq!(rig.ranges(zeroes, &[good, range(0, 1, 2)]).status, UNSUPP);
        assert_eq!(rig.ranges(VIRTIO_BLK_T_DISCARD, &[good, range(0, 1, 1)]).status, UNSUPP);
        assert_eq!(rig.ranges(zeroes, &[good; 33]).status, IOERR, "more ranges than offered");
        assert_eq!(rig.request(zeroes, 0, &[0; 20], 0).status, IOERR, "no whole number of ranges");
        assert!(rig.read(0, 4096).data == data);
    }
}

#[test]
fn a_burst_of_flushes_does_not_hold_reads_back() {
    let file = image(4 * MIB);
    let mut rig = Rig::new(file_disk(file.path()));
    let mut tickets = Vec::new();
    for i in 0..20 {
        tickets.push(rig.add(0, VIRTIO_BLK_T_OUT, i * 8, &pattern(i, 4096), 0));
        tickets.push(rig.add(0, VIRTIO_BLK_T_FLUSH, 0, &[], 0));
    }
    rig.publish(0);
    assert!(rig.finish(0, &tickets).iter().all(|done| done.status == OK));
    assert_eq!(rig.stats().op(Op::Flush), 20);
}

/// Says that a test could not run here; CI counts it as a failure.
fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test} cannot run: {why}");
    eprintln!("SKIPPED: {test}: {why}");
}
