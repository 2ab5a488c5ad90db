//! Translation against a model that looks at one byte at a time.

use std::sync::Arc;

use proptest::prelude::*;

use crate::{GuestAddr, GuestSlice, HostRange, MemoryTable, MemoryView, RegionConfig, UserAddr};

const PAGE: u64 = 4096;

/// User addresses are this far above guest addresses.
const USER: u64 = 0x5000_0000_0000;

/// Up to twelve regions in random places, many of them touching the one before, some far up.
fn regions() -> impl Strategy<Value = Vec<RegionConfig>> {
    let base = prop_oneof![Just(0), Just(1 << 32), Just((1_u64 << 47) - 8 * PAGE)];
    let gap_and_len = (prop_oneof![2 => Just(0), 1 => 1_u64..4], 1_u64..4);
    (base, prop::collection::vec(gap_and_len, 0..12)).prop_map(|(base, shapes)| {
        let mut next = base;
        let mut place = |(gap, pages): (u64, u64)| {
            let guest = next + gap * PAGE;
            next = guest + pages * PAGE;
            let user = UserAddr(guest + USER);
            RegionConfig { guest: GuestAddr(guest), len: pages * PAGE, user, mmap_offset: 0 }
        };
        shapes.into_iter().map(&mut place).collect()
    })
}

/// Where one byte of the guest is in this process, by looking at every region.
fn host_of(table: &MemoryTable, addr: u64) -> Option<(usize, usize)> {
    table.regions().zip(table.host_ranges()).enumerate().find_map(|(index, (region, host))| {
        let inside =
            addr >= region.guest.0 && u128::from(addr) < u128::from(region.guest.0) + u128::from(region.len);
        inside.then(|| (index, host.base.addr() + (addr - region.guest.0) as usize))
    })
}

/// What `slice` should say: the first byte's place when the last byte is in the same region.
fn model_slice(table: &MemoryTable, addr: u64, len: u64) -> Option<usize> {
    let (region, first) = host_of(table, addr)?;
    let (last_region, last) = host_of(table, addr.checked_add(len.max(1) - 1)?)?;
    (region == last_region && last - first == (len.max(1) - 1) as usize).then_some(first)
}

/// Addresses around the regions: relative to the lowest one, so that most of them hit something.
fn probes(regions: Vec<RegionConfig>) -> impl Strategy<Value = (Vec<RegionConfig>, Vec<(u64, u64)>)> {
    let base = regions.first().map_or(0, |region| region.guest.0);
    let end = regions.last().map_or(PAGE, |region| region.guest.0 + region.len);
    let addr = prop_oneof![
        8 => base.saturating_sub(PAGE)..end + PAGE,
        4 => prop::sample::select(edges(&regions)).prop_flat_map(|edge| edge.saturating_sub(3)..edge + 3),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![4 => 0..64_u64, 4 => 0..4 * PAGE, 1 => any::<u64>()];
    (Just(regions), prop::collection::vec((addr, len), 1..40))
}

fn edges(regions: &[RegionConfig]) -> Vec<u64> {
    let ends = regions.iter().flat_map(|region| [region.guest.0, region.guest.0 + region.len]);
    ends.chain([PAGE]).collect()
}

fn host(slice: GuestSlice<'_>) -> usize {
    slice.range().base.addr()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn translation_agrees_with_the_byte_by_byte_model(
        (regions, probes) in regions().prop_flat_map(probes)
    ) {
        let table = MemoryTable::anonymous(&regions).expect("usable regions");
        let view = MemoryView::new(Arc::clone(&table));
        for (addr, len) in probes {
            let expected = model_slice(&table, addr, len);
            let (guest, size) = (GuestAddr(addr), len as usize);
            prop_assert_eq!(table.slice(guest, size).ok().map(host), expected);
            prop_assert_eq!(view.slice(guest, size).ok().map(host), expected);
            prop_assert_eq!(table.area(guest, size).is_ok(), expected.is_some());
            let user = UserAddr(addr.wrapping_add(USER));
            if let Ok(found) = table.user_to_guest(user, size) {
                prop_assert!(model_slice(&table, found.0, len).is_some());
            }
            if let Ok(slice) = view.slice(guest, size) {
                prop_assert_eq!(table.guest_of(slice.range()), Some(guest));
                prop_assert_eq!(view.reenter(slice.range()).map(host), expected);
                prop_assert_eq!(table.user_to_guest(user, size), Ok(guest));
            }
        }
    }

    #[test]
    fn pieces_cover_exactly_the_bytes_asked_for(
        (regions, probes) in regions().prop_flat_map(probes)
    ) {
        let view = MemoryView::new(MemoryTable::anonymous(&regions).expect("usable regions"));
        for (addr, len) in probes {
            let len = len % (16 * PAGE);
            let mut pieces = Vec::new();
            let result = view.pieces(GuestAddr(addr), len as usize, |slice| pieces.push(slice.range()));
            // Regions are whole pages: the first byte of each page stands for the rest of it.
            let last = addr.checked_add(len.max(1) - 1);
            let starts = last.map(|last| (addr / PAGE + 1..=last / PAGE).map(|page| page * PAGE).chain([addr]));
            let all = starts.is_some_and(|mut starts| starts.all(|at| host_of(&view, at).is_some()));
            prop_assert_eq!(result.is_ok(), all);
            let mut at = addr;
            for piece in &pieces {
                let ends = host_of(&view, at).zip(host_of(&view, at + piece.len.max(1) as u64 - 1));
                let ((first_region, first), (last_region, end)) = ends.expect("pieces are mapped");
                prop_assert_eq!((first_region, first), (last_region, end + 1 - piece.len.max(1)));
                prop_assert_eq!(first, piece.base.addr());
                at += piece.len as u64;
            }
            prop_assert!(result.is_err() || at - addr == len);
        }
    }

    #[test]
    fn forged_ranges_never_lead_outside_the_regions(
        regions in regions(), from in any::<prop::sample::Index>(), shift in -9000_isize..9000, len in 0_usize..20000
    ) {
        let table = MemoryTable::anonymous(&regions).expect("usable regions");
        let hosts: Vec<HostRange> = table.host_ranges().collect();
        prop_assume!(!hosts.is_empty());
        let forged = HostRange { base: from.get(&hosts).base.wrapping_byte_offset(shift), len };
        let inside = |whole: &HostRange| {
            let (start, forged_start) = (whole.base.addr(), forged.base.addr());
            forged_start >= start && forged_start < start + whole.len && forged_start + len <= start + whole.len
        };
        prop_assert_eq!(table.reenter(forged).is_some(), hosts.iter().any(inside));
        prop_assert_eq!(MemoryView::new(Arc::clone(&table)).reenter(forged).is_some(), hosts.iter().any(inside));
    }
}
