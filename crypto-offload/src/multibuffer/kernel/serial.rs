//! One lane: for a request that is alone, and for pieces too short to make other lanes wait.
#![expect(unsafe_code, reason = "vector instructions on raw ranges of guest memory")]

use super::super::cursor::Run;
use super::super::{BLOCK, Block, CbcKey};

/// Encrypts `run`; `chain` is the block of ciphertext before it and becomes its last one.
///
/// # Safety
/// The blocks of the run can be read and written. They may change meanwhile; what is then encrypted is anything.
pub(in super::super) unsafe fn encrypt(key: &CbcKey, chain: &mut Block, run: Run) {
    // SAFETY: the caller's promises; a key has round keys only if the CPU has AES instructions.
    unsafe {
        if let Some(schedule) = key.library() {
            return schedule.encrypt(chain, run.src, run.dst, run.blocks * BLOCK);
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(round_keys) = key.round_keys() {
            use super::super::KeySize;
            return match key.size() {
                KeySize::Aes128 => aesni::encrypt::<10>(round_keys, chain, run),
                KeySize::Aes192 => aesni::encrypt::<12>(round_keys, chain, run),
                KeySize::Aes256 => aesni::encrypt::<14>(round_keys, chain, run),
            };
        }
    }
    unreachable!("a key has the one form or the other");
}

/// Encrypts one block that is private, in place.
pub(in super::super) fn encrypt_block(key: &CbcKey, chain: &mut Block, block: &mut Block) {
    let at = block.0.as_mut_ptr();
    // SAFETY: one block of our own, in place.
    unsafe { encrypt(key, chain, Run { src: at, dst: at, blocks: 1 }) }
}

#[cfg(target_arch = "x86_64")]
mod aesni {
    use std::arch::x86_64::*;

    use super::super::super::key::MAX_ROUND_KEYS;
    use super::super::super::{BLOCK, Block};
    use super::super::opaque;
    use super::Run;

    /// The latency of a block is all that counts here, so the chain has nothing but the rounds: the last round adds,
    /// with its key, the next block of plaintext and that block's first round key. The ciphertext is what remains
    /// when both are taken off again, beside the chain.
    ///
    /// # Safety
    /// As for [`super::encrypt`], on a CPU with AES-NI.
    #[target_feature(enable = "aes")]
    pub(super) unsafe fn encrypt<const ROUNDS: usize>(
        round_keys: &[Block; MAX_ROUND_KEYS],
        chain: &mut Block,
        run: Run,
    ) {
        // SAFETY: called for the round keys up to the last one; blocks are aligned as vectors are.
        let key = |keys: *const Block, round: usize| unsafe { _mm_load_si128(keys.add(round).cast()) };
        // SAFETY: called for the blocks of the run, which the caller vouches for.
        let read = |block: usize| unsafe { _mm_loadu_si128(run.src.add(block * BLOCK).cast()) };
        // SAFETY: as above.
        let write = |at: usize, block| unsafe { _mm_storeu_si128(run.dst.add(at * BLOCK).cast(), block) };

        if run.blocks == 0 {
            return;
        }
        let last = run.blocks - 1;
        let mut keys = round_keys.as_ptr();
        // SAFETY: the chain is an aligned block.
        let mut state = unsafe { _mm_load_si128((&raw const *chain).cast()) };
        state = _mm_xor_si128(state, _mm_xor_si128(read(0), key(keys, 0)));
        for block in 0..last {
            keys = opaque(keys);
            for round in 1..ROUNDS {
                state = _mm_aesenc_si128(state, key(keys, round));
            }
            let next = _mm_xor_si128(read(block + 1), key(keys, 0));
            state = _mm_aesenclast_si128(state, _mm_xor_si128(next, key(keys, ROUNDS)));
            write(block, _mm_xor_si128(state, next));
        }
        for round in 1..ROUNDS {
            state = _mm_aesenc_si128(state, key(keys, round));
        }
        let state = _mm_aesenclast_si128(state, key(keys, ROUNDS));
        write(last, state);
        // SAFETY: the chain is an aligned block.
        unsafe { _mm_store_si128((&raw mut *chain).cast(), state) };
    }
}
