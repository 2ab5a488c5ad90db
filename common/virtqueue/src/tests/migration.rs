//! The dirty log: everything the device wrote is marked, nothing else, and only while there is a log.

use std::sync::Arc;

use memory::{DirtyLog, GuestAddr, LOG_PAGE_SIZE};

use super::rig::{GUEST, PACKED, Rig, SPLIT};
use crate::driver::Segment;
use crate::{Chain, DeviceRing};

fn pages(log: &DirtyLog) -> Vec<u64> {
    let count = (1 << 20) / LOG_PAGE_SIZE;
    (0..count)
        .map(|page| GUEST.0 + page * LOG_PAGE_SIZE)
        .filter(|&addr| log.is_marked(GuestAddr(addr)))
        .collect()
}

fn page_of(addr: GuestAddr) -> u64 {
    addr.0 & !(LOG_PAGE_SIZE - 1)
}

/// A request for `len` bytes at a page's start, taken.
fn request(
    rig: &Rig,
    driver: &mut crate::driver::DriverRing,
    ring: &mut crate::Ring,
    len: u32,
) -> (Segment, Chain) {
    let addr = rig.memory.alloc(len as usize, 4096).unwrap();
    let segment = Segment { addr, len };
    driver.add(&[], &[segment], 0).unwrap();
    let _ = driver.publish();
    let chain = rig.next_of(ring);
    (segment, chain)
}

#[test]
fn written_buffers_and_used_elements_are_marked() {
    for features in [SPLIT, PACKED] {
        let rig = Rig::new(8, features);
        let log = DirtyLog::anonymous(64).unwrap();
        let (mut driver, mut ring) = (rig.driver(), rig.logged(&log));
        let (segment, chain) = request(&rig, &mut driver, &mut ring, 3 * 4096);
        ring.complete(&rig.view, &chain, 4097);
        // Two pages were written, the third was not.
        assert_eq!(pages(&log), [segment.addr.0, segment.addr.0 + 4096]);
        let _ = ring.publish();
        let used = page_of(if features.packed { rig.addresses.desc } else { rig.addresses.device });
        assert!(log.is_marked(GuestAddr(used)));
        assert_eq!(pages(&log).len(), 3);
        let before = pages(&log).len();
        let _ = ring.arm();
        assert!(log.is_marked(rig.addresses.device));
        assert!(pages(&log).len() <= before + 1);
    }
}

#[test]
fn a_detached_status_byte_is_marked_even_when_no_data_was_written() {
    let rig = Rig::new(8, SPLIT);
    let log = DirtyLog::anonymous(64).unwrap();
    let (mut driver, mut ring) = (rig.driver(), rig.logged(&log));
    let (segment, mut chain) = request(&rig, &mut driver, &mut ring, 2 * 4096 + 1);
    chain.detach_status().unwrap();
    ring.complete(&rig.view, &chain, 0);
    assert_eq!(pages(&log), [segment.addr.0 + 2 * 4096]);
}

#[test]
fn what_was_written_at_the_end_is_marked_wherever_the_rest_ends() {
    let rig = Rig::new(8, SPLIT);
    let log = DirtyLog::anonymous(64).unwrap();
    let (mut driver, mut ring) = (rig.driver(), rig.logged(&log));
    let (segment, mut chain) = request(&rig, &mut driver, &mut ring, 4 * 4096 + 8);
    chain.write_suffix(&rig.view, &[7; 32]).unwrap();
    ring.complete(&rig.view, &chain, 100);
    assert_eq!(pages(&log), [0, 3, 4].map(|page| segment.addr.0 + page * 4096));
    let _ = ring.publish();
    // The next request in the same place begins without it.
    let (segment, chain) = request(&rig, &mut driver, &mut ring, 2 * 4096);
    ring.complete(&rig.view, &chain, 100);
    assert!(log.is_marked(segment.addr));
    assert!(!log.is_marked(GuestAddr(segment.addr.0 + 4096)));
}

// Thousands of requests: too slow under Miri, which learns nothing from them.
#[cfg(not(miri))]
#[test]
fn the_used_ring_is_marked_at_its_log_address_across_its_end() {
    let rig = Rig::new(2048, SPLIT);
    let log = DirtyLog::anonymous(64).unwrap();
    let (mut driver, mut ring) = (rig.driver(), rig.device());
    let elsewhere = GUEST.0 + 0x8_0000;
    // 2040 elements without a log, then ten more that go around the end.
    let buffer = rig.buffer(8);
    for count in [2040, 10] {
        if count == 10 {
            ring.set_log(Some(Arc::clone(&log)), Some(GuestAddr(elsewhere)));
        }
        (0..count).for_each(|cookie| driver.add(&[buffer], &[], cookie).unwrap());
        let _ = driver.publish();
        assert_eq!(rig.serve(&mut ring), count as usize);
        while driver.pop().is_some() {}
    }
    // The index and elements 0 and 1 in the first page, 2040 to 2047 at bytes 16324 to 16387.
    assert_eq!(pages(&log), [0, 3, 4].map(|page| elsewhere + page * 4096));
}

#[test]
fn without_a_log_nothing_is_marked() {
    for features in [SPLIT, PACKED] {
        let rig = Rig::new(8, features);
        let log = DirtyLog::anonymous(64).unwrap();
        let (mut driver, mut ring) = (rig.driver(), rig.logged(&log));
        ring.set_log(None, None);
        let (_, chain) = request(&rig, &mut driver, &mut ring, 4096);
        ring.complete(&rig.view, &chain, 4096);
        let _ = ring.publish();
        let _ = ring.arm();
        ring.suppress();
        assert_eq!(pages(&log), []);
    }
}
