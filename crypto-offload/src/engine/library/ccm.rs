//! AES-CCM (NIST SP 800-38C) on counter mode and CBC-MAC, over ranges of any shape.

#![expect(unsafe_code, reason = "works on raw memory under the contract of Engine::submit")]

use super::aws::{AesKey, Counter, equal};
use super::blocks::BLOCK;
use crate::algorithm::{Direction, MAX_TAG};
use crate::engine::{Cursor, Outcome, Pairs, Ranges, Tag};

/// A CBC-MAC in the making: the last block of ciphertext.
struct Mac<'k> {
    key: &'k AesKey,
    state: [u8; BLOCK],
}

/// A message.
pub(super) struct Message<'a> {
    /// Seven to thirteen bytes.
    pub nonce: &'a [u8],
    pub aad: &'a [u8],
    pub src: Ranges,
    pub dst: Ranges,
    pub tag: Tag,
    pub tag_len: usize,
}

/// Encrypts or decrypts with a key that was expanded for encryption.
///
/// # Safety
///
/// The lists that the ranges were made of are there, and so is the memory, readable in `src` and writable in `dst`
/// and the place of the tag.
pub(super) unsafe fn cipher(key: &AesKey, message: &Message<'_>) -> Outcome {
    let Message { nonce, aad, src, dst, tag, tag_len } = *message;
    if !fits(nonce.len(), src.len()) {
        return Outcome::Error;
    }
    let first = first_block(nonce, !aad.is_empty(), src.len(), tag_len);
    let mut mac = Mac::new(key, first);
    mac.aad(aad);
    // SAFETY: the caller's promise, here and below.
    unsafe {
        match tag {
            Tag::Write(place) => {
                mac.text(&src);
                count(key, nonce, &src, &dst);
                place.write(0, &mac.tag(nonce)[..tag_len]);
            }
            Tag::Check(expected) => {
                count(key, nonce, &src, &dst);
                mac.text(&dst);
                if !equal(&mac.tag(nonce)[..tag_len], &expected[..tag_len]) {
                    dst.wipe();
                    return Outcome::BadMessage;
                }
            }
        }
    }
    Outcome::Done { written: src.len() as u32 }
}

/// Whether the message's length can be said in the bytes that the nonce leaves for it.
fn fits(nonce_len: usize, len: usize) -> bool {
    let bytes = BLOCK - 1 - nonce_len;
    bytes >= size_of::<usize>() || len < 1 << (8 * bytes)
}

/// The first block of the MAC (SP 800-38C §A.2.1): flags, nonce and length.
fn first_block(nonce: &[u8], has_aad: bool, len: usize, tag_len: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let len_bytes = BLOCK - 1 - nonce.len();
    block[BLOCK - 8..].copy_from_slice(&(len as u64).to_be_bytes());
    block[0] = u8::from(has_aad) << 6 | (((tag_len - 2) / 2) << 3) as u8 | (len_bytes - 1) as u8;
    // Where the nonce is long, it takes the place of leading zeros: the length fits the rest.
    block[1..=nonce.len()].copy_from_slice(nonce);
    block
}

/// The counter block with this number (SP 800-38C §A.3); the others follow by counting.
fn counter_block(nonce: &[u8], number: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[0] = (BLOCK - 1 - nonce.len() - 1) as u8;
    block[1..=nonce.len()].copy_from_slice(nonce);
    block[BLOCK - 1] = number;
    block
}

/// Counter mode from block 1 on.
///
/// # Safety
///
/// As for [`cipher`].
unsafe fn count(key: &AesKey, nonce: &[u8], src: &Ranges, dst: &Ranges) {
    let mut counter = Counter::new(counter_block(nonce, 1));
    // SAFETY: the caller's promise.
    unsafe { Pairs::new(src, dst).for_each(|(from, to, len)| key.ctr(&mut counter, from, to, len)) }
}

impl<'k> Mac<'k> {
    fn new(key: &'k AesKey, mut first: [u8; BLOCK]) -> Self {
        key.encrypt_block(&mut first);
        Self { key, state: first }
    }

    /// Associated data with its length before it, filled up with zeros (SP 800-38C §A.2.2).
    fn aad(&mut self, aad: &[u8]) {
        if aad.is_empty() {
            return;
        }
        let mut block = [0; BLOCK];
        let head = match aad.len() {
            len @ 0..0xff00 => {
                block[..2].copy_from_slice(&(len as u16).to_be_bytes());
                2
            }
            len => {
                block[..2].copy_from_slice(&[0xff, 0xfe]);
                block[2..6].copy_from_slice(&(len as u32).to_be_bytes());
                6
            }
        };
        let (start, rest) = aad.split_at(aad.len().min(BLOCK - head));
        block[head..head + start.len()].copy_from_slice(start);
        self.block(block);
        for part in rest.chunks(BLOCK) {
            let mut block = [0; BLOCK];
            block[..part.len()].copy_from_slice(part);
            self.block(block);
        }
    }

    /// The text, filled up with zeros.
    ///
    /// # Safety
    ///
    /// The list that the ranges were made of is there, and so is the memory.
    unsafe fn text(&mut self, text: &Ranges) {
        // SAFETY: the caller's promise, here and below.
        let mut cursor = unsafe { Cursor::new(text) };
        let mut left = text.len();
        while left > 0 {
            let run = cursor.together() & !(BLOCK - 1);
            if run > 0 {
                // SAFETY: as above.
                unsafe { self.run(cursor.take(run), run) };
                left -= run;
            } else {
                let mut block = [0; BLOCK];
                // SAFETY: as above.
                left -= unsafe { cursor.read(&mut block) };
                self.block(block);
            }
        }
    }

    /// Whole blocks: CBC encryption, of which only the last block is kept.
    ///
    /// # Safety
    ///
    /// `len` bytes can be read there.
    unsafe fn run(&mut self, from: *const u8, len: usize) {
        let mut sink = [0u8; 512];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(sink.len());
            let to = sink.as_mut_ptr();
            // SAFETY: the caller's promise; the sink is private, and as large.
            unsafe { self.key.cbc(Direction::Encrypt, &mut self.state, from.add(done), to, now) };
            done += now;
        }
    }

    fn block(&mut self, block: [u8; BLOCK]) {
        self.state.iter_mut().zip(block).for_each(|(state, byte)| *state ^= byte);
        self.key.encrypt_block(&mut self.state);
    }

    /// The MAC, encrypted with counter block 0.
    fn tag(mut self, nonce: &[u8]) -> [u8; MAX_TAG] {
        let mut pad = counter_block(nonce, 0);
        self.key.encrypt_block(&mut pad);
        self.state.iter_mut().zip(pad).for_each(|(state, byte)| *state ^= byte);
        self.state
    }
}
