//! Hashes and HMAC, with states that are plain data: begun without an allocation.

#![expect(unsafe_code, reason = "calls AWS-LC")]

use super::start;
use crate::algorithm::{Hash, MAX_DIGEST};
use crate::keys::{LockedBox, NoMemory, Plain};
use aws_lc_sys as ffi;
use std::mem::MaybeUninit;
use std::ptr;

/// The key of an HMAC, already run through both hashes. Copied for each message.
#[repr(transparent)]
pub struct HmacKey(ffi::HMAC_CTX);

// SAFETY: a zeroed `HMAC_CTX` is what `HMAC_CTX_init` makes: null pointers and numbers.
unsafe impl Plain for HmacKey {}
// SAFETY: it points at constants of the library only, and is never changed after `new`.
unsafe impl Send for HmacKey {}
// SAFETY: as above.
unsafe impl Sync for HmacKey {}

impl HmacKey {
    /// Of a key of any length.
    pub fn new(hash: Hash, key: &[u8]) -> Result<LockedBox<Self>, NoMemory> {
        start()?;
        let mut expanded = LockedBox::<Self>::zeroed()?;
        // A null pointer would mean the key of before.
        let start = if key.is_empty() { [0u8].as_ptr() } else { key.as_ptr() };
        // SAFETY: the context is initialised, and the key has as many bytes; no engine.
        let result = unsafe {
            let md = match hash {
                Hash::Sha1 => ffi::EVP_sha1(),
                Hash::Sha224 => ffi::EVP_sha224(),
                Hash::Sha256 => ffi::EVP_sha256(),
                Hash::Sha384 => ffi::EVP_sha384(),
                Hash::Sha512 => ffi::EVP_sha512(),
            };
            ffi::HMAC_Init_ex(&raw mut expanded.0, start.cast(), key.len(), md, ptr::null_mut())
        };
        assert_eq!(result, 1, "HMAC takes any key");
        Ok(expanded)
    }
}

/// A hash or HMAC in the middle of a message.
#[expect(
    clippy::large_enum_variant,
    reason = "it lives on the stack for one request, which must not allocate"
)]
pub enum Running {
    Sha1(ffi::SHA_CTX),
    Sha224(ffi::SHA256_CTX),
    Sha256(ffi::SHA256_CTX),
    Sha384(ffi::SHA512_CTX),
    Sha512(ffi::SHA512_CTX),
    Hmac(ffi::HMAC_CTX),
}

/// A state that one of the library's `Init` functions filled in.
macro_rules! begun {
    ($init:ident) => {{
        let mut state = MaybeUninit::zeroed();
        // SAFETY: the function fills in all of the state, which is an array of numbers.
        unsafe {
            ffi::$init(state.as_mut_ptr());
            state.assume_init()
        }
    }};
}

impl Running {
    /// A plain hash.
    pub fn hash(hash: Hash) -> Self {
        match hash {
            Hash::Sha1 => Self::Sha1(begun!(SHA1_Init)),
            Hash::Sha224 => Self::Sha224(begun!(SHA224_Init)),
            Hash::Sha256 => Self::Sha256(begun!(SHA256_Init)),
            Hash::Sha384 => Self::Sha384(begun!(SHA384_Init)),
            Hash::Sha512 => Self::Sha512(begun!(SHA512_Init)),
        }
    }

    /// An HMAC.
    pub fn hmac(key: &HmacKey) -> Self {
        Self::Hmac(key.0)
    }

    /// More of the message.
    ///
    /// # Safety
    ///
    /// `len` bytes can be read there.
    pub unsafe fn update(&mut self, from: *const u8, len: usize) {
        let data = from.cast();
        // SAFETY: the state was begun, and the caller promises the bytes. None of these functions can fail.
        unsafe {
            match self {
                Self::Sha1(state) => ffi::SHA1_Update(state, data, len),
                Self::Sha224(state) => ffi::SHA224_Update(state, data, len),
                Self::Sha256(state) => ffi::SHA256_Update(state, data, len),
                Self::Sha384(state) => ffi::SHA384_Update(state, data, len),
                Self::Sha512(state) => ffi::SHA512_Update(state, data, len),
                Self::Hmac(state) => ffi::HMAC_Update(state, from, len),
            };
        }
    }

    /// The digest, in the first bytes. There is nothing to be added afterwards.
    pub fn finish(&mut self) -> [u8; MAX_DIGEST] {
        let mut digest = [0; MAX_DIGEST];
        let place = digest.as_mut_ptr();
        // SAFETY: the state was begun, and no digest is longer than `MAX_DIGEST`. None of these functions can fail.
        unsafe {
            match self {
                Self::Sha1(state) => ffi::SHA1_Final(place, state),
                Self::Sha224(state) => ffi::SHA224_Final(place, state),
                Self::Sha256(state) => ffi::SHA256_Final(place, state),
                Self::Sha384(state) => ffi::SHA384_Final(place, state),
                Self::Sha512(state) => ffi::SHA512_Final(place, state),
                Self::Hmac(state) => ffi::HMAC_Final(state, place, ptr::null_mut()),
            };
        }
        digest
    }
}

impl Drop for Running {
    /// What HMAC's state says about the key does not stay on the stack.
    fn drop(&mut self) {
        if let Self::Hmac(state) = self {
            // SAFETY: wipes the state, which is plain data.
            unsafe { ffi::HMAC_CTX_cleanup(state) }
        }
    }
}
