//! The immutable region table of one generation.

#![expect(unsafe_code, reason = "turns checked addresses into pointers")]

use std::ptr::NonNull;
use std::sync::Arc;

use thiserror::Error;

use crate::addr::{GuestAddr, HostRange, UserAddr};
use crate::area::Area;
use crate::map::{MapError, RegionError, check_layout};
use crate::mapping::Mapping;
use crate::slice::GuestSlice;

/// Memory slots offered by CONFIGURE_MEM_SLOTS, the number QEMU itself stops at.
pub const MAX_REGIONS: usize = 509;

/// Up to here a scan beats a binary search: it has no mispredicted branches.
const SCAN_LIMIT: usize = 4;

/// One memory region as the frontend describes it (vhost-user: SET_MEM_TABLE, ADD_MEM_REG).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionConfig {
    /// First guest physical address.
    pub guest: GuestAddr,
    /// Length in bytes.
    pub len: u64,
    /// Where the frontend itself has mapped the region.
    pub user: UserAddr,
    /// Where in the file the region starts, in bytes.
    pub mmap_offset: u64,
}

/// An address range that is not (wholly) inside the guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{len} bytes at {addr:#x} are outside the guest's memory")]
pub struct OutOfRange {
    /// First address of the range that was asked for.
    pub addr: u64,
    /// Its length in bytes.
    pub len: usize,
}

/// What translation needs of a region, packed for the scan.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    guest: u64,
    len: u64,
    host: NonNull<u8>,
}

// SAFETY: a span is an address; access through it goes by `GuestSlice`, whose safety does not depend on the thread.
unsafe impl Send for Span {}
// SAFETY: as above; it has no interior mutability.
unsafe impl Sync for Span {}

impl Span {
    /// Holds nothing: any address is out of range.
    pub(crate) const EMPTY: Self = Self { guest: 0, len: 0, host: NonNull::dangling() };

    /// The host pointer to `len` bytes at `addr` when all are inside: two compares, overflow included.
    #[inline(always)]
    pub(crate) fn translate(&self, addr: GuestAddr, len: usize) -> Option<NonNull<u8>> {
        let offset = addr.0.wrapping_sub(self.guest);
        if offset < self.len && len as u64 <= self.len - offset {
            // SAFETY: offset < len, and the span's `len` bytes are one mapping.
            Some(unsafe { self.host.add(offset as usize) })
        } else {
            None
        }
    }

    /// Offset of a host range inside the span, when all of it is inside.
    #[inline(always)]
    pub(crate) fn offset_of(&self, range: HostRange) -> Option<usize> {
        let offset = range.base.addr().wrapping_sub(self.host.as_ptr().addr()) as u64;
        (offset < self.len && range.len as u64 <= self.len - offset).then_some(offset as usize)
    }

    /// Pointer at an offset that `offset_of` or `translate` has checked.
    #[inline(always)]
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        debug_assert!((offset as u64) < self.len);
        // SAFETY: only called with offsets below `len`, which is one mapping.
        unsafe { self.host.add(offset) }
    }

    /// Bytes from `addr`, which must be inside, to the end of the span.
    pub(crate) fn room(&self, addr: GuestAddr) -> usize {
        (self.len - (addr.0 - self.guest)) as usize
    }

    fn end(&self) -> u64 {
        self.guest + self.len
    }
}

/// A mapped region.
#[derive(Clone)]
pub(crate) struct Region {
    pub(crate) config: RegionConfig,
    pub(crate) mapping: Arc<Mapping>,
}

impl Region {
    fn span(&self) -> Span {
        Span { guest: self.config.guest.0, len: self.config.len, host: self.mapping.data() }
    }
}

/// All of a guest's memory at one moment: immutable, sorted by guest address, shared by everybody who needs it.
///
/// A table keeps its mappings alive. Each change makes a new table with a higher generation.
pub struct MemoryTable {
    generation: u64,
    /// Sorted by guest address, not overlapping.
    spans: Box<[Span]>,
    /// Same order as `spans`.
    regions: Box<[Region]>,
    /// Indices into `spans`, sorted by host address.
    by_host: Box<[u16]>,
}

