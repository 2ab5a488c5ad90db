//! What a process finds that takes over from one that died, and what a migration must see.

mod support;

use blk_backend::features::VIRTIO_F_RING_PACKED;
use blk_backend::options::DiskOptions;
use blk_backend::request::*;
use memory::{Area, DirtyLog, GuestAddr, LOG_PAGE_SIZE};
use runtime::io::IoKind;
use std::sync::Arc;
use support::*;
use vhost_user::Device;
use virtqueue::driver::Segment;
use virtqueue::inflight::QueueRegion;
use virtqueue::{Chain, DeviceRing, Queue, RingFeatures, RingSetup};

const MIB: u64 = 1 << 20;

/// Takes `count` chains as a daemon does, and dies.
fn die_with(rig: &Rig, area: &Area, count: u16) {
    let features = RingFeatures::from_bits(rig.features);
    let region = QueueRegion::new(area.clone(), features.format(), rig.config.size).unwrap();
    let setup = RingSetup {
        size: rig.config.size,
        features,
        table: rig.memory.table(),
        addresses: rig.queues[0].addresses,
        base: if features.packed { 0x8000_8000 } else { 0 },
        inflight: Some(region),
        log: None,
        used_log_addr: None,
    };
    let mut queue = Queue::new(setup).unwrap();
    let view = memory::MemoryView::new(rig.memory.table().clone());
    assert_eq!(queue.ring.fetch(count), count);
    for _ in 0..count {
        queue.ring.next(&view, &mut Chain::new()).unwrap();
    }
}

fn restart(rig: &mut Rig, area: &Area) {
    let format = RingFeatures::from_bits(rig.features).format();
    let region = QueueRegion::new(area.clone(), format, rig.config.size).unwrap();
    let base = rig.queues[0].ring.base_for_restart();
    rig.start_with(0, Some(region), base);
}

#[test]
fn requests_in_flight_at_a_crash_are_carried_out_in_their_order() {
    for packed in [0, VIRTIO_F_RING_PACKED] {
        for io in [IoKind::Auto, IoKind::Threads] {
            let file = image(4 * MIB);
            let features = Config::default().features | packed;
            let config = Config { features, io, ..Config::default() };
            let mut rig = Rig::unstarted(file_disk(file.path()), config);
            let (area, _) = rig.inflight();
            // Long and short writes to the same place: unordered, a short one would overtake.
            let mut tickets = Vec::new();
            for i in 0..10u64 {
                tickets.push(rig.add(0, VIRTIO_BLK_T_OUT, 0, &pattern(100 + i, 1 << 20), 0));
                tickets.push(rig.add(0, VIRTIO_BLK_T_OUT, 8, &pattern(200 + i, 4096), 0));
            }
            tickets.push(rig.add(0, VIRTIO_BLK_T_IN, 4096, &[], 512));
            rig.publish(0);
            die_with(&rig, &area, 20);
            restart(&mut rig, &area);
            assert!(rig.finish(0, &tickets).iter().all(|done| done.status == OK));
            assert_eq!(rig.stats().resubmitted, 20);
            let content = std::fs::read(file.path()).unwrap();
            let long = pattern(109, 1 << 20);
            assert!(content[..4096] == long[..4096]);
            assert!(content[4096..8192] == pattern(209, 4096), "the short one came last");
            assert!(content[8192..MIB as usize] == long[8192..]);
            rig.check_round_trip(64, 4096);
        }
    }
}

