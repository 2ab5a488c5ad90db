//! Files of compressed data: what they begin with, and where their parts end.
//!
//! A part (a gzip member, a frame) whose end and size can be told without decompressing it is a request of its own, and
//! several are in flight at a time. Frames of Zstandard and LZ4 tell by themselves. A gzip member does not, so that those made
//! here say how long they are in a field that other programs skip ([`gzip`]).

pub mod gzip;
mod lz4;
mod zstd;

use guest_driver::compress::Format;

/// What can be said of a part whose first bytes are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// It is so long, and what is in it is at most `room` bytes long.
    Known {
        /// Bytes of the part.
        len: usize,
        /// Bytes of its data, at most.
        room: usize,
    },
    /// So many bytes have to be there to tell more.
    Needs(usize),
    /// It does not tell, or makes no sense: a decoder will find out.
    Unknown,
}

/// What a part of a file is.
pub fn extent(format: Format, bytes: &[u8]) -> Extent {
    match format {
        Format::Gzip => gzip::extent(bytes),
        Format::Zstd => zstd::extent(bytes),
        Format::Lz4Frame => lz4::extent(bytes),
        _ => Extent::Unknown,
    }
}

/// Bytes that are enough to know the format by.
pub const MAGIC_LEN: usize = 4;

/// The format of a file that begins with these bytes.
pub fn detect(bytes: &[u8]) -> Option<Format> {
    match bytes {
        [0x1f, 0x8b, ..] => Some(Format::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Format::Zstd),
        [0x04, 0x22, 0x4d, 0x18, ..] => Some(Format::Lz4Frame),
        // A frame that decoders skip; Zstandard's program is the one that writes them.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Format::Zstd),
        // RFC 1950: method 8, a window of at most 32 KiB, and a check.
        [first, second, ..]
            if first & 0x0f == 8
                && first >> 4 <= 7
                && (u16::from(*first) << 8 | u16::from(*second)) % 31 == 0 =>
        {
            Some(Format::Zlib)
        }
        _ => None,
    }
}

/// Whether another part of this format begins here, as opposed to what does not belong to the file.
pub fn continues(format: Format, bytes: &[u8]) -> bool {
    match format {
        Format::Zstd | Format::Lz4Frame => {
            let skipped = matches!(bytes, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
            skipped || detect(bytes) == Some(format)
        }
        Format::Gzip => detect(bytes) == Some(Format::Gzip),
        _ => false,
    }
}

/// What is appended to the name of a file of this format.
pub fn suffix(format: Format) -> &'static str {
    match format {
        Format::Zlib => ".zz",
        Format::Zstd => ".zst",
        Format::Lz4Frame | Format::Lz4Block => ".lz4",
        Format::Gzip | Format::Deflate => ".gz",
    }
}

/// Endings of compressed files, and what the names are without them.
pub const SUFFIXES: [(&str, &str); 8] = [
    (".gz", ""),
    (".tgz", ".tar"),
    (".taz", ".tar"),
    (".zst", ""),
    (".tzst", ".tar"),
    (".lz4", ""),
    (".zz", ""),
    (".zlib", ""),
];

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

/// A frame that decoders skip (RFC 8878 §3.1.2), of the same form in both formats.
fn skippable(bytes: &[u8]) -> Option<Extent> {
    matches!(bytes, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]).then(|| match le32(bytes, 4) {
        Some(len) => Extent::Known { len: 8 + len as usize, room: 0 },
        None => Extent::Needs(8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        assert_eq!(detect(b"\x1f\x8b\x08\0"), Some(Format::Gzip));
        assert_eq!(detect(b"\x28\xb5\x2f\xfd"), Some(Format::Zstd));
        assert_eq!(detect(b"\x04\x22\x4d\x18"), Some(Format::Lz4Frame));
        for zlib in [b"\x78\x01", b"\x78\x9c", b"\x78\xda"] {
            assert_eq!(detect(zlib), Some(Format::Zlib));
        }
        for other in [&b""[..], b"\x1f", b"text", b"\x78\x9d", b"PK\x03\x04"] {
            assert_eq!(detect(other), None, "{other:x?}");
        }
    }

    #[test]
    fn what_is_behind_a_file_is_no_part_of_it() {
        assert!(continues(Format::Gzip, b"\x1f\x8b\x08\0"));
        assert!(!continues(Format::Gzip, b"\0\0\0\0"));
        assert!(continues(Format::Zstd, b"\x53\x2a\x4d\x18"));
        assert!(continues(Format::Lz4Frame, b"\x53\x2a\x4d\x18"));
        assert!(!continues(Format::Zlib, b"\x78\x9c"));
    }

    #[test]
    fn skipped_frames_have_a_length() {
        assert_eq!(extent(Format::Zstd, b"\x50\x2a\x4d\x18"), Extent::Needs(8));
        let known = Extent::Known { len: 11, room: 0 };
        assert_eq!(extent(Format::Lz4Frame, b"\x5f\x2a\x4d\x18\x03\0\0\0abc"), known);
    }
}
