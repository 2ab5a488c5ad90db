//! One request queue: fills slots, submits, harvests.

use std::time::{Duration, Instant};

use virtqueue::driver::Segment;

use super::layout::{HEADER, RANGE, STATUS, Slots};
use crate::blk::wire::{Header, Range, request, status};
use crate::guest::{Ring, RingError, SlotRing};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fills the slot's buffer from the disk.
    Read,
    /// Writes the slot's buffer to the disk.
    Write,
    /// Makes completed writes durable.
    Flush,
    /// Contents no longer needed.
    Discard,
    /// Contents become zeros.
    WriteZeroes,
}

/// One finished request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The slot, free again.
    pub slot: u16,
    /// The device's status byte.
    pub status: u8,
    /// Bytes the device says it wrote into the chain.
    pub written: u32,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QueueError {
    /// The device answered with an error.
    #[error("The backend completed a request with status {0} ({name})", name = status_name(*.0))]
    Status(u8),
    /// The device broke the rules of the ring.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// A request queue, owned by one thread.
pub struct Queue {
    /// The ring: published, kicked and slept on.
    pub requests: SlotRing,
    slots: Slots,
    /// Of a request whose data lies elsewhere.
    chain: Vec<Segment>,
}

impl Queue {
    pub(super) fn new(ring: Ring, slots: Slots) -> Self {
        Self { requests: SlotRing::new(ring, slots.depth()), slots, chain: Vec::new() }
    }

    /// Requests that can be in flight.
    pub fn depth(&self) -> u16 {
        self.slots.depth()
    }

    /// Puts a request into the ring, not yet visible to the device: `len` bytes at byte `offset`, which only discard and
    /// write-zeroes may choose; reads and writes always move a whole buffer. The slot must be free.
    #[inline]
    pub fn submit(&mut self, slot: u16, operation: Operation, offset: u64, len: u64) {
        let control = self.slots.control_of(slot);
        let kind = match operation {
            Operation::Read => request::IN,
            Operation::Write => request::OUT,
            Operation::Flush => request::FLUSH,
            Operation::Discard => request::DISCARD,
            Operation::WriteZeroes => request::WRITE_ZEROES,
        };
        let header_offset = if matches!(operation, Operation::Read | Operation::Write) { offset } else { 0 };
        self.slots.control.write(control + HEADER, Header::new(kind, header_offset));
        self.slots.control.write(control + STATUS, status::UNTOUCHED);
        let chain = match operation {
            Operation::Discard | Operation::WriteZeroes => {
                self.slots.control.write(control + RANGE, Range::new(offset, len));
                self.slots.range_chain(slot)
            }
            _ => self.slots.data_chain(slot),
        };
        let last = chain.len() - 1;
        let (readable, writable) = match operation {
            Operation::Read => (&chain[..1], &chain[1..]),
            Operation::Flush => (&chain[..1], &chain[last..]),
            _ => (&chain[..last], &chain[last..]),
        };
        self.requests.submit(slot, readable, writable);
    }

    /// Puts a read or a write of `data`, wherever it lies in guest memory, into the ring; not yet visible to the device. The
    /// slot must be free, and its own buffer is not used.
    pub fn submit_elsewhere(&mut self, slot: u16, operation: Operation, offset: u64, data: &[Segment]) {
        let writes = operation == Operation::Write;
        let control = self.slots.control_of(slot);
        let kind = if writes { request::OUT } else { request::IN };
        self.slots.control.write(control + HEADER, Header::new(kind, offset));
        self.slots.control.write(control + STATUS, status::UNTOUCHED);
        let [header, .., last] = self.slots.data_chain(slot) else { return };
        self.chain.clear();
        self.chain.push(*header);
        self.chain.extend_from_slice(data);
        self.chain.push(*last);
        let readable = if writes { data.len() + 1 } else { 1 };
        let (readable, writable) = self.chain.split_at(readable);
        self.requests.submit(slot, readable, writable);
    }

    /// The next finished request.
    #[inline]
    pub fn harvest(&mut self) -> Result<Option<Completion>, RingError> {
        let Some((slot, written)) = self.requests.harvest()? else { return Ok(None) };
        let status = self.slots.control.read::<u8>(self.slots.control_of(slot) + STATUS);
        Ok(Some(Completion { slot, status, written }))
    }

    /// Writes the data buffer of a slot.
    pub fn write_data(&self, slot: u16, bytes: &[u8]) {
        assert!(bytes.len() <= self.slots.stride, "a slot holds {} bytes", self.slots.stride);
        self.slots.data.write_bytes(self.slots.data_of(slot), bytes);
    }

    /// Copies the data buffer of a slot out.
    pub fn copy_data(&self, slot: u16, into: &mut [u8]) {
        assert!(into.len() <= self.slots.stride, "a slot holds {} bytes", self.slots.stride);
        self.slots.data.read_bytes(self.slots.data_of(slot), into);
    }

    /// The first `len` bytes of a slot's data buffer.
    pub fn read_data(&self, slot: u16, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.copy_data(slot, &mut bytes);
        bytes
    }

    /// Executes one request in slot 0 and waits for it, with nothing else in flight.
    pub fn execute(&mut self, operation: Operation, offset: u64, len: u64) -> Result<(), QueueError> {
        const PATIENCE: Duration = Duration::from_secs(30);
        self.submit(0, operation, offset, len);
        self.requests.ring.publish();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.harvest()? {
                Some(Completion { status: status::OK, .. }) => return Ok(()),
                Some(completion) => return Err(QueueError::Status(completion.status)),
                None if Instant::now() > deadline => return Err(RingError::Timeout(PATIENCE).into()),
                None => self.requests.ring.sleep_at_most(Duration::from_millis(100)),
            }
        }
    }
}

/// Name of a status byte for messages.
pub(crate) fn status_name(code: u8) -> &'static str {
    match code {
        status::OK => "OK",
        status::IOERR => "IOERR",
        status::UNSUPP => "UNSUPP",
        status::UNTOUCHED => "the backend wrote no status",
        _ => "unknown",
    }
}