impl MemoryTable {
    /// A table without memory, generation 0.
    pub fn empty() -> Arc<Self> {
        Arc::new(Self::new(0, Vec::new()))
    }

    /// A table of zeroed private memory, for tests and fuzzers that need several regions; works under Miri. The offsets
    /// in the configurations mean nothing.
    pub fn anonymous(configs: &[RegionConfig]) -> Result<Arc<Self>, MapError> {
        check_layout(configs.to_vec())?;
        let region = |config: &RegionConfig| {
            let mapping = usize::try_from(config.len)
                .map_err(|_| RegionError::Overflow)
                .and_then(|len| Ok(Mapping::heap(len)?));
            let mapping = mapping.map_err(|source| MapError::Region { guest: config.guest, source })?;
            Ok(Region { config: *config, mapping: Arc::new(mapping) })
        };
        Ok(Arc::new(Self::new(1, configs.iter().map(region).collect::<Result<_, _>>()?)))
    }

    /// Sorts the regions; the caller has made sure that they do not overlap and number `MAX_REGIONS` at most.
    pub(crate) fn new(generation: u64, mut regions: Vec<Region>) -> Self {
        regions.sort_by_key(|region| region.config.guest);
        let spans: Box<[Span]> = regions.iter().map(Region::span).collect();
        debug_assert!(spans.windows(2).all(|pair| pair[0].end() <= pair[1].guest));
        let mut by_host: Box<[u16]> = (0..spans.len() as u16).collect();
        by_host.sort_by_key(|&index| spans[usize::from(index)].host);
        Self { generation, spans, regions: regions.into(), by_host }
    }

