//! Formats, checksums and operations, with their limits.
//!
//! Names and numbers are those of the wire format ([`compress_protocol`]); what is here is the engines' part.

pub use compress_protocol::{Checksum, Direction, Format, Levels};

/// The longest source, and the longest destination that is made use of: what every library's lengths can express.
pub const MAX_LEN: usize = 1 << 30;

/// What an engine does with a source.
pub type Op = Direction;

/// The levels that a request may ask for, besides 0. Negative ones trade ratio for speed, as the tools' `--fast` does.
///
/// A worker does nothing else while it computes, so that the upper ends are not all the libraries' own: half a second for a MiB
/// of text, and two for a MiB of the worst there is (bytes of one random bit each), for which LZ4 at level 12 takes twenty.
pub const fn levels(format: Format) -> Levels {
    match format {
        Format::Deflate | Format::Zlib | Format::Gzip => Levels { min: 1, max: 12 },
        Format::Zstd => Levels { min: -7, max: 19 },
        Format::Lz4Block | Format::Lz4Frame => Levels { min: -64, max: 9 },
    }
}

/// What level 0 stands for: the level that the format's own tool takes when it is not told any.
pub const fn default_level(format: Format) -> i32 {
    match format {
        Format::Deflate | Format::Zlib | Format::Gzip => 6,
        Format::Zstd => 3,
        Format::Lz4Block | Format::Lz4Frame => 1,
    }
}

/// Whether data made here carries a checksum of its content, so that a decoder notices what was changed.
pub const fn has_checksum(format: Format) -> bool {
    !matches!(format, Format::Deflate | Format::Lz4Block)
}

/// A destination of this size holds the result for any `len` bytes, whatever engine, format and level:
/// [`compress_protocol::compress_bound`] for lengths of any kind.
pub const fn bound(len: usize) -> usize {
    // The widest are the nine bits that a fixed code spends on a literal; 128 is for headers, trailers and blocks.
    len + len / 8 + 128
}

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Params {
    /// The format of the compressed side.
    pub format: Format,
    /// How hard to try; 0 stands for [`default_level`]. Without meaning when decompressing.
    pub level: i32,
    /// A checksum to answer with.
    pub checksum: Checksum,
}

impl Params {
    /// The format's default level, and no checksum.
    pub const fn new(format: Format) -> Self {
        Self { format, level: 0, checksum: Checksum::None }
    }

    /// With this level.
    pub const fn with_level(self, level: i32) -> Self {
        Self { level, ..self }
    }

    /// With this checksum.
    pub const fn with_checksum(self, checksum: Checksum) -> Self {
        Self { checksum, ..self }
    }

    /// The level, with the default's number where it is 0.
    pub const fn effective_level(&self) -> i32 {
        match self.level {
            0 => default_level(self.format),
            level => level,
        }
    }

    /// Whether the format has this level.
    pub fn level_is_known(&self) -> bool {
        levels(self.format).contain(self.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_zero_is_the_default_and_every_default_is_a_level() {
        for format in Format::ALL {
            let (params, levels) = (Params::new(format), levels(format));
            assert!(params.level_is_known(), "{format}");
            assert_eq!(params.effective_level(), default_level(format));
            assert!(levels.contain(default_level(format)));
            assert!(!params.with_level(i32::from(levels.max) + 1).level_is_known());
            assert!(!params.with_level(i32::MIN).level_is_known());
        }
    }

    #[test]
    fn the_bound_is_that_of_the_specification() {
        for len in [0, 1, 7, 8, 4096, 65535, 1 << 20] {
            assert_eq!(bound(len) as u64, compress_protocol::compress_bound(len as u32));
        }
    }
}