#[test]
fn the_last_of_conflicting_writes_wins_after_a_crash() {
    for round in 0..10u64 {
        let file = image(4 * MIB);
        let config = Config { io: IoKind::Threads, ..Config::default() };
        let mut rig = Rig::unstarted(file_disk(file.path()), config);
        let (area, _) = rig.inflight();
        let mut tickets = Vec::new();
        for i in 0..8u64 {
            // Each overlaps the one before, and is shorter.
            let len = (8 - i as usize) << 17;
            tickets.push(rig.add(0, VIRTIO_BLK_T_OUT, 0, &pattern(round * 8 + i, len), 0));
        }
        rig.publish(0);
        die_with(&rig, &area, 8);
        restart(&mut rig, &area);
        assert!(rig.finish(0, &tickets).iter().all(|done| done.status == OK));
        let content = std::fs::read(file.path()).unwrap();
        for i in 0..8u64 {
            let (from, to) = ((7 - i as usize) << 17, (8 - i as usize) << 17);
            assert!(content[from..to] == pattern(round * 8 + i, to)[from..], "round {round}, write {i}");
        }
    }
}

#[test]
fn a_new_write_does_not_land_under_one_that_is_carried_out_again() {
    for io in [IoKind::Auto, IoKind::Threads] {
        let file = image(4 * MIB);
        let config = Config { io, size: 4096, ..Config::default() };
        let mut rig = Rig::unstarted(file_disk(file.path()), config);
        let (area, _) = rig.inflight();
        // More segments than one operation takes: without order the new write goes between the two operations.
        let old = rig.alloc(2000 * 512, 4096);
        rig.fill(old, &[1; 2000 * 512]);
        let segment = |addr: u64, len| Segment { addr: GuestAddr(addr), len };
        let (header, status) = (rig.header(VIRTIO_BLK_T_OUT, 0), rig.alloc(1, 1));
        let data = (0..2000).map(|i| segment(old.0 + i * 512, 512));
        let readable: Vec<_> = [segment(header.0, 16)].into_iter().chain(data).collect();
        rig.add_segments(0, &readable, &[segment(status.0, 1)]);
        rig.add(0, VIRTIO_BLK_T_OUT, 1900, &[2; 512], 0);
        rig.publish(0);
        die_with(&rig, &area, 1);
        restart(&mut rig, &area);
        (0..2).for_each(|_| assert_eq!(rig.wait(0).len, 1));
        let content = std::fs::read(file.path()).unwrap();
        assert!(content[1900 * 512..1901 * 512] == [2; 512], "the newer write came last");
        assert!(content[..1900 * 512].iter().all(|byte| *byte == 1));
    }
}

#[test]
fn a_crash_before_any_request_leaves_nothing_to_do_again() {
    let mut rig = Rig::unstarted(mem_disk(MIB), Config::default());
    let (area, region) = rig.inflight();
    rig.start_with(0, Some(region), 0);
    rig.check_round_trip(0, 4096);
    rig.device().disconnected();
    let table = rig.memory.table().clone();
    let features = rig.features;
    rig.device().negotiated(features);
    rig.device().set_memory(table);
    restart(&mut rig, &area);
    rig.check_round_trip(8, 4096);
    assert_eq!(rig.stats().resubmitted, 0);
}

#[test]
fn after_a_restart_writes_are_stable_until_the_guest_flushes() {
    let mut rig = Rig::unstarted(mem_disk(MIB), Config::default());
    let (area, _) = rig.inflight();
    let ticket = rig.add(0, VIRTIO_BLK_T_OUT, 0, &[1; 512], 0);
    rig.publish(0);
    die_with(&rig, &area, 1);
    restart(&mut rig, &area);
    assert_eq!(rig.finish(0, &[ticket])[0].status, OK);
    assert!(rig.disk.durable(), "whether the guest flushes is not known");
    assert_eq!(rig.flush().status, OK);
    assert!(!rig.disk.durable());
}

#[test]
fn stopping_drains_what_was_taken_and_keeps_the_rest() {
    let file = image(4 * MIB);
    let mut rig = Rig::new(file_disk(file.path()));
    for round in 0..20u64 {
        let tickets: Vec<_> =
            (0..30).map(|i| rig.add(0, VIRTIO_BLK_T_OUT, i * 64, &pattern(round + i, 32768), 0)).collect();
        rig.publish(0);
        let queue = rig.device().stop_queue(0).expect("it was running");
        assert_eq!(queue.ring.in_flight(), 0);
        let base = queue.base();
        drop(queue);
        rig.start_with(0, None, base);
        assert!(rig.finish(0, &tickets).iter().all(|done| done.status == OK), "round {round}");
    }
    assert_eq!(rig.stats().ops[1], 600, "nothing was executed twice");
}

