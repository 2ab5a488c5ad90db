//! Formats whose streams may follow on each other: gzip's members, the frames of Zstandard and LZ4.

use super::{Outcome, Output};

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = 0xfd2f_b528u32.to_le_bytes();
const LZ4: [u8; 4] = 0x184d_2204u32.to_le_bytes();
/// Frames to skip, of Zstandard and LZ4 alike; the low four bits of the first byte are free.
const SKIPPABLE: [u8; 4] = 0x184d_2a50u32.to_le_bytes();

/// Whether another gzip member follows (RFC 1952 §2.2).
pub(super) fn gzip(rest: &[u8]) -> bool {
    rest.starts_with(&GZIP)
}

/// Whether another Zstandard frame follows (RFC 8878 §3.1).
pub(super) fn zstd(rest: &[u8]) -> bool {
    rest.starts_with(&ZSTD) || is_skippable(rest)
}

/// Whether another LZ4 frame follows.
pub(super) fn lz4(rest: &[u8]) -> bool {
    rest.starts_with(&LZ4) || is_skippable(rest)
}

/// Whether `src`, however short, can be the beginning of an LZ4 frame.
pub(super) fn begins_lz4(src: &[u8]) -> bool {
    let mut head = LZ4;
    let len = src.len().min(head.len());
    head[..len].copy_from_slice(&src[..len]);
    if len > 0 && head[0] != LZ4[0] {
        head[len..].copy_from_slice(&SKIPPABLE[len..]);
    }
    lz4(&head)
}

fn is_skippable(rest: &[u8]) -> bool {
    rest.first_chunk::<4>()
        .is_some_and(|&[first, others @ ..]| first & 0xf0 == SKIPPABLE[0] && others == SKIPPABLE[1..])
}

/// Decodes one stream, and then as many more as follow on it.
pub(super) fn decode_all(
    src: &[u8],
    mut dst: Output<'_>,
    another: impl Fn(&[u8]) -> bool,
    mut decode: impl FnMut(&[u8], Output<'_>) -> Outcome,
) -> Outcome {
    let (mut consumed, mut produced) = (0, 0);
    loop {
        match decode(&src[consumed..], dst.tail(produced)) {
            Outcome::Done { consumed: more_in, produced: more_out } => {
                consumed += more_in;
                produced += more_out;
            }
            other => return other,
        }
        if !another(&src[consumed..]) {
            return Outcome::Done { consumed, produced };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_told_by_its_magic_number() {
        assert!(gzip(&[0x1f, 0x8b, 8]));
        assert!(!gzip(&[]) && !gzip(&[0x1f]) && !gzip(&[0x1f, 0x8c]));
        assert!(zstd(&[0x28, 0xb5, 0x2f, 0xfd]) && zstd(&[0x5c, 0x2a, 0x4d, 0x18, 0]));
        assert!(!zstd(&[0x28, 0xb5, 0x2f]) && !zstd(&[0x28, 0xb5, 0x2f, 0xfc]));
        assert!(lz4(&[0x04, 0x22, 0x4d, 0x18]) && lz4(&[0x50, 0x2a, 0x4d, 0x18]));
        assert!(
            begins_lz4(&[])
                && begins_lz4(&[4, 0x22])
                && begins_lz4(&[0x5f])
                && begins_lz4(&[0x50, 0x2a, 0x4d])
        );
        assert!(!begins_lz4(&[0]) && !begins_lz4(&[4, 0x2a]) && !begins_lz4(&[0x50, 0x22]));
        assert!(!lz4(&[0x60, 0x2a, 0x4d, 0x18]) && !lz4(&[0x50, 0x2a, 0x4d]));
    }

    #[test]
    fn streams_follow_on_each_other_until_something_else_comes() {
        // A stream here is its magic number and one byte, which is its content.
        let one = |src: &[u8], mut dst: Output<'_>| {
            if src.len() < 3 {
                return Outcome::Truncated;
            }
            dst.write(&src[2..3]);
            Outcome::Done { consumed: 3, produced: 1 }
        };
        let mut memory = [0; 4];
        let mut run = |src: &[u8]| decode_all(src, Output::from(&mut memory[..]), gzip, one);
        let twice = [0x1f, 0x8b, 1, 0x1f, 0x8b, 2, 0, 0x1f];
        assert_eq!(run(&twice), Outcome::Done { consumed: 6, produced: 2 });
        assert_eq!(run(&twice[..5]), Outcome::Truncated);
        assert_eq!(run(&twice[..4]), Outcome::Done { consumed: 3, produced: 1 });
        assert_eq!(run(&twice[..3]), Outcome::Done { consumed: 3, produced: 1 });
        assert_eq!(memory, [1, 2, 0, 0]);
    }
}
