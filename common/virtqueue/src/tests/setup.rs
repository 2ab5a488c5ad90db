//! What a clumsy frontend can set up.

use memory::{GuestAddr, MemoryTable};

use super::rig::{GUEST, PACKED, Rig, SPLIT};
use crate::{Broken, Format, QueueSize, Ring, RingAddresses, RingFeatures, RingSetup, SetupError};
use crate::{DeviceRing, ring_sizes};

fn error(setup: RingSetup<'_>) -> SetupError {
    Ring::new(setup).err().expect("the ring started")
}

#[test]
fn sizes_that_a_format_does_not_have_are_refused() {
    for (format, good, bad) in [
        (Format::Split, &[1, 2, 256, 32768][..], &[0, 3, 100, 32769][..]),
        (Format::Packed, &[1, 3, 32768], &[0, 32769]),
    ] {
        assert!(good.iter().all(|&size| QueueSize::new(format, size).is_ok_and(|it| it.get() == size)));
        assert!(bad.iter().all(|&size| QueueSize::new(format, size) == Err(SetupError::BadSize(size))));
    }
}

#[test]
fn ring_sizes_are_those_of_the_specification() {
    assert_eq!(ring_sizes(Format::Split, 256), (16 * 256, 6 + 2 * 256, 6 + 8 * 256));
    assert_eq!(ring_sizes(Format::Packed, 100), (1600, 4, 4));
}

#[test]
fn misaligned_areas_are_refused() {
    for features in [SPLIT, PACKED] {
        let rig = Rig::new(8, features);
        let RingAddresses { desc, driver, device } = rig.addresses;
        let off = |addr: GuestAddr, by| GuestAddr(addr.0 + by);
        for (addresses, align) in [
            (RingAddresses { desc: off(desc, 8), ..rig.addresses }, 16),
            (RingAddresses { driver: off(driver, 1), ..rig.addresses }, if features.packed { 4 } else { 2 }),
            (RingAddresses { device: off(device, 2), ..rig.addresses }, 4),
        ] {
            let found = error(RingSetup { addresses, ..rig.setup(rig.start()) });
            assert!(
                matches!(found, SetupError::Misaligned { align: wanted, .. } if wanted == align),
                "{found}"
            );
        }
    }
}

#[test]
fn areas_outside_guest_memory_are_refused() {
    let rig = Rig::new(8, SPLIT);
    let end = GuestAddr(GUEST.0 + (1 << 20) - 16);
    for addresses in [
        RingAddresses { desc: end, ..rig.addresses },
        RingAddresses { driver: end, ..rig.addresses },
        RingAddresses { device: end, ..rig.addresses },
        RingAddresses { desc: GuestAddr(u64::MAX - 15), ..rig.addresses },
    ] {
        assert!(matches!(error(RingSetup { addresses, ..rig.setup(0) }), SetupError::OutOfRange(_)));
    }
}

#[test]
fn a_base_that_the_ring_does_not_have_is_refused() {
    for (features, bad) in
        [(SPLIT, 0x1_0000), (PACKED, 0x8000_8008), (PACKED, 0x8008_8000), (PACKED, 0x8005_8004)]
    {
        let rig = Rig::new(8, features);
        assert_eq!(error(rig.setup(bad)), SetupError::BadBase { base: bad, size: 8 });
    }
}

#[test]
fn the_base_comes_back_as_it_was_set() {
    for (features, base) in
        [(SPLIT, 0), (SPLIT, 0xffff), (PACKED, 0x8000_8000), (PACKED, 0x0005_0005), (PACKED, 0x8005_0003)]
    {
        let rig = Rig::new(8, features);
        assert_eq!(Ring::new(rig.setup(base)).unwrap().base(), base);
    }
}

/// DPDK's virtio-user sends the avail half only.
#[test]
fn a_packed_base_without_its_used_half_starts_both_sides_alike() {
    let rig = Rig::new(8, PACKED);
    assert_eq!(Ring::new(rig.setup(0x8000)).unwrap().base(), 0x8000_8000);
}

#[test]
fn features_are_picked_out_of_the_negotiated_bits() {
    let all = RingFeatures { event_idx: true, indirect: true, in_order: true, packed: true };
    assert_eq!(RingFeatures::from_bits(RingFeatures::ALL), all);
    assert_eq!(RingFeatures::from_bits(!RingFeatures::ALL), RingFeatures::default());
    assert_eq!(RingFeatures::from_bits(1 << 29 | 1 << 34), RingFeatures { event_idx: true, ..PACKED });
}

#[test]
fn a_ring_goes_on_after_its_memory_was_mapped_anew() {
    for features in [SPLIT, PACKED] {
        let rig = Rig::new(8, features);
        let (mut driver, mut ring) = (rig.driver(), rig.device());
        for cookie in 0..3 {
            driver.add(&[rig.buffer(8)], &[], cookie).unwrap();
            let _ = driver.publish();
            assert_eq!(rig.serve(&mut ring), 1);
            ring.remap(rig.memory.table()).unwrap();
            assert_eq!(driver.pop().map(|used| used.cookie), Some(cookie));
        }
        assert!(matches!(ring.remap(&MemoryTable::empty()), Err(SetupError::OutOfRange(_))));
        assert_eq!(ring.broken(), None::<Broken>);
    }
}
