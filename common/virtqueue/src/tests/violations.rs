//! A hostile driver: each violation breaks its ring, once, and nothing else.

use std::sync::atomic::Ordering::Relaxed;

use memory::{GuestAddr, OutOfRange};

use super::rig::{GUEST, PACKED, Rig, SPLIT};
use crate::driver::{DriverRing, RingAreas, Segment};
use crate::layout::*;
use crate::{BadIndirect, Broken, Chain, DeviceRing, Ring, RingFeatures};

/// A ring whose driver writes what it likes.
struct Hostile {
    rig: Rig,
    areas: RingAreas,
    ring: Ring,
}

impl Hostile {
    fn new(size: u16, features: RingFeatures) -> Self {
        let rig = Rig::new(size, features);
        let (areas, ring) = (rig.areas(), rig.device());
        Self { rig, areas, ring }
    }

    fn split(indirect: bool) -> Self {
        Self::new(8, RingFeatures { indirect, ..SPLIT })
    }

    fn packed(indirect: bool) -> Self {
        Self::new(8, RingFeatures { indirect, ..PACKED })
    }

    fn descriptor(&self, index: u16, addr: GuestAddr, len: u32, flags: u16, next: u16) {
        let descriptor = split(addr, len, flags, next);
        self.areas.desc.write(usize::from(index) * DESC_BYTES, descriptor);
    }

    /// A slot of a packed ring in its first round, available.
    fn slot(&self, index: u16, addr: GuestAddr, len: u32, id: u16, flags: u16) {
        let slot = packed(addr, len, id, flags | DESC_AVAIL);
        self.areas.desc.write(usize::from(index) * DESC_BYTES, slot);
    }

    fn offer(&self, heads: &[u16]) {
        for (place, head) in heads.iter().enumerate() {
            self.areas.driver.store_u16(ENTRIES_OFFSET + 2 * place, *head, Relaxed);
        }
        self.areas.driver.store_u16(INDEX_OFFSET, heads.len() as u16, Relaxed);
    }

    /// Guest memory with an indirect table in it.
    fn table(&self, entries: &[SplitDescriptor]) -> Segment {
        let segment = self.rig.buffer((entries.len() * DESC_BYTES) as u32);
        let slice = self.rig.memory.slice(segment.addr, segment.len as usize).unwrap();
        for (index, entry) in entries.iter().enumerate() {
            slice.write_obj(index * DESC_BYTES, *entry).unwrap();
        }
        segment
    }

    /// Fetches until the ring breaks; it must, once, and then yield nothing, not even kicks.
    fn breaks(&mut self) -> Broken {
        let mut chain = Chain::new();
        let why = loop {
            if self.ring.fetch(u16::MAX) == 0 {
                break self.ring.broken().expect("the ring did not break");
            }
            if let Err(why) = self.ring.next(&self.rig.view, &mut chain) {
                break why;
            }
        };
        assert_eq!(self.ring.broken(), Some(why));
        self.ring.break_with(Broken::Refused("the first reason stays"));
        assert_eq!(self.ring.broken(), Some(why));
        assert_eq!((self.ring.fetch(u16::MAX), self.ring.arm(), self.ring.has_work()), (0, false, false));
        assert_eq!(self.ring.next(&self.rig.view, &mut chain), Err(why));
        why
    }

    /// Offers one chain that starts at descriptor or slot 0.
    fn breaks_at_head_0(&mut self) -> Broken {
        if !self.rig.features.packed {
            self.offer(&[0]);
        }
        self.breaks()
    }

    fn good(&self) -> Segment {
        self.rig.buffer(64)
    }
}

fn split(addr: GuestAddr, len: u32, flags: u16, next: u16) -> SplitDescriptor {
    SplitDescriptor { addr: addr.0.into(), len: len.into(), flags: flags.into(), next: next.into() }
}

fn packed(addr: GuestAddr, len: u32, id: u16, flags: u16) -> PackedDescriptor {
    PackedDescriptor { addr: addr.0.into(), len: len.into(), id: id.into(), flags: flags.into() }
}

