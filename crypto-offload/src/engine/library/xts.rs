//! XTS (IEEE 1619) where the library's own is not enough: it has no AES-128, and wants all data in one piece.

#![expect(unsafe_code, reason = "works on raw memory under the contract of Engine::submit")]

use super::aws::{AesKey, Context, Failed};
use super::blocks::BLOCK;
use crate::algorithm::Direction;
use crate::engine::{Cursor, Ranges};
use crate::keys::LockedBox;

/// The tweak of a block: an element of GF(2^128), least significant byte first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tweak(u128);

impl Tweak {
    fn new(bytes: [u8; BLOCK]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }

    /// That of the block `blocks` further on: this one times α as often.
    fn skip(self, mut blocks: usize) -> Self {
        let mut tweak = self;
        while blocks > 0 {
            let step = blocks.min(64);
            tweak = tweak.times_alpha(step as u32);
            blocks -= step;
        }
        tweak
    }

    /// Times α to the power of 1 to 64. What is shifted out comes back times x^7 + x^2 + x + 1.
    #[inline]
    fn times_alpha(self, power: u32) -> Self {
        let out = self.0 >> (128 - power);
        Self(self.0 << power ^ out ^ out << 1 ^ out << 2 ^ out << 7)
    }

    fn apply(self, block: &mut [u8; BLOCK]) {
        *block = (u128::from_le_bytes(*block) ^ self.0).to_le_bytes();
    }
}

/// Ciphers `src`, a block or more, to `dst`, which has the same length, with a context that does whole messages in one
/// piece. Each run of blocks that lies together is a message to it, with the initialisation vector that leads to the
/// right tweak: `tweaks` encrypts and decrypts these.
///
/// # Safety
///
/// The lists that the ranges were made of are there, and so is the memory, readable in `src` and writable in `dst`.
pub(super) unsafe fn by_pieces(
    context: &mut Context,
    tweaks: &[LockedBox<AesKey>; 2],
    mut iv: [u8; BLOCK],
    src: &Ranges,
    dst: &Ranges,
) -> Result<(), Failed> {
    // SAFETY: the caller's promise, here and below.
    let (mut from, mut to) = unsafe { (Cursor::new(src), Cursor::new(dst)) };
    tweaks[0].encrypt_block(&mut iv);
    let mut tweak = Tweak::new(iv);
    let mut begin = |context: &mut Context, blocks: usize| {
        let mut iv = tweak.0.to_le_bytes();
        tweaks[1].decrypt_block(&mut iv);
        tweak = tweak.skip(blocks);
        context.set_iv(&iv)
    };
    let mut left = whole_blocks(src.len()) * BLOCK;
    while left > 0 {
        let run = from.together().min(to.together()).min(left) & !(BLOCK - 1);
        begin(context, run.max(BLOCK) / BLOCK)?;
        // SAFETY: as above.
        unsafe {
            if run > 0 {
                context.update(from.take(run), to.take(run), run)?;
            } else {
                aside(context, &mut from, &mut to, BLOCK)?;
            }
        }
        left -= run.max(BLOCK);
    }
    match src.len() % BLOCK {
        0 => Ok(()),
        tail => {
            begin(context, 1)?;
            // SAFETY: as above.
            unsafe { aside(context, &mut from, &mut to, BLOCK + tail) }
        }
    }
}

/// Ciphers the next `len` bytes, two blocks at most, through private memory.
///
/// # Safety
///
/// As for [`by_pieces`].
unsafe fn aside(context: &mut Context, from: &mut Cursor, to: &mut Cursor, len: usize) -> Result<(), Failed> {
    let mut buffer = [0u8; 2 * BLOCK];
    let part = &mut buffer[..len];
    let start = part.as_mut_ptr();
    // SAFETY: the caller's promise; the buffer is private.
    unsafe {
        from.read(part);
        context.update(start, start, len)?;
        to.write(part);
    }
    Ok(())
}

/// How many blocks come before the end, which is a block and a part of one, or nothing.
fn whole_blocks(len: usize) -> usize {
    len / BLOCK - usize::from(!len.is_multiple_of(BLOCK))
}

/// Blocks that are worked on at a time.
const CHUNK: usize = 64;

