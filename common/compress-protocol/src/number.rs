//! What is a number on the wire and a name everywhere else.

use core::fmt;

/// What a request asks for (§1.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Opcode {
    /// The configuration, for drivers that cannot read it elsewhere.
    GetConfig = 0,
    /// Compresses the source.
    Compress = 1,
    /// Decompresses the source.
    Decompress = 2,
    /// A checksum of the source, and nothing else.
    Checksum = 3,
    /// Begins a stream.
    StreamOpen = 4,
    /// Ends a stream.
    StreamClose = 5,
}

/// A format of compressed data (§1.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Format {
    /// DEFLATE without anything around it (RFC 1951).
    Deflate = 1,
    /// DEFLATE with a header of two bytes and an Adler-32 (RFC 1950).
    Zlib = 2,
    /// DEFLATE in members with a CRC-32 and a length (RFC 1952).
    Gzip = 3,
    /// Zstandard frames (RFC 8878).
    Zstd = 4,
    /// One LZ4 block.
    Lz4Block = 5,
    /// LZ4 frames.
    Lz4Frame = 6,
}

/// A checksum of uncompressed data (§1.6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Checksum {
    /// None is asked for.
    #[default]
    None = 0,
    /// That of gzip: reflected polynomial 0xedb88320, complemented before and after.
    Crc32 = 1,
    /// That of zlib.
    Adler32 = 2,
    /// xxHash of 32 bits, seed 0.
    Xxh32 = 3,
    /// xxHash of 64 bits, seed 0.
    Xxh64 = 4,
}

/// What became of a request (§1.6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Status {
    /// It was done.
    Ok = 0,
    /// The compressed data do not fit into the destination.
    Incompressible = 1,
    /// The decompressed data do not fit into the destination.
    Overflow = 2,
    /// The source is not of the format, or a checksum in it is wrong.
    BadData = 3,
    /// The source ends before its format does.
    Truncated = 4,
    /// The device does not do that.
    NotSupported = 5,
    /// Too much is waiting.
    Busy = 6,
    /// The header contradicts itself, the buffers or the limits.
    BadRequest = 7,
    /// There is no such stream.
    BadStream = 8,
    /// No engine of the device got it done.
    Error = 9,
    /// Too many streams.
    NoSpace = 10,
}

/// Which way a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the format.
    Compress,
    /// From the format.
    Decompress,
}

impl Opcode {
    /// All, by their number.
    pub const ALL: [Self; 6] = [
        Self::GetConfig,
        Self::Compress,
        Self::Decompress,
        Self::Checksum,
        Self::StreamOpen,
        Self::StreamClose,
    ];

    /// The number on the wire.
    pub const fn wire(self) -> u16 {
        self as u16
    }

    /// What a number means.
    pub fn from_wire(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GetConfig => "get_config",
            Self::Compress => "compress",
            Self::Decompress => "decompress",
            Self::Checksum => "checksum",
            Self::StreamOpen => "stream_open",
            Self::StreamClose => "stream_close",
        }
    }
}

impl Format {
    /// All, by their number, which begins at one.
    pub const ALL: [Self; 6] =
        [Self::Deflate, Self::Zlib, Self::Gzip, Self::Zstd, Self::Lz4Block, Self::Lz4Frame];

    /// The number on the wire.
    pub const fn wire(self) -> u8 {
        self as u8
    }

    /// What a number means; 0 is no format.
    pub fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Its place in [`ALL`](Self::ALL) and in tables of formats.
    pub const fn index(self) -> usize {
        self as usize - 1
    }

    /// Its bit in masks of formats.
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// What people call it, and the label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deflate => "deflate",
            Self::Zlib => "zlib",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Lz4Block => "lz4-block",
            Self::Lz4Frame => "lz4",
        }
    }

    /// The format of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Whether the data inside is DEFLATE.
    pub const fn is_deflate(self) -> bool {
        matches!(self, Self::Deflate | Self::Zlib | Self::Gzip)
    }

    /// Whether data of this format may be several parts, one behind the other, each complete (§1.6.6.2).
    pub const fn joins(self) -> bool {
        matches!(self, Self::Gzip | Self::Zstd | Self::Lz4Frame)
    }

    /// Whether a stream can have it: a block has no end and no parts (§1.6.8).
    pub const fn streams(self) -> bool {
        !matches!(self, Self::Lz4Block)
    }
}

