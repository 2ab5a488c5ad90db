//! What a header says.

use crate::config::{CONFIG_LEN, Config, feature};
use crate::header::{Header, flag};
use crate::number::{Checksum, Direction, Format, Opcode, Status};

/// How a part of a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flush {
    /// More follows, and output may be held back.
    No,
    /// More follows, but nothing is held back.
    Flush,
    /// Nothing follows.
    Finish,
}

/// What a request asks for, with what only this operation has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// The configuration, into the destination.
    GetConfig,
    /// All of the source, to a whole of this format.
    Compress {
        /// Of the destination.
        format: Format,
        /// 0 is the format's default.
        level: i32,
        /// The result is to be verified.
        verify: bool,
    },
    /// A whole of this format.
    Decompress {
        /// Of the source.
        format: Format,
    },
    /// A checksum of the source.
    Checksum,
    /// A stream begins.
    Open {
        /// Which way it goes.
        direction: Direction,
        /// Of the compressed side.
        format: Format,
        /// 0 is the format's default.
        level: i32,
    },
    /// More of a stream.
    Stream {
        /// Which.
        id: u64,
        /// The way its opcode has it: BAD_STREAM if the stream goes the other way.
        direction: Direction,
        /// How this part ends.
        flush: Flush,
    },
    /// A stream ends.
    Close {
        /// Which.
        id: u64,
    },
}

/// A header that makes sense to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// What is asked for.
    pub operation: Operation,
    /// Over the uncompressed data of this request.
    pub checksum: Checksum,
    /// Bytes behind the header, at most `max_src`.
    pub src_len: u32,
    /// Bytes from the first writable one on, at most `max_dst`.
    pub dst_len: u32,
    /// Comes back in the response.
    pub user_tag: u64,
}

impl Request {
    /// What a header asks of a device with this configuration and these device features in force, or the status it gets instead:
    /// NOT_SUPPORTED for anything the device does not know or have, else BAD_REQUEST for what contradicts itself (§1.6.5).
    ///
    /// Whether the descriptors hold as much as the header says is not looked at: see [`fits`](Self::fits).
    pub fn parse(header: &Header, config: &Config, features: u64) -> Result<Self, Status> {
        let known = Known::of(header, features).ok_or(Status::NotSupported)?;
        if !known.offered(header, config) {
            return Err(Status::NotSupported);
        }
        let operation = known.operation(header).ok_or(Status::BadRequest)?;
        if header.src_len > config.max_src || header.dst_len > config.max_dst {
            return Err(Status::BadRequest);
        }
        let Header { src_len, dst_len, user_tag, .. } = *header;
        Ok(Self { operation, checksum: known.checksum, src_len, dst_len, user_tag })
    }

    /// Whether a chain with so many readable bytes behind the header, and so many writable ones in front of the response, holds
    /// the source and the destination. More than that is not looked at.
    pub fn fits(&self, readable: u64, writable: u64) -> bool {
        u64::from(self.src_len) <= readable && u64::from(self.dst_len) <= writable
    }
}

/// A header of which each number has a meaning, although together they may have none.
struct Known {
    opcode: Opcode,
    format: Option<Format>,
    checksum: Checksum,
}

impl Known {
    fn of(header: &Header, features: u64) -> Option<Self> {
        let opcode = Opcode::from_wire(header.opcode)?;
        let format = match header.format {
            0 => None,
            number => Some(Format::from_wire(number)?),
        };
        let checksum = Checksum::from_wire(header.checksum)?;
        let plain = header.reserved == 0 && header.reserved_tail == [0; 24];
        let allowed = needs(opcode, checksum, header.flags) & !features == 0;
        (plain && allowed && header.flags & !flag::ALL == 0).then_some(Self { opcode, format, checksum })
    }

    /// Whether the device has what is asked for.
    fn offered(&self, header: &Header, config: &Config) -> bool {
        let compresses = match self.opcode {
            Opcode::Compress => true,
            Opcode::Decompress => false,
            Opcode::StreamOpen => header.flags & flag::DECOMPRESS == 0,
            Opcode::GetConfig | Opcode::Checksum | Opcode::StreamClose => return config.sums(self.checksum),
        };
        let format = |format: Format| {
            let streams = self.opcode != Opcode::StreamOpen || format.streams();
            let offered = if compresses {
                config.compresses(format) && config.levels(format).contain(header.level)
            } else {
                config.decompresses(format)
            };
            streams && offered
        };
        config.sums(self.checksum) && self.format.is_none_or(format)
    }

