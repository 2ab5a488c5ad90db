//! Rate limits as a driver feels them.

mod support;

use blk_backend::limit::{Limits, Rate};
use blk_backend::options::DiskOptions;
use blk_backend::request::*;
use std::time::{Duration, Instant};
use support::*;
use vhost_user::Device;

const MIB: u64 = 1 << 20;

fn iops(rate: u64, burst: u64) -> Limits {
    Limits { iops: Rate { rate, burst }, ..Limits::default() }
}

fn reads(rig: &mut Rig, queue: usize, count: u64) -> Vec<Ticket> {
    let tickets = (0..count).map(|i| rig.add(queue, VIRTIO_BLK_T_IN, i, &[], 512)).collect();
    rig.publish(queue);
    tickets
}

#[test]
fn a_limited_disk_takes_as_long_as_its_rate_says() {
    let file = image(MIB);
    for options in [mem_disk(MIB), file_disk(file.path())] {
        let mut rig = Rig::new(DiskOptions { limits: iops(100, 1), ..options });
        let start = Instant::now();
        let tickets = reads(&mut rig, 0, 30);
        assert!(rig.finish(0, &tickets).iter().all(|done| done.status == OK));
        // Two of thirty go through at once: one token and one on credit.
        assert!(start.elapsed() >= Duration::from_millis(270), "{:?}", start.elapsed());
        assert!(rig.stats().limited > 0);
    }
}

#[test]
fn bandwidth_counts_bytes_and_only_in_its_direction() {
    let limits = Limits { write_bandwidth: Rate { rate: MIB, burst: 4096 }, ..Limits::default() };
    let mut rig = Rig::new(DiskOptions { limits, ..mem_disk(4 * MIB) });
    let start = Instant::now();
    assert_eq!(rig.write(0, &vec![1; MIB as usize / 4]).status, OK, "larger than the burst, so on credit");
    assert_eq!(rig.read(0, MIB as usize).status, OK);
    assert!(start.elapsed() < Duration::from_millis(200), "reads are free");
    assert_eq!(rig.write(0, &[1; 512]).status, OK);
    assert!(start.elapsed() >= Duration::from_millis(240), "{:?}", start.elapsed());
}

#[test]
fn a_queue_held_back_sleeps_and_stops_at_once() {
    let mut rig = Rig::new(DiskOptions { limits: iops(1, 1), ..mem_disk(MIB) });
    let tickets = reads(&mut rig, 0, 10);
    rig.wait(0);
    let start = Instant::now();
    let queue = rig.device().stop_queue(0).expect("running");
    assert!(start.elapsed() < Duration::from_millis(500), "nothing held back is waited for");
    let base = queue.base();
    drop(queue);
    rig.disk.set_limits(Limits::default());
    rig.start_with(0, None, base);
    // All the others, from where it stopped.
    for _ in 1..tickets.len() {
        rig.wait(0);
    }
    assert!(tickets.iter().all(|t| rig.bytes(t.status, 1) == [OK]));
}

#[test]
fn a_request_that_grows_while_it_is_held_back_is_paid_for() {
    let limits = Limits { read_bandwidth: Rate { rate: MIB, burst: 4096 }, ..Limits::default() };
    let mut rig = Rig::new(DiskOptions { limits, ..mem_disk(4 * MIB) });
    let large = MIB as usize / 4;
    let start = Instant::now();
    assert_eq!(rig.read(0, large).status, OK, "on credit");
    let small = rig.add(0, VIRTIO_BLK_T_IN, 0, &[], large);
    // The data buffer is the chain's second descriptor, its length at byte 8 (virtio 1.3 §2.7.5).
    let length = memory::GuestAddr(
        rig.queues[0].addresses.desc.0
            + (0..16)
                .find(|i| {
                    let at = memory::GuestAddr(rig.queues[0].addresses.desc.0 + i * 16);
                    rig.bytes(at, 8) == small.data.0.to_le_bytes()
                })
                .unwrap()
                * 16
            + 8,
    );
    rig.fill(length, &512u32.to_le_bytes());
    rig.publish(0);
    while rig.stats().limited == 0 {
        assert!(start.elapsed() < Duration::from_secs(10));
    }
    rig.fill(length, &(large as u32).to_le_bytes());
    assert_eq!(rig.finish(0, &[small])[0].len as usize, large + 1);
    assert_eq!(rig.read(0, 512).status, OK);
    assert!(start.elapsed() >= Duration::from_millis(480), "{:?}", start.elapsed());
}

#[test]
fn two_queues_share_a_limit_evenly() {
    let options = DiskOptions { num_queues: 2, limits: iops(500, 1), ..mem_disk(MIB) };
    let mut rig = Rig::new(options);
    for queue in [0, 1] {
        reads(&mut rig, queue, 40);
    }
    let mut done = [0, 0];
    let deadline = Instant::now() + Duration::from_secs(20);
    while done[0] + done[1] < 40 {
        for (queue, count) in done.iter_mut().enumerate() {
            *count += i32::from(rig.queues[queue].ring.pop().is_some());
        }
        assert!(Instant::now() < deadline);
    }
    assert!(done[0].abs_diff(done[1]) <= 8, "{done:?}");
}
