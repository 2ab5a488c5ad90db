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
