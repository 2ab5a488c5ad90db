//! AES with keys that are plain data and never change: any number of threads may use one.

#![expect(unsafe_code, reason = "calls AWS-LC")]

use crate::algorithm::Direction;
use crate::keys::{LockedBox, NoMemory, Plain};
use aws_lc_sys as ffi;
use std::ffi::{c_int, c_uint};

/// An expanded key for one direction of the block cipher.
#[repr(transparent)]
pub struct AesKey(ffi::AES_KEY);

// SAFETY: an `AES_KEY` is an array of numbers and a number.
unsafe impl Plain for AesKey {}

impl AesKey {
    /// Expands a key of 16, 24 or 32 bytes.
    pub fn new(key: &[u8], direction: Direction) -> Result<LockedBox<Self>, NoMemory> {
        let mut expanded = LockedBox::<Self>::zeroed()?;
        let bits = (key.len() * 8) as c_uint;
        // SAFETY: reads `bits` bits of the key, and fills in the structure.
        let result = unsafe {
            match direction {
                Direction::Encrypt => ffi::AES_set_encrypt_key(key.as_ptr(), bits, &raw mut expanded.0),
                Direction::Decrypt => ffi::AES_set_decrypt_key(key.as_ptr(), bits, &raw mut expanded.0),
            }
        };
        assert_eq!(result, 0, "AES has keys of 128, 192 and 256 bits");
        Ok(expanded)
    }

    /// Encrypts a block. The key was expanded for encryption.
    pub fn encrypt_block(&self, block: &mut [u8; 16]) {
        let place = block.as_mut_ptr();
        // SAFETY: reads and writes one block, which may be the same.
        unsafe { ffi::AES_encrypt(place, place, &raw const self.0) }
    }

    /// Decrypts a block. The key was expanded for decryption.
    pub fn decrypt_block(&self, block: &mut [u8; 16]) {
        let place = block.as_mut_ptr();
        // SAFETY: reads and writes one block, which may be the same.
        unsafe { ffi::AES_decrypt(place, place, &raw const self.0) }
    }

    /// Cipher block chaining of whole blocks, in the direction that the key was expanded for; `chain` goes on.
    ///
    /// # Safety
    ///
    /// `len` bytes can be read and written there. Both places are the same or apart.
    #[inline]
    pub unsafe fn cbc(
        &self,
        direction: Direction,
        chain: &mut [u8; 16],
        from: *const u8,
        to: *mut u8,
        len: usize,
    ) {
        debug_assert!(len.is_multiple_of(16));
        let encrypt = c_int::from(direction == Direction::Encrypt);
        // SAFETY: the caller's promise.
        unsafe { ffi::AES_cbc_encrypt(from, to, len, &raw const self.0, chain.as_mut_ptr(), encrypt) }
    }

    /// Counter mode; `counter` goes on, also in the middle of a block. The key was expanded for encryption.
    ///
    /// # Safety
    ///
    /// `len` bytes can be read and written there. Both places are the same or apart.
    #[inline]
    pub unsafe fn ctr(&self, counter: &mut Counter, from: *const u8, to: *mut u8, len: usize) {
        let Counter { block, keystream, used } = counter;
        // SAFETY: the caller's promise, and the two blocks have 16 bytes each.
        unsafe {
            ffi::AES_ctr128_encrypt(
                from,
                to,
                len,
                &raw const self.0,
                block.as_mut_ptr(),
                keystream.as_mut_ptr(),
                used,
            );
        }
    }
}

/// Where counter mode is.
pub struct Counter {
    block: [u8; 16],
    keystream: [u8; 16],
    used: c_uint,
}

impl Counter {
    /// At the first byte of the block with this number.
    pub fn new(block: [u8; 16]) -> Self {
        Self { block, keystream: [0; 16], used: 0 }
    }
}
