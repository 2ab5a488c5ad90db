//! One test for each feature bit a disk offers, at least: `FEATURES` names them.

mod support;

use blk_backend::disk::Disk;
use blk_backend::features::*;
use blk_backend::options::{CacheMode, DiskOptions, Source};
use blk_backend::request::*;
use memory::GuestAddr;
use std::os::unix::fs::MetadataExt;
use support::*;
use vhost_user::Device;
use virtqueue::driver::Segment;

const MIB: u64 = 1 << 20;

fn config_u32(rig: &mut Rig, offset: usize) -> u32 {
    let mut bytes = [0; 4];
    rig.device().read_config(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn config_u8(rig: &mut Rig, offset: usize) -> u8 {
    let mut byte = [0];
    rig.device().read_config(offset, &mut byte);
    byte[0]
}

#[test]
fn every_offered_bit_has_a_named_test() {
    let source = include_str!("features.rs");
    for feature in FEATURES {
        let definition = format!("#[test]\nfn {}()", feature.test);
        assert!(source.contains(&definition), "{} has no test {}", feature.name, feature.test);
    }
    let known = FEATURES.iter().fold(0, |bits, feature| bits | feature.bit);
    let file = image(MIB);
    let kinds = [
        mem_disk(MIB),
        DiskOptions::new("n", Source::Null(MIB)),
        file_disk(file.path()),
        DiskOptions { read_only: true, ..file_disk(file.path()) },
    ];
    let offered = kinds.into_iter().fold(0, |bits, options| bits | Disk::open(options).unwrap().offered());
    assert_eq!(offered, known);
}

#[test]
fn size_max_is_told_and_longer_segments_are_served() {
    let mut rig = Rig::new(mem_disk(16 * MIB));
    assert_eq!(config_u32(&mut rig, 8), 4 << 20);
    rig.check_round_trip(0, 8 << 20);
}

#[test]
fn seg_max_fits_the_queue_and_more_segments_are_served() {
    let options = DiskOptions { queue_size: 64, seg_max: 1000, ..mem_disk(MIB) };
    let mut rig = Rig::with(options, Config { size: 64, ..Config::default() });
    assert_eq!(config_u32(&mut rig, 12), 62, "with header and status the queue is full");
    let (header, status) = (rig.header(VIRTIO_BLK_T_OUT, 0), rig.alloc(1, 1));
    let data = rig.alloc(62 * 512, 512);
    let piece = |i: u64| Segment { addr: GuestAddr(data.0 + i * 512), len: 512 };
    let mut readable = vec![Segment { addr: header, len: 16 }];
    readable.extend((0..62).map(piece));
    rig.add_segments(0, &readable, &[Segment { addr: status, len: 1 }]);
    rig.publish(0);
    rig.wait(0);
    assert_eq!(rig.bytes(status, 1), [OK]);
}

#[test]
fn ro_disks_fail_every_write() {
    let file = image(MIB);
    let mut rig = Rig::new(DiskOptions { read_only: true, ..file_disk(file.path()) });
    assert_ne!(rig.features & VIRTIO_BLK_F_RO, 0);
    assert_eq!(rig.write(0, &[1; 512]).status, IOERR);
    // Not offered, so not known.
    assert_eq!(rig.ranges(VIRTIO_BLK_T_DISCARD, &[range(0, 1, 0)]).status, UNSUPP);
    assert_eq!(rig.flush().status, OK);
    let read = rig.read(0, 512);
    assert_eq!((read.status, read.data), (OK, vec![0; 512]));
    assert!(rig.device().write_config(32, &[0], false).is_err());
}

#[test]
fn blk_size_is_what_was_asked_for() {
    let mut rig = Rig::new(DiskOptions { block_size: Some(4096), ..mem_disk(MIB) });
    assert_eq!(config_u32(&mut rig, 20), 4096);
    rig.check_round_trip(8, 4096);
    let mut plain = Rig::new(mem_disk(MIB));
    assert_eq!(config_u32(&mut plain, 20), 512);
}

#[test]
fn flush_follows_the_writes_before_it() {
    let file = image(MIB);
    let mut rig = Rig::new(file_disk(file.path()));
    let data = pattern(1, 4096);
    assert_eq!(rig.write(16, &data).status, OK);
    let flushed = rig.flush();
    assert_eq!((flushed.status, flushed.len), (OK, 1));
    assert!(std::fs::read(file.path()).unwrap()[16 * 512..16 * 512 + 4096] == data);
}

#[test]
fn topology_names_the_physical_block() {
    let file = image(MIB);
    let mut rig = Rig::new(file_disk(file.path()));
    assert_eq!(config_u8(&mut rig, 24), 3, "8 logical blocks of 512 in a page of 4096");
    assert_eq!(config_u8(&mut rig, 25), 0);
}

#[test]
fn config_wce_switches_durability() {
    let file = image(MIB);
    let mut rig = Rig::new(file_disk(file.path()));
    assert_eq!(config_u8(&mut rig, 32), 1);
    assert!(!rig.disk.durable());
    rig.check_round_trip(0, 4096);
    rig.device().write_config(32, &[0], false).unwrap();
    assert_eq!(config_u8(&mut rig, 32), 0);
    assert!(rig.disk.durable());
    rig.check_round_trip(8, 4096);
    assert_eq!(rig.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[range(0, 8, 1)]).status, OK);
    rig.device().write_config(32, &[1], false).unwrap();
    assert!(!rig.disk.durable());
    assert!(rig.device().write_config(32, &[2], false).is_err(), "neither 0 nor 1");
    assert!(rig.device().write_config(0, &[1], false).is_err(), "the capacity cannot be written");
    assert!(rig.device().write_config(28, &[0; 8], false).is_err(), "more than the one field");
}

#[test]
fn a_driver_that_cannot_flush_gets_write_through() {
    let features = ALL & !(VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_RING_FEATURES_OFF);
    let mut rig = Rig::with(mem_disk(MIB), Config { features, ..Config::default() });
    assert_eq!(config_u8(&mut rig, 32), 0, "CONFIG_WCE without FLUSH starts with writeback 0");
    assert!(rig.disk.durable());
}

/// Ring features that the default rig leaves out as well.
const VIRTIO_BLK_F_RING_FEATURES_OFF: u64 = VIRTIO_F_RING_PACKED | VIRTIO_F_IN_ORDER;

#[test]
fn the_operator_may_ask_for_write_through() {
    let options = DiskOptions { cache: CacheMode::Writethrough, ..mem_disk(MIB) };
    let mut rig = Rig::new(options);
    assert_eq!(config_u8(&mut rig, 32), 0);
    assert!(rig.disk.durable());
}

#[test]
fn mq_serves_all_queues_on_all_workers() {
    let file = image(8 * MIB);
    let options = DiskOptions { num_queues: 4, ..file_disk(file.path()) };
    let mut rig = Rig::with(options, Config { workers: 2, ..Config::default() });
    assert_eq!(config_u32(&mut rig, 32) >> 16, 4, "num_queues");
    let mut tickets = Vec::new();
    for round in 0..50 {
        for queue in 0..4 {
            let data = pattern(round * 4 + queue, 4096);
            tickets.push(rig.add(queue as usize, VIRTIO_BLK_T_OUT, (round * 4 + queue) * 8, &data, 0));
            rig.publish(queue as usize);
        }
        for (queue, ticket) in tickets.drain(..).enumerate() {
            assert_eq!(rig.finish(queue, &[ticket])[0].status, OK);
        }
    }
    let content = std::fs::read(file.path()).unwrap();
    for (i, block) in content[..200 * 4096].chunks(4096).enumerate() {
        assert!(block == pattern(i as u64, 4096), "block {i}");
    }
    assert!(rig.disk.queue_stats().iter().all(|queue| queue.snapshot().ops[1] == 50));
}

#[test]
fn discard_frees_and_reads_as_zeroes() {
    let file = image(4 * MIB);
    let mut rig = Rig::new(file_disk(file.path()));
    assert_eq!(rig.write(0, &pattern(1, 2 << 20)).status, OK);
    file.as_file().sync_all().unwrap();
    assert!(file.as_file().metadata().unwrap().blocks() >= 4096);
    assert_eq!(rig.ranges(VIRTIO_BLK_T_DISCARD, &[range(0, 4096, 0)]).status, OK);
    assert!(file.as_file().metadata().unwrap().blocks() < 64);
    assert_eq!(rig.read(100, 4096).data, vec![0; 4096]);
    assert_eq!(file.as_file().metadata().unwrap().len(), 4 * MIB);
}

#[test]
fn write_zeroes_keeps_or_frees_the_space_as_asked() {
    let file = image(4 * MIB);
    let mut rig = Rig::new(file_disk(file.path()));
    let blocks = || file.as_file().metadata().unwrap().blocks();
    assert_eq!(rig.write(0, &pattern(1, 4 << 20)).status, OK);
    file.as_file().sync_all().unwrap();
    assert_eq!(rig.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[range(0, 4096, 0)]).status, OK);
    file.as_file().sync_all().unwrap();
    assert!(blocks() >= 8192, "without UNMAP the space stays");
    assert_eq!(rig.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[range(4096, 4096, 1)]).status, OK);
    assert!(blocks() < 8192, "with UNMAP it is freed");
    assert!(rig.read(0, 4 << 20).data.iter().all(|byte| *byte == 0));
}

