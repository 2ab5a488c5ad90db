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
