//! Where the requests of one queue lie in guest memory, and their prebuilt descriptors.
//!
//! A slot is a request that can be in flight: 64 bytes of control (header, range, status in one cache line, as in
//! Linux's `struct virtblk_req`) and a data buffer aligned to 4 KiB, as O_DIRECT backends want it. Descriptors never
//! change, so they are built once.

use memory::{Area, GuestAddr, OutOfRange, OwnMemory};
use virtqueue::driver::Segment;

use crate::guest::memory::{PAGE, area, footprint};

/// Bytes of control per slot.
pub(super) const CONTROL: usize = 64;
/// Offsets in a control block.
pub(super) const HEADER: usize = 0;
/// One discard or write-zeroes range.
pub(super) const RANGE: usize = 16;
/// The status byte.
pub(super) const STATUS: usize = 32;

const HEADER_LEN: u32 = 16;
const RANGE_LEN: u32 = 16;

/// Buffers and descriptors of all slots of a queue.
pub(super) struct Slots {
    pub control: Area,
    pub data: Area,
    /// Distance of the data buffers.
    pub stride: usize,
    /// Per slot: header, data segments, status.
    with_data: Vec<Segment>,
    /// Per slot: header, range, status.
    with_range: Vec<Segment>,
    segments: usize,
}

impl Slots {
    /// Bytes of guest memory that [`Slots::new`] takes.
    pub fn footprint(depth: u16, block: usize) -> usize {
        let depth = usize::from(depth);
        footprint([depth * CONTROL, depth * block.next_multiple_of(PAGE)])
    }

    /// Lays out `depth` slots of `block` bytes, each cut into `segments` descriptors.
    pub fn new(memory: &OwnMemory, depth: u16, block: usize, segments: usize) -> Result<Self, OutOfRange> {
        let depth = usize::from(depth);
        let stride = block.next_multiple_of(PAGE);
        let control = area(memory, depth * CONTROL)?;
        let data = area(memory, depth * stride)?;
        let at = |area: &Area, offset: usize| GuestAddr(area.guest_addr().0 + offset as u64);
        let (mut with_data, mut with_range) = (Vec::new(), Vec::new());
        for slot in 0..depth {
            let base = slot * CONTROL;
            let header = Segment { addr: at(&control, base + HEADER), len: HEADER_LEN };
            let status = Segment { addr: at(&control, base + STATUS), len: 1 };
            with_data.push(header);
            for n in 0..segments {
                let len = block / segments;
                with_data.push(Segment { addr: at(&data, slot * stride + n * len), len: len as u32 });
            }
            with_data.push(status);
            with_range.extend([header, Segment { addr: at(&control, base + RANGE), len: RANGE_LEN }, status]);
        }
        Ok(Self { control, data, stride, with_data, with_range, segments })
    }

    /// Number of slots.
    pub fn depth(&self) -> u16 {
        (self.with_range.len() / 3) as u16
    }

    /// Header, data segments, status of one slot.
    #[inline]
    pub fn data_chain(&self, slot: u16) -> &[Segment] {
        let len = self.segments + 2;
        &self.with_data[usize::from(slot) * len..][..len]
    }

    /// Header, range, status of one slot.
    #[inline]
    pub fn range_chain(&self, slot: u16) -> &[Segment] {
        &self.with_range[usize::from(slot) * 3..][..3]
    }

    /// Offset of a slot's control block.
    #[inline]
    pub fn control_of(&self, slot: u16) -> usize {
        usize::from(slot) * CONTROL
    }

    /// Offset of a slot's data buffer.
    #[inline]
    pub fn data_of(&self, slot: u16) -> usize {
        usize::from(slot) * self.stride
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_overlap_and_data_is_aligned_for_direct_io() {
        let memory = OwnMemory::new(Slots::footprint(8, 6144), GuestAddr(1 << 20)).unwrap();
        let slots = Slots::new(&memory, 8, 6144, 3).unwrap();
        assert_eq!(slots.depth(), 8);
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        for slot in 0..8 {
            let chain = slots.data_chain(slot);
            assert_eq!(chain.len(), 5);
            assert_eq!(chain[1].addr.0 % 4096, 0);
            assert_eq!(chain[1..4].iter().map(|segment| segment.len).sum::<u32>(), 6144);
            pieces.extend(chain.iter().map(|segment| (segment.addr.0, u64::from(segment.len))));
            let range = slots.range_chain(slot)[1];
            pieces.push((range.addr.0, u64::from(range.len)));
        }
        pieces.sort_unstable();
        assert!(pieces.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{pieces:?}");
    }

    #[test]
    fn too_little_memory_is_an_error() {
        let memory = OwnMemory::new(1 << 16, GuestAddr(0)).unwrap();
        assert!(Slots::new(&memory, 32, 4096, 1).is_err());
    }
}
