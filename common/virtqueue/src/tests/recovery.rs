//! The inflight region: sizes, bytes, order, and what a frontend can do to it.

use std::sync::atomic::Ordering::Relaxed;

use memory::Area;

use super::rig::{PACKED, Rig, SPLIT};
use crate::driver::DriverRing;
use crate::inflight::{QueueRegion, region_size};
use crate::{Chain, DeviceRing, Format, Ring, RingSetup, SetupError};

/// Sizes as libvhost-user and DPDK compute them from their structures, 64-byte aligned.
#[test]
fn region_sizes_are_those_of_libvhost_user_and_dpdk() {
    let up = |bytes: usize| bytes.next_multiple_of(64);
    for size in (1..=1024).chain([4096, 32768]) {
        let entries = usize::from(size);
        let libvhost_user = up(16 * entries + size_of::<u16>());
        let dpdk_split = up(16 * entries + size_of::<u64>() + 4 * size_of::<u16>());
        let dpdk_packed = up(32 * entries + size_of::<u64>() + 6 * size_of::<u16>() + 9);
        assert_eq!(region_size(Format::Split, size), libvhost_user);
        assert_eq!(region_size(Format::Split, size), dpdk_split);
        assert_eq!(region_size(Format::Packed, size), dpdk_packed);
    }
}

/// A ring with `count` requests of two descriptors in flight.
fn in_flight(rig: &Rig, count: u32) -> (DriverRing, Ring, Vec<Chain>) {
    let (mut driver, mut ring) = (rig.driver(), rig.tracked(rig.start()).unwrap());
    for cookie in 0..count {
        driver.add(&[rig.buffer(16)], &[rig.buffer(32)], cookie).unwrap();
    }
    let _ = driver.publish();
    let chains = rig.take(&mut ring, u16::MAX);
    assert_eq!(chains.len(), count as usize);
    (driver, ring, chains)
}

#[test]
fn a_split_region_holds_what_the_specification_says() {
    let rig = Rig::new(8, SPLIT);
    let (_driver, mut ring, chains) = in_flight(&rig, 3);
    let region = &rig.region;
    let header = |offset| region.read::<u16>(offset);
    // features, version, desc_num, last_batch_head, used_idx
    assert_eq!((region.read::<u64>(0), header(8), header(10), header(14)), (0, 1, 8, 0));
    let entry = |head: usize| {
        let at = 16 + 16 * head;
        (region.read::<u8>(at), region.read::<u16>(at + 6), region.read::<u64>(at + 8))
    };
    // Heads 0, 2, 4: inflight, next, counter.
    assert_eq!([entry(0), entry(2), entry(4)], [(1, 0, 0), (1, 0, 1), (1, 0, 2)]);
    ring.complete(&rig.view, &chains[2], 0);
    ring.complete(&rig.view, &chains[1], 0);
    assert_eq!((header(12), header(14)), (2, 0));
    assert_eq!([entry(2), entry(4)], [(1, 4, 1), (1, 0, 2)]);
    let _ = ring.publish();
    assert_eq!((header(12), header(14)), (2, 2));
    assert_eq!([entry(0), entry(2), entry(4)], [(1, 0, 0), (0, 4, 1), (0, 0, 2)]);
}

#[test]
fn a_packed_region_holds_what_the_specification_says() {
    let rig = Rig::new(8, PACKED);
    let (_driver, mut ring, chains) = in_flight(&rig, 2);
    let region = &rig.region;
    // version, desc_num, free_head, old_free_head, used_idx, old_used_idx, used_wrap_counter, old_used_wrap_counter
    let header = || {
        let words = [8, 10, 12, 14, 16, 18].map(|offset| region.read::<u16>(offset));
        (words, region.read::<u8>(20), region.read::<u8>(21))
    };
    assert_eq!(header(), ([1, 8, 4, 4, 0, 0], 1, 1));
    // inflight, next, last, num, counter
    let entry = |index: usize| {
        let at = 32 + 32 * index;
        let words = [2, 4, 6].map(|offset| region.read::<u16>(at + offset));
        (region.read::<u8>(at), words, region.read::<u64>(at + 8))
    };
    assert_eq!([entry(0), entry(2)], [(1, [1, 1, 2], 0), (1, [3, 3, 2], 1)]);
    // The copy of a descriptor: id, flags, len, addr.
    let slot = rig.areas().desc;
    for index in 0..4 {
        let (copy, own) = (32 + 32 * index, 16 * index);
        assert_eq!(region.read::<u64>(copy + 24), slot.read::<u64>(own));
        assert_eq!(region.read::<u32>(copy + 20), slot.read::<u32>(own + 8));
        assert_eq!(region.read::<u32>(copy + 16), slot.read::<u32>(own + 12));
    }
    ring.complete(&rig.view, &chains[1], 0);
    let _ = ring.publish();
    assert_eq!(header(), ([1, 8, 2, 2, 2, 2], 1, 1));
    assert_eq!((entry(2).0, entry(3).1[0]), (0, 4));
}

