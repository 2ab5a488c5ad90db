//! One owner's view of the table, with the last hit in front.

#![expect(unsafe_code, reason = "turns checked addresses into slices")]

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;

use crate::addr::{GuestAddr, HostRange};
use crate::slice::GuestSlice;
use crate::table::{MemoryTable, OutOfRange, Span};

/// A [`MemoryTable`] for one thread: remembers the region of the last translation, because the next one is nearly
/// always in the same. Not `Sync`; each worker queue has its own.
pub struct MemoryView {
    table: Arc<MemoryTable>,
    /// A copy of one of the table's spans, or the empty one.
    last: Cell<Span>,
}

impl MemoryView {
    /// A view of `table`.
    pub fn new(table: Arc<MemoryTable>) -> Self {
        Self { table, last: Cell::new(Span::EMPTY) }
    }

    /// The table itself.
    #[inline]
    pub fn table(&self) -> &Arc<MemoryTable> {
        &self.table
    }

    /// Translates `len` bytes at `addr`, which must lie inside one region.
    #[inline]
    pub fn slice(&self, addr: GuestAddr, len: usize) -> Result<GuestSlice<'_>, OutOfRange> {
        match self.last.get().translate(addr, len) {
            // SAFETY: `last` is a span of our table, which stays alive as long as the borrow of `self`.
            Some(ptr) => Ok(unsafe { GuestSlice::new(ptr, len) }),
            None => self.slice_elsewhere(addr, len),
        }
    }

    /// Calls `piece` for each contiguous host piece of `len` bytes at `addr`, in order; a buffer may cross regions that
    /// touch. On an error some pieces may have been seen.
    #[inline]
    pub fn pieces<'m>(
        &'m self,
        addr: GuestAddr,
        len: usize,
        mut piece: impl FnMut(GuestSlice<'m>),
    ) -> Result<(), OutOfRange> {
        if let Some(ptr) = self.last.get().translate(addr, len) {
            // SAFETY: as in `slice`.
            piece(unsafe { GuestSlice::new(ptr, len) });
            return Ok(());
        }
        self.pieces_elsewhere(addr, len, &mut piece)
    }

    /// Access to a stored range again, when all of it is inside one region.
    #[inline]
    pub fn reenter(&self, range: HostRange) -> Option<GuestSlice<'_>> {
        let last = self.last.get();
        match last.offset_of(range) {
            // SAFETY: as in `slice`.
            Some(offset) => Some(unsafe { GuestSlice::new(last.at(offset), range.len) }),
            None => self.reenter_elsewhere(range),
        }
    }

    #[inline(never)]
    fn slice_elsewhere(&self, addr: GuestAddr, len: usize) -> Result<GuestSlice<'_>, OutOfRange> {
        let out_of_range = OutOfRange { addr: addr.0, len };
        let span = self.table.find(addr).ok_or(out_of_range)?;
        let ptr = span.translate(addr, len).ok_or(out_of_range)?;
        self.last.set(*span);
        // SAFETY: `translate`: inside a region of our table, which stays alive as long as the borrow of `self`.
        Ok(unsafe { GuestSlice::new(ptr, len) })
    }

    #[inline(never)]
    fn reenter_elsewhere(&self, range: HostRange) -> Option<GuestSlice<'_>> {
        let span = self.table.find_host(range)?;
        let offset = span.offset_of(range)?;
        self.last.set(*span);
        // SAFETY: `offset_of`: as in `slice_elsewhere`.
        Some(unsafe { GuestSlice::new(span.at(offset), range.len) })
    }

    #[inline(never)]
    fn pieces_elsewhere<'m>(
        &'m self,
        mut addr: GuestAddr,
        len: usize,
        piece: &mut dyn FnMut(GuestSlice<'m>),
    ) -> Result<(), OutOfRange> {
        let out_of_range = OutOfRange { addr: addr.0, len };
        let mut left = len;
        loop {
            let span = self.table.find(addr).ok_or(out_of_range)?;
            self.last.set(*span);
            let here = span.room(addr).min(left);
            piece(self.table.slice(addr, here)?);
            left -= here;
            if left == 0 {
                return Ok(());
            }
            addr = addr.checked_add(here as u64).ok_or(out_of_range)?;
        }
    }
}

impl Deref for MemoryView {
    type Target = MemoryTable;

    fn deref(&self) -> &MemoryTable {
        &self.table
    }
}

impl std::fmt::Debug for MemoryView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.table.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::UserAddr;
    use crate::table::RegionConfig;

    const PAGE: u64 = 4096;

    fn view(regions: &[(u64, u64)]) -> MemoryView {
        let config = |&(guest, len): &(u64, u64)| RegionConfig {
            guest: GuestAddr(guest),
            len,
            user: UserAddr(0),
            mmap_offset: 0,
        };
        let configs: Vec<_> = regions.iter().map(config).collect();
        MemoryView::new(MemoryTable::anonymous(&configs).expect("usable regions"))
    }

    #[test]
    fn the_last_hit_never_answers_for_another_region() {
        let view = view(&[(0, PAGE), (8 * PAGE, PAGE)]);
        for addr in [8, 8 * PAGE + 8, 16, 8 * PAGE + 16] {
            let slice = view.slice(GuestAddr(addr), 8).expect("inside");
            assert_eq!(view.guest_of(slice.range()), Some(GuestAddr(addr)));
            assert!(view.slice(GuestAddr(4 * PAGE), 1).is_err());
            assert_eq!(
                view.guest_of(view.reenter(slice.range()).expect("inside").range()),
                Some(GuestAddr(addr))
            );
        }
    }

    #[test]
    fn a_buffer_across_regions_that_touch_comes_in_pieces() {
        let view = view(&[(PAGE, PAGE), (2 * PAGE, PAGE), (3 * PAGE, PAGE), (5 * PAGE, PAGE)]);
        let mut pieces = Vec::new();
        let collect = |slice: GuestSlice<'_>| pieces.push((view.guest_of(slice.range()), slice.len()));
        view.pieces(GuestAddr(2 * PAGE - 10), PAGE as usize + 20, collect).expect("inside");
        let expected = [(2 * PAGE - 10, 10), (2 * PAGE, PAGE as usize), (3 * PAGE, 10)];
        assert_eq!(pieces, expected.map(|(addr, len)| (Some(GuestAddr(addr)), len)));
    }

    #[test]
    fn a_buffer_into_a_gap_is_refused_with_its_own_address() {
        let view = view(&[(PAGE, PAGE), (2 * PAGE, PAGE), (5 * PAGE, PAGE)]);
        let len = 2 * PAGE as usize;
        let refused = view.pieces(GuestAddr(PAGE + 1), len, |_| ());
        assert_eq!(refused, Err(OutOfRange { addr: PAGE + 1, len }));
        assert!(view.pieces(GuestAddr(PAGE), len, |_| ()).is_ok());
        assert!(view.pieces(GuestAddr(0), 1, |_| ()).is_err());
        assert!(view.pieces(GuestAddr(PAGE), usize::MAX, |_| ()).is_err());
    }

    #[test]
    fn a_buffer_up_to_the_end_of_the_address_space_does_not_wrap() {
        let top = u64::MAX - PAGE + 1;
        let view = view(&[(0, PAGE), (top - PAGE, PAGE)]);
        assert!(view.pieces(GuestAddr(top - 8), 8, |_| ()).is_ok());
        assert!(view.pieces(GuestAddr(top - 8), 16, |_| ()).is_err());
    }
}
