//! Guest memory and areas of it.

use std::io;
use std::sync::Arc;

use memory::{Area, GuestAddr, OutOfRange, OwnMemory};

/// Where our memory begins for the backend: not at 0, so that a null address is an error there.
pub const GUEST_BASE: GuestAddr = GuestAddr(1 << 30);

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Memory of a guest, `len` bytes.
pub fn of_guest(len: usize) -> io::Result<Arc<OwnMemory>> {
    OwnMemory::new(len, GUEST_BASE).map(Arc::new)
}

/// Takes page-aligned memory and touches it, so that no page fault falls into a measurement.
pub fn area(memory: &OwnMemory, len: usize) -> Result<Area, OutOfRange> {
    let exhausted = OutOfRange { addr: memory.config().guest.0, len };
    let addr = memory.alloc(len, PAGE).ok_or(exhausted)?;
    memory.slice(addr, len)?.fill(0);
    memory.area(addr, len)
}

/// Bytes of guest memory that areas of these lengths take, each on pages of its own.
pub fn footprint(lengths: impl IntoIterator<Item = usize>) -> usize {
    lengths.into_iter().map(|len| len.next_multiple_of(PAGE) + PAGE).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_fit_into_their_footprint_and_do_not_share_pages() {
        let lengths = [1, 4096, 5000];
        let memory = OwnMemory::new(footprint(lengths), GUEST_BASE).unwrap();
        let areas = lengths.map(|len| area(&memory, len).unwrap());
        assert!(areas.windows(2).all(|pair| pair[0].guest_addr().0 / 4096 < pair[1].guest_addr().0 / 4096));
        assert!(areas.iter().all(|area| area.guest_addr().0 % 4096 == 0));
    }

    #[test]
    fn too_little_memory_is_an_error() {
        let memory = OwnMemory::new(1 << 16, GuestAddr(0)).unwrap();
        assert!(area(&memory, 1 << 17).is_err());
    }
}