#[test]
fn an_avail_index_that_jumps_over_the_ring_breaks_it() {
    let mut ring = Hostile::split(false);
    ring.areas.driver.store_u16(INDEX_OFFSET, 9, Relaxed);
    assert_eq!(ring.breaks(), Broken::TooManyAvailable { available: 9, size: 8 });
}

#[test]
fn an_avail_index_that_goes_back_breaks_the_ring() {
    let mut ring = Hostile::split(false);
    ring.areas.driver.store_u16(INDEX_OFFSET, 0xffff, Relaxed);
    assert_eq!(ring.breaks(), Broken::TooManyAvailable { available: 0xffff, size: 8 });
}

#[test]
fn a_head_outside_the_table_breaks_the_ring() {
    let mut ring = Hostile::split(false);
    ring.offer(&[8]);
    assert_eq!(ring.breaks(), Broken::IndexOutOfRange { index: 8, limit: 8 });
}

#[test]
fn a_next_link_outside_the_table_breaks_the_ring() {
    let mut ring = Hostile::split(false);
    let good = ring.good();
    ring.descriptor(0, good.addr, 64, DESC_NEXT, 8);
    assert_eq!(ring.breaks_at_head_0(), Broken::IndexOutOfRange { index: 8, limit: 8 });
}

#[test]
fn descriptor_loop_breaks_the_ring_once() {
    let mut ring = Hostile::split(false);
    let good = ring.good();
    ring.descriptor(0, good.addr, 64, DESC_NEXT, 1);
    ring.descriptor(1, good.addr, 64, DESC_NEXT, 0);
    assert_eq!(ring.breaks_at_head_0(), Broken::DescriptorLoop);
}

#[test]
fn a_loop_of_empty_descriptors_breaks_the_ring() {
    let mut ring = Hostile::split(false);
    ring.descriptor(0, GUEST, 0, DESC_NEXT, 0);
    assert_eq!(ring.breaks_at_head_0(), Broken::DescriptorLoop);
}

#[test]
fn a_packed_chain_that_never_ends_breaks_the_ring() {
    let mut ring = Hostile::packed(false);
    let good = ring.good();
    (0..8).for_each(|index| ring.slot(index, good.addr, 64, 0, DESC_NEXT));
    assert_eq!(ring.breaks(), Broken::DescriptorLoop);
}

#[test]
fn a_packed_chain_into_slots_in_flight_breaks_the_ring() {
    let mut ring = Hostile::packed(false);
    let good = ring.good();
    ring.slot(0, good.addr, 64, 5, 0);
    (1..8).for_each(|index| ring.slot(index, good.addr, 64, 0, DESC_NEXT));
    assert_eq!(ring.breaks(), Broken::TooManyAvailable { available: 9, size: 8 });
}

#[test]
fn a_packed_slot_in_flight_that_is_offered_again_is_not_taken() {
    let mut ring = Hostile::packed(false);
    let good = ring.good();
    (0..8).for_each(|index| ring.slot(index, good.addr, 64, index, 0));
    assert_eq!(ring.rig.take(&mut ring.ring, 8).len(), 8);
    // Available in the next round, but the device never used it in this one.
    ring.areas.desc.write(0, packed(good.addr, 64, 9, DESC_USED));
    assert_eq!((ring.ring.fetch(8), ring.ring.has_work()), (0, false));
}

#[test]
fn the_same_head_twice_in_flight_breaks_the_ring() {
    let mut ring = Hostile::split(false);
    let good = ring.good();
    ring.descriptor(0, good.addr, 64, 0, 0);
    ring.offer(&[0, 0]);
    assert_eq!(ring.breaks(), Broken::StillInFlight { id: 0 });
}

#[test]
fn the_same_buffer_id_twice_in_flight_breaks_the_ring() {
    let mut ring = Hostile::packed(false);
    let good = ring.good();
    ring.slot(0, good.addr, 64, 40_000, 0);
    ring.slot(1, good.addr, 64, 40_000, 0);
    assert_eq!(ring.breaks(), Broken::StillInFlight { id: 40_000 });
}

