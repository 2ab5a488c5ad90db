//! What is done, and in which format.

use clap::ValueEnum;
use compress_protocol::{Checksum, Format};

/// What a request does.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[value(rename_all = "lower")]
pub enum Operation {
    /// Blocks of the corpus are compressed
    #[default]
    Compress,
    /// Compressed blocks of the corpus are decompressed
    Decompress,
    /// A checksum and nothing else
    Checksum,
}

impl Operation {
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compress => "compress",
            Self::Decompress => "decompress",
            Self::Checksum => "checksum",
        }
    }
}

/// Not the name of a format or of a checksum.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnknownName {
    /// Of no format.
    #[error("'{0}' is no format; write deflate, zlib, gzip, zstd, lz4 (frames) or lz4-block")]
    Format(String),
    /// Of no checksum.
    #[error("'{0}' is no checksum; write crc32, adler32, xxh32, xxh64 or none")]
    Checksum(String),
}

/// The format of a name.
pub fn parse_format(name: &str) -> Result<Format, UnknownName> {
    let found = Format::ALL.into_iter().find(|format| format.name() == name);
    found.ok_or_else(|| UnknownName::Format(name.to_owned()))
}

/// The checksum of a name.
pub fn parse_checksum(name: &str) -> Result<Checksum, UnknownName> {
    let found = Checksum::ALL.into_iter().find(|checksum| checksum.name() == name);
    found.ok_or_else(|| UnknownName::Checksum(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_formats_and_others_are_refused_with_those_there_are() {
        for format in Format::ALL {
            assert_eq!(parse_format(format.name()), Ok(format));
        }
        for checksum in Checksum::ALL {
            assert_eq!(parse_checksum(checksum.name()), Ok(checksum));
        }
        assert!(
            parse_format("bzip2").unwrap_err().to_string().contains("'bzip2' is no format; write deflate")
        );
        assert!(parse_checksum("md5").unwrap_err().to_string().contains("crc32"));
    }
}
