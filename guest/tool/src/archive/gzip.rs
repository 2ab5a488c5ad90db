//! gzip members (RFC 1952).
//!
//! Members made here have an extra field of their own, `VH`, with the length of the member, so that they can be decompressed
//! side by side. The field is skipped by whoever does not know it.

use super::{Extent, le32};

const MAGIC: [u8; 2] = [0x1f, 0x8b];
const METHOD_DEFLATE: u8 = 8;
const FLAG_EXTRA: u8 = 4;
const FLAG_NAME: u8 = 8;
const OS_UNIX: u8 = 3;

/// Our extra field.
const FIELD: [u8; 2] = *b"VH";
/// The fixed part of a header, and that of a header with the field.
const HEADER: usize = 10;
const WITH_FIELD: usize = HEADER + 2 + 4 + 4;
const TRAILER: usize = 8;

/// Bytes around the data of a member without a name.
pub const AROUND: usize = WITH_FIELD + TRAILER;

/// What a member says of where its data come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The name of the file, without directories. One with a zero in it cannot be said.
    pub name: Option<Vec<u8>>,
    /// Seconds since 1970; 0 for unknown.
    pub mtime: u32,
}

/// The header of a member whose raw DEFLATE data have `len` bytes.
pub fn header(origin: &Origin, level: i32, len: usize) -> Vec<u8> {
    let name = origin.name.as_deref().filter(|name| !name.is_empty() && !name.contains(&0));
    let total = AROUND + len + name.map_or(0, |name| name.len() + 1);
    let flags = FLAG_EXTRA | if name.is_some() { FLAG_NAME } else { 0 };
    let effort = match level {
        9.. => 2,
        1 => 4,
        _ => 0,
    };
    let mut bytes = vec![MAGIC[0], MAGIC[1], METHOD_DEFLATE, flags];
    bytes.extend(origin.mtime.to_le_bytes());
    bytes.extend([effort, OS_UNIX]);
    // The length of all fields, then ours.
    bytes.extend(8u16.to_le_bytes());
    bytes.extend(FIELD);
    bytes.extend(4u16.to_le_bytes());
    bytes.extend(u32::try_from(total).unwrap_or(0).to_le_bytes());
    if let Some(name) = name {
        bytes.extend(name);
        bytes.push(0);
    }
    bytes
}

/// The end of a member.
pub fn trailer(crc: u32, len: usize) -> [u8; TRAILER] {
    let mut bytes = [0; TRAILER];
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes[4..].copy_from_slice(&(len as u32).to_le_bytes());
    bytes
}

/// How long a member is, if it says so.
pub(super) fn extent(bytes: &[u8]) -> Extent {
    if bytes.len() < HEADER + 2 {
        return Extent::Needs(HEADER + 2);
    }
    if bytes[..2] != MAGIC || bytes[2] != METHOD_DEFLATE || bytes[3] & FLAG_EXTRA == 0 {
        return Extent::Unknown;
    }
    let end = HEADER + 2 + usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
    let Some(fields) = bytes.get(HEADER + 2..end) else { return Extent::Needs(end) };
    match field(fields) {
        Some(len) if len >= end + TRAILER => match le32(bytes, len - 4) {
            Some(room) => Extent::Known { len, room: room as usize },
            None => Extent::Needs(len),
        },
        _ => Extent::Unknown,
    }
}

/// The value of our field among the extra fields.
fn field(mut fields: &[u8]) -> Option<usize> {
    loop {
        let (head, rest) = fields.split_at_checked(4)?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes([head[2], head[3]])))?;
        if head[..2] == FIELD && value.len() == 4 {
            return le32(value, 0).map(|len| len as usize);
        }
        fields = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: Option<&[u8]>) -> Vec<u8> {
        let origin = Origin { name: name.map(<[u8]>::to_vec), mtime: 7 };
        let mut bytes = header(&origin, 6, 5);
        bytes.extend(b"DEFLA");
        bytes.extend(trailer(0x1234_5678, 100));
        bytes
    }

    #[test]
    fn a_member_made_here_says_how_long_it_is() {
        for name in [None, Some(&b"file.txt"[..])] {
            let bytes = member(name);
            assert_eq!(extent(&bytes), Extent::Known { len: bytes.len(), room: 100 });
            assert_eq!(extent(&bytes[..bytes.len() - 1]), Extent::Needs(bytes.len()));
            assert_eq!(extent(&bytes[..3]), Extent::Needs(12));
        }
        assert_eq!(member(None).len(), AROUND + 5);
    }

    #[test]
    fn a_member_of_another_program_does_not() {
        let mut plain = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        plain.extend([0; 20]);
        assert_eq!(extent(&plain), Extent::Unknown);
        // An extra field of somebody else's.
        let mut other = vec![0x1f, 0x8b, 8, FLAG_EXTRA, 0, 0, 0, 0, 0, 3, 6, 0];
        other.extend(b"BC\x02\0\x1b\0");
        assert_eq!(extent(&other), Extent::Unknown);
        // Ours, and a length that cannot be.
        let mut wrong = member(None);
        wrong[16..20].copy_from_slice(&20u32.to_le_bytes());
        assert_eq!(extent(&wrong), Extent::Unknown);
    }
}
