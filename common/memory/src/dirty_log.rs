//! The dirty log of a live migration.

#![expect(unsafe_code, reason = "atomic bytes in shared memory")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering, fence};

use crate::addr::{GuestAddr, HostRange};
use crate::mapping::{MappableFile, Mapping};
use crate::table::MemoryTable;

/// Bytes of guest memory per bit of the log (vhost-user: VHOST_LOG_PAGE).
pub const LOG_PAGE_SIZE: u64 = 4096;

/// A bitmap shared with the frontend, one bit per 4 KiB of guest memory, least significant bit first (vhost-user:
/// SET_LOG_BASE). The frontend clears bits while we set them.
pub struct DirtyLog {
    mapping: Mapping,
}

impl DirtyLog {
    /// Maps `size` bytes at `offset` of the file, and closes it.
    pub fn map(fd: OwnedFd, size: u64, offset: u64) -> io::Result<Arc<Self>> {
        let file = MappableFile::examine(fd.as_fd())?;
        Ok(Arc::new(Self { mapping: Mapping::of_file(&file, offset, size)? }))
    }

    /// A log of `size` bytes that nobody else sees.
    pub fn anonymous(size: usize) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { mapping: Mapping::heap(size)? }))
    }

    /// Marks `len` bytes at `addr` as written, which they must be already. What lies past the end of the log is left
    /// out: the frontend did not ask for it.
    pub fn mark(&self, addr: GuestAddr, len: u64) {
        let Some(last) = len.checked_sub(1).map(|rest| addr.0.saturating_add(rest)) else { return };
        // A bit that is already set is not written again, so that the cache line stays shared. This load must not
        // overtake the data it stands for: else the frontend could clear the bit and copy the page in between, and the
        // write would be lost. Pairs with the atomic exchange in the frontend.
        fence(Ordering::SeqCst);
        let (first, last) = (addr.0 / LOG_PAGE_SIZE, last / LOG_PAGE_SIZE);
        for index in first / 8..=last / 8 {
            let Some(byte) = self.byte(index) else { return };
            let below_first = first.saturating_sub(index * 8).min(8) as u32;
            let above_last = (index * 8 + 7).saturating_sub(last).min(8) as u32;
            set(byte, (0xff_u8 << below_first) & (0xff_u8 >> above_last));
        }
    }

    /// Marks the first `len` bytes of a host range of `table` as written.
    pub fn mark_range(&self, table: &MemoryTable, range: HostRange, len: usize) {
        let written = HostRange { base: range.base, len: len.min(range.len) };
        if let Some(addr) = table.guest_of(written) {
            self.mark(addr, written.len as u64);
        }
    }

    /// Whether the page that holds `addr` is marked; pages past the end of the log are not.
    pub fn is_marked(&self, addr: GuestAddr) -> bool {
        let page = addr.0 / LOG_PAGE_SIZE;
        self.byte(page / 8).is_some_and(|byte| byte.load(Ordering::Acquire) & (1 << (page % 8)) != 0)
    }

    /// Size of the bitmap in bytes.
    pub fn size(&self) -> usize {
        self.mapping.len()
    }

    #[inline]
    fn byte(&self, index: u64) -> Option<&AtomicU8> {
        let index = usize::try_from(index).ok().filter(|&index| index < self.mapping.len())?;
        // SAFETY: inside the mapping, which lives as long as the borrow of `self` and is accessed by atomics only.
        Some(unsafe { AtomicU8::from_ptr(self.mapping.data().add(index).as_ptr()) })
    }
}

#[inline]
fn set(byte: &AtomicU8, mask: u8) {
    if byte.load(Ordering::Relaxed) & mask != mask {
        byte.fetch_or(mask, Ordering::Release);
    }
}

impl std::fmt::Debug for DirtyLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DirtyLog({} bytes)", self.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OwnMemory;

    fn marked(log: &DirtyLog) -> Vec<u64> {
        let pages = log.size() as u64 * 8;
        (0..pages).filter(|page| log.is_marked(GuestAddr(page * LOG_PAGE_SIZE))).collect()
    }

    #[test]
    fn every_page_that_was_touched_is_marked_and_no_other() {
        for (addr, len, pages) in [
            (0, 1, 0..1),
            (4095, 1, 0..1),
            (4095, 2, 0..2),
            (4096, 4096, 1..2),
            (7 * 4096, 4096, 7..8),
            (7 * 4096 + 1, 4096, 7..9),
            (3 * 4096, 20 * 4096, 3..23),
            (8 * 4096, 8 * 4096, 8..16),
            (5, 0, 0..0),
        ] {
            let log = DirtyLog::anonymous(4).expect("memory");
            log.mark(GuestAddr(addr), len);
            assert_eq!(marked(&log), pages.collect::<Vec<_>>(), "{len} bytes at {addr}");
        }
    }

    #[test]
    fn what_lies_past_the_end_of_the_log_is_left_out() {
        let log = DirtyLog::anonymous(2).expect("memory");
        log.mark(GuestAddr(15 * 4096), u64::MAX);
        log.mark(GuestAddr(16 * 4096), 4096);
        log.mark(GuestAddr(u64::MAX), u64::MAX);
        assert_eq!(marked(&log), [15]);
        assert!(!log.is_marked(GuestAddr(16 * 4096)));
    }

    #[test]
    fn marks_of_others_stay() {
        let log = DirtyLog::anonymous(1).expect("memory");
        log.mark(GuestAddr(2 * 4096), 1);
        log.mark(GuestAddr(4 * 4096), 1);
        log.mark(GuestAddr(2 * 4096), 1);
        assert_eq!(marked(&log), [2, 4]);
    }

    #[test]
    fn a_host_range_is_marked_where_the_guest_sees_it() {
        let memory = OwnMemory::new(4 * 4096, GuestAddr(8 * 4096)).expect("memory");
        let log = DirtyLog::anonymous(2).expect("memory");
        let range = memory.slice(GuestAddr(9 * 4096), 2 * 4096).expect("inside").range();
        log.mark_range(memory.table(), range, 4096);
        assert_eq!(marked(&log), [9]);
        log.mark_range(memory.table(), range, usize::MAX);
        assert_eq!(marked(&log), [9, 10]);
        log.mark_range(memory.table(), HostRange::EMPTY, 1);
        assert_eq!(marked(&log), [9, 10]);
    }
}