#[test]
fn a_head_whose_completion_waits_for_its_turn_is_still_in_flight() {
    let mut ring = Hostile::new(8, RingFeatures { in_order: true, ..SPLIT });
    let good = ring.good();
    (0..2).for_each(|head| ring.descriptor(head, good.addr, 64, 0, 0));
    ring.offer(&[0, 1]);
    let chains = ring.rig.take(&mut ring.ring, 2);
    ring.ring.complete(&ring.rig.view, &chains[1], 0);
    assert_eq!(ring.ring.unpublished(), 0);
    ring.offer(&[0, 1, 1]);
    assert_eq!(ring.breaks(), Broken::StillInFlight { id: 1 });
    ring.ring.complete(&ring.rig.view, &chains[0], 0);
    assert_eq!((ring.ring.unpublished(), ring.ring.in_flight()), (2, 0));
}

#[test]
fn a_head_may_come_again_after_its_completion() {
    let mut ring = Hostile::split(false);
    let good = ring.good();
    ring.descriptor(0, good.addr, 64, 0, 0);
    ring.offer(&[0]);
    assert_eq!(ring.rig.serve(&mut ring.ring), 1);
    ring.offer(&[0, 0]);
    assert_eq!(ring.rig.serve(&mut ring.ring), 1);
    assert_eq!(ring.ring.broken(), None);
}

#[test]
fn chains_in_flight_complete_on_a_broken_ring() {
    for features in [SPLIT, PACKED] {
        let rig = Rig::new(8, features);
        let (mut driver, mut ring) = (rig.driver(), rig.device());
        driver.add(&[rig.buffer(8)], &[rig.buffer(8)], 7).unwrap();
        let _ = driver.publish();
        let chain = rig.next_of(&mut ring);
        ring.break_with(Broken::DescriptorLoop);
        ring.complete(&rig.view, &chain, 8);
        assert!(ring.publish());
        assert_eq!(driver.pop().map(|used| used.cookie), Some(7));
        assert_eq!(ring.in_flight(), 0);
    }
}

#[test]
fn a_buffer_outside_guest_memory_breaks_the_ring() {
    let outside = GuestAddr(GUEST.0 + (1 << 20) - 8);
    let expected = |len| Broken::OutOfRange(OutOfRange { addr: outside.0, len });
    let mut ring = Hostile::split(false);
    ring.descriptor(0, outside, 9, 0, 0);
    assert_eq!(ring.breaks_at_head_0(), expected(9));
    let mut ring = Hostile::packed(false);
    ring.slot(0, outside, 9, 0, 0);
    assert_eq!(ring.breaks_at_head_0(), expected(9));
}

#[test]
fn a_buffer_whose_end_overflows_breaks_the_ring() {
    let mut ring = Hostile::split(false);
    ring.descriptor(0, GuestAddr(u64::MAX - 8), u32::MAX, DESC_WRITE, 0);
    assert!(matches!(ring.breaks_at_head_0(), Broken::OutOfRange(_)));
}

#[test]
fn a_readable_buffer_after_a_writable_one_breaks_the_ring() {
    let mut ring = Hostile::split(false);
    let good = ring.good();
    ring.descriptor(0, good.addr, 8, DESC_WRITE | DESC_NEXT, 1);
    ring.descriptor(1, good.addr, 8, 0, 0);
    assert_eq!(ring.breaks_at_head_0(), Broken::ReadableAfterWritable);
    let mut ring = Hostile::packed(false);
    let good = ring.good();
    ring.slot(0, good.addr, 8, 0, DESC_WRITE | DESC_NEXT);
    ring.slot(1, good.addr, 8, 0, 0);
    assert_eq!(ring.breaks_at_head_0(), Broken::ReadableAfterWritable);
}