    /// What all of it says together; `None`: nothing.
    fn operation(&self, header: &Header) -> Option<Operation> {
        let Header { flags, level, stream_id: id, .. } = *header;
        let used =
            if flags & flag::STREAM != 0 { self.part(flags, id)? } else { self.whole(flags, level, id)? };
        let Uses { operation, format, level, checksum, src, dst, id } = used;
        let unused = (format || self.format.is_none())
            && (level || header.level == 0)
            && (checksum || self.checksum == Checksum::None)
            && (src || header.src_len == 0)
            && (dst || header.dst_len == 0)
            && (id || header.stream_id == 0);
        let room = operation != Operation::GetConfig || header.dst_len as usize >= CONFIG_LEN;
        (unused && room).then_some(operation)
    }

    /// More of a stream.
    fn part(&self, flags: u32, id: u64) -> Option<Uses> {
        let (direction, flush) = match (self.opcode, flags & !flag::STREAM) {
            (Opcode::Compress, 0) => (Direction::Compress, Flush::No),
            (Opcode::Compress, flag::FLUSH) => (Direction::Compress, Flush::Flush),
            (Opcode::Compress, flag::FINISH) => (Direction::Compress, Flush::Finish),
            (Opcode::Decompress, 0) => (Direction::Decompress, Flush::No),
            (Opcode::Decompress, flag::FINISH) => (Direction::Decompress, Flush::Finish),
            _ => return None,
        };
        let operation = Operation::Stream { id, direction, flush };
        Some(Uses { checksum: true, src: true, dst: true, id: true, ..Uses::nothing(operation) })
    }

    /// Everything that is not.
    fn whole(&self, flags: u32, level: i32, id: u64) -> Option<Uses> {
        Some(match (self.opcode, flags) {
            (Opcode::GetConfig, 0) => Uses { dst: true, ..Uses::nothing(Operation::GetConfig) },
            (Opcode::Compress, 0 | flag::VERIFY) => {
                let operation = Operation::Compress { format: self.format?, level, verify: flags != 0 };
                Uses { level: true, ..Uses::data(operation) }
            }
            (Opcode::Decompress, 0) => Uses::data(Operation::Decompress { format: self.format? }),
            (Opcode::Checksum, 0) if self.checksum != Checksum::None => {
                Uses { checksum: true, src: true, ..Uses::nothing(Operation::Checksum) }
            }
            (Opcode::StreamOpen, 0) => {
                let (direction, format) = (Direction::Compress, self.format?);
                let operation = Operation::Open { direction, format, level };
                Uses { format: true, level: true, ..Uses::nothing(operation) }
            }
            (Opcode::StreamOpen, flag::DECOMPRESS) => {
                let (direction, format) = (Direction::Decompress, self.format?);
                let operation = Operation::Open { direction, format, level };
                Uses { format: true, ..Uses::nothing(operation) }
            }
            (Opcode::StreamClose, 0) => Uses { id: true, ..Uses::nothing(Operation::Close { id }) },
            _ => return None,
        })
    }
}

/// An operation, and the fields it looks at: all others have to be zero.
struct Uses {
    operation: Operation,
    format: bool,
    level: bool,
    checksum: bool,
    src: bool,
    dst: bool,
    id: bool,
}

impl Uses {
    fn nothing(operation: Operation) -> Self {
        Self { operation, format: false, level: false, checksum: false, src: false, dst: false, id: false }
    }

    /// What takes a source to a destination.
    fn data(operation: Operation) -> Self {
        Self { format: true, checksum: true, src: true, dst: true, ..Self::nothing(operation) }
    }
}

/// The features without which a header means nothing (§1.3).
fn needs(opcode: Opcode, checksum: Checksum, flags: u32) -> u64 {
    let stream = matches!(opcode, Opcode::StreamOpen | Opcode::StreamClose)
        || flags & (flag::STREAM | flag::FINISH | flag::FLUSH | flag::DECOMPRESS) != 0;
    let checksum = opcode == Opcode::Checksum || checksum != Checksum::None;
    let verify = flags & flag::VERIFY != 0;
    [(stream, feature::STREAM), (checksum, feature::CHECKSUM), (verify, feature::VERIFY)]
        .into_iter()
        .fold(0, |bits, (needed, bit)| if needed { bits | bit } else { bits })
}

/// Bytes of destination in which any source of `src_len` bytes has room when it is compressed, to whatever format at whatever
/// level (§1.6.6.1).
pub const fn compress_bound(src_len: u32) -> u64 {
    src_len as u64 + (src_len / 8) as u64 + 128
}