#[test]
fn requests_left_in_flight_come_first_and_in_the_order_they_were_taken() {
    for features in [SPLIT, PACKED] {
        let rig = Rig::new(16, features);
        let (mut driver, mut ring, chains) = in_flight(&rig, 5);
        // Out of order, and the freed heads are used again: the order is in no index.
        ring.complete(&rig.view, &chains[1], 0);
        ring.complete(&rig.view, &chains[3], 0);
        let _ = ring.publish();
        while driver.pop().is_some() {}
        driver.add(&[rig.buffer(16)], &[rig.buffer(32)], 5).unwrap();
        let _ = driver.publish();
        let expected: Vec<_> = [&chains[0], &chains[2], &chains[4]].map(|chain| rig.segments(chain)).into();
        drop(ring);

        let mut ring = rig.tracked(driver.base_for_restart()).unwrap();
        assert_eq!((ring.resubmissions(), ring.has_work(), ring.fetch(16)), (3, true, 4));
        let again: Vec<_> = (0..4).map(|_| rig.next(&mut ring)).collect();
        assert_eq!(again[..3].iter().map(|it| rig.segments(it)).collect::<Vec<_>>(), expected);
        assert_eq!(
            again.iter().map(|it| it.token().resubmitted()).collect::<Vec<_>>(),
            [true, true, true, false]
        );
        assert_eq!(ring.resubmissions(), 0);
        again.iter().for_each(|chain| ring.complete(&rig.view, chain, 0));
        assert!(ring.publish(), "the first interrupt is always due");
        let mut back: Vec<_> = std::iter::from_fn(|| driver.pop()).map(|used| used.cookie).collect();
        back.sort_unstable();
        assert_eq!(back, [0, 2, 4, 5]);
    }
}

#[test]
fn a_resubmitted_chain_can_be_put_back() {
    for features in [SPLIT, PACKED] {
        let rig = Rig::new(8, features);
        let (mut driver, ring, _) = in_flight(&rig, 2);
        drop(ring);
        let mut ring = rig.tracked(rig.start()).unwrap();
        let chains = rig.take(&mut ring, 8);
        assert!(!ring.unfetch(&chains[0]), "only the newest");
        assert!(ring.unfetch(&chains[1]) && ring.unfetch(&chains[0]));
        assert_eq!((ring.in_flight(), ring.resubmissions()), (0, 2));
        drop(ring);
        let mut ring = rig.tracked(rig.start()).unwrap();
        assert_eq!(rig.serve(&mut ring), 2);
        assert_eq!(std::iter::from_fn(|| driver.pop()).count(), 2);
    }
}

#[test]
fn a_fresh_region_starts_at_the_base() {
    for (features, base) in [(SPLIT, 40), (PACKED, 0x0003_0003)] {
        let rig = Rig::new(8, features);
        let mut driver = rig.driver();
        driver.start_at(base).unwrap();
        let mut ring = rig.tracked(base).unwrap();
        assert_eq!(ring.base(), base);
        driver.add(&[rig.buffer(16)], &[], 9).unwrap();
        let _ = driver.publish();
        assert_eq!(rig.serve(&mut ring), 1);
        assert_eq!(driver.pop().map(|used| used.cookie), Some(9));
    }
}

#[test]
fn a_drained_ring_may_be_reset_and_goes_on_with_the_same_region() {
    for features in [SPLIT, PACKED] {
        let rig = Rig::new(8, features);
        let (mut driver, mut ring, chains) = in_flight(&rig, 3);
        let end = ring.finish();
        assert_eq!(rig.region.read::<u16>(8), 1, "in flight requests keep the region");
        chains.iter().for_each(|chain| ring.complete(&rig.view, chain, 0));
        let _ = ring.publish();
        while driver.pop().is_some() {}
        let drained = ring.finish();
        assert_eq!((end as u16, drained as u16), (drained as u16, driver.base_for_restart() as u16));
        drop(ring);
        // RING_RESET: both sides start at 0.
        let (_driver, ring, chains) = in_flight(&rig, 2);
        assert_eq!((chains.len(), ring.in_flight()), (2, 2));
    }
}