#[test]
fn a_chain_of_more_than_4_gib_breaks_the_ring() {
    let mut ring = Hostile::new(8192, RingFeatures { indirect: true, ..SPLIT });
    let start = ring.rig.addresses.desc;
    for index in 0..8192 {
        ring.descriptor(index, start, 1 << 19, DESC_NEXT, index + 1);
    }
    ring.descriptor(8191, start, 1 << 19, 0, 0);
    assert_eq!(ring.breaks_at_head_0(), Broken::TooLong);
}

#[test]
fn an_indirect_descriptor_without_the_feature_breaks_the_ring() {
    let expected = Broken::BadIndirect(BadIndirect::NotNegotiated);
    let mut ring = Hostile::split(false);
    let table = ring.table(&[split(GUEST, 8, 0, 0)]);
    ring.descriptor(0, table.addr, table.len, DESC_INDIRECT, 0);
    assert_eq!(ring.breaks_at_head_0(), expected);
    let mut ring = Hostile::packed(false);
    ring.slot(0, GUEST, 16, 0, DESC_INDIRECT);
    assert_eq!(ring.breaks_at_head_0(), expected);
}

#[test]
fn an_indirect_table_of_a_bad_length_breaks_the_ring() {
    for len in [0, 8, 24, 65552, 0xffff_fff0] {
        let mut ring = Hostile::split(true);
        ring.descriptor(0, GUEST, len, DESC_INDIRECT, 0);
        assert_eq!(ring.breaks_at_head_0(), Broken::BadIndirect(BadIndirect::Length(len)));
        let mut ring = Hostile::packed(true);
        ring.slot(0, GUEST, len, 0, DESC_INDIRECT);
        assert_eq!(ring.breaks_at_head_0(), Broken::BadIndirect(BadIndirect::Length(len)));
    }
}

#[test]
fn an_indirect_table_in_a_table_breaks_the_ring() {
    let mut ring = Hostile::split(true);
    let table = ring.table(&[split(GUEST, 16, DESC_INDIRECT, 0)]);
    ring.descriptor(0, table.addr, table.len, DESC_INDIRECT, 0);
    assert_eq!(ring.breaks_at_head_0(), Broken::BadIndirect(BadIndirect::Nested));
    let mut ring = Hostile::packed(true);
    // The flags are in the last two bytes of a packed descriptor, where a split one has `next`.
    let table = ring.table(&[split(GUEST, 16, 0, DESC_INDIRECT)]);
    ring.slot(0, table.addr, table.len, 0, DESC_INDIRECT);
    assert_eq!(ring.breaks_at_head_0(), Broken::BadIndirect(BadIndirect::Nested));
}

#[test]
fn an_indirect_table_with_a_successor_breaks_the_ring() {
    let mut ring = Hostile::split(true);
    ring.descriptor(0, GUEST, 16, DESC_INDIRECT | DESC_NEXT, 1);
    assert_eq!(ring.breaks_at_head_0(), Broken::BadIndirect(BadIndirect::WithNext));
}

#[test]
fn an_indirect_table_outside_guest_memory_breaks_the_ring() {
    let mut ring = Hostile::split(true);
    ring.descriptor(0, GuestAddr(GUEST.0 + (1 << 20) - 16), 32, DESC_INDIRECT, 0);
    assert!(matches!(ring.breaks_at_head_0(), Broken::OutOfRange(_)));
    let mut ring = Hostile::packed(true);
    ring.slot(0, GuestAddr(u64::MAX - 15), 32, 0, DESC_INDIRECT);
    assert!(matches!(ring.breaks_at_head_0(), Broken::OutOfRange(_)));
}

#[test]
fn a_loop_in_an_indirect_table_breaks_the_ring() {
    let mut ring = Hostile::split(true);
    let table = ring.table(&[split(GUEST, 8, DESC_NEXT, 1), split(GUEST, 8, DESC_NEXT, 0)]);
    ring.descriptor(0, table.addr, table.len, DESC_INDIRECT, 0);
    assert_eq!(ring.breaks_at_head_0(), Broken::DescriptorLoop);
}