    /// Counts the tables one [`MemoryMap`](crate::MemoryMap) has made.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The regions, by ascending guest address.
    pub fn regions(&self) -> impl Iterator<Item = RegionConfig> + '_ {
        self.regions.iter().map(|region| region.config)
    }

    /// Where the regions are in this process, in the order of [`regions`](Self::regions); for registering them with
    /// io_uring.
    pub fn host_ranges(&self) -> impl Iterator<Item = HostRange> + '_ {
        self.spans.iter().map(|span| HostRange { base: span.host.as_ptr().cast(), len: span.len as usize })
    }

    /// Translates `len` bytes at `addr`, which must lie inside one region.
    #[inline]
    pub fn slice(&self, addr: GuestAddr, len: usize) -> Result<GuestSlice<'_>, OutOfRange> {
        let ptr = self.find(addr).and_then(|span| span.translate(addr, len));
        let ptr = ptr.ok_or(OutOfRange { addr: addr.0, len })?;
        // SAFETY: `translate`: inside a region, whose mapping this table keeps alive.
        Ok(unsafe { GuestSlice::new(ptr, len) })
    }

    /// An owning area of `len` bytes at `addr`, inside one region; it keeps the region mapped.
    pub fn area(&self, addr: GuestAddr, len: usize) -> Result<Area, OutOfRange> {
        let out_of_range = OutOfRange { addr: addr.0, len };
        let region = self.index(addr).map(|index| &self.regions[index]).ok_or(out_of_range)?;
        let offset = (addr.0 - region.config.guest.0) as usize;
        Area::inside(&region.mapping, offset, len, addr).ok_or(out_of_range)
    }

    /// The guest address of `len` bytes at the frontend's address `addr`, inside one region.
    pub fn user_to_guest(&self, addr: UserAddr, len: usize) -> Result<GuestAddr, OutOfRange> {
        self.regions()
            .find_map(|region| {
                let offset = addr.0.checked_sub(region.user.0)?;
                let inside = offset < region.len && len as u64 <= region.len - offset;
                inside.then(|| GuestAddr(region.guest.0 + offset))
            })
            .ok_or(OutOfRange { addr: addr.0, len })
    }

    /// The guest address of a host range, when all of it is inside one region.
    #[inline]
    pub fn guest_of(&self, range: HostRange) -> Option<GuestAddr> {
        let span = self.find_host(range)?;
        span.offset_of(range).map(|offset| GuestAddr(span.guest + offset as u64))
    }

    /// Access to a stored range again, when all of it is inside one region of this table.
    #[inline]
    pub fn reenter(&self, range: HostRange) -> Option<GuestSlice<'_>> {
        let span = self.find_host(range)?;
        let offset = span.offset_of(range)?;
        // SAFETY: `offset_of`: inside a region, whose mapping this table keeps alive.
        Some(unsafe { GuestSlice::new(span.at(offset), range.len) })
    }

    /// Whether a memory file turned out shorter than its mapping (SIGBUS): the guest's memory can no longer be
    /// trusted and its device should fail. One relaxed load as long as no mapping of the process has failed.
    #[inline]
    pub fn failed(&self) -> bool {
        crate::sigbus::any_failed() && self.regions.iter().any(|region| region.mapping.failed())
    }

    pub(crate) fn mapped(&self) -> &[Region] {
        &self.regions
    }

    /// The region that holds the address.
    #[inline]
    pub(crate) fn find(&self, addr: GuestAddr) -> Option<&Span> {
        if self.spans.len() <= SCAN_LIMIT {
            return self.spans.iter().find(|span| addr.0.wrapping_sub(span.guest) < span.len);
        }
        self.index(addr).map(|index| &self.spans[index])
    }

    fn index(&self, addr: GuestAddr) -> Option<usize> {
        let index = self.spans.partition_point(|span| span.guest <= addr.0).checked_sub(1)?;
        (addr.0 - self.spans[index].guest < self.spans[index].len).then_some(index)
    }

    /// The region a host range may be in; the caller checks with `offset_of`.
    #[inline]
    pub(crate) fn find_host(&self, range: HostRange) -> Option<&Span> {
        if self.spans.len() <= SCAN_LIMIT {
            return self.spans.iter().find(|span| span.offset_of(range).is_some());
        }
        let host = |index: &u16| self.spans[usize::from(*index)].host.as_ptr().addr();
        let place = self.by_host.partition_point(|index| host(index) <= range.base.addr()).checked_sub(1)?;
        Some(&self.spans[usize::from(self.by_host[place])])
    }
}

