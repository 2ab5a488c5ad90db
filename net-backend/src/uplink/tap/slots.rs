//! Private buffers for frames from the wire.

use std::io;

use memory::{GuestAddr, HostRange, MemoryView, OwnMemory};

use super::link::HEADER;

/// Most bytes of a frame: 64 KiB of segments to cut, with Ethernet header and tags. One more shows that a frame was cut off.
pub(super) const LONGEST: usize = 65_536 + 64;
/// Distance of two slots. Not a multiple of 4 KiB, or the fronts of all slots would compete for the same lines of the
/// first-level cache.
const PITCH: usize = (LONGEST + HEADER_LEN + 1).next_multiple_of(64) + 4 * 64;
const HEADER_LEN: usize = 12;
/// Frames taken in one burst.
const SLOTS: usize = 64;

const _: () = assert!(PITCH % 4096 >= 256, "slots spread over the sets of the cache");

/// Buffers for a burst, each with room for the largest frame and its virtio-net header. Pages that no frame
/// was long enough for stay untouched.
pub(super) struct Slots {
    view: MemoryView,
    slots: Vec<HostRange>,
    used: usize,
}

impl Slots {
    pub(super) fn new() -> io::Result<Self> {
        debug_assert_eq!(HEADER.len(), HEADER_LEN);
        let memory = OwnMemory::anonymous((SLOTS * PITCH).next_multiple_of(4096), GuestAddr(0))?;
        let view = MemoryView::new(memory.table().clone());
        let slot = |index: usize| {
            let start = GuestAddr((index * PITCH) as u64);
            memory.slice(start, HEADER_LEN + LONGEST + 1).map(|slice| slice.range()).map_err(io::Error::other)
        };
        let slots = (0..SLOTS).map(slot).collect::<io::Result<_>>()?;
        Ok(Self { view, slots, used: 0 })
    }

    #[inline]
    pub(super) fn view(&self) -> &MemoryView {
        &self.view
    }

    /// The next buffer that no frame is in.
    #[inline]
    pub(super) fn free(&self) -> Option<HostRange> {
        self.slots.get(self.used).copied()
    }

    /// A frame is in the buffer that [`free`](Self::free) gave.
    #[inline]
    pub(super) fn take(&mut self) {
        self.used += 1;
    }

    /// The frame taken last was of no use.
    #[inline]
    pub(super) fn put_back(&mut self) {
        self.used -= 1;
    }

    /// No buffer has a frame in it any more.
    #[inline]
    pub(super) fn release(&mut self) {
        self.used = 0;
    }
}
