//! Key expansion (FIPS 197 §5.2): with the AES instructions where the CPU has them, else by the library, which knows
//! a way that takes the same time for every key.
#![expect(unsafe_code, reason = "AES instructions, and the library's C interface")]

use aws_lc_sys::{AES_KEY, AES_cbc_encrypt, AES_set_encrypt_key};
use zeroize::Zeroize;

use super::key::MAX_ROUND_KEYS;
use super::{BLOCK, Block, KeySize};

/// Round keys in the order of bytes that the AES instructions take; `None` on a CPU without them.
pub(super) fn expand(key: &[u8], size: KeySize) -> Option<[Block; MAX_ROUND_KEYS]> {
    assert_eq!(key.len(), size.key_len());
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if std::arch::is_x86_feature_detected!("aes") {
        let mut words = [0; 4 * MAX_ROUND_KEYS];
        // SAFETY: the CPU has the instructions (just asked).
        unsafe { aesni::expand(key, size.rounds(), &mut words) };
        let mut blocks = [Block::default(); MAX_ROUND_KEYS];
        for (block, words) in blocks.iter_mut().zip(words.as_chunks::<4>().0) {
            for (bytes, word) in block.0.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                *bytes = word.to_le_bytes();
            }
        }
        words.zeroize();
        return Some(blocks);
    }
    None
}

/// The library's expansion of a key of 16, 24 or 32 bytes.
pub(super) fn expand_with_library(key: &[u8]) -> LibrarySchedule {
    assert!(KeySize::from_len(key.len()).is_some());
    let mut schedule = LibrarySchedule(AES_KEY { rd_key: [0; 60], rounds: 0 });
    // SAFETY: `key` has the number of bits that it is said to have, and the schedule is ours to write.
    let result = unsafe { AES_set_encrypt_key(key.as_ptr(), key.len() as u32 * 8, &mut schedule.0) };
    assert_eq!(result, 0, "AES_set_encrypt_key refuses wrong lengths only");
    schedule
}

/// A key as the library expanded it.
pub(super) struct LibrarySchedule(AES_KEY);

impl LibrarySchedule {
    /// CBC encryption of `len` bytes, a multiple of 16, from `src` to `dst`; `chain` is the block before and becomes
    /// the last one.
    ///
    /// # Safety
    /// `src` can be read and `dst` written for `len` bytes.
    pub(super) unsafe fn encrypt(&self, chain: &mut Block, src: *const u8, dst: *mut u8, len: usize) {
        debug_assert_eq!(len % BLOCK, 0);
        // SAFETY: the caller's promise for the buffers; the key was expanded for encryption, and 1 means encrypt.
        unsafe { AES_cbc_encrypt(src, dst, len, &self.0, chain.0.as_mut_ptr(), 1) }
    }

    pub(super) fn wipe(&mut self) {
        self.0.rd_key.zeroize();
    }

    #[cfg(test)]
    pub(super) fn is_wiped(&self) -> bool {
        self.0.rd_key == [0; 60]
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod aesni {
    use std::arch::x86_64::*;

    /// The recurrence of FIPS 197 §5.2, word by word; the instruction gives SubWord, with RotWord where it is wanted.
    #[target_feature(enable = "aes,sse4.1")]
    pub(super) fn expand(key: &[u8], rounds: usize, words: &mut [u32; 60]) {
        let in_key = key.len() / 4;
        for (word, bytes) in words.iter_mut().zip(key.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        let mut round_constant = 1u8;
        for i in in_key..4 * (rounds + 1) {
            let before = words[i - 1];
            let mixed = match i % in_key {
                0 => {
                    let word = sub_word(before).rotate_right(8) ^ u32::from(round_constant);
                    round_constant = (round_constant << 1) ^ (round_constant >> 7) * 0x1b;
                    word
                }
                4 if in_key == 8 => sub_word(before),
                _ => before,
            };
            words[i] = words[i - in_key] ^ mixed;
        }
    }

    /// SubWord: the S-box on each byte, in a time that does not depend on them.
    #[target_feature(enable = "aes,sse4.1")]
    fn sub_word(word: u32) -> u32 {
        _mm_cvtsi128_si32(_mm_aeskeygenassist_si128::<0>(_mm_set1_epi32(word as i32))) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 197 appendix A: the last round key of each example.
    const EXAMPLES: [(&str, &str); 3] = [
        ("2b7e151628aed2a6abf7158809cf4f3c", "d014f9a8c9ee2589e13f0cc8b6630ca6"),
        ("8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b", "e98ba06f448c773c8ecc720401002202"),
        ("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4", "fe4890d1e6188d0b046df344706c631e"),
    ];

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn keys_expand_to_the_examples_of_the_standard() {
        for (key, last) in EXAMPLES {
            let key = bytes(key);
            let size = KeySize::from_len(key.len()).unwrap();
            let Some(round_keys) = expand(&key, size) else { return };
            assert_eq!(round_keys[0].0, key[..16]);
            assert_eq!(round_keys[size.rounds()].0.to_vec(), bytes(last), "{size:?}");
            assert!(round_keys[size.rounds() + 1..].iter().all(|block| *block == Block::default()));
        }
    }
}