#[test]
fn secure_erase_leaves_zeroes() {
    let mut rig = Rig::new(mem_disk(MIB));
    assert_ne!(rig.features & VIRTIO_BLK_F_SECURE_ERASE, 0);
    assert_eq!(rig.write(0, &[0x55; 8192]).status, OK);
    assert_eq!(rig.ranges(VIRTIO_BLK_T_SECURE_ERASE, &[range(0, 8, 0)]).status, OK);
    let found = rig.read(0, 8192).data;
    assert!(found[..4096].iter().all(|b| *b == 0) && found[4096..].iter().all(|b| *b == 0x55));
    let file = image(MIB);
    let mut file = Rig::new(file_disk(file.path()));
    assert_eq!(file.ranges(VIRTIO_BLK_T_SECURE_ERASE, &[range(0, 8, 0)]).status, UNSUPP);
}

#[test]
fn indirect_tables_hold_requests() {
    let file = image(MIB);
    let mut rig = Rig::new(file_disk(file.path()));
    let data = pattern(1, 30 * 512);
    let (header, status, body) =
        (rig.header(VIRTIO_BLK_T_OUT, 0), rig.alloc(1, 1), rig.alloc(data.len(), 512));
    rig.fill(body, &data);
    let mut readable = vec![Segment { addr: header, len: 16 }];
    readable.extend((0..30).map(|i| Segment { addr: GuestAddr(body.0 + i * 512), len: 512 }));
    let before = rig.queues[0].ring.free();
    rig.queues[0].ring.add_indirect(&readable, &[Segment { addr: status, len: 1 }], 9000).unwrap();
    assert_eq!(before - rig.queues[0].ring.free(), 1, "one descriptor of the ring");
    rig.publish(0);
    assert_eq!(rig.wait(0).cookie, 9000);
    assert!(std::fs::read(file.path()).unwrap()[..data.len()] == data);
}

