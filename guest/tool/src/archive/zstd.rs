//! Zstandard frames (RFC 8878 §3.1.1).

use super::{Extent, le32, le64, skippable};

const MAGIC: u32 = 0xfd2f_b528;
/// No block decompresses to more.
const MAX_BLOCK: usize = 128 << 10;
const RLE: u32 = 1;
const RESERVED: u32 = 3;

pub(super) fn extent(bytes: &[u8]) -> Extent {
    if let Some(skipped) = skippable(bytes) {
        return skipped;
    }
    let [.., descriptor] = *bytes.get(..5).unwrap_or_default() else { return Extent::Needs(5) };
    if le32(bytes, 0) != Some(MAGIC) || descriptor & 0x08 != 0 {
        return Extent::Unknown;
    }
    let single = descriptor & 0x20 != 0;
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size_at = 5 + usize::from(!single) + dictionary;
    let size_len = match descriptor >> 6 {
        0 => usize::from(single),
        flag => 1 << flag,
    };
    let start = size_at + size_len;
    if bytes.len() < start {
        return Extent::Needs(start);
    }
    let size = content_size(&bytes[size_at..start]);
    blocks(bytes, start, descriptor & 0x04 != 0, size)
}

/// Frame_Content_Size, if it is there.
fn content_size(field: &[u8]) -> Option<u64> {
    match *field {
        [byte] => Some(byte.into()),
        [low, high] => Some(u64::from(u16::from_le_bytes([low, high])) + 256),
        [_, _, _, _] => le32(field, 0).map(u64::from),
        _ => le64(field, 0),
    }
}

/// Follows the blocks to the end of the frame.
fn blocks(bytes: &[u8], start: usize, checksum: bool, size: Option<u64>) -> Extent {
    let (mut at, mut bound) = (start, 0);
    loop {
        let Some(&[low, middle, high]) = bytes.get(at..at + 3) else { return Extent::Needs(at + 3) };
        let header = u32::from_le_bytes([low, middle, high, 0]);
        let len = (header >> 3) as usize;
        at += 3 + match header >> 1 & 3 {
            RLE => 1,
            RESERVED => return Extent::Unknown,
            _ => len,
        };
        bound += MAX_BLOCK;
        if header & 1 != 0 {
            break;
        }
    }
    let room = size.map_or(Some(bound), |size| usize::try_from(size).ok());
    let len = at + if checksum { 4 } else { 0 };
    match room {
        Some(room) if bytes.len() >= len => Extent::Known { len, room },
        Some(_) => Extent::Needs(len),
        None => Extent::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of 300 bytes in a raw and a run-length block, with size and checksum.
    fn frame() -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend([0x40 | 0x20 | 0x04, 44, 0]);
        bytes.extend(&(10u32 << 3).to_le_bytes()[..3]);
        bytes.extend([1; 10]);
        bytes.extend(&(290u32 << 3 | RLE << 1 | 1).to_le_bytes()[..3]);
        bytes.push(9);
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn a_frame_is_followed_block_by_block() {
        let frame = frame();
        let mut needed = Vec::new();
        for len in 0..frame.len() {
            match extent(&frame[..len]) {
                Extent::Needs(more) => {
                    assert!(more > len && more <= frame.len());
                    needed.push(more);
                }
                other => panic!("{other:?} with {len} bytes"),
            }
        }
        assert_eq!(extent(&frame), Extent::Known { len: frame.len(), room: 300 });
        let longer = [&frame[..], b"more"].concat();
        assert_eq!(extent(&longer), Extent::Known { len: frame.len(), room: 300 });
    }

    #[test]
    fn a_frame_without_a_size_is_bounded_by_its_blocks() {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend([0, 0x48, 1, 0, 0]);
        assert_eq!(extent(&bytes), Extent::Known { len: 9, room: MAX_BLOCK });
    }

    #[test]
    fn nonsense_is_left_to_a_decoder() {
        let mut bytes = frame();
        bytes[4] |= 0x08;
        assert_eq!(extent(&bytes), Extent::Unknown);
        let mut bytes = frame();
        bytes[7] |= 6;
        assert_eq!(extent(&bytes), Extent::Unknown);
        assert_eq!(extent(b"nonsense"), Extent::Unknown);
    }
}
