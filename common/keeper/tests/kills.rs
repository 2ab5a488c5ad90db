//! The worker is killed under load, and a driver that knows nothing of it goes on.

mod bed;

use std::time::Duration;

use bed::{Attach, Driver, Keeper};

fn survives(packed: bool, kills: u32) {
    let keeper = Keeper::start(&[], &[]);
    let mut driver = Driver::attach(&keeper.socket(), &Attach { packed, size: 256, depth: 64 });
    driver.progress(1000);
    for round in 0..kills {
        // Long enough to count as having served; at a different moment each time.
        driver.load(Duration::from_millis(150 + u64::from(round * 37 % 11)));
        keeper.kill_worker();
        driver.progress(500);
    }
    driver.drain();
    driver.check_disk(&keeper.dir.path().join("disk"));
    assert!(keeper.log().matches("the new worker has taken over").count() >= kills as usize);
}

#[test]
fn a_driver_without_inflight_region_loses_nothing_on_a_split_ring_in_twenty_kills() {
    survives(false, 20);
}

#[test]
fn a_driver_without_inflight_region_loses_nothing_on_a_packed_ring_in_twenty_kills() {
    survives(true, 20);
}