#[test]
fn event_idx_saves_kicks_and_interrupts() {
    let mut rig = Rig::new(mem_disk(MIB));
    assert_ne!(rig.features & VIRTIO_F_EVENT_IDX, 0);
    // A ring that has just started interrupts once in any case.
    rig.check_round_trip(0, 512);
    // A driver that has asked for no interrupts puts its event index far away.
    rig.queues[0].ring.suppress();
    let before = rig.counters[0].snapshot();
    let tickets: Vec<_> = (0..40).map(|i| rig.add(0, VIRTIO_BLK_T_IN, i, &[], 512)).collect();
    rig.publish(0);
    assert!(rig.finish(0, &tickets).iter().all(|done| done.status == OK));
    let after = rig.counters[0].snapshot();
    assert_eq!(after.interrupts, before.interrupts);
    assert!(after.interrupts_suppressed > before.interrupts_suppressed);
    assert!(after.kicks <= before.kicks + 1, "one kick for forty requests");
    // One that waits gets its interrupt.
    assert!(!rig.queues[0].ring.arm());
    rig.check_round_trip(0, 4096);
    assert!(rig.counters[0].snapshot().interrupts > after.interrupts);
}

#[test]
fn version_1_is_offered_and_legacy_types_are_not_served() {
    let mut rig = Rig::new(mem_disk(MIB));
    assert_ne!(rig.features & VIRTIO_F_VERSION_1, 0);
    // SCSI commands and the barrier bit of legacy drivers.
    assert_eq!(rig.request(2, 0, &[], 0).status, UNSUPP);
    assert_eq!(rig.request(0x8000_0001, 0, &[0; 512], 0).status, UNSUPP);
}

