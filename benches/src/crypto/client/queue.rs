//! One data queue: fills slots, submits, harvests.

use std::time::Duration;

use super::layout::Slots;
use crate::crypto::wire::status;
use crate::guest::{Ring, TimedOut};

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

/// How a device breaks the rules.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QueueError {
    /// The device named a request that is not in flight.
    #[error("The backend completed request {0}, which is not in flight")]
    NotInFlight(u32),
    /// The device used a buffer that it did not have.
    #[error("The backend broke the ring")]
    Broken,
    /// Nothing came back in time.
    #[error("The backend did not complete a request within {0:?}")]
    Timeout(Duration),
}

impl From<TimedOut> for QueueError {
    fn from(TimedOut(limit): TimedOut) -> Self {
        Self::Timeout(limit)
    }
}

/// A data queue, owned by one thread.
pub struct Queue {
    /// The ring: published, kicked and slept on.
    pub ring: Ring,
    slots: Slots,
    in_flight: Vec<bool>,
}

impl Queue {
    pub(super) fn new(ring: Ring, slots: Slots) -> Self {
        let in_flight = vec![false; usize::from(slots.plan.depth)];
        Self { ring, slots, in_flight }
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
        let busy = std::mem::replace(&mut self.in_flight[usize::from(slot)], true);
        assert!(!busy, "slot {slot} is in flight");
        self.slots.write_status(slot, status::UNTOUCHED);
        let (readable, writable) = self.slots.chain(slot);
        self.ring.add(readable, writable, u32::from(slot));
    }

    /// The next finished request.
    #[inline]
    pub fn harvest(&mut self) -> Result<Option<Completion>, QueueError> {
        let Some(used) = self.ring.pop() else {
            return if self.ring.broken() { Err(QueueError::Broken) } else { Ok(None) };
        };
        let slot = used.cookie as u16;
        match self.in_flight.get_mut(usize::from(slot)) {
            Some(busy @ true) => *busy = false,
            _ => return Err(QueueError::NotInFlight(used.cookie)),
        }
        Ok(Some(Completion { slot, status: self.slots.read_status(slot), written: used.len }))
    }
}
