//! ChaCha20-Poly1305 in one pass over one piece of memory.

#![expect(unsafe_code, reason = "calls AWS-LC")]

use super::{Failed, check, start};
use crate::keys::{LockedBox, NoMemory, Plain};
use aws_lc_sys as ffi;
use std::ptr;

/// A key. Never changes: any number of threads may use one.
#[repr(transparent)]
pub struct ChaChaKey(ffi::EVP_AEAD_CTX);

// SAFETY: a zeroed context is what `EVP_AEAD_CTX_zero` makes.
unsafe impl Plain for ChaChaKey {}
// SAFETY: the library says that a context may be used by several threads at once for sealing and opening.
unsafe impl Send for ChaChaKey {}
// SAFETY: as above.
unsafe impl Sync for ChaChaKey {}

/// One contiguous message.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    pub nonce: &'a [u8; 12],
    pub aad: &'a [u8],
    pub from: *const u8,
    pub to: *mut u8,
    pub len: usize,
}

impl ChaChaKey {
    /// Of 32 bytes.
    pub fn new(key: &[u8]) -> Result<LockedBox<Self>, NoMemory> {
        start()?;
        let mut expanded = LockedBox::<Self>::zeroed()?;
        // SAFETY: the context is zeroed, and the key has as many bytes.
        let result = unsafe {
            let aead = ffi::EVP_aead_chacha20_poly1305();
            ffi::EVP_AEAD_CTX_init(&raw mut expanded.0, aead, key.as_ptr(), key.len(), 16, ptr::null_mut())
        };
        assert_eq!(result, 1, "ChaCha20 has keys of 256 bits, and keeps them in the context");
        Ok(expanded)
    }

    /// Encrypts; the tag.
    ///
    /// # Safety
    ///
    /// `len` bytes can be read and written where the message says. Both places are the same or apart.
    pub unsafe fn seal(&self, message: Message<'_>) -> Result<[u8; 16], Failed> {
        let Message { nonce, aad, from, to, len } = message;
        let (mut tag, mut tag_len) = ([0; 16], 0);
        // SAFETY: the caller's promise; the other arguments are whole slices, and there is no further input.
        check(unsafe {
            ffi::EVP_AEAD_CTX_seal_scatter(
                &raw const self.0,
                to,
                tag.as_mut_ptr(),
                &raw mut tag_len,
                tag.len(),
                nonce.as_ptr(),
                nonce.len(),
                from,
                len,
                ptr::null(),
                0,
                aad.as_ptr(),
                aad.len(),
            )
        })?;
        Ok(tag)
    }

    /// Decrypts; fails, with the destination unspecified, unless the tag is right.
    ///
    /// # Safety
    ///
    /// As for [`seal`](Self::seal).
    pub unsafe fn open(&self, message: Message<'_>, tag: &[u8; 16]) -> Result<(), Failed> {
        let Message { nonce, aad, from, to, len } = message;
        // SAFETY: the caller's promise; the other arguments are whole slices.
        check(unsafe {
            ffi::EVP_AEAD_CTX_open_gather(
                &raw const self.0,
                to,
                nonce.as_ptr(),
                nonce.len(),
                from,
                len,
                tag.as_ptr(),
                tag.len(),
                aad.as_ptr(),
                aad.len(),
            )
        })
    }
}

impl Drop for ChaChaKey {
    fn drop(&mut self) {
        // SAFETY: initialised or zeroed; nothing uses it afterwards.
        unsafe { ffi::EVP_AEAD_CTX_cleanup(&raw mut self.0) }
    }
}
