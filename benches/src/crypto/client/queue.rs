//! One data queue: fills slots, submits, harvests.

use super::layout::Slots;
use crate::crypto::wire::status;
use crate::guest::{Ring, RingError, SlotRing};

/// One finished request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The slot, free again.
    pub slot: u16,
    /// The device's status byte.
    pub status: u8,
    /// Bytes the device says it wrote into the chain, the status included.
    pub written: u32,
}

/// A data queue, owned by one thread.
pub struct Queue {
    /// The ring: published, kicked and slept on.
    pub requests: SlotRing,
    slots: Slots,
}

impl Queue {
    pub(super) fn new(ring: Ring, slots: Slots) -> Self {
        Self { requests: SlotRing::new(ring, slots.plan.depth), slots }
    }

    /// Requests that can be in flight.
    pub fn depth(&self) -> u16 {
        self.slots.plan.depth
    }

    /// Writes the head of the requests of a slot.
    pub fn set_head(&self, slot: u16, head: &[u8]) {
        self.slots.write_head(slot, head);
    }

    /// Writes what a slot's next request works on, and over what the last one left.
    pub fn set_data(&self, slot: u16, iv: &[u8], src: &[u8]) {
        self.slots.write_iv(slot, iv);
        self.slots.fill_result(slot, 0xa5);
        self.slots.write_source(slot, src);
    }

    /// Copies destination and digest of a slot out.
    pub fn result(&self, slot: u16, into: &mut Vec<u8>) {
        self.slots.read_result(slot, into);
    }

    /// Puts a slot's request into the ring, not yet visible to the device. The slot must be free.
    #[inline]
    pub fn submit(&mut self, slot: u16) {
        self.slots.write_status(slot, status::UNTOUCHED);
        let (readable, writable) = self.slots.chain(slot);
        self.requests.submit(slot, readable, writable);
    }

    /// The next finished request.
    #[inline]
    pub fn harvest(&mut self) -> Result<Option<Completion>, RingError> {
        let Some((slot, written)) = self.requests.harvest()? else { return Ok(None) };
        Ok(Some(Completion { slot, status: self.slots.read_status(slot), written }))
    }
}