impl Checksum {
    /// All, by their number.
    pub const ALL: [Self; 5] = [Self::None, Self::Crc32, Self::Adler32, Self::Xxh32, Self::Xxh64];

    /// The number on the wire.
    pub const fn wire(self) -> u8 {
        self as u8
    }

    /// What a number means.
    pub fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its bit in the mask of checksums.
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// What people call it, and the label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Crc32 => "crc32",
            Self::Adler32 => "adler32",
            Self::Xxh32 => "xxh32",
            Self::Xxh64 => "xxh64",
        }
    }

    /// The checksum of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|checksum| checksum.name() == name)
    }
}

impl Status {
    /// All, by their number.
    pub const ALL: [Self; 11] = [
        Self::Ok,
        Self::Incompressible,
        Self::Overflow,
        Self::BadData,
        Self::Truncated,
        Self::NotSupported,
        Self::Busy,
        Self::BadRequest,
        Self::BadStream,
        Self::Error,
        Self::NoSpace,
    ];

    /// The number on the wire.
    pub const fn wire(self) -> u32 {
        self as u32
    }

    /// What a number means.
    pub fn from_wire(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Incompressible => "incompressible",
            Self::Overflow => "overflow",
            Self::BadData => "bad_data",
            Self::Truncated => "truncated",
            Self::NotSupported => "not_supported",
            Self::Busy => "busy",
            Self::BadRequest => "bad_request",
            Self::BadStream => "bad_stream",
            Self::Error => "error",
            Self::NoSpace => "no_space",
        }
    }
}

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_listed_by_their_number() {
        for (number, opcode) in (0..).zip(Opcode::ALL) {
            assert_eq!((opcode.wire(), Opcode::from_wire(number)), (number, Some(opcode)));
        }
        for (number, format) in (1..).zip(Format::ALL) {
            assert_eq!((format.wire(), Format::from_wire(number)), (number, Some(format)));
            assert_eq!(Format::ALL[format.index()], format);
        }
        for (number, checksum) in (0..).zip(Checksum::ALL) {
            assert_eq!((checksum.wire(), Checksum::from_wire(number)), (number, Some(checksum)));
        }
        for (number, status) in (0..).zip(Status::ALL) {
            assert_eq!((status.wire(), Status::from_wire(number)), (number, Some(status)));
        }
    }

    #[test]
    fn other_numbers_mean_nothing() {
        for number in (6..=u16::MAX).chain([6]) {
            assert_eq!(Opcode::from_wire(number), None);
        }
        for number in (7..=u8::MAX).chain([0]) {
            assert_eq!(Format::from_wire(number), None);
        }
        for number in 5..=u8::MAX {
            assert_eq!(Checksum::from_wire(number), None);
        }
        for number in [11, 12, u32::MAX] {
            assert_eq!(Status::from_wire(number), None);
        }
    }

    #[test]
    fn formats_and_checksums_are_found_by_their_names() {
        for format in Format::ALL {
            assert_eq!(Format::from_name(&format.to_string()), Some(format));
        }
        for checksum in Checksum::ALL {
            assert_eq!(Checksum::from_name(&checksum.to_string()), Some(checksum));
        }
        assert_eq!((Format::from_name("zip"), Checksum::from_name("md5")), (None, None));
    }

    #[test]
    fn bits_are_numbers() {
        assert_eq!(Format::ALL.map(Format::bit), [2, 4, 8, 16, 32, 64]);
        assert_eq!(Checksum::ALL.map(Checksum::bit), [1, 2, 4, 8, 16]);
    }
}
