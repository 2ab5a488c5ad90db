//! A request from fetch to completion.

use crate::stats::Kind;
use crate::task::Job;
use compress_protocol::{RESPONSE_LEN, Response};
use memory::{Epoch, HostRange, MemoryView};
use runtime::rings::SlotId;
use virtqueue::{Chain, DeviceRing, Short};

/// Buffers that every request may have, and bytes for which it may have another: two for a page, source and destination.
const PIECES: u64 = 16;
const PIECE: u64 = 2048;
/// What each further buffer counts for: about the time that it takes to translate it and to walk over it.
const CRUMB: u64 = 64;

/// A request that was taken.
pub struct Request {
    /// Its descriptors; the header has been read.
    pub chain: Chain,
    /// Its ring.
    pub slot: SlotId,
    /// Its device, by place among those that the worker knows.
    pub device: usize,
    /// The index of its ring within the device.
    pub queue: u16,
    /// Held while it waits.
    pub epoch: Option<Epoch>,
    /// What there is to compute.
    pub job: Job,
    /// What it is counted as.
    pub kind: Kind,
    /// Its result was made where the guest wants it.
    pub direct: bool,
    /// Bytes by which it counts for the memory that its device may take.
    pub held: u64,
    /// Comes back in the response.
    pub user_tag: u64,
    /// When it was fetched.
    pub started: u64,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            chain: Chain::new(),
            slot: SlotId(0),
            device: 0,
            queue: 0,
            epoch: None,
            job: Job::NOTHING,
            kind: Kind::Other,
            direct: false,
            held: 0,
            user_tag: 0,
            started: 0,
        }
    }
}

impl Request {
    /// Forgets the previous request, but not its allocations.
    #[inline]
    pub fn begin(&mut self, slot: SlotId, (device, queue): (usize, u16), now: u64) {
        (self.slot, self.device, self.queue, self.started) = (slot, device, queue, now);
        (self.job, self.kind, self.held, self.user_tag) = (Job::NOTHING, Kind::Other, 0, 0);
        self.direct = false;
    }

    /// What it is to its worker, in bytes: what is worked on, and what there is of its buffers beyond those that so many bytes
    /// take.
    #[inline]
    pub fn weight(&self) -> u64 {
        let pieces = (self.chain.readable().len() + self.chain.writable().len()) as u64;
        let bytes = self.job.weight();
        bytes + pieces.saturating_sub(PIECES + bytes / PIECE) * CRUMB
    }

    /// Where it is collected: requests that are alike are computed one after another, those of streams in their order.
    #[inline]
    pub fn group(&self) -> usize {
        self.kind.index()
    }

    /// The source, where it is, when that is one piece.
    pub fn whole_source(&self, mem: &MemoryView) -> Option<HostRange> {
        whole(mem, self.chain.readable(), self.job.src_len)
    }

    /// The destination, when that is one piece.
    pub fn whole_destination(&self, mem: &MemoryView) -> Option<HostRange> {
        whole(mem, self.chain.writable(), self.job.dst_len)
    }

    /// Copies the source.
    pub fn copy_source(&self, mem: &MemoryView, source: &mut [u8]) -> Result<(), Short> {
        self.chain.read_at(mem, 0, source)
    }

    /// Writes the response and completes the chain.
    #[inline]
    pub fn answer(&mut self, mem: &MemoryView, response: Response, ring: &mut impl DeviceRing) {
        let response = Response { user_tag: self.user_tag, ..response };
        let all = self.chain.writable_len();
        let room = all.saturating_sub(RESPONSE_LEN as u64);
        let written = match self.chain.write_suffix(mem, &response.encode()) {
            // Bytes that were not written must not be claimed (virtio 1.3 §2.7.8.2), and the response comes behind them.
            Ok(()) if u64::from(response.produced) < room => response.produced,
            Ok(()) => all as u32,
            // Its memory was taken away.
            Err(Short) => 0,
        };
        ring.complete(mem, &self.chain, written);
    }
}

/// `len` bytes from the start of these segments, when they follow each other in memory.
fn whole(mem: &MemoryView, segments: &[HostRange], len: usize) -> Option<HostRange> {
    let first = segments.first()?;
    let mut end = first.len;
    for segment in &segments[1..] {
        if end >= len {
            break;
        }
        if segment.base != first.base.wrapping_byte_add(end) {
            return None;
        }
        end += segment.len;
    }
    // They may belong to regions that happen to be neighbours here: then they are not whole, and are copied.
    let range = HostRange { base: first.base, len };
    (end >= len).then(|| mem.reenter(range).map(|_| range)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::{GuestAddr, MemoryTable, RegionConfig, UserAddr};

    fn view() -> MemoryView {
        let region =
            |guest| RegionConfig { guest: GuestAddr(guest), len: 8192, user: UserAddr(0), mmap_offset: 0 };
        MemoryView::new(MemoryTable::anonymous(&[region(0), region(0x10_0000)]).unwrap())
    }

    fn pieces(mem: &MemoryView, places: &[(u64, usize)]) -> Vec<HostRange> {
        places.iter().map(|&(at, len)| mem.slice(GuestAddr(at), len).unwrap().range()).collect()
    }

    #[test]
    fn neighbours_are_one_piece_and_others_are_not() {
        let mem = view();
        let first = mem.slice(GuestAddr(100), 1).unwrap().range().base;
        let is_whole = |places: &[(u64, usize)], len| {
            whole(&mem, &pieces(&mem, places), len).map(|range| (range.base == first, range.len))
        };
        assert_eq!(is_whole(&[(100, 50)], 50), Some((true, 50)));
        assert_eq!(is_whole(&[(100, 50)], 20), Some((true, 20)));
        assert_eq!(is_whole(&[(100, 50), (150, 10), (160, 100)], 160), Some((true, 160)));
        assert_eq!(is_whole(&[(100, 50), (151, 10)], 60), None, "a gap");
        assert_eq!(is_whole(&[(100, 50), (151, 10)], 50), Some((true, 50)), "a gap behind it");
        assert_eq!(is_whole(&[(150, 50), (100, 50)], 100), None, "the wrong order");
        assert_eq!(is_whole(&[(100, 50)], 51), None);
        assert_eq!(is_whole(&[], 0), None);
    }

    #[test]
    fn a_piece_of_memory_that_was_taken_away_is_none() {
        let segments = pieces(&view(), &[(0, 64)]);
        let empty = MemoryView::new(MemoryTable::empty());
        assert!(whole(&empty, &segments, 64).is_none());
    }
}
