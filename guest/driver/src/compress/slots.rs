//! Places for requests in the memory of the device.

use std::time::Instant;

use compress_protocol::{HEADER_LEN, RESPONSE_LEN};

use super::request::{Operation, Request, Ticket};
use crate::dma::{Arena, Buffer, DmaError, PAGE};

/// Memory of one request: a page for its indirect table, header and source, destination and response.
pub(super) struct Slot {
    pub table: Buffer,
    pub source: Buffer,
    pub result: Buffer,
    /// The request that is in flight here.
    pub flight: Option<Flight>,
}

/// A request in flight.
pub(super) struct Flight {
    pub ticket: Ticket,
    pub operation: Operation,
    pub checksum: compress_protocol::Checksum,
    pub verify: bool,
    pub src_len: usize,
    pub room: usize,
    /// When it counts as late.
    pub due: Instant,
    /// For its result; gone when somebody else has answered it meanwhile.
    pub output: Option<Vec<u8>>,
}

impl Flight {
    pub fn new(ticket: Ticket, request: &Request<'_>, due: Instant, output: Vec<u8>) -> Self {
        Self {
            ticket,
            operation: request.operation,
            checksum: request.checksum,
            verify: request.verify,
            src_len: request.source.len(),
            room: request.room,
            due,
            output: Some(output),
        }
    }

    /// The request once more, with a copy of its source.
    pub fn request<'a>(&self, source: &'a [u8]) -> Request<'a> {
        Request {
            operation: self.operation,
            source,
            room: self.room,
            checksum: self.checksum,
            verify: self.verify,
        }
    }
}

impl Slot {
    pub fn new(arena: &Arena, max_src: usize, max_dst: usize) -> Result<Self, DmaError> {
        Ok(Self {
            table: arena.alloc(PAGE)?,
            source: arena.alloc(HEADER_LEN + max_src)?,
            result: arena.alloc(max_dst + RESPONSE_LEN)?,
            flight: None,
        })
    }

    /// Bytes of an arena that it takes.
    pub fn footprint(max_src: usize, max_dst: usize) -> usize {
        PAGE + (HEADER_LEN + max_src).next_multiple_of(PAGE) + (max_dst + RESPONSE_LEN).next_multiple_of(PAGE)
    }

    /// A copy of the source of what is in flight.
    pub fn source(&self, arena: &Arena, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        arena.read(self.source.part(HEADER_LEN, len), &mut bytes);
        bytes
    }
}