impl std::fmt::Debug for MemoryTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryTable")
            .field("generation", &self.generation)
            .field("regions", &self.regions().collect::<Vec<_>>())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn region(guest: u64, len: u64) -> RegionConfig {
        RegionConfig { guest: GuestAddr(guest), len, user: UserAddr(guest + 0x10_0000_0000), mmap_offset: 0 }
    }

    fn table(regions: &[(u64, u64)]) -> Arc<MemoryTable> {
        let configs: Vec<_> = regions.iter().map(|&(guest, len)| region(guest, len)).collect();
        MemoryTable::anonymous(&configs).expect("usable regions")
    }

    #[test]
    fn ranges_that_leave_the_region_by_one_byte_are_refused() {
        let table = table(&[(PAGE, 2 * PAGE)]);
        assert!(table.slice(GuestAddr(PAGE), 2 * PAGE as usize).is_ok());
        assert!(table.slice(GuestAddr(3 * PAGE - 1), 1).is_ok());
        for (addr, len) in
            [(PAGE - 1, 1), (PAGE, 2 * PAGE + 1), (3 * PAGE - 1, 2), (3 * PAGE, 0), (3 * PAGE, 1)]
        {
            let refused = OutOfRange { addr, len: len as usize };
            assert_eq!(table.slice(GuestAddr(addr), len as usize).err(), Some(refused));
            assert_eq!(table.area(GuestAddr(addr), len as usize).err(), Some(refused));
        }
    }

    #[test]
    fn lengths_that_wrap_around_the_address_space_are_refused() {
        let table = table(&[(PAGE, PAGE)]);
        for len in [usize::MAX, usize::MAX - PAGE as usize, usize::MAX - PAGE as usize + 1, 1 << 63] {
            assert!(table.slice(GuestAddr(PAGE), len).is_err());
            assert!(table.area(GuestAddr(PAGE), len).is_err());
            assert!(table.user_to_guest(UserAddr(0x10_0000_1000), len).is_err());
        }
        assert!(table.slice(GuestAddr(u64::MAX), 1).is_err());
        assert!(table.slice(GuestAddr(u64::MAX), 2).is_err());
    }

    #[test]
    fn addresses_near_the_ends_of_the_address_spaces_translate() {
        let bases = [0, (1 << 47) - PAGE, 1 << 47, (1 << 52) + PAGE, u64::MAX - 2 * PAGE + 1];
        let configs = bases.map(|guest| RegionConfig {
            guest: GuestAddr(guest),
            len: PAGE,
            user: UserAddr((1 << 47) - 2 * PAGE),
            mmap_offset: 0,
        });
        let table = MemoryTable::anonymous(&configs).expect("usable regions");
        for base in bases {
            let slice = table.slice(GuestAddr(base + PAGE - 8), 8).expect("inside");
            assert_eq!(table.guest_of(slice.range()), Some(GuestAddr(base + PAGE - 8)));
        }
    }

    #[test]
    fn user_addresses_translate_by_the_region_that_holds_them() {
        let table = table(&[(0, PAGE), (4 * PAGE, PAGE)]);
        let user = |offset| UserAddr(0x10_0000_0000 + offset);
        assert_eq!(table.user_to_guest(user(16), 16), Ok(GuestAddr(16)));
        assert_eq!(table.user_to_guest(user(4 * PAGE), PAGE as usize), Ok(GuestAddr(4 * PAGE)));
        assert!(table.user_to_guest(user(PAGE - 1), 2).is_err());
        assert!(table.user_to_guest(user(2 * PAGE), 1).is_err());
        assert!(table.user_to_guest(UserAddr(0), 1).is_err());
    }

    #[test]
    fn a_stored_range_is_checked_again() {
        let table = table(&[(0, PAGE)]);
        let range = table.slice(GuestAddr(100), 200).expect("inside").range();
        table.slice(GuestAddr(100), 200).expect("inside").fill(7);
        let mut bytes = [0; 200];
        table.reenter(range).expect("still inside").read(0, &mut bytes);
        assert_eq!(bytes, [7; 200]);
        assert!(table.reenter(HostRange { len: PAGE as usize, ..range }).is_none());
        assert!(table.reenter(HostRange { base: range.base.wrapping_byte_sub(101), len: 1 }).is_none());
        assert!(table.reenter(HostRange::EMPTY).is_none());
        assert!(MemoryTable::empty().reenter(range).is_none());
    }

    #[test]
    fn the_largest_table_translates_both_ways() {
        let regions: Vec<_> = (0..MAX_REGIONS as u64).map(|index| (index * 3 * PAGE, PAGE)).collect();
        let table = table(&regions);
        for &(guest, _) in &regions {
            let slice = table.slice(GuestAddr(guest + 5), 16).expect("inside");
            assert_eq!(table.guest_of(slice.range()), Some(GuestAddr(guest + 5)));
            assert!(table.reenter(slice.range()).is_some());
            assert!(table.slice(GuestAddr(guest + PAGE), 1).is_err());
        }
    }

    #[test]
    fn the_empty_table_holds_no_address() {
        let table = MemoryTable::empty();
        assert!(table.slice(GuestAddr(0), 0).is_err());
        assert!(table.area(GuestAddr(0), 1).is_err());
        assert!(!table.failed());
        assert_eq!(table.regions().count(), 0);
    }
}
