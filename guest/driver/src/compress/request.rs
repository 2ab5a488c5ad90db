//! What is asked for, and what comes back.

use compress_protocol::{Checksum, Format, Header, Response, Status, compress_bound, flag};

/// What is done with the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// It becomes a whole of this format: a gzip member, a frame, a block.
    Compress {
        /// Of the result.
        format: Format,
        /// 0 is the format's default.
        level: i32,
    },
    /// It is a whole of this format, or several.
    Decompress {
        /// Of the source.
        format: Format,
    },
    /// Only its checksum is wanted.
    Checksum,
}

/// A request. The source is copied when it is submitted.
///
/// ```
/// use guest_driver::compress::{Checksum, Format, Request};
///
/// let data = b"to be, or not to be";
/// let request = Request::compress(Format::Gzip, data).level(1).checksum(Checksum::Crc32);
/// assert!(request.room >= data.len());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What to do.
    pub operation: Operation,
    /// With what.
    pub source: &'a [u8],
    /// Bytes of result, at most.
    pub room: usize,
    /// Wanted of the uncompressed data.
    pub checksum: Checksum,
    /// The result is decompressed once more and compared before it is given out.
    pub verify: bool,
}

/// Bytes that any `len` bytes fit into, compressed.
pub(super) fn bound(len: usize) -> usize {
    compress_bound(u32::try_from(len).unwrap_or(u32::MAX)) as usize
}

/// The longest source whose [`bound`] is no more than `room`.
pub(super) fn bounded_by(room: usize) -> usize {
    // An eighth is added, rounded down, and 128.
    let most = room.saturating_sub(bound(0));
    let len = most - most / 9;
    if bound(len) <= room { len } else { len.saturating_sub(1) }
}

impl<'a> Request<'a> {
    /// Compresses at the format's default level, with room for whatever it becomes.
    pub fn compress(format: Format, source: &'a [u8]) -> Self {
        let room = bound(source.len());
        Self { room, ..Self::new(Operation::Compress { format, level: 0 }, source) }
    }

    /// Decompresses to at most `room` bytes.
    pub fn decompress(format: Format, source: &'a [u8], room: usize) -> Self {
        Self { room, ..Self::new(Operation::Decompress { format }, source) }
    }

    /// A checksum.
    pub fn sum(checksum: Checksum, source: &'a [u8]) -> Self {
        Self { checksum, ..Self::new(Operation::Checksum, source) }
    }

    fn new(operation: Operation, source: &'a [u8]) -> Self {
        Self { operation, source, room: 0, checksum: Checksum::None, verify: false }
    }

    /// The same at another level. Without effect unless it compresses.
    #[must_use]
    pub fn level(mut self, wanted: i32) -> Self {
        if let Operation::Compress { level, .. } = &mut self.operation {
            *level = wanted;
        }
        self
    }

    /// The same with a checksum of the uncompressed data.
    #[must_use]
    pub fn checksum(self, checksum: Checksum) -> Self {
        Self { checksum, ..self }
    }

    /// The same with a result that was verified. Without effect unless it compresses.
    #[must_use]
    pub fn verify(self) -> Self {
        Self { verify: matches!(self.operation, Operation::Compress { .. }), ..self }
    }

    /// The same with room for so many bytes of result.
    #[must_use]
    pub fn room(self, room: usize) -> Self {
        Self { room, ..self }
    }

    /// What it is on the wire.
    pub(super) fn header(&self) -> Header {
        // Both fit: requests are held against the limits of the device first.
        let (src_len, dst_len) = (self.source.len() as u32, self.room as u32);
        let header = match self.operation {
            Operation::Compress { format, level } => {
                Header::compress(format, src_len, dst_len).with_level(level)
            }
            Operation::Decompress { format } => Header::decompress(format, src_len, dst_len),
            Operation::Checksum => return Header::checksum(self.checksum, src_len),
        };
        header.with_checksum(self.checksum).with_flags(if self.verify { flag::VERIFY } else { 0 })
    }
}

/// Names one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub(super) u64);

/// Who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// The device.
    Device,
    /// This process.
    Software,
}

/// A request that has ended.
#[derive(Debug)]
pub struct Completion {
    /// Which.
    pub ticket: Ticket,
    /// How.
    pub status: Status,
    /// The result, in the buffer that came with the request; empty unless the status is OK.
    pub output: Vec<u8>,
    /// Bytes of the source that were used: fewer than there are when something else follows what was decompressed.
    pub consumed: usize,
    /// The checksum that was asked for.
    pub checksum: u64,
    /// Who did it.
    pub by: By,
}

impl Completion {
    /// The result, or why there is none.
    pub fn into_result(self) -> Result<Vec<u8>, Status> {
        if self.status == Status::Ok { Ok(self.output) } else { Err(self.status) }
    }
}

/// How a request ended, without its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: Status,
    pub consumed: usize,
    pub checksum: u64,
}

impl Answer {
    pub fn failed(status: Status) -> Self {
        Self { status, consumed: 0, checksum: 0 }
    }
}

/// What a response says, if it is one to that request.
pub(super) fn check(response: &Response, source: usize, room: usize) -> Option<(Answer, usize)> {
    let status = response.status()?;
    let (consumed, produced) = (response.consumed as usize, response.produced as usize);
    let fits = consumed <= source && produced <= room;
    fits.then_some((Answer { status, consumed, checksum: response.checksum }, produced))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_what_was_asked_for() {
        let data = [0; 100];
        let header =
            Request::compress(Format::Zstd, &data).level(-5).checksum(Checksum::Xxh64).verify().header();
        let expected = Header::compress(Format::Zstd, 100, 240)
            .with_level(-5)
            .with_checksum(Checksum::Xxh64)
            .with_flags(flag::VERIFY);
        assert_eq!(header, expected);
        let header = Request::decompress(Format::Gzip, &data, 7).level(3).verify().header();
        assert_eq!(header, Header::decompress(Format::Gzip, 100, 7));
        let header = Request::sum(Checksum::Crc32, &data).verify().header();
        assert_eq!(header, Header::checksum(Checksum::Crc32, 100));
    }

    #[test]
    fn the_longest_source_for_a_result_is_found() {
        for room in (128..5000).chain([1 << 20, 294_912 + 128]) {
            let len = bounded_by(room);
            assert!(bound(len) <= room && bound(len + 1) > room, "{len} for {room}");
        }
        assert_eq!((bounded_by(0), bounded_by(294_912 + 128)), (0, 262_144));
    }

    #[test]
    fn a_response_that_claims_more_than_there_was_is_none() {
        let response = Response { consumed: 10, produced: 20, ..Response::default() };
        assert!(check(&response, 10, 20).is_some());
        assert!(check(&response, 9, 20).is_none());
        assert!(check(&response, 10, 19).is_none());
        assert!(check(&Response { status: 99, ..response }, 10, 20).is_none());
    }
}
