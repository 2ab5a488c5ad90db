//! The receive ring of a queue pair.

use virtqueue::driver::{Segment, Used};

use super::RingError;
use super::buffers::Buffers;
use crate::guest::Ring;
use crate::net::frame::{TAG, Tag};
use crate::net::wire::{HEADER, NUM_BUFFERS};

/// Used buffers taken out of the ring at once: their first lines are asked for together.
const BATCH: usize = 32;

/// A receive ring with all of its buffers in it.
pub struct Receive {
    /// The ring: slept on, and asked for its notifications.
    pub ring: Ring,
    buffers: Buffers,
    chains: Vec<Segment>,
    /// Frames may take several buffers.
    mergeable: bool,
    /// Where the tag of a frame is, from the start of its first buffer; `None`: nobody looks at frames.
    tag_at: Option<usize>,
    batch: Vec<Used>,
    /// The frame whose buffers are being collected.
    open: Open,
}

#[derive(Default)]
struct Open {
    /// Buffers still missing.
    missing: u16,
    tag: Option<Tag>,
    pieces: Vec<Used>,
}

/// A frame that has arrived.
pub struct Arrival<'a> {
    /// Stream and number, if it is one of ours and somebody looks.
    pub tag: Option<Tag>,
    /// Bytes of the frame without the virtio-net header.
    pub len: u32,
    buffers: &'a Buffers,
    pieces: &'a [Used],
}

impl Arrival<'_> {
    /// Copies header and frame out of the buffers.
    pub fn copy(&self, into: &mut Vec<u8>) {
        into.clear();
        for piece in self.pieces {
            let (at, len) = (into.len(), piece.len as usize);
            into.resize(at + len, 0);
            self.buffers.area.read_bytes(self.buffers.offset(piece.cookie as u16), &mut into[at..]);
        }
    }
}

/// How a receive ring treats frames.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Where tags are; `None`: frames are counted by buffers alone.
    pub tag_at: Option<usize>,
    /// Frames may take several buffers.
    pub mergeable: bool,
}

impl Receive {
    pub(super) fn new(ring: Ring, buffers: Buffers, look: Look) -> Self {
        let size = ring.size();
        let chains = (0..size).map(|slot| buffers.segment(slot, 0, buffers.len())).collect();
        let Look { tag_at, mergeable } = look;
        let mut queue = Self {
            ring,
            buffers,
            chains,
            mergeable,
            tag_at,
            batch: Vec::with_capacity(BATCH),
            open: Open::default(),
        };
        for slot in 0..size {
            queue.put_back(slot);
        }
        queue
    }

    /// Shows all buffers to a backend that has just been started.
    pub fn open(&mut self) {
        self.ring.publish();
    }

    /// Takes up to `max` buffers out of the ring, calls `arrival` for each whole frame, and puts the buffers back with one
    /// release store. Returns how many frames have arrived.
    #[inline]
    pub fn harvest(&mut self, max: u32, mut arrival: impl FnMut(&Arrival<'_>)) -> Result<u32, RingError> {
        let (mut frames, mut left) = (0, max);
        while left > 0 {
            let taken = self.take_batch(left);
            if taken == 0 {
                break;
            }
            left -= taken;
            frames += self.finish_batch(&mut arrival)?;
        }
        if left < max {
            self.ring.publish();
        } else if self.ring.broken() {
            return Err(RingError::NotInFlight("receive"));
        }
        Ok(frames)
    }

    #[inline]
    fn take_batch(&mut self, left: u32) -> u32 {
        self.batch.clear();
        while self.batch.len() < BATCH.min(left as usize)
            && let Some(used) = self.ring.pop()
        {
            if self.tag_at.is_some() {
                self.buffers.area.prefetch(self.buffers.offset(used.cookie as u16));
            }
            self.batch.push(used);
        }
        self.batch.len() as u32
    }

    /// Adds the buffers of a batch up to frames.
    #[inline]
    fn finish_batch(&mut self, arrival: &mut impl FnMut(&Arrival<'_>)) -> Result<u32, RingError> {
        let mut frames = 0;
        for index in 0..self.batch.len() {
            let used = self.batch[index];
            if used.len as usize > self.buffers.len() {
                let buffer = self.buffers.len() as u32;
                return Err(RingError::Length { written: used.len, buffer });
            }
            let whole =
                if self.open.missing > 0 { self.go_on(used, arrival) } else { self.begin(used, arrival)? };
            frames += u32::from(whole);
        }
        Ok(frames)
    }

    /// The first buffer of a frame says how many there are; mostly it is the only one.
    #[inline]
    fn begin(&mut self, used: Used, arrival: &mut impl FnMut(&Arrival<'_>)) -> Result<bool, RingError> {
        let at = self.buffers.offset(used.cookie as u16);
        let area = &self.buffers.area;
        let mut count = 1;
        if self.mergeable {
            count = u16::from_le_bytes(area.read(at + NUM_BUFFERS));
            if count == 0 || count > self.ring.size() {
                return Err(RingError::Buffers(count));
            }
        }
        let tag = self.tag_at.filter(|tag_at| used.len as usize >= tag_at + TAG);
        let tag = tag.and_then(|tag_at| Tag::of(u64::from_le_bytes(area.read(at + tag_at))));
        if count == 1 {
            let len = used.len.saturating_sub(HEADER as u32);
            arrival(&Arrival { tag, len, buffers: &self.buffers, pieces: std::slice::from_ref(&used) });
            self.put_back(used.cookie as u16);
            return Ok(true);
        }
        self.open.missing = count - 1;
        self.open.tag = tag;
        self.open.pieces.push(used);
        Ok(false)
    }

    /// One more buffer of the frame; the last one completes it.
    fn go_on(&mut self, used: Used, arrival: &mut impl FnMut(&Arrival<'_>)) -> bool {
        self.open.pieces.push(used);
        self.open.missing -= 1;
        if self.open.missing > 0 {
            return false;
        }
        let pieces = std::mem::take(&mut self.open.pieces);
        let len = pieces.iter().map(|piece| piece.len).sum::<u32>().saturating_sub(HEADER as u32);
        arrival(&Arrival { tag: self.open.tag, len, buffers: &self.buffers, pieces: &pieces });
        for used in &pieces {
            self.put_back(used.cookie as u16);
        }
        self.open.pieces = pieces;
        self.open.pieces.clear();
        true
    }

    #[inline]
    fn put_back(&mut self, slot: u16) {
        let chain = &self.chains[usize::from(slot)..][..1];
        self.ring.add(&[], chain, u32::from(slot));
    }
}
