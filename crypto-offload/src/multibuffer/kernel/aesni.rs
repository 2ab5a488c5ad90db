//! Eight lanes in eight vectors of 128 bits: as many as hide the latency of the AES instructions behind their
//! throughput on CPUs that start two a cycle.
#![expect(unsafe_code, reason = "vector instructions on raw ranges of guest memory")]

use std::arch::x86_64::*;

use super::super::table::Table;
use super::super::{BLOCK, Block, KeySize};
use super::{Kernel, Keys, opaque};

/// Lanes of a call.
pub(in super::super) const LANES: usize = 8;

/// The kernel for CPUs with AES-NI.
pub(in super::super) struct AesNi;

impl AesNi {
    /// Whether this CPU has the instructions.
    pub(in super::super) fn is_available() -> bool {
        is_x86_feature_detected!("aes")
    }
}

impl Kernel<LANES> for AesNi {
    #[inline]
    unsafe fn run(table: &mut Table<LANES>, keys: Keys<'_>, size: KeySize, blocks: usize) {
        // SAFETY: the caller's promises, handed on.
        unsafe {
            match (keys, size) {
                (Keys::Shared(keys), KeySize::Aes128) => encrypt::<10, true>(table, keys.as_ptr(), blocks),
                (Keys::Shared(keys), KeySize::Aes192) => encrypt::<12, true>(table, keys.as_ptr(), blocks),
                (Keys::Shared(keys), KeySize::Aes256) => encrypt::<14, true>(table, keys.as_ptr(), blocks),
                (Keys::PerLane, KeySize::Aes128) => encrypt::<10, false>(table, columns(table), blocks),
                (Keys::PerLane, KeySize::Aes192) => encrypt::<12, false>(table, columns(table), blocks),
                (Keys::PerLane, KeySize::Aes256) => encrypt::<14, false>(table, columns(table), blocks),
            }
        }
    }
}

fn columns(table: &Table<LANES>) -> *const Block {
    table.keys.as_ptr().cast()
}

/// # Safety
/// As for [`Kernel::run`]; `keys` are `ROUNDS + 1` round keys, or as many rows of the table if not `SHARED`.
#[target_feature(enable = "aes")]
unsafe fn encrypt<const ROUNDS: usize, const SHARED: bool>(
    table: &mut Table<LANES>,
    keys: *const Block,
    blocks: usize,
) {
    let chain = table.chain.as_mut_ptr().cast::<__m128i>();
    // SAFETY: the row of chain blocks is `LANES` aligned vectors.
    let mut state: [__m128i; LANES] = std::array::from_fn(|lane| unsafe { _mm_load_si128(chain.add(lane)) });
    for block in 0..blocks {
        let offset = block * BLOCK;
        let keys = opaque(keys);
        let key = |round: usize, lane: usize| {
            let index = if SHARED { round } else { round * LANES + lane };
            // SAFETY: the caller's promise for the keys; blocks are aligned as vectors are.
            unsafe { _mm_load_si128(keys.add(index).cast()) }
        };
        for (lane, state) in state.iter_mut().enumerate() {
            // SAFETY: the caller's promise: the lane can be read for `blocks` blocks.
            let input = unsafe { _mm_loadu_si128(table.src[lane].wrapping_add(offset).cast()) };
            *state = _mm_xor_si128(*state, _mm_xor_si128(input, key(0, lane)));
        }
        for round in 1..ROUNDS {
            for (lane, state) in state.iter_mut().enumerate() {
                *state = _mm_aesenc_si128(*state, key(round, lane));
            }
        }
        for (lane, state) in state.iter_mut().enumerate() {
            *state = _mm_aesenclast_si128(*state, key(ROUNDS, lane));
            // SAFETY: the caller's promise: the lane can be written for `blocks` blocks.
            unsafe { _mm_storeu_si128(table.dst[lane].wrapping_add(offset).cast(), *state) };
        }
    }
    for (lane, state) in state.into_iter().enumerate() {
        // SAFETY: as where it was loaded.
        unsafe { _mm_store_si128(chain.add(lane), state) };
    }
}