#[test]
fn a_next_link_outside_an_indirect_table_breaks_the_ring() {
    let mut ring = Hostile::split(true);
    let table = ring.table(&[split(GUEST, 8, DESC_NEXT, 2), split(GUEST, 8, 0, 0)]);
    ring.descriptor(0, table.addr, table.len, DESC_INDIRECT, 0);
    assert_eq!(ring.breaks_at_head_0(), Broken::IndexOutOfRange { index: 2, limit: 2 });
}

#[test]
fn taking_more_than_was_fetched_breaks_the_ring() {
    let mut ring = Hostile::split(false);
    let mut chain = Chain::new();
    assert_eq!(ring.ring.next(&ring.rig.view, &mut chain), Err(Broken::NothingFetched));
}

#[test]
fn direct_descriptors_before_an_indirect_table_are_one_chain() {
    let mut ring = Hostile::split(true);
    let (first, second) = (ring.good(), ring.good());
    let table = ring.table(&[split(second.addr, 64, DESC_WRITE, 0)]);
    ring.descriptor(0, first.addr, 64, DESC_NEXT, 1);
    // WRITE means nothing on a table (virtio 1.3 §2.7.5.3.2).
    ring.descriptor(1, table.addr, table.len, DESC_INDIRECT | DESC_WRITE, 0);
    ring.offer(&[0]);
    let chain = ring.rig.next_of(&mut ring.ring);
    assert_eq!(ring.rig.segments(&chain), (vec![first], vec![second]));
}

#[test]
fn next_means_nothing_in_a_packed_indirect_table() {
    let mut ring = Hostile::packed(true);
    let (first, second) = (ring.good(), ring.good());
    let table =
        ring.table(&[split(first.addr, 64, 0, 0), split(second.addr, 64, 77, DESC_WRITE | DESC_NEXT)]);
    ring.slot(0, table.addr, table.len, 3, DESC_INDIRECT);
    let chain = ring.rig.next_of(&mut ring.ring);
    assert_eq!(ring.rig.segments(&chain), (vec![first], vec![second]));
    assert_eq!(chain.token().id(), 3);
}

#[test]
fn a_request_of_4096_segments_is_accepted() {
    for features in [SPLIT, PACKED] {
        let mut ring = Hostile::new(4, RingFeatures { indirect: true, ..features });
        let good = ring.good();
        let entries: Vec<_> = (1..=4096)
            .map(|next| match (features.packed, next == 4096) {
                (true, _) => split(good.addr, 64, 0, 0),
                (false, last) => split(good.addr, 64, if last { 0 } else { DESC_NEXT }, next),
            })
            .collect();
        let table = ring.table(&entries);
        if features.packed {
            ring.slot(0, table.addr, table.len, 0, DESC_INDIRECT);
        } else {
            ring.descriptor(0, table.addr, table.len, DESC_INDIRECT, 0);
            ring.offer(&[0]);
        }
        let chain = ring.rig.next_of(&mut ring.ring);
        assert_eq!((chain.readable().len(), chain.readable_len()), (4096, 4096 * 64));
    }
}

#[test]
fn a_device_that_uses_what_it_was_not_given_stops_the_driver() {
    for features in [SPLIT, PACKED] {
        let rig = Rig::new(8, features);
        let mut driver: DriverRing = rig.driver();
        driver.add(&[rig.buffer(8)], &[], 1).unwrap();
        let _ = driver.publish();
        let areas = rig.areas();
        if features.packed {
            areas.desc.write(0, packed(GUEST, 0, 6, DESC_AVAIL | DESC_USED));
        } else {
            areas.device.write(ENTRIES_OFFSET, UsedElement { id: 6.into(), len: 0.into() });
            areas.device.store_u16(INDEX_OFFSET, 1, Relaxed);
        }
        assert_eq!((driver.pop(), driver.broken()), (None, true));
        assert_eq!(driver.pop(), None);
    }
}
