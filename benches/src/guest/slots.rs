//! Requests in flight on a ring, by slot.

use std::time::Duration;

use virtqueue::driver::Segment;

use super::ring::Ring;

/// How a device breaks the rules of a ring.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RingError {
    /// It named a request that is not in flight.
    #[error("The backend completed request {0}, which is not in flight")]
    NotInFlight(u32),
    /// It used a buffer that it did not have.
    #[error("The backend broke the ring")]
    Broken,
    /// Nothing came back in time.
    #[error("The backend did not complete a request within {0:?}")]
    Timeout(Duration),
}

/// A ring whose requests are counted from 0, each of which the device answers once.
pub struct SlotRing {
    /// The ring: published, kicked and slept on.
    pub ring: Ring,
    in_flight: Box<[bool]>,
}

impl SlotRing {
    /// With `depth` slots.
    pub fn new(ring: Ring, depth: u16) -> Self {
        Self { ring, in_flight: vec![false; depth.into()].into() }
    }

    /// Requests that can be in flight.
    pub fn depth(&self) -> u16 {
        self.in_flight.len() as u16
    }

    /// Puts the request of a slot into the ring, not yet visible to the device.
    ///
    /// # Panics
    /// When the slot is in flight.
    #[inline]
    pub fn submit(&mut self, slot: u16, readable: &[Segment], writable: &[Segment]) {
        let busy = std::mem::replace(&mut self.in_flight[usize::from(slot)], true);
        assert!(!busy, "slot {slot} is in flight");
        self.ring.add(readable, writable, u32::from(slot));
    }

    /// The next finished request: its slot, free again, and how many bytes the device says it wrote.
    #[inline]
    pub fn harvest(&mut self) -> Result<Option<(u16, u32)>, RingError> {
        let Some(used) = self.ring.pop() else {
            return if self.ring.broken() { Err(RingError::Broken) } else { Ok(None) };
        };
        match self.in_flight.get_mut(used.cookie as usize) {
            Some(busy @ true) => *busy = false,
            _ => return Err(RingError::NotInFlight(used.cookie)),
        }
        Ok(Some((used.cookie as u16, used.len)))
    }
}
