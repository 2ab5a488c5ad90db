//! Chains taken and completed by the batch, and packed rings whose device was killed without an inflight region.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::rig::{PACKED, Rig, all_features};
use crate::driver::{DriverRing, Segment};
use crate::shared::fuse;
use crate::{Broken, Chain, DeviceRing, Ring, RingFeatures};

/// Makes `count` chains of one and two buffers available, every third one in a table.
fn offer(rig: &Rig, driver: &mut DriverRing, from: u32, count: u32) {
    for cookie in from..from + count {
        let (one, two) = (rig.buffer(10 + cookie % 7), rig.buffer(20));
        let readable: &[Segment] = if cookie % 3 == 1 { &[one, two] } else { &[one] };
        let added = match rig.features.indirect && cookie.is_multiple_of(3) {
            true => driver.add_indirect(&[], &[one, two], cookie),
            false => driver.add(readable, &[], cookie),
        };
        added.unwrap();
    }
    let _ = driver.publish();
}

fn drained(driver: &mut DriverRing) -> Vec<(u32, u32)> {
    std::iter::from_fn(|| driver.pop()).map(|used| (used.cookie, used.len)).collect()
}

#[test]
fn a_batch_takes_and_completes_what_single_steps_do() {
    for features in all_features() {
        let (rig, twin) = (Rig::new(16, features), Rig::new(16, features));
        let (mut driver, mut other) = (rig.driver(), twin.driver());
        let (mut ring, mut single) = (rig.device(), twin.device());
        for round in 0..20 {
            offer(&rig, &mut driver, 6 * round, 6);
            offer(&twin, &mut other, 6 * round, 6);
            let mut chains = vec![Chain::new(); 8];
            let granted = ring.fetch(5);
            assert_eq!(ring.next_batch(&rig.view, &mut chains), usize::from(granted));
            let singles = twin.take(&mut single, 5);
            for (chain, single) in chains.iter().zip(&singles) {
                assert_eq!(chain.token(), single.token());
                let lens = |chain: &Chain| (chain.readable_len(), chain.writable_len());
                assert_eq!(lens(chain), lens(single));
                assert_eq!(chain.readable().len(), single.readable().len());
            }
            let written: Vec<u32> = chains[..5].iter().map(|chain| chain.writable_len() as u32).collect();
            ring.complete_batch(&rig.view, &chains[..5], &written);
            singles.iter().zip(&written).for_each(|(chain, len)| single.complete(&twin.view, chain, *len));
            let rest = rig.next_of(&mut ring);
            ring.complete(&rig.view, &rest, 3);
            let rest = twin.next_of(&mut single);
            single.complete(&twin.view, &rest, 3);
            assert_eq!(ring.unpublished(), single.unpublished());
            assert_eq!(ring.publish(), single.publish());
            assert_eq!(ring.in_flight(), 0);
            assert_eq!(drained(&mut driver), drained(&mut other), "{features:?}");
        }
    }
}

