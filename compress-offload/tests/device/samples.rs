//! Data to compress, and checksums that are calculated by nobody else's code.

use crate::frontend::memory::next;
use compress_protocol::Checksum;

/// Text that compresses about four to one.
pub fn text(len: usize) -> Vec<u8> {
    const WORDS: [&str; 24] = [
        "request",
        "descriptor",
        "of",
        "the",
        "chain",
        "is",
        "a",
        "readable",
        "buffer",
        "used",
        "ring",
        "and",
        "available",
        "index",
        "to",
        "device",
        "driver",
        "in",
        "written",
        "with",
        "length",
        "queue",
        "for",
        "by",
    ];
    let (mut seed, mut text) = (7 + len as u64, String::with_capacity(len + 16));
    while text.len() < len {
        let word = WORDS[next(&mut seed) as usize % WORDS.len()];
        text.push_str(word);
        text.push(if next(&mut seed).is_multiple_of(9) { '\n' } else { ' ' });
    }
    text.truncate(len);
    text.into_bytes()
}

/// Bytes that do not compress.
pub fn noise(len: usize) -> Vec<u8> {
    let mut seed = 99 + len as u64;
    (0..len).map(|_| next(&mut seed) as u8).collect()
}

/// A page of everything, as it is in a file system: text, zeros, noise.
pub fn mixture(len: usize) -> Vec<u8> {
    let third = len / 3;
    [text(third), vec![0; third], noise(len - 2 * third)].concat()
}

/// CRC-32 and Adler-32 as their documents define them, bit by bit. xxHash is checked with published values.
pub fn checksum(checksum: Checksum, data: &[u8]) -> u64 {
    match checksum {
        Checksum::Crc32 => {
            let bit = |crc: u32| crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 };
            let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc));
            u64::from(!data.iter().fold(!0, byte))
        }
        Checksum::Adler32 => {
            let step = |(a, b): (u32, u32), byte: &u8| {
                let a = (a + u32::from(*byte)) % 65521;
                (a, (b + a) % 65521)
            };
            let (a, b) = data.iter().fold((1, 0), step);
            u64::from(b << 16 | a)
        }
        other => panic!("{other} is not calculated here"),
    }
}
