//! XTS (IEEE 1619) over ranges of any shape, on the block cipher alone: for what the library's own XTS does not do, which
//! is AES-128, and data in several pieces.

#![expect(unsafe_code, reason = "works on raw memory under the contract of Engine::submit")]

use super::aws::{Context, Failed};
use super::blocks::BLOCK;
use crate::algorithm::Direction;
use crate::engine::{Cursor, Ranges};

/// Blocks that are worked on at a time.
const CHUNK: usize = 32;

/// The tweak of a block: an element of GF(2^128), least significant byte first.
#[derive(Clone, Copy)]
struct Tweak(u128);

impl Tweak {
    /// That of the next block: this one times α.
    fn next(self) -> Self {
        let carry = (self.0 >> 127) * 0x87;
        Self(self.0 << 1 ^ carry)
    }

    fn apply(self, block: &mut [u8; BLOCK]) {
        *block = (u128::from_le_bytes(*block) ^ self.0).to_le_bytes();
    }
}

/// Ciphers `src`, a block or more, to `dst`, which has the same length. `blocks` encrypts or decrypts blocks with the first
/// key; `tweak` was encrypted with the second.
///
/// # Safety
///
/// The lists that the ranges were made of are there, and so is the memory, readable in `src` and writable in `dst`.
pub(super) unsafe fn cipher(
    blocks: &mut Context,
    direction: Direction,
    tweak: [u8; BLOCK],
    src: &Ranges,
    dst: &Ranges,
) -> Result<(), Failed> {
    // SAFETY: the caller's promise, here and below.
    let (mut from, mut to) = unsafe { (Cursor::new(src), Cursor::new(dst)) };
    let mut tweak = Tweak(u128::from_le_bytes(tweak));
    let tail = src.len() % BLOCK;
    // The last whole block is part of the end if there is one.
    let mut left = src.len() / BLOCK - usize::from(tail > 0);
    let mut buffer = [[0u8; BLOCK]; CHUNK];
    while left > 0 {
        let chunk = &mut buffer[..left.min(CHUNK)];
        // SAFETY: as above.
        unsafe { from.read(chunk.as_flattened_mut()) };
        let first = tweak;
        tweak = apply(chunk, first);
        encipher(blocks, chunk)?;
        apply(chunk, first);
        // SAFETY: as above.
        unsafe { to.write(chunk.as_flattened()) };
        left -= chunk.len();
    }
    if tail > 0 {
        let end = &mut buffer.as_flattened_mut()[..BLOCK + tail];
        // SAFETY: as above.
        unsafe { from.read(end) };
        steal(blocks, direction, tweak, end)?;
        // SAFETY: as above.
        unsafe { to.write(end) };
    }
    Ok(())
}

/// Applies the tweaks from `tweak` on; returns the one after the last.
fn apply(chunk: &mut [[u8; BLOCK]], mut tweak: Tweak) -> Tweak {
    for block in chunk {
        tweak.apply(block);
        tweak = tweak.next();
    }
    tweak
}

/// Ciphertext stealing (IEEE 1619 §5.3.2, §5.4.2): the last whole block and the bytes behind it, `end`. The block is
/// ciphered, gives up its tail to fill the short block, and takes that one's place. `tweak` is the block's; decryption
/// uses it second.
fn steal(blocks: &mut Context, direction: Direction, tweak: Tweak, end: &mut [u8]) -> Result<(), Failed> {
    let tweaks = match direction {
        Direction::Encrypt => [tweak, tweak.next()],
        Direction::Decrypt => [tweak.next(), tweak],
    };
    let (block, short) = end.split_first_chunk_mut::<BLOCK>().expect("a block or more");
    one(blocks, tweaks[0], block)?;
    let mut filled = *block;
    filled[..short.len()].copy_from_slice(short);
    short.copy_from_slice(&block[..short.len()]);
    one(blocks, tweaks[1], &mut filled)?;
    *block = filled;
    Ok(())
}

fn one(blocks: &mut Context, tweak: Tweak, block: &mut [u8; BLOCK]) -> Result<(), Failed> {
    tweak.apply(block);
    encipher(blocks, std::slice::from_mut(block))?;
    tweak.apply(block);
    Ok(())
}

fn encipher(blocks: &mut Context, chunk: &mut [[u8; BLOCK]]) -> Result<(), Failed> {
    let place = chunk.as_flattened_mut();
    let (start, len) = (place.as_mut_ptr(), place.len());
    // SAFETY: private memory, in place.
    unsafe { blocks.update(start, start, len) }
}
