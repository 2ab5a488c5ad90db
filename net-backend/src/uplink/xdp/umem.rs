//! The buffers: one UMEM for all queues of an interface, divided among them once.

use std::io;
use std::ops::Range;

use memory::{GuestAddr, OwnMemory};

/// What the kernel keeps free in front of each received frame (XDP_PACKET_HEADROOM).
const KERNEL_HEADROOM: u32 = 256;
/// Where a frame to be sent starts in its chunk: the checksum request is right before it, and the frame starts on a
/// cache line.
pub(super) const TX_OFFSET: u32 = 64;
/// `struct xsk_tx_metadata`: flags, checksum start and offset, launch time. Kernels before 6.14 have 16 bytes; the length
/// is told to the kernel, and what it does not know it does not read.
pub(super) const TX_METADATA: u32 = 24;

/// How the UMEM is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes a chunk: 2048 or 4096.
    pub chunk: u32,
    /// Chunks that each queue receives into.
    pub rx: u32,
    /// Chunks that each queue sends from.
    pub tx: u32,
    /// Queues.
    pub queues: u32,
}

impl Layout {
    /// Most bytes of a frame that one received chunk holds.
    pub(super) fn rx_capacity(&self) -> u32 {
        self.chunk - KERNEL_HEADROOM
    }

    /// Most bytes of a frame that one sent chunk holds.
    pub(super) fn tx_capacity(&self) -> u32 {
        self.chunk - TX_OFFSET
    }

    /// The smallest chunk that holds frames of `len` bytes whole; the largest there is when none does.
    pub(super) fn chunk_for(len: u32) -> u32 {
        if len <= 2048 - KERNEL_HEADROOM { 2048 } else { 4096 }
    }

    /// Bytes in all.
    pub(super) fn len(&self) -> usize {
        self.chunk as usize * (self.rx + self.tx) as usize * self.queues as usize
    }
}

/// The buffers of all queues. An address is an offset in the memory, as in the descriptors.
pub(super) struct Umem {
    memory: OwnMemory,
    layout: Layout,
}

impl Umem {
    pub(super) fn new(layout: Layout) -> io::Result<Self> {
        Ok(Self { memory: OwnMemory::new(layout.len(), GuestAddr(0))?, layout })
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) fn memory(&self) -> &OwnMemory {
        &self.memory
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> usize {
        self.layout.len()
    }

    /// Addresses of the chunks that queue `queue` receives into.
    pub(super) fn rx_chunks(&self, queue: u32) -> Range<u64> {
        let Layout { chunk, rx, tx, .. } = self.layout;
        let start = u64::from(queue) * u64::from(rx + tx) * u64::from(chunk);
        start..start + u64::from(rx) * u64::from(chunk)
    }

    /// Addresses of the chunks that queue `queue` sends from.
    pub(super) fn tx_chunks(&self, queue: u32) -> Range<u64> {
        let Layout { chunk, tx, .. } = self.layout;
        let start = self.rx_chunks(queue).end;
        start..start + u64::from(tx) * u64::from(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queues_share_the_memory_without_gap_or_overlap() {
        let layout = Layout { chunk: 2048, rx: 4, tx: 8, queues: 3 };
        let umem = Umem::new(layout).expect("memory");
        let mut end = 0;
        for queue in 0..3 {
            for (chunks, count) in [(umem.rx_chunks(queue), 4), (umem.tx_chunks(queue), 8)] {
                assert_eq!(chunks, end..end + count * 2048);
                end = chunks.end;
            }
        }
        assert_eq!(end, umem.len() as u64);
    }

    #[test]
    fn an_ethernet_frame_with_two_tags_fits_a_small_chunk_and_a_jumbo_frame_does_not() {
        assert_eq!(Layout::chunk_for(1500 + 14 + 8), 2048);
        assert_eq!(Layout::chunk_for(1792), 2048);
        assert_eq!(Layout::chunk_for(1793), 4096);
        assert_eq!(Layout::chunk_for(9018), 4096);
    }
}