fn refused(rig: &Rig) -> &'static str {
    match rig.tracked(rig.start()) {
        Err(SetupError::BadInflight(why)) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the region was accepted"),
    }
}

#[test]
fn a_region_of_another_version_is_refused() {
    for features in [SPLIT, PACKED] {
        let rig = Rig::new(8, features);
        rig.region.write::<u16>(8, 2);
        assert_eq!(refused(&rig), "of an unknown version");
    }
}

#[test]
fn a_region_that_is_too_small_is_refused() {
    let rig = Rig::new(8, SPLIT);
    let bad = |region: QueueRegion| {
        let setup = RingSetup { inflight: Some(region), ..rig.setup(0) };
        assert!(matches!(Ring::new(setup), Err(SetupError::BadInflight(_))));
    };
    bad(QueueRegion::new(Area::anonymous(256), Format::Split, 4).unwrap());
    bad(QueueRegion::new(Area::anonymous(512), Format::Packed, 8).unwrap());
    assert!(QueueRegion::new(Area::anonymous(128), Format::Split, 8).is_err());
    let whole = Area::anonymous(2 * region_size(Format::Split, 8));
    assert!(QueueRegion::nth(&whole, Format::Split, 8, 1).is_ok());
    assert!(QueueRegion::nth(&whole, Format::Split, 8, 2).is_err());
}

#[test]
fn a_split_region_with_a_broken_batch_list_is_refused() {
    let rig = Rig::new(8, SPLIT);
    let (..) = in_flight(&rig, 3);
    // One element published, but not by this head.
    rig.areas().device.store_u16(2, 1, Relaxed);
    rig.region.write::<u16>(12, 8);
    assert_eq!(refused(&rig), "with a broken batch list");
}

#[test]
fn a_split_region_of_another_ring_is_refused() {
    let rig = Rig::new(8, SPLIT);
    let (..) = in_flight(&rig, 3);
    rig.areas().device.store_u16(2, 100, Relaxed);
    assert_eq!(refused(&rig), "of another used ring");
}

#[test]
fn a_packed_region_with_impossible_contents_is_refused() {
    let entry = |index: usize| 32 + 32 * index;
    let broken: [(&str, usize, u16); 6] = [
        ("with a used index outside the ring", 18, 8),
        ("with a loop in its free list", entry(7) + 2, 4),
        ("with a broken chain", entry(0) + 6, 0),
        ("with a broken chain", entry(0) + 6, 3),
        ("with a broken chain", entry(0) + 4, 0),
        ("with a broken chain", entry(0) + 2, 2),
    ];
    for (why, offset, value) in broken {
        let rig = Rig::new(8, PACKED);
        let (..) = in_flight(&rig, 2);
        patch(&rig.region, offset, value);
        assert_eq!(refused(&rig), why);
    }
}

/// Changes 16 bits of a 64-bit field by writing all of it.
fn patch(region: &Area, offset: usize, value: u16) {
    let (word, shift) = (offset & !7, 8 * (offset & 7));
    let rest = region.read::<u64>(word) & !(0xffff << shift);
    region.write::<u64>(word, rest | u64::from(value) << shift);
}

// Miri cannot follow bytes that are written into the middle of atomics.
#[cfg(not(miri))]
#[test]
fn random_bytes_in_a_region_never_panic() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    let cases = 3000;
    let changes = prop::collection::vec((0usize..256, any::<u8>()), 1..12);
    let config = Config { failure_persistence: None, ..Config::with_cases(cases) };
    TestRunner::new(config)
        .run(&(any::<bool>(), changes), |(packed, changes)| {
            let rig = Rig::with_memory(1 << 16, 8, if packed { PACKED } else { SPLIT });
            let (mut driver, ..) = in_flight(&rig, 3);
            for (offset, byte) in changes {
                rig.region.write(offset % rig.region.len(), byte);
            }
            if let Ok(mut ring) = rig.tracked(rig.start()) {
                let mut chain = Chain::new();
                for _ in 0..ring.fetch(u16::MAX) {
                    if ring.next(&rig.view, &mut chain).is_ok() {
                        ring.complete(&rig.view, &chain, 0);
                    }
                }
                let _ = ring.publish();
            }
            while driver.pop().is_some() {}
            Ok(())
        })
        .unwrap();
}
