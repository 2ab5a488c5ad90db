//! What is wrong with a block that no decoder takes: the library does not say.

use super::Outcome;

/// The shortest match.
const MIN_MATCH: usize = 4;
/// A length of this in the token goes on in the following bytes.
const MORE: u8 = 15;

/// How decoding `src`, which the library refuses, to a destination of `room` bytes ends: what comes first in the block.
pub(crate) fn diagnose(src: &[u8], room: usize) -> Outcome {
    let mut rest = src;
    let mut written = 0;
    loop {
        match sequence(&mut rest, &mut written, room) {
            Ok(()) => {}
            Err(outcome) => return outcome,
        }
    }
}

/// Walks over literals and match of one sequence (lz4_Block_format.md).
fn sequence(rest: &mut &[u8], written: &mut usize, room: usize) -> Result<(), Outcome> {
    let token = byte(rest)?;
    let literals = length(token >> 4, rest)?;
    let there = literals.min(rest.len());
    if there > room - *written {
        return Err(Outcome::Overflow);
    }
    if there < literals {
        return Err(Outcome::Truncated);
    }
    *written += literals;
    *rest = &rest[literals..];
    if rest.is_empty() {
        // The end of a block. It must have been refused for the rules about the last literals.
        return Err(Outcome::BadData);
    }
    let offset = usize::from(u16::from_le_bytes([byte(rest)?, byte(rest)?]));
    if offset == 0 || offset > *written {
        return Err(Outcome::BadData);
    }
    let length = length(token & 15, rest)? + MIN_MATCH;
    if length > room - *written {
        return Err(Outcome::Overflow);
    }
    *written += length;
    Ok(())
}

fn byte(rest: &mut &[u8]) -> Result<u8, Outcome> {
    let (&first, tail) = rest.split_first().ok_or(Outcome::Truncated)?;
    *rest = tail;
    Ok(first)
}

fn length(nibble: u8, rest: &mut &[u8]) -> Result<usize, Outcome> {
    let mut length = usize::from(nibble);
    if nibble == MORE {
        loop {
            let more = byte(rest)?;
            length += usize::from(more);
            if more != u8::MAX {
                break;
            }
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_in_the_block_is_what_is_wrong() {
        assert_eq!(diagnose(&[], 100), Outcome::Truncated);
        assert_eq!(diagnose(&[0x20, b'a'], 100), Outcome::Truncated);
        assert_eq!(diagnose(&[0x20, b'a'], 0), Outcome::Overflow);
        assert_eq!(diagnose(&[0xf0, 255], 100), Outcome::Truncated);
        assert_eq!(diagnose(&[0x10, b'a', 1], 100), Outcome::Truncated);
        assert_eq!(diagnose(&[0x10, b'a', 0, 0], 100), Outcome::BadData);
        assert_eq!(diagnose(&[0x10, b'a', 2, 0], 100), Outcome::BadData);
        // A match of 4 and no last literals.
        assert_eq!(diagnose(&[0x10, b'a', 1, 0], 100), Outcome::Truncated);
        assert_eq!(diagnose(&[0x10, b'a', 1, 0], 4), Outcome::Overflow);
        // A match of four too close to the end.
        assert_eq!(diagnose(&[0x10, b'a', 1, 0, 0x10, b'b'], 100), Outcome::BadData);
    }
}
