//! `QueueRegionSplit`.

use std::sync::atomic::Ordering::{Relaxed, Release};

use super::{DESC_NUM, FEATURES, QueueRegion, VERSION, VERSION_OFFSET};
use crate::broken::SetupError;
use crate::setup::Format;
use crate::shared::Shared;

pub(super) const HEADER_BYTES: usize = 16;
pub(super) const ENTRY_BYTES: usize = 16;

/// Offset of `last_batch_head`.
const LAST_BATCH_HEAD: usize = 12;
/// Offset of `used_idx`.
const USED_IDX: usize = 14;
/// Offsets in a `DescStateSplit`. `inflight` is a byte, stored together with a byte of padding that stays zero.
const INFLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// Tracks the requests of a split ring.
pub(crate) struct SplitTracker {
    area: Shared,
    /// Global counter: orders the requests by when they were taken.
    counter: u64,
    last_batch_head: u16,
    /// Heads completed since the last publication.
    batch: Vec<u16>,
}

impl SplitTracker {
    /// Initialises a fresh region, or brings one that a predecessor left up to date with the used ring. Returns the heads
    /// to resubmit, in the order they were taken, and whether there was a predecessor.
    pub fn open(region: QueueRegion, size: u16, used_idx: u16) -> Result<(Self, Vec<u16>, bool), SetupError> {
        region.check(Format::Split, size)?;
        let queue_size = region.queue_size;
        let mut tracker = Self {
            area: Shared::new(region.area),
            counter: 0,
            last_batch_head: 0,
            batch: Vec::with_capacity(usize::from(size)),
        };
        match tracker.area.load_u16(VERSION_OFFSET, Relaxed) {
            0 => {
                tracker.initialise(queue_size, used_idx);
                Ok((tracker, Vec::new(), false))
            }
            VERSION => {
                let resubmit = tracker.recover(size, used_idx)?;
                Ok((tracker, resubmit, true))
            }
            _ => Err(SetupError::BadInflight("of an unknown version")),
        }
    }

    /// "When receiving available buffers": a chain was taken.
    #[inline]
    pub fn taken(&mut self, head: u16) {
        let entry = entry(head);
        self.area.store_u64(entry + COUNTER, self.counter, Relaxed);
        self.counter = self.counter.wrapping_add(1);
        // Commits the taking: from here on a successor resubmits the chain. Release keeps the counter before it.
        self.area.store_u16(entry + INFLIGHT, 1, Release);
    }

    /// The chain was given back unused.
    pub fn untaken(&mut self, head: u16) {
        self.area.store_u16(entry(head) + INFLIGHT, 0, Release);
    }

    /// "When supplying used buffers", steps 1 to 3: a chain joins the batch.
    #[inline]
    pub fn completed(&mut self, head: u16) {
        self.area.store_u16(entry(head) + NEXT, self.last_batch_head, Relaxed);
        // A successor walks from here as far as used.idx has moved: release keeps `next` before it.
        self.area.store_u16(LAST_BATCH_HEAD, head, Release);
        self.last_batch_head = head;
        self.batch.push(head);
    }

    /// "When supplying used buffers", after `used.idx` has moved: the batch is no longer in flight.
    #[inline]
    pub fn published(&mut self, used_idx: u16) {
        for head in self.batch.drain(..) {
            self.area.store_u16(entry(head) + INFLIGHT, 0, Relaxed);
        }
        // Until this store a successor sees that the flags of the last batch cannot be relied on.
        self.area.store_u16(USED_IDX, used_idx, Release);
    }

    /// Nothing is in flight and the frontend is told where the ring stands: the region is as good as new.
    pub fn retire(&mut self) {
        self.area.store_u16(VERSION_OFFSET, 0, Release);
    }

    fn initialise(&mut self, queue_size: u16, used_idx: u16) {
        self.area.store_u64(FEATURES, 0, Relaxed);
        self.area.store_u16(DESC_NUM, queue_size, Relaxed);
        self.area.store_u16(LAST_BATCH_HEAD, 0, Relaxed);
        self.area.store_u16(USED_IDX, used_idx, Relaxed);
        // Commits the initialisation.
        self.area.store_u16(VERSION_OFFSET, VERSION, Release);
    }

    /// "When reconnecting".
    fn recover(&mut self, size: u16, used_idx: u16) -> Result<Vec<u16>, SetupError> {
        self.last_batch_head = self.area.load_u16(LAST_BATCH_HEAD, Relaxed);
        let batch = used_idx.wrapping_sub(self.area.load_u16(USED_IDX, Relaxed));
        if batch != 0 {
            self.finish_batch(batch, size)?;
            self.area.store_u16(USED_IDX, used_idx, Release);
        }
        let mut left: Vec<(u64, u16)> = (0..size)
            .filter(|&head| self.in_flight(head))
            .map(|head| (self.area.load_u64(entry(head) + COUNTER, Relaxed), head))
            .collect();
        left.sort_unstable();
        self.counter = left.last().map_or(0, |&(counter, _)| counter.wrapping_add(1));
        Ok(left.into_iter().map(|(_, head)| head).collect())
    }

    /// Clears the flags of a batch that the predecessor published without getting to its end.
    fn finish_batch(&mut self, batch: u16, size: u16) -> Result<(), SetupError> {
        if batch > size {
            // No batch is that long. Without requests in flight the ring was reset since, which is no fault.
            let lost = (0..size).any(|head| self.in_flight(head));
            return if lost { Err(SetupError::BadInflight("of another used ring")) } else { Ok(()) };
        }
        let mut head = self.last_batch_head;
        for _ in 0..batch {
            if head >= size {
                return Err(SetupError::BadInflight("with a broken batch list"));
            }
            self.area.store_u16(entry(head) + INFLIGHT, 0, Relaxed);
            head = self.area.load_u16(entry(head) + NEXT, Relaxed);
        }
        Ok(())
    }

    fn in_flight(&self, head: u16) -> bool {
        self.area.load_u16(entry(head) + INFLIGHT, Relaxed) & 0xff != 0
    }
}

#[inline]
fn entry(head: u16) -> usize {
    HEADER_BYTES + ENTRY_BYTES * usize::from(head)
}
