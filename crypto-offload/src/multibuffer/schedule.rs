//! Key expansion (FIPS 197 §5.2): with the AES instructions where the CPU has them, else by the library, which knows
//! a way that takes the same time for every key.
#![expect(unsafe_code, reason = "AES instructions, and the library's C interface")]

use aws_lc_sys::{AES_KEY, AES_cbc_encrypt, AES_set_encrypt_key};
use zeroize::Zeroize;

use super::key::MAX_ROUND_KEYS;
use super::{BLOCK, Block, KeySize};

/// Room for either form of an expanded key. All zeros is a value.
#[repr(C, align(16))]
pub(super) struct Schedule([u32; WORDS]);

/// A multiple of four, as both forms need it: 60 words of round keys, 61 of the library's.
const WORDS: usize = 64;
const _: () =
    assert!(size_of::<AES_KEY>() <= size_of::<Schedule>() && align_of::<AES_KEY>() <= align_of::<Schedule>());
const _: () =
    assert!(MAX_ROUND_KEYS * BLOCK <= size_of::<Schedule>() && align_of::<Block>() <= align_of::<Schedule>());

/// Whether this CPU has instructions for AES.
pub(super) fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("sse4.1");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

impl Schedule {
    pub(super) const ZERO: Self = Self([0; WORDS]);

    /// Round keys in the order of bytes that the AES instructions take. Only where they are.
    pub(super) fn expand(&mut self, key: &[u8], size: KeySize) {
        assert_eq!(key.len(), size.key_len());
        assert!(has_aes_instructions());
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the CPU has the instructions (just asked).
        unsafe {
            aesni::expand(key, size.rounds(), &mut self.0);
        }
    }

    /// The library's expansion of a key of 16, 24 or 32 bytes.
    pub(super) fn expand_with_library(&mut self, key: &[u8]) {
        assert!(KeySize::from_len(key.len()).is_some());
        // SAFETY: `key` has the number of bits that it is said to have; there is room for the library's form, of which
        // any bytes are a value.
        let result =
            unsafe { AES_set_encrypt_key(key.as_ptr(), key.len() as u32 * 8, self.0.as_mut_ptr().cast()) };
        assert_eq!(result, 0, "AES_set_encrypt_key refuses wrong lengths only");
    }

    /// What [`Schedule::expand`] made.
    #[inline]
    pub(super) fn round_keys(&self) -> &[Block; MAX_ROUND_KEYS] {
        // SAFETY: large and aligned enough (asserted above), and any bytes are blocks.
        unsafe { &*self.0.as_ptr().cast() }
    }

    #[cfg(test)]
    pub(super) fn from_round_keys(round_keys: &[Block; MAX_ROUND_KEYS]) -> Self {
        let mut schedule = Self::ZERO;
        let bytes = round_keys.iter().flat_map(|block| block.0).collect::<Vec<_>>();
        for (word, bytes) in schedule.0.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        schedule
    }

    /// CBC encryption of `len` bytes, a multiple of 16, from `src` to `dst`; `chain` is the block before and becomes
    /// the last one.
    ///
    /// # Safety
    /// `src` can be read and `dst` written for `len` bytes, and [`Schedule::expand_with_library`] came before.
    pub(super) unsafe fn encrypt(&self, chain: &mut Block, src: *const u8, dst: *mut u8, len: usize) {
        debug_assert_eq!(len % BLOCK, 0);
        // SAFETY: the caller's promises; 1 means encrypt.
        unsafe { AES_cbc_encrypt(src, dst, len, self.0.as_ptr().cast(), chain.0.as_mut_ptr(), 1) }
    }

    #[cfg(test)]
    pub(super) fn is_zero(&self) -> bool {
        self.0 == [0; WORDS]
    }
}

impl Zeroize for Schedule {
    fn zeroize(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(target_arch = "x86_64")]
mod aesni {
    use std::arch::x86_64::*;

    /// The recurrence of FIPS 197 §5.2, word by word; the instruction gives SubWord, with RotWord where it is wanted.
    #[target_feature(enable = "aes,sse4.1")]
    pub(super) fn expand(key: &[u8], rounds: usize, words: &mut [u32]) {
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
                    round_constant = (round_constant << 1) ^ ((round_constant >> 7) * 0x1b);
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
        (
            "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
            "fe4890d1e6188d0b046df344706c631e",
        ),
    ];

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn keys_expand_to_the_examples_of_the_standard() {
        for (key, last) in EXAMPLES {
            let key = bytes(key);
            if !has_aes_instructions() {
                return;
            }
            let size = KeySize::from_len(key.len()).unwrap();
            let mut schedule = Schedule::ZERO;
            schedule.expand(&key, size);
            let round_keys = schedule.round_keys();
            assert_eq!(round_keys[0].0, key[..16]);
            assert_eq!(round_keys[size.rounds()].0.to_vec(), bytes(last), "{size:?}");
            assert!(round_keys[size.rounds() + 1..].iter().all(|block| *block == Block::default()));
        }
    }
}
