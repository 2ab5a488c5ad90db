//! Guest memory that is ours: of drivers in tests, benches and tools, and of devices whose buffers are to be accessed by the same
//! code as a guest's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{GuestAddr, UserAddr};
use crate::area::Area;
use crate::area::sealed_memfd;
use crate::map::check_layout;
use crate::mapping::{MappableFile, Mapping};
use crate::slice::GuestSlice;
use crate::table::{MemoryTable, OutOfRange, Region, RegionConfig};

/// One region of memory that plays the guest: a sealed memfd to send to a back-end, a table to access it by, and an
/// allocator that only goes forward. The user address is where the memory is in this process, as with real frontends.
pub struct OwnMemory {
    table: Arc<MemoryTable>,
    config: RegionConfig,
    /// Under Miri the memory is on the heap and there is nothing to send.
    fd: Option<OwnedFd>,
    used: AtomicU64,
}

impl OwnMemory {
    /// `len` zero bytes at guest address `guest`, which must be a multiple of 4096.
    pub fn new(len: usize, guest: GuestAddr) -> io::Result<Self> {
        if cfg!(miri) {
            return Self::anonymous(len, guest);
        }
        let fd = sealed_memfd(len, "guest-memory")?;
        let mapping = Mapping::of_file(&MappableFile::examine(fd.as_fd())?, 0, len as u64)?;
        Self::with(mapping, guest, Some(fd))
    }

    /// The same on the heap: nothing that could be sent, but it works under Miri.
    pub fn anonymous(len: usize, guest: GuestAddr) -> io::Result<Self> {
        Self::with(Mapping::heap(len)?, guest, None)
    }

    fn with(mapping: Mapping, guest: GuestAddr, fd: Option<OwnedFd>) -> io::Result<Self> {
        let user = UserAddr(mapping.data().as_ptr().addr() as u64);
        let config = RegionConfig { guest, len: mapping.len() as u64, user, mmap_offset: 0 };
        check_layout(vec![config]).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let region = Region { config, mapping: Arc::new(mapping) };
        let table = Arc::new(MemoryTable::new(1, vec![region]));
        Ok(Self { table, config, fd, used: AtomicU64::new(0) })
    }

    /// The table with the one region.
    pub fn table(&self) -> &Arc<MemoryTable> {
        &self.table
    }

    /// The region, as it is announced to a back-end.
    pub fn config(&self) -> RegionConfig {
        self.config
    }

    /// The memfd, to be sent to a back-end.
    ///
    /// # Panics
    /// When the memory is on the heap: made by [`anonymous`](Self::anonymous), or under Miri.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("heap memory has no descriptor").as_fd()
    }

    /// Takes `len` bytes with the given alignment (a power of two), or `None` when that much is not left.
    pub fn alloc(&self, len: usize, align: usize) -> Option<GuestAddr> {
        let start_of = |used: u64| {
            let start =
                (self.config.guest.0 + used).checked_next_multiple_of(align as u64)? - self.config.guest.0;
            let end = start.checked_add(len as u64)?;
            (end <= self.config.len).then_some((start, end))
        };
        let next = |used| start_of(used).map(|(_, end)| end);
        let used = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        start_of(used).map(|(start, _)| GuestAddr(self.config.guest.0 + start))
    }

    /// Access to a piece of it.
    pub fn slice(&self, addr: GuestAddr, len: usize) -> Result<GuestSlice<'_>, OutOfRange> {
        self.table.slice(addr, len)
    }

    /// A piece of it as a ring area.
    pub fn area(&self, addr: GuestAddr, len: usize) -> Result<Area, OutOfRange> {
        self.table.area(addr, len)
    }

    /// The user address of a guest address, for SET_VRING_ADDR.
    pub fn user_of(&self, addr: GuestAddr) -> UserAddr {
        UserAddr(addr.0.wrapping_sub(self.config.guest.0).wrapping_add(self.config.user.0))
    }
}

impl std::fmt::Debug for OwnMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnMemory").field("config", &self.config).field("used", &self.used).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_aligned_disjoint_and_end_with_the_memory() {
        let memory = OwnMemory::new(3 * 4096, GuestAddr(0x1000)).expect("memory");
        assert_eq!(memory.alloc(10, 1), Some(GuestAddr(0x1000)));
        assert_eq!(memory.alloc(10, 16), Some(GuestAddr(0x1010)));
        assert_eq!(memory.alloc(4096, 4096), Some(GuestAddr(0x2000)));
        assert_eq!(memory.alloc(4097, 1), None);
        assert_eq!(memory.alloc(usize::MAX, 4096), None);
        assert_eq!(memory.alloc(4096, 1), Some(GuestAddr(0x3000)));
        assert_eq!(memory.alloc(1, 1), None);
    }

    #[test]
    fn user_addresses_lead_back_to_the_guest() {
        let memory = OwnMemory::new(4096, GuestAddr(1 << 40)).expect("memory");
        let user = memory.user_of(GuestAddr((1 << 40) + 64));
        assert_eq!(memory.table().user_to_guest(user, 64), Ok(GuestAddr((1 << 40) + 64)));
    }

    #[test]
    fn a_misaligned_guest_address_is_refused() {
        assert!(OwnMemory::new(4096, GuestAddr(1)).is_err());
    }
}