#[test]
fn a_batch_completed_behind_an_older_chain_waits_for_it_in_order() {
    for packed in [false, true] {
        let rig = Rig::new(8, RingFeatures { in_order: true, packed, ..PACKED });
        let (mut driver, mut ring) = (rig.driver(), rig.device());
        (0..4).for_each(|cookie| driver.add(&[rig.buffer(1)], &[], cookie).unwrap());
        let _ = driver.publish();
        let chains = rig.take(&mut ring, 4);
        ring.complete_batch(&rig.view, &chains[1..3], &[0; 2]);
        assert_eq!(ring.unpublished(), 0);
        ring.complete_batch(&rig.view, &chains[..1], &[0]);
        assert_eq!(ring.unpublished(), 3);
        ring.complete_batch(&rig.view, &chains[3..], &[0]);
        let _ = ring.publish();
        assert_eq!(drained(&mut driver).iter().map(|used| used.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }
}

#[test]
fn a_batch_ends_at_a_violation_and_the_ring_is_broken() {
    for features in all_features() {
        let rig = Rig::new(8, features);
        let (mut driver, mut ring) = (rig.driver(), rig.device());
        driver.add(&[rig.buffer(1)], &[], 0).unwrap();
        driver.add(&[Segment { addr: memory::GuestAddr(0), len: 1 }], &[], 1).unwrap();
        driver.add(&[rig.buffer(1)], &[], 2).unwrap();
        let _ = driver.publish();
        let mut chains = vec![Chain::new(); 3];
        assert_eq!(ring.fetch(3), 3);
        assert_eq!(ring.next_batch(&rig.view, &mut chains), 1);
        assert!(matches!(ring.broken(), Some(Broken::OutOfRange(_))));
        assert_eq!(ring.next_batch(&rig.view, &mut chains), 0);
    }
}

const QEMU: RingFeatures = RingFeatures { indirect: true, ..PACKED };

#[test]
fn a_packed_ring_that_starts_anew_goes_on_where_a_killed_device_was() {
    for size in [2, 5, 8] {
        for taken in 0..4 * u32::from(size) {
            for open in 0..=u32::from(size) {
                let rig = Rig::new(size, QEMU);
                let (mut driver, mut ring) = (rig.driver(), rig.device());
                for cookie in 0..taken {
                    driver.add(&[rig.buffer(1)], &[], cookie).unwrap();
                    let _ = driver.publish();
                    assert_eq!(rig.serve(&mut ring), 1);
                    driver.pop().unwrap();
                }
                (0..open).for_each(|cookie| driver.add(&[rig.buffer(1)], &[], taken + cookie).unwrap());
                let _ = driver.publish();
                let expected = ring.base();
                let mut next = rig.device();
                assert_eq!(next.base(), expected, "size {size}, {taken} taken, {open} open");
                assert_eq!(rig.serve(&mut next), open as usize);
                assert_eq!(drained(&mut driver).len(), open as usize);
            }
        }
    }
}

#[test]
fn a_ring_whose_slots_do_not_tell_starts_where_it_is_said() {
    // Chains of two slots, whose second ones keep their flags.
    let rig = Rig::new(8, QEMU);
    let (mut driver, mut ring) = (rig.driver(), rig.device());
    for cookie in 0..8 {
        driver.add(&[rig.buffer(1), rig.buffer(1)], &[], cookie).unwrap();
        let _ = driver.publish();
        rig.serve(&mut ring);
        driver.pop().unwrap();
    }
    assert_eq!(ring.base(), rig.start(), "twice around");
    driver.add(&[rig.buffer(1)], &[], 8).unwrap();
    let _ = driver.publish();
    let mut next = rig.device();
    assert_eq!(next.base(), rig.start());
    assert_eq!(rig.serve(&mut next), 1);
}

#[test]
fn a_device_killed_in_the_middle_of_a_publication_leaves_the_first_of_its_batch() {
    for size in [5, 8] {
        for start in 0..u32::from(size) {
            for shown in 0..5 {
                let rig = Rig::new(size, QEMU);
                let (mut driver, mut ring) = (rig.driver(), rig.device());
                for cookie in 0..start {
                    driver.add(&[rig.buffer(1)], &[], cookie).unwrap();
                    let _ = driver.publish();
                    rig.serve(&mut ring);
                    driver.pop().unwrap();
                }
                (0..5).for_each(|cookie| driver.add(&[rig.buffer(1)], &[], cookie).unwrap());
                let _ = driver.publish();
                let chains = rig.take(&mut ring, 5);
                fuse::set(Some(shown));
                let killed = catch_unwind(AssertUnwindSafe(|| {
                    chains.iter().for_each(|chain| ring.complete(&rig.view, chain, 0));
                    ring.publish()
                }));
                fuse::set(None);
                assert!(killed.is_err());
                assert_eq!(drained(&mut driver).len(), shown as usize);
                let mut next: Ring = rig.device();
                assert_eq!(rig.serve(&mut next), 5 - shown as usize);
                assert_eq!(drained(&mut driver).len(), 5 - shown as usize);
            }
        }
    }
}