fn marked(log: &DirtyLog, addr: GuestAddr, len: u64) -> bool {
    (addr.0 / LOG_PAGE_SIZE..=(addr.0 + len - 1) / LOG_PAGE_SIZE)
        .all(|page| log.is_marked(GuestAddr(page * LOG_PAGE_SIZE)))
}

#[test]
fn a_migration_sees_what_the_disk_wrote_and_only_that() {
    let file = image(4 * MIB);
    for options in [file_disk(file.path()), mem_disk(4 * MIB)] {
        let mut rig = Rig::new(options);
        // Before logging, so that its pages cannot be marked by accident.
        let quiet = rig.add(0, VIRTIO_BLK_T_IN, 0, &[], 16384);
        rig.publish(0);
        rig.finish(0, &[quiet]);
        let log = DirtyLog::anonymous(64 << 10).unwrap();
        rig.device().set_log(Some(log.clone()));
        let read = rig.add(0, VIRTIO_BLK_T_IN, 0, &[], 16384);
        let gap = rig.alloc(4096, 4096);
        let write = rig.add(0, VIRTIO_BLK_T_OUT, 64, &[7; 16384], 0);
        rig.publish(0);
        assert!(rig.finish(0, &[read, write]).iter().all(|done| done.status == OK));
        assert!(marked(&log, read.data, 16384), "data read into the guest");
        assert!(marked(&log, read.status, 1) && marked(&log, write.status, 1));
        assert!(marked(&log, rig.queues[0].addresses.device, 8), "the used ring");
        assert!(!marked(&log, gap, 1), "nothing was written there");
        assert!(!marked(&log, GuestAddr(write.data.0 + 4096), 1), "a write only reads guest memory");
        assert!(!marked(&log, GuestAddr(quiet.data.0 + 4096), 1), "written before the log was there");
        rig.device().set_log(None);
        let later = rig.add(0, VIRTIO_BLK_T_IN, 0, &[], 16384);
        rig.publish(0);
        rig.finish(0, &[later]);
        assert!(!marked(&log, GuestAddr(later.data.0 + 4096), 1), "written after logging ended");
    }
}

#[test]
fn a_second_user_of_the_file_gets_errors_instead_of_the_data() {
    let file = image(MIB);
    let mut first = Rig::new(file_disk(file.path()));
    let mut second = Rig::new(file_disk(file.path()));
    assert_eq!(second.write(0, &[9; 512]).status, IOERR);
    assert!(second.disk.locked_out());
    first.check_round_trip(0, 4096);
    // Stopping the first hands the file over.
    first.device().stop_queue(0);
    let queue = second.device().stop_queue(0).unwrap();
    let base = queue.base();
    second.start_with(0, None, base);
    second.check_round_trip(0, 4096);
    let mut shared = Rig::new(DiskOptions { share_rw: true, ..file_disk(file.path()) });
    shared.check_round_trip(16, 512);
}

#[test]
fn the_cache_mode_travels_with_the_device_state() {
    let mut source = Rig::new(mem_disk(MIB));
    source.device().write_config(32, &[0], false).unwrap();
    let state = source.device().save_state().unwrap();
    let mut target = Rig::new(mem_disk(MIB));
    target.device().load_state(&state).unwrap();
    assert!(!target.disk.writeback() && target.disk.durable());
    assert!(target.device().load_state(b"something else").is_err());
    let table: Arc<memory::MemoryTable> = target.memory.table().clone();
    target.device().set_memory(table);
    target.check_round_trip(0, 512);
}