#[test]
fn ring_packed_serves_every_kind_of_request() {
    let file = image(4 * MIB);
    for options in [file_disk(file.path()), mem_disk(4 * MIB)] {
        let mut rig =
            Rig::with(options, Config { size: 100, features: ALL & !VIRTIO_F_IN_ORDER, ..Config::default() });
        assert_ne!(rig.features & VIRTIO_F_RING_PACKED, 0);
        for round in 0..200 {
            rig.check_round_trip(round * 8, 4096);
        }
        assert_eq!(rig.flush().status, OK);
        assert_eq!(rig.ranges(VIRTIO_BLK_T_DISCARD, &[range(0, 8, 0), range(16, 8, 0)]).status, OK);
        assert_eq!(rig.read(0, 512).data, vec![0; 512]);
    }
}

#[test]
fn in_order_completes_in_the_order_of_submission() {
    let file = image(4 * MIB);
    for packed in [0, VIRTIO_F_RING_PACKED] {
        let features = ALL & !VIRTIO_F_RING_PACKED | packed;
        let mut rig = Rig::with(file_disk(file.path()), Config { features, ..Config::default() });
        assert_ne!(rig.features & VIRTIO_F_IN_ORDER, 0);
        // Large and small, slow and quick in turn.
        let kinds = [(VIRTIO_BLK_T_IN, 256 << 10), (VIRTIO_BLK_T_FLUSH, 0), (VIRTIO_BLK_T_GET_ID, 20)];
        let tickets: Vec<_> = (0..30)
            .map(|i| {
                let (kind, len) = kinds[i % 3];
                rig.add(0, kind, 0, &[], len)
            })
            .collect();
        rig.publish(0);
        let order: Vec<u32> = tickets.iter().map(|_| rig.wait(0).cookie).collect();
        assert_eq!(order, tickets.iter().map(|t| t.cookie).collect::<Vec<_>>());
        assert!(tickets.iter().all(|t| rig.bytes(t.status, 1) == [OK]));
    }
}

#[test]
fn ring_reset_starts_a_queue_anew_while_others_run() {
    let options = DiskOptions { num_queues: 2, ..mem_disk(MIB) };
    let mut rig = Rig::new(options);
    assert_ne!(rig.features & VIRTIO_F_RING_RESET, 0);
    rig.check_round_trip(0, 4096);
    assert!(rig.device().stop_queue(0).is_some());
    assert_eq!(rig.request_on(1, VIRTIO_BLK_T_IN, 0, &[], 512).status, OK);
    rig.renew(0);
    rig.start(0);
    rig.check_round_trip(8, 4096);
    assert_eq!(rig.request_on(1, VIRTIO_BLK_T_IN, 8, &[], 512).status, OK);
}
