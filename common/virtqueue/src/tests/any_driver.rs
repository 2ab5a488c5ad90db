//! A device side that does not know what the driver negotiated, against drivers with and without EVENT_IDX and INDIRECT_DESC.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use memory::DirtyLog;

use super::rig::{GUEST, PACKED, Rig, SPLIT, all_features};
use super::wakeups::neither_sleeps_for_good;
use crate::layout::{AVAIL_NO_INTERRUPT, avail_event_offset, used_event_offset};
use crate::{BadIndirect, Broken, Chain, DeviceRing, Ring, RingFeatures};

/// What a driver of a split ring may have negotiated without IN_ORDER.
fn drivers() -> impl Iterator<Item = RingFeatures> {
    all_features().filter(|driver| !driver.packed && !driver.in_order)
}

/// A device that was told of no feature.
fn blind(rig: &Rig) -> Ring {
    blind_at(rig, 0)
}

fn blind_at(rig: &Rig, base: u32) -> Ring {
    let mut ring = Ring::new(crate::RingSetup { features: SPLIT, ..rig.setup(base) }).unwrap();
    ring.assume_any_driver();
    ring
}

#[test]
fn direct_and_indirect_chains_are_served() {
    for features in drivers() {
        let rig = Rig::new(8, features);
        let (mut driver, mut ring) = (rig.driver(), blind(&rig));
        for cookie in 0..20 {
            let (readable, writable) = ([rig.buffer(72), rig.buffer(16)], [rig.buffer(32), rig.buffer(1)]);
            match features.indirect {
                true => driver.add_indirect(&readable, &writable, cookie).unwrap(),
                false => driver.add(&readable, &writable, cookie).unwrap(),
            }
            let _ = driver.publish();
            assert_eq!(rig.serve(&mut ring), 1);
            assert_eq!(driver.pop().map(|used| (used.cookie, used.len)), Some((cookie, 33)));
        }
    }
}

#[test]
fn without_the_assumption_an_indirect_table_breaks_the_ring() {
    let rig = Rig::new(8, RingFeatures { indirect: true, ..SPLIT });
    let mut driver = rig.driver();
    let mut ring = Ring::new(crate::RingSetup { features: SPLIT, ..rig.setup(0) }).unwrap();
    driver.add_indirect(&[rig.buffer(8)], &[], 0).unwrap();
    let _ = driver.publish();
    assert_eq!(ring.fetch(1), 1);
    let refused = ring.next(&rig.view, &mut Chain::new());
    assert_eq!(refused, Err(Broken::BadIndirect(BadIndirect::NotNegotiated)));
}

/// Also over the end of the 16-bit index, where a stale event index would come round.
#[test]
fn every_driver_kicks_when_asked_to_and_not_otherwise() {
    for features in drivers() {
        let rig = Rig::new(8, features);
        let (mut driver, mut ring) = (rig.driver(), blind_at(&rig, 65500));
        driver.start_at(65500).unwrap();
        let buffer = rig.buffer(8);
        for cookie in 0..100 {
            let asked = cookie % 3 != 0;
            if asked {
                assert!(!ring.arm());
            } else {
                ring.suppress();
            }
            driver.add(&[buffer], &[], cookie).unwrap();
            assert_eq!(driver.publish(), asked, "{features:?} request {cookie}");
            assert_eq!(rig.serve(&mut ring), 1);
            assert!(driver.pop().is_some());
        }
    }
}

#[test]
fn no_content_of_used_event_costs_a_driver_without_event_idx_an_interrupt() {
    let rig = Rig::new(8, SPLIT);
    let (mut driver, mut ring) = (rig.driver(), blind(&rig));
    let (avail, buffer) = (rig.areas().driver, rig.buffer(8));
    let garbage = (0..=u16::MAX).step_by(if cfg!(miri) { 8191 } else { 1 });
    for event in garbage {
        avail.store_u16(used_event_offset(8), event, Relaxed);
        driver.add(&[buffer], &[], 0).unwrap();
        let _ = driver.publish();
        let chain = rig.next_of(&mut ring);
        ring.complete(&rig.view, &chain, 0);
        assert!(ring.publish(), "used_event {event}");
        assert!(driver.pop().is_some());
    }
}

#[test]
fn a_driver_that_wants_no_interrupts_by_flag_gets_none() {
    let rig = Rig::new(8, SPLIT);
    let (mut driver, mut ring) = (rig.driver(), blind(&rig));
    // The first decision is always yes: nobody knows what a predecessor had signalled.
    driver.add(&[rig.buffer(8)], &[], 0).unwrap();
    let _ = driver.publish();
    rig.serve(&mut ring);
    let avail = rig.areas().driver;
    for event in [0, 1, 2, 3, 4, u16::MAX] {
        avail.store_u16(used_event_offset(8), event, Relaxed);
        avail.store_u16(0, AVAIL_NO_INTERRUPT, Relaxed);
        driver.add(&[rig.buffer(8)], &[], 0).unwrap();
        let _ = driver.publish();
        let chain = rig.next_of(&mut ring);
        ring.complete(&rig.view, &chain, 0);
        assert!(!ring.publish());
    }
}

#[test]
fn a_driver_with_event_idx_is_interrupted_once_a_batch_wanted_or_not() {
    let rig = Rig::new(8, RingFeatures { event_idx: true, ..SPLIT });
    let (mut driver, mut ring) = (rig.driver(), blind(&rig));
    for round in 0..20 {
        if round % 2 == 0 {
            driver.suppress();
        } else {
            assert!(!driver.arm());
        }
        for cookie in 0..3 {
            driver.add(&[rig.buffer(8)], &[], cookie).unwrap();
        }
        let _ = driver.publish();
        for chain in rig.take(&mut ring, 8) {
            ring.complete(&rig.view, &chain, 0);
        }
        assert!(ring.publish());
        assert!(!ring.publish(), "nothing new is no interrupt");
        assert_eq!(std::iter::from_fn(|| driver.pop()).count(), 3);
    }
}

#[test]
fn neither_a_driver_with_event_idx_nor_one_without_sleeps_for_good() {
    drivers().filter(|driver| !driver.indirect).for_each(|driver| neither_sleeps_for_good(driver, blind));
}

#[test]
fn both_fields_that_ask_for_kicks_are_in_the_dirty_log() {
    let size = 4096;
    let rig = Rig::new(size, SPLIT);
    let log = DirtyLog::anonymous(64).unwrap();
    let mut ring = blind(&rig);
    ring.set_log(Some(Arc::clone(&log)), None);
    let _ = ring.arm();
    let device = rig.addresses.device.0;
    let event = device + avail_event_offset(size) as u64;
    assert_ne!(device / 4096, event / 4096, "the two are on different pages");
    assert!(log.is_marked(memory::GuestAddr(device)) && log.is_marked(memory::GuestAddr(event)));
    assert!(!log.is_marked(GUEST));
}

#[test]
fn a_packed_ring_stays_as_negotiated() {
    let rig = Rig::new(8, PACKED);
    let (mut driver, mut ring) = (rig.driver(), rig.device());
    ring.assume_any_driver();
    driver.add(&[rig.buffer(8)], &[], 5).unwrap();
    let _ = driver.publish();
    assert_eq!(rig.serve(&mut ring), 1);
    assert_eq!(driver.pop().map(|used| used.cookie), Some(5));
}