/// Ciphers `src`, a block or more, to `dst`, which has the same length. `blocks` encrypts or decrypts blocks with the
/// first key; `tweak` was encrypted with the second.
///
/// # Safety
///
/// As for [`by_pieces`].
pub(super) unsafe fn by_blocks(
    blocks: &mut Context,
    direction: Direction,
    tweak: [u8; BLOCK],
    src: &Ranges,
    dst: &Ranges,
) -> Result<(), Failed> {
    // SAFETY: the caller's promise, here and below.
    let (mut from, mut to) = unsafe { (Cursor::new(src), Cursor::new(dst)) };
    let mut tweak = Tweak::new(tweak);
    let mut left = whole_blocks(src.len());
    let mut buffer = [[0u8; BLOCK]; CHUNK];
    let mut tweaks = [tweak; CHUNK];
    while left > 0 {
        let chunk = &mut buffer[..left.min(CHUNK)];
        fill(&mut tweaks[..chunk.len()], tweak);
        tweak = tweaks[chunk.len() - 1].times_alpha(1);
        // SAFETY: as above.
        unsafe { from.read(chunk.as_flattened_mut()) };
        apply(chunk, &tweaks);
        encipher(blocks, chunk)?;
        apply(chunk, &tweaks);
        // SAFETY: as above.
        unsafe { to.write(chunk.as_flattened()) };
        left -= chunk.len();
    }
    let tail = src.len() % BLOCK;
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

/// The tweaks from `first` on. Each comes from the one eight before it, so that eight can be made at a time.
fn fill(tweaks: &mut [Tweak], first: Tweak) {
    const STRIDE: usize = 8;
    let (start, rest) = tweaks.split_at_mut(STRIDE.min(tweaks.len()));
    start[0] = first;
    for i in 1..start.len() {
        start[i] = start[i - 1].times_alpha(1);
    }
    let mut before: [Tweak; STRIDE] = std::array::from_fn(|i| start[i % start.len()]);
    for part in rest.chunks_mut(STRIDE) {
        before = before.map(|tweak| tweak.times_alpha(STRIDE as u32));
        part.copy_from_slice(&before[..part.len()]);
    }
}

fn apply(chunk: &mut [[u8; BLOCK]], tweaks: &[Tweak]) {
    chunk.iter_mut().zip(tweaks).for_each(|(block, tweak)| tweak.apply(block));
}

/// Ciphertext stealing (IEEE 1619 §5.3.2, §5.4.2): the last whole block and the bytes behind it, `end`. The block is
/// ciphered, gives up its tail to fill the short block, and takes that one's place. `tweak` is the block's; decryption
/// uses it second.
fn steal(blocks: &mut Context, direction: Direction, tweak: Tweak, end: &mut [u8]) -> Result<(), Failed> {
    let next = tweak.times_alpha(1);
    let [first, second] = match direction {
        Direction::Encrypt => [tweak, next],
        Direction::Decrypt => [next, tweak],
    };
    let (block, short) = end.split_first_chunk_mut::<BLOCK>().expect("a block or more");
    one(blocks, first, block)?;
    let mut filled = *block;
    filled[..short.len()].copy_from_slice(short);
    short.copy_from_slice(&block[..short.len()]);
    one(blocks, second, &mut filled)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tweaks_of_a_row_follow_one_another() {
        for len in 1..CHUNK {
            let mut tweaks = [Tweak(0); CHUNK];
            fill(&mut tweaks[..len], Tweak(u128::MAX / 3));
            for (i, tweak) in tweaks[..len].iter().enumerate() {
                assert_eq!(*tweak, Tweak(u128::MAX / 3).skip(i));
            }
        }
    }

    #[test]
    fn skipping_is_going_step_by_step() {
        let start = Tweak(0x8765_4321_0fed_cba9_8765_4321_0fed_cba9);
        let mut step = start;
        for blocks in 0..300 {
            assert_eq!(start.skip(blocks), step, "{blocks}");
            // IEEE 1619 §5.2: shift by one bit; the bit that falls out is 0x87.
            step = Tweak(step.0 << 1 ^ if step.0 >> 127 == 1 { 0x87 } else { 0 });
        }
    }
}
