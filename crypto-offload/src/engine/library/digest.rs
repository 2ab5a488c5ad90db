//! Hashes, HMAC, and the hash half of chains.

#![expect(unsafe_code, reason = "works on raw memory under the contract of Engine::submit")]

use super::aws::{HmacKey, Running};
use crate::algorithm::Hash;
use crate::engine::{KeyError, Ranges, Span};
use crate::keys::LockedBox;

/// What a message is run through.
pub enum DigestKey {
    /// A plain hash.
    Hash(Hash),
    /// A hash with a key.
    Hmac(LockedBox<HmacKey>),
}

impl DigestKey {
    /// A plain hash, or HMAC when there is a key, even an empty one.
    pub fn new(hash: Hash, key: Option<&[u8]>) -> Result<Self, KeyError> {
        Ok(match key {
            None => Self::Hash(hash),
            Some(key) => Self::Hmac(HmacKey::new(hash, key)?),
        })
    }

    fn begin(&self) -> Running {
        match self {
            Self::Hash(hash) => Running::hash(*hash),
            Self::Hmac(key) => Running::hmac(key),
        }
    }

    /// Writes the digest of `src` to `digest`, as many bytes as that has.
    ///
    /// # Safety
    ///
    /// As for [`Engine::submit`](crate::engine::Engine::submit).
    pub(super) unsafe fn digest(&self, src: &[Ranges], digest: &Ranges) {
        let mut running = self.begin();
        // SAFETY: the caller's promise: the pieces can be read, the place of the digest can be written.
        unsafe {
            for piece in src.iter().flat_map(|ranges| ranges.pieces()) {
                running.update(piece.base.cast(), piece.len);
            }
            digest.write(0, &running.finish()[..digest.len()]);
        }
    }
}

/// What the hash of a chain covers once the cipher is done: its result in the place of what it ciphered, and the
/// source around it. The spans lie inside of the source.
pub(super) fn after_cipher(src: &Ranges, cipher: Span, hash: Span, dst: &Ranges) -> [Ranges; 3] {
    let (start, end) = (hash.start, hash.start + hash.len);
    let (first, last) = (cipher.start, cipher.start + cipher.len);
    let part = |ranges: &Ranges, from: usize, to: usize, base: usize| {
        ranges.sub(from.saturating_sub(base), to.saturating_sub(from)).unwrap_or(Ranges::EMPTY)
    };
    [
        part(src, start, end.min(first), 0),
        part(dst, start.max(first), end.min(last), first),
        part(src, start.max(last), end, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::HostRange;

    /// The bytes that are covered, when the source is 0, 1, 2.. and the result of the cipher 100, 101, 102..
    fn covered(cipher: Span, hash: Span) -> Vec<u8> {
        let mut source: Vec<u8> = (0..20).collect();
        let mut result: Vec<u8> = (100..100 + cipher.len as u8).collect();
        let list = |bytes: &mut Vec<u8>| [HostRange { base: bytes.as_mut_ptr().cast(), len: bytes.len() }];
        let (src, dst) = (list(&mut source), list(&mut result));
        let mut bytes = Vec::new();
        for part in after_cipher(&Ranges::whole(&src), cipher, hash, &Ranges::whole(&dst)) {
            let mut copy = vec![0; part.len()];
            // SAFETY: both lists and vectors live to the end of the function.
            unsafe { part.read(0, &mut copy) };
            bytes.append(&mut copy);
        }
        bytes
    }

    #[test]
    fn the_hash_after_the_cipher_covers_its_result_in_the_place_of_its_source() {
        let span = |start, len| Span { start, len };
        assert_eq!(covered(span(4, 4), span(0, 12)), [0, 1, 2, 3, 100, 101, 102, 103, 8, 9, 10, 11]);
        assert_eq!(covered(span(4, 4), span(5, 2)), [101, 102]);
        assert_eq!(covered(span(4, 4), span(6, 4)), [102, 103, 8, 9]);
        assert_eq!(covered(span(4, 4), span(2, 4)), [2, 3, 100, 101]);
        assert_eq!(covered(span(4, 4), span(0, 3)), [0, 1, 2]);
        assert_eq!(covered(span(4, 4), span(10, 3)), [10, 11, 12]);
        assert_eq!(covered(span(0, 0), span(3, 2)), [3, 4]);
        assert!(covered(span(4, 4), span(4, 0)).is_empty());
    }
}
