//! The transmit ring of a queue pair.

use virtqueue::driver::Segment;

use super::RingError;
use super::buffers::Buffers;
use crate::guest::Ring;
use crate::net::frame::{self, TAG, Tag, Template};
use crate::net::wire::HEADER;

/// How much of each frame the sender writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// Nothing: all frames are the same.
    None,
    /// The tag.
    Tag,
    /// The tag and all bytes behind it.
    Whole,
}

/// A transmit ring whose buffers hold frames of one stream.
pub struct Transmit {
    /// The ring: slept on, and asked for its notifications.
    pub ring: Ring,
    buffers: Buffers,
    /// Each buffer as a chain of one descriptor, or as header and frame of an indirect table.
    chains: Vec<Segment>,
    /// Descriptors of a chain.
    parts: usize,
    /// Buffers that are not in flight, oldest first: a ring of its own.
    free: Box<[u16]>,
    head: u16,
    idle: u16,
    template: Template,
    stream: u8,
    number: u64,
    stamp: Stamp,
    scratch: Vec<u8>,
}

/// What a transmit ring sends.
pub struct Content {
    /// What all frames have in common.
    pub template: Template,
    /// Number of the stream.
    pub stream: u8,
    /// What changes from frame to frame.
    pub stamp: Stamp,
}

impl Transmit {
    pub(super) fn new(ring: Ring, buffers: Buffers, indirect: bool, content: Content) -> Self {
        let size = ring.size();
        let Content { template, stream, stamp } = content;
        let len = template.buffer_len();
        let mut chains = Vec::new();
        for slot in 0..size {
            buffers.area.write_bytes(buffers.offset(slot), template.head());
            if indirect {
                let parts = [buffers.segment(slot, 0, HEADER), buffers.segment(slot, HEADER, len - HEADER)];
                chains.extend(parts);
            } else {
                chains.push(buffers.segment(slot, 0, len));
            }
        }
        let scratch = vec![0; TAG + template.rest()];
        let free = (0..size).collect();
        Self {
            ring,
            buffers,
            chains,
            parts: if indirect { 2 } else { 1 },
            free,
            head: 0,
            idle: size,
            template,
            stream,
            number: 0,
            stamp,
            scratch,
        }
    }

    /// Number of the stream.
    pub fn stream(&self) -> u8 {
        self.stream
    }

    /// Frames sent so far.
    #[inline]
    pub fn sent(&self) -> u64 {
        self.number
    }

    /// Frames that the backend has not given back.
    #[inline]
    pub fn in_flight(&self) -> u16 {
        self.ring.size() - self.idle
    }

    /// Takes back what the backend has finished; returns how many frames.
    #[inline]
    pub fn reclaim(&mut self) -> Result<u32, RingError> {
        let mut count = 0;
        while let Some(used) = self.ring.pop() {
            self.put_back(used.cookie as u16);
            count += 1;
        }
        if count == 0 && self.ring.broken() {
            return Err(RingError::NotInFlight("transmit"));
        }
        Ok(count)
    }

    /// Sends up to `count` frames in one burst; returns how many there were buffers for.
    #[inline]
    pub fn send(&mut self, count: u32) -> u32 {
        let count = count.min(u32::from(self.idle));
        for _ in 0..count {
            let slot = self.take();
            self.stamp(slot);
            self.add(slot);
        }
        if count > 0 {
            self.ring.publish();
        }
        count
    }

    /// Sends one frame that is not part of the stream and not longer than its frames; `false` when there is no buffer.
    pub fn send_raw(&mut self, buffer: &[u8]) -> bool {
        if self.idle == 0 {
            return false;
        }
        let slot = self.take();
        let segment = self.buffers.segment(slot, 0, buffer.len());
        self.buffers.area.write_bytes(self.buffers.offset(slot), buffer);
        self.ring.add_direct(&[segment], &[], u32::from(slot));
        self.ring.publish();
        true
    }

    /// Writes the template into all buffers again, after frames that were not part of the stream; nothing is in flight.
    pub fn restore(&mut self) {
        for slot in 0..self.ring.size() {
            self.buffers.area.write_bytes(self.buffers.offset(slot), self.template.head());
        }
    }

    #[inline]
    fn stamp(&mut self, slot: u16) {
        let at = self.buffers.offset(slot) + self.template.tag_at();
        let tag = Tag { stream: self.stream, number: self.number }.word();
        self.number += 1;
        match self.stamp {
            Stamp::None => {}
            Stamp::Tag => self.buffers.area.write(at, tag.to_le_bytes()),
            Stamp::Whole => {
                self.scratch[..TAG].copy_from_slice(&tag.to_le_bytes());
                frame::fill(tag, &mut self.scratch[TAG..]);
                self.buffers.area.write_bytes(at, &self.scratch);
            }
        }
    }

    #[inline]
    fn add(&mut self, slot: u16) {
        let parts = self.parts;
        self.ring.add(&self.chains[parts * usize::from(slot)..][..parts], &[], u32::from(slot));
    }

    #[inline]
    fn take(&mut self) -> u16 {
        let slot = self.free[usize::from(self.head)];
        self.head = self.following(self.head, 1);
        self.idle -= 1;
        slot
    }

    #[inline]
    fn put_back(&mut self, slot: u16) {
        let tail = self.following(self.head, self.idle);
        self.free[usize::from(tail)] = slot;
        self.idle += 1;
    }

    #[inline]
    fn following(&self, at: u16, by: u16) -> u16 {
        let sum = usize::from(at) + usize::from(by);
        (if sum >= self.free.len() { sum - self.free.len() } else { sum }) as u16
    }
}
