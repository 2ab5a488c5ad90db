//! Buffers of one ring in guest memory: equal in size, on cache lines of their own.

use memory::{Area, GuestAddr, OutOfRange, OwnMemory};
use virtqueue::driver::Segment;

use crate::guest::memory::{area, footprint};

/// Alignment of buffers.
const LINE: usize = 64;

/// As many buffers as a ring has entries.
pub(super) struct Buffers {
    pub area: Area,
    stride: usize,
    len: usize,
}

impl Buffers {
    /// Bytes of guest memory that [`Buffers::new`] takes.
    pub fn footprint(count: u16, len: usize) -> usize {
        footprint([usize::from(count) * stride(len)])
    }

    /// Takes `count` buffers of `len` bytes.
    pub fn new(memory: &OwnMemory, count: u16, len: usize) -> Result<Self, OutOfRange> {
        let stride = stride(len);
        Ok(Self { area: area(memory, usize::from(count) * stride)?, stride, len })
    }

    /// Bytes of a buffer.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Offset of buffer `slot` in the area.
    #[inline]
    pub fn offset(&self, slot: u16) -> usize {
        usize::from(slot) * self.stride
    }

    /// A part of buffer `slot`.
    pub fn segment(&self, slot: u16, skip: usize, len: usize) -> Segment {
        let addr = GuestAddr(self.area.guest_addr().0 + (self.offset(slot) + skip) as u64);
        Segment { addr, len: len as u32 }
    }
}

/// An odd number of cache lines: with a power of two, the first lines of all buffers would fall into few cache sets.
fn stride(len: usize) -> usize {
    (len.div_ceil(LINE) | 1) * LINE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_do_not_overlap_and_spread_over_the_cache_sets() {
        let memory = OwnMemory::new(Buffers::footprint(8, 2048), GuestAddr(1 << 20)).unwrap();
        let buffers = Buffers::new(&memory, 8, 2048).unwrap();
        for slot in 0..7 {
            let (this, next) = (buffers.segment(slot, 0, 2048), buffers.segment(slot + 1, 0, 2048));
            assert!(this.addr.0 + 2048 <= next.addr.0);
            assert_eq!(this.addr.0 % 64, 0);
            assert_ne!(this.addr.0 % 4096, next.addr.0 % 4096);
        }
        assert_eq!(buffers.segment(1, 12, 4).addr.0, buffers.segment(1, 0, 1).addr.0 + 12);
    }

    #[test]
    fn too_little_memory_is_an_error() {
        let memory = OwnMemory::new(1 << 16, GuestAddr(0)).unwrap();
        assert!(Buffers::new(&memory, 256, 2048).is_err());
    }
}
