//! LZ4 frames (lz4_Frame_format.md, version 1.6).

use super::{Extent, le32, le64, skippable};

const MAGIC: u32 = 0x184d_2204;
const CONTENT_CHECKSUM: u8 = 1 << 2;
const CONTENT_SIZE: u8 = 1 << 3;
const BLOCK_CHECKSUM: u8 = 1 << 4;
const DICTIONARY: u8 = 1 << 0;
const UNCOMPRESSED: u32 = 1 << 31;

pub(super) fn extent(bytes: &[u8]) -> Extent {
    if let Some(skipped) = skippable(bytes) {
        return skipped;
    }
    let [.., flags, descriptor] = *bytes.get(..6).unwrap_or_default() else { return Extent::Needs(6) };
    if le32(bytes, 0) != Some(MAGIC) || flags >> 6 != 1 {
        return Extent::Unknown;
    }
    let Some(block) = block_size(descriptor) else { return Extent::Unknown };
    let has = |flag: u8, len: usize| if flags & flag != 0 { len } else { 0 };
    let start = 6 + has(CONTENT_SIZE, 8) + has(DICTIONARY, 4) + 1;
    if bytes.len() < start {
        return Extent::Needs(start);
    }
    let size = if flags & CONTENT_SIZE != 0 { le64(bytes, 6) } else { None };
    let (mut at, mut bound) = (start, 0);
    loop {
        let Some(word) = le32(bytes, at) else { return Extent::Needs(at + 4) };
        at += 4;
        if word == 0 {
            break;
        }
        at += (word & !UNCOMPRESSED) as usize + has(BLOCK_CHECKSUM, 4);
        bound += block;
    }
    let len = at + has(CONTENT_CHECKSUM, 4);
    match size.map_or(Some(bound), |size| usize::try_from(size).ok()) {
        Some(room) if bytes.len() >= len => Extent::Known { len, room },
        Some(_) => Extent::Needs(len),
        None => Extent::Unknown,
    }
}

/// Block Maximum Size.
fn block_size(descriptor: u8) -> Option<usize> {
    match descriptor >> 4 & 7 {
        index @ 4..=7 => Some(1 << (8 + 2 * index)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(flags: u8, extra: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend([0x40 | flags, 0x40]);
        bytes.extend(extra);
        bytes.push(0);
        bytes.extend((UNCOMPRESSED | 3).to_le_bytes());
        bytes.extend(b"abc");
        bytes.extend(0u32.to_le_bytes());
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn a_frame_is_followed_block_by_block() {
        let frame = frame(CONTENT_CHECKSUM | CONTENT_SIZE, &3u64.to_le_bytes());
        for len in 0..frame.len() {
            assert!(
                matches!(extent(&frame[..len]), Extent::Needs(more) if more > len && more <= frame.len())
            );
        }
        assert_eq!(extent(&frame), Extent::Known { len: frame.len(), room: 3 });
    }

    #[test]
    fn a_frame_without_a_size_is_bounded_by_its_blocks() {
        let frame = frame(CONTENT_CHECKSUM, &[]);
        assert_eq!(extent(&frame), Extent::Known { len: frame.len(), room: 64 << 10 });
    }

    #[test]
    fn nonsense_is_left_to_a_decoder() {
        for (at, value) in [(4, 0x00), (5, 0x30), (0, 0x02)] {
            let mut bytes = frame(0, &[]);
            bytes[at] = value;
            assert_eq!(extent(&bytes), Extent::Unknown, "{at}");
        }
    }
}
