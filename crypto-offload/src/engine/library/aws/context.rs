//! Cipher contexts: what the library needs for the modes that have a state besides the key.

#![expect(unsafe_code, reason = "calls AWS-LC")]

use super::{Failed, check, start};
use crate::algorithm::Direction;
use crate::keys::NoMemory;
use aws_lc_sys as ffi;
use std::ffi::c_int;
use std::ptr::{self, NonNull};

/// What a context computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// AES, every block by itself.
    Ecb,
    /// AES-256 in XTS; the key has 64 bytes.
    Xts256,
    /// AES in Galois/counter mode.
    Gcm,
    /// ChaCha20 with Poly1305.
    ChaCha,
}

/// A context with a key, for one direction. Used by one thread at a time.
pub struct Context(NonNull<ffi::EVP_CIPHER_CTX>);

// SAFETY: the library's contexts know nothing of threads; whoever owns this owns all of it.
unsafe impl Send for Context {}

impl Context {
    /// A context with this key. Only lack of memory makes it fail: the caller has checked the key's length, and that
    /// the two halves of an XTS key differ.
    pub fn new(kind: Kind, direction: Direction, key: &[u8]) -> Result<Self, NoMemory> {
        start()?;
        let no_memory = NoMemory::of(size_of::<ffi::EVP_CIPHER_CTX>());
        // SAFETY: allocates a context that nobody else knows of.
        let context = Self(NonNull::new(unsafe { ffi::EVP_CIPHER_CTX_new() }).ok_or(no_memory)?);
        let encrypt = c_int::from(direction == Direction::Encrypt);
        // SAFETY: the context is alive; the cipher takes keys of this length; no nonce is given yet.
        let result = unsafe {
            let cipher = cipher(kind, key.len());
            ffi::EVP_CipherInit_ex(
                context.0.as_ptr(),
                cipher,
                ptr::null_mut(),
                key.as_ptr(),
                ptr::null(),
                encrypt,
            )
        };
        check(result).map_err(|Failed| no_memory)?;
        // SAFETY: the context is alive.
        unsafe { ffi::EVP_CIPHER_CTX_set_padding(context.0.as_ptr(), 0) };
        Ok(context)
    }

    /// Begins a message with a nonce or tweak of the cipher's own length.
    pub fn set_iv(&mut self, iv: &[u8]) -> Result<(), Failed> {
        // SAFETY: the context is alive, and the only length of its nonces is that of `iv`, which the caller checked,
        // or was set to it by `set_iv_len`.
        check(unsafe {
            ffi::EVP_CipherInit_ex(
                self.0.as_ptr(),
                ptr::null(),
                ptr::null_mut(),
                ptr::null(),
                iv.as_ptr(),
                -1,
            )
        })
    }

    /// The length of the nonces from here on.
    pub fn set_iv_len(&mut self, len: usize) -> Result<(), Failed> {
        self.control(ffi::EVP_CTRL_AEAD_SET_IVLEN, len, ptr::null_mut())
    }

    /// More associated data; all of it comes before the text.
    pub fn aad(&mut self, mut bytes: &[u8]) -> Result<(), Failed> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(MOST));
            let mut done = 0;
            // SAFETY: the context is alive, and reads `now`; without a place for output it writes none.
            check(unsafe {
                ffi::EVP_CipherUpdate(
                    self.0.as_ptr(),
                    ptr::null_mut(),
                    &raw mut done,
                    now.as_ptr(),
                    now.len() as c_int,
                )
            })?;
            bytes = rest;
        }
        Ok(())
    }

    /// Ciphers `len` more bytes; whole blocks in ECB, everything at once in XTS.
    ///
    /// # Safety
    ///
    /// `len` bytes can be read and written there. Both places are the same or apart.
    pub unsafe fn update(&mut self, from: *const u8, to: *mut u8, len: usize) -> Result<(), Failed> {
        let mut place = 0;
        while place < len {
            let now = (len - place).min(MOST);
            let mut done = 0;
            // SAFETY: the caller's promise. No mode here holds bytes back and writes them later, as they come in
            // whole blocks or the mode has none.
            check(unsafe {
                ffi::EVP_CipherUpdate(
                    self.0.as_ptr(),
                    to.add(place),
                    &raw mut done,
                    from.add(place),
                    now as c_int,
                )
            })?;
            place += now;
        }
        Ok(())
    }

    /// Ends an encrypted message: its tag.
    pub fn tag(&mut self) -> Result<[u8; 16], Failed> {
        self.end()?;
        let mut tag = [0; 16];
        self.control(ffi::EVP_CTRL_AEAD_GET_TAG, tag.len(), tag.as_mut_ptr())?;
        Ok(tag)
    }

    /// Ends a decrypted message: fails unless this is its tag. Takes the same time wherever they differ.
    pub fn check_tag(&mut self, tag: &[u8]) -> Result<(), Failed> {
        self.control(ffi::EVP_CTRL_AEAD_SET_TAG, tag.len(), tag.as_ptr().cast_mut())?;
        self.end()
    }

    fn end(&mut self) -> Result<(), Failed> {
        let (mut rest, mut len) = ([0u8; 32], 0);
        // SAFETY: the context is alive; a block is the most that could be left to write, and these modes leave none.
        check(unsafe { ffi::EVP_CipherFinal_ex(self.0.as_ptr(), rest.as_mut_ptr(), &raw mut len) })
    }

    fn control(&mut self, command: c_int, argument: usize, place: *mut u8) -> Result<(), Failed> {
        // SAFETY: the context is alive; where the command uses `place`, it has `argument` bytes, and those that it
        // only reads it does not write.
        check(unsafe { ffi::EVP_CIPHER_CTX_ctrl(self.0.as_ptr(), command, argument as c_int, place.cast()) })
    }

    /// Gives up ownership, until [`from_raw`](Self::from_raw).
    pub fn into_raw(self) -> *mut ffi::EVP_CIPHER_CTX {
        let raw = self.0.as_ptr();
        std::mem::forget(self);
        raw
    }

    /// Takes ownership back.
    ///
    /// # Safety
    ///
    /// The pointer is null or from [`into_raw`](Self::into_raw), and this is its only use.
    pub unsafe fn from_raw(raw: *mut ffi::EVP_CIPHER_CTX) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }
}

/// The most that the library takes at once: its lengths are `int`s. A multiple of every block.
const MOST: usize = 1 << 30;

/// # Safety
///
/// None: the functions return the address of a constant.
unsafe fn cipher(kind: Kind, key_len: usize) -> *const ffi::EVP_CIPHER {
    // SAFETY: as said.
    unsafe {
        match (kind, key_len) {
            (Kind::Ecb, 16) => ffi::EVP_aes_128_ecb(),
            (Kind::Ecb, 24) => ffi::EVP_aes_192_ecb(),
            (Kind::Ecb, 32) => ffi::EVP_aes_256_ecb(),
            (Kind::Gcm, 16) => ffi::EVP_aes_128_gcm(),
            (Kind::Gcm, 24) => ffi::EVP_aes_192_gcm(),
            (Kind::Gcm, 32) => ffi::EVP_aes_256_gcm(),
            (Kind::Xts256, 64) => ffi::EVP_aes_256_xts(),
            (Kind::ChaCha, 32) => ffi::EVP_chacha20_poly1305(),
            _ => unreachable!("the length of a key is checked before"),
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: this is the only owner. Frees the context and what hangs on it, wiped.
        unsafe { ffi::EVP_CIPHER_CTX_free(self.0.as_ptr()) }
    }
}
