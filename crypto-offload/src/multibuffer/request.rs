//! One encryption: a key, an initialisation vector, and where the bytes come from and go to.
#![expect(unsafe_code, reason = "names memory that whoever makes a request vouches for")]

use std::fmt;
use std::ptr::NonNull;

use super::cursor::Cursor;
use super::{BLOCK, Block, CbcKey};
use crate::engine::Ranges;

/// A request to encrypt: plain data, for one call of [`Machine::encrypt`](super::Machine::encrypt).
pub struct Request {
    key: NonNull<CbcKey>,
    chain: Block,
    cursor: Cursor,
}

// SAFETY: plain data: keys are `Sync`, and the lists are followed under the contract of `new` only, which says nothing of
// threads.
unsafe impl Send for Request {}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({} bytes)", self.remaining())
    }
}

impl Request {
    /// Encrypts `src` to `dst`; `None` if they have not the same length, or it is no multiple of 16.
    ///
    /// `dst` may be `src` itself. If the two overlap in any other way, the result may be anything, and nothing else is
    /// written to.
    ///
    /// # Safety
    /// Until the request was encrypted, or dropped, the key stays where it is, and so do the lists that the ranges
    /// were made of, unchanged.
    #[inline]
    pub unsafe fn new(key: &CbcKey, iv: [u8; BLOCK], src: &Ranges, dst: &Ranges) -> Option<Self> {
        if src.len() != dst.len() || !src.len().is_multiple_of(BLOCK) {
            return None;
        }
        // SAFETY: the caller's promise; the lengths are equal (just checked).
        let cursor = unsafe { Cursor::new(src, dst) };
        Some(Self { key: NonNull::from(key), chain: Block(iv), cursor })
    }

    /// Bytes still to encrypt: all before the call of `encrypt`, none after.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.cursor.remaining()
    }

    /// The last block of ciphertext so far; before the first, the initialisation vector.
    pub fn chain(&self) -> [u8; BLOCK] {
        self.chain.0
    }

    #[inline]
    pub(super) fn key(&self) -> &CbcKey {
        // SAFETY: it is where it was: a promise of `new`.
        unsafe { self.key.as_ref() }
    }

    #[inline]
    pub(super) fn parts(&mut self) -> (&CbcKey, &mut Block, &mut Cursor) {
        // SAFETY: as in `key`.
        (unsafe { self.key.as_ref() }, &mut self.chain, &mut self.cursor)
    }
}
