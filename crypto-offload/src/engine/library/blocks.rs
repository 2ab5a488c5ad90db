//! Block ciphers over ranges whose pieces do not end where blocks do.

#![expect(unsafe_code, reason = "works on raw memory under the contract of Engine::submit")]

use crate::engine::{Cursor, Ranges};

/// Bytes of a block.
pub(super) const BLOCK: usize = 16;

/// Calls `cipher(from, to, bytes)` for runs of whole blocks from the first to the last of `src`; a block that lies in
/// several pieces goes through private memory. Both ranges have the same length, a multiple of the block's.
///
/// # Safety
///
/// The lists that the ranges were made of are there, and so is the memory, readable in `src` and writable in `dst`.
#[inline]
pub(super) unsafe fn for_blocks(
    src: &Ranges,
    dst: &Ranges,
    mut cipher: impl FnMut(*const u8, *mut u8, usize),
) {
    // SAFETY: the caller's promise, here and below.
    let (mut from, mut to) = unsafe { (Cursor::new(src), Cursor::new(dst)) };
    let mut left = src.len().min(dst.len());
    while left >= BLOCK {
        let run = from.together().min(to.together()).min(left) & !(BLOCK - 1);
        if run > 0 {
            cipher(from.take(run), to.take(run), run);
            left -= run;
        } else {
            let mut block = [0; BLOCK];
            // SAFETY: as above.
            unsafe { from.read(&mut block) };
            let place = (&raw mut block).cast::<u8>();
            cipher(place, place, BLOCK);
            // SAFETY: as above.
            unsafe { to.write(&block) };
            left -= BLOCK;
        }
    }
}
