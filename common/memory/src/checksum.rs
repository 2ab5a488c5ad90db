//! The sum that Internet checksums are made of (RFC 1071).

#![expect(unsafe_code, reason = "reads guest memory")]

use std::sync::atomic::{Ordering, compiler_fence};

use crate::slice::GuestSlice;

/// The sum of `bytes` as 16-bit words in native order, an odd last byte followed by a zero: not folded, but congruent
/// modulo 0xffff to it, and 0 only when all bytes are 0.
#[inline]
pub fn checksum(bytes: &[u8]) -> u64 {
    // SAFETY: the bytes are ours to read.
    unsafe { sum(bytes.as_ptr(), bytes.len()) }
}

impl GuestSlice<'_> {
    /// [`checksum`] of `len` bytes from `offset` on. The guest may change them meanwhile: the sum is then of no use to
    /// anybody, and harms nobody.
    ///
    /// # Panics
    /// When they reach past the end: a mistake of the caller, who knows the length.
    #[inline]
    pub fn checksum(&self, offset: usize, len: usize) -> u64 {
        let start = self.start_of(offset, len);
        // SAFETY: `start_of`: the bytes are inside the slice.
        unsafe { sum(start, len) }
    }
}

/// # Safety
/// `len` bytes from `start` on are valid for reads.
#[inline]
unsafe fn sum(start: *const u8, len: usize) -> u64 {
    // SAFETY: handed on to the caller.
    let sum = unsafe { scalar(start, len) };
    compiler_fence(Ordering::SeqCst);
    sum
}

/// # Safety
/// `len` bytes from `start` on are valid for reads.
#[inline]
unsafe fn scalar(start: *const u8, len: usize) -> u64 {
    let words = len / 4;
    let mut sum = 0;
    for word in 0..words {
        // SAFETY: the word is among the `len` bytes.
        sum += u64::from(unsafe { start.add(word * 4).cast::<u32>().read_unaligned() });
    }
    let mut last = [0; 4];
    for (at, byte) in last.iter_mut().enumerate().take(len % 4) {
        // SAFETY: the byte is among the `len` bytes.
        *byte = unsafe { start.add(words * 4 + at).read() };
    }
    sum + u64::from(u32::from_ne_bytes(last))
}
