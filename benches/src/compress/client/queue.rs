//! One queue: headers and responses of its slots, submitting, harvesting.

use compress_protocol::{HEADER_LEN, Header, RESPONSE_LEN, Response};
use memory::{Area, GuestAddr, OutOfRange, OwnMemory};
use virtqueue::driver::Segment;

use crate::guest::memory::{area, footprint};
use crate::guest::{Ring, RingError, SlotRing};

/// Header and response of a slot, in cache lines of their own.
const CONTROL: usize = 128;
const RESPONSE_AT: usize = 64;

/// The status in a response before the device has written one; a device that leaves it has lied about completion.
pub const UNTOUCHED: u32 = u32::MAX;

/// One finished request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The slot, free again.
    pub slot: u16,
    /// What the device says.
    pub response: Response,
    /// Bytes the device says it wrote into the chain.
    pub written: u32,
}

/// A queue, owned by one thread.
pub struct Queue {
    /// The ring: published, kicked and slept on.
    pub requests: SlotRing,
    control: Area,
    /// Of the request that is being built.
    chain: Vec<Segment>,
}

impl Queue {
    /// Bytes of guest memory beside the ring.
    pub(super) fn footprint(depth: u16) -> usize {
        footprint([usize::from(depth) * CONTROL])
    }

    pub(super) fn new(ring: Ring, memory: &OwnMemory, depth: u16) -> Result<Self, OutOfRange> {
        let control = area(memory, usize::from(depth) * CONTROL)?;
        Ok(Self { requests: SlotRing::new(ring, depth), control, chain: Vec::new() })
    }

    /// Requests that can be in flight.
    pub fn depth(&self) -> u16 {
        self.requests.depth()
    }

    /// Puts a request into the ring, not yet visible to the device. The slot must be free.
    #[inline]
    pub fn submit(&mut self, slot: u16, header: &Header, src: &[Segment], dst: &[Segment]) {
        let at = usize::from(slot) * CONTROL;
        self.control.write_bytes(at, &header.encode());
        self.control
            .write_bytes(at + RESPONSE_AT, &Response { status: UNTOUCHED, ..Response::default() }.encode());
        let part = |offset: usize, len: usize| Segment {
            addr: GuestAddr(self.control.guest_addr().0 + (at + offset) as u64),
            len: len as u32,
        };
        let (first, last) = (part(0, HEADER_LEN), part(RESPONSE_AT, RESPONSE_LEN));
        self.chain.clear();
        self.chain.push(first);
        self.chain.extend_from_slice(src);
        self.chain.extend_from_slice(dst);
        self.chain.push(last);
        let (readable, writable) = self.chain.split_at(src.len() + 1);
        self.requests.submit(slot, readable, writable);
    }

    /// The next finished request.
    #[inline]
    pub fn harvest(&mut self) -> Result<Option<Completion>, RingError> {
        let Some((slot, written)) = self.requests.harvest()? else { return Ok(None) };
        let mut wire = [0; RESPONSE_LEN];
        self.control.read_bytes(usize::from(slot) * CONTROL + RESPONSE_AT, &mut wire);
        Ok(Some(Completion { slot, response: Response::decode(&wire), written }))
    }
}
