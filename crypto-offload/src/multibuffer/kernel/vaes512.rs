//! Sixteen lanes in four vectors of 512 bits.
//!
//! The chain of one lane costs the latency of its rounds, about forty cycles a block; four vectors fill most of it.
//! What else is to be done must not lengthen the chain, and must fit into its gaps:
//!
//! - Memory is read and written a cache line at a time: four blocks of a lane, transposed so that a vector has one
//!   block of four lanes. Block by block, sixteen buffers that begin at page boundaries would compete for one set of
//!   the first cache sixteen times a line.
//! - The next tile (four blocks of sixteen lanes) is read and transposed while the present one is encrypted, and lies
//!   ready in the first cache: the out-of-order window is not deep enough to look ahead a tile by itself.
//! - Keys come from memory with each use: fifteen do not fit in registers beside the data.
#![expect(unsafe_code, reason = "vector instructions on raw ranges of guest memory")]

use std::arch::x86_64::*;

use super::super::table::Table;
use super::super::{BLOCK, Block, KeySize};
use super::{Kernel, Keys, opaque};

/// Lanes of a call.
pub(in super::super) const LANES: usize = 16;
/// Vectors of one block of every lane.
const VECTORS: usize = LANES / LANES_IN_VECTOR;
const LANES_IN_VECTOR: usize = 4;
/// Blocks of a lane in a cache line, which are read at once.
const TILE: usize = 4;
const TILE_BYTES: usize = TILE * BLOCK;
// With each block of a tile, one vector's part of the next tile is read.
const _: () = assert!(VECTORS == TILE);

/// Four blocks of each lane: `[vector][block]`.
type Tile = [[__m512i; TILE]; VECTORS];

/// A loop over the blocks of a tile, written out: the compiler does not unroll it by itself, and would keep the tiles
/// in memory to index them.
macro_rules! for_each_of_tile {
    ($block:ident => $body:block) => {{
        const _: () = assert!(TILE == 4);
        for_each_of_tile!(@ $block $body 0 1 2 3);
    }};
    (@ $block:ident $body:block $($index:literal)*) => {
        $({
            const $block: usize = $index;
            $body
        })*
    };
}

/// The kernel for CPUs with AVX-512F and VAES.
pub(in super::super) struct Vaes512;

impl Vaes512 {
    /// Whether this CPU has the instructions.
    pub(in super::super) fn is_available() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("aes")
    }
}

impl Kernel<LANES> for Vaes512 {
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
#[target_feature(enable = "avx512f,vaes,aes")]
unsafe fn encrypt<const ROUNDS: usize, const SHARED: bool>(
    table: &mut Table<LANES>,
    keys: *const Block,
    blocks: usize,
) {
    let chain = table.chain.as_mut_ptr().cast::<__m512i>();
    // SAFETY: the row of chain blocks is `VECTORS` aligned vectors; keys and buffers are as the caller promises: a
    // full tile is read and written only inside of `blocks`, and the rest of a tile under its mask.
    unsafe {
        let mut state = std::array::from_fn(|vector| _mm512_load_si512(chain.add(vector)));
        let full = blocks / TILE;
        if full > 0 {
            encrypt_tiles::<ROUNDS, SHARED>(table, &mut state, keys, full);
        }
        let rest = blocks % TILE;
        if rest > 0 {
            encrypt_rest::<ROUNDS, SHARED>(table, &mut state, keys, full * TILE_BYTES, rest);
        }
        for (vector, state) in state.into_iter().enumerate() {
            _mm512_store_si512(chain.add(vector), state);
        }
    }
}

/// # Safety
/// As for [`encrypt`], for `tiles` full tiles, at least one.
#[inline]
#[target_feature(enable = "avx512f,vaes,aes")]
unsafe fn encrypt_tiles<const ROUNDS: usize, const SHARED: bool>(
    table: &Table<LANES>,
    state: &mut [__m512i; VECTORS],
    keys: *const Block,
    tiles: usize,
) {
    let zero = _mm512_setzero_si512();
    let mut ready: Tile = std::array::from_fn(|vector| {
        // SAFETY: the first tile, of at least one.
        unsafe { read_lines::<true>(table, vector, 0, u8::MAX) }
    });
    for tile in 0..tiles {
        let offset = tile * TILE_BYTES;
        // After the last tile, it is read once more: cheaper than to ask.
        let next_offset = if tile + 1 < tiles { offset + TILE_BYTES } else { offset };
        let mut next: Tile = [[zero; TILE]; VECTORS];
        let mut out: Tile = [[zero; TILE]; VECTORS];
        for_each_of_tile!(BLOCK_OF_TILE => {
            let input = ready.map(|lanes| lanes[BLOCK_OF_TILE]);
            // SAFETY: the caller's promise for the keys.
            unsafe { encrypt_block::<ROUNDS, SHARED>(state, input, keys) };
            // A quarter of the next tile: one vector's lanes.
            // SAFETY: `next_offset` is that of a full tile.
            next[BLOCK_OF_TILE] = unsafe { read_lines::<true>(table, BLOCK_OF_TILE, next_offset, u8::MAX) };
            for (out, state) in out.iter_mut().zip(&*state) {
                out[BLOCK_OF_TILE] = *state;
            }
        });
        for (vector, blocks) in out.into_iter().enumerate() {
            // SAFETY: `offset` is that of a full tile.
            unsafe { write_lines::<true>(table, vector, offset, u8::MAX, blocks) };
        }
        ready = next;
    }
}

/// # Safety
/// As for [`encrypt`], for `blocks` blocks at `offset`, fewer than a tile.
#[inline]
#[target_feature(enable = "avx512f,vaes,aes")]
unsafe fn encrypt_rest<const ROUNDS: usize, const SHARED: bool>(
    table: &Table<LANES>,
    state: &mut [__m512i; VECTORS],
    keys: *const Block,
    offset: usize,
    blocks: usize,
) {
    // Two 64-bit elements a block.
    let mask = (1u8 << (2 * blocks)) - 1;
    let mut tile: Tile = std::array::from_fn(|vector| {
        // SAFETY: the mask keeps the reading inside of `blocks`.
        unsafe { read_lines::<false>(table, vector, offset, mask) }
    });
    for block in 0..blocks {
        let input = tile.map(|lanes| lanes[block]);
        // SAFETY: the caller's promise for the keys.
        unsafe { encrypt_block::<ROUNDS, SHARED>(state, input, keys) };
        for (lanes, state) in tile.iter_mut().zip(&*state) {
            lanes[block] = *state;
        }
    }
    for (vector, blocks) in tile.into_iter().enumerate() {
        // SAFETY: the mask keeps the writing inside of `blocks`.
        unsafe { write_lines::<false>(table, vector, offset, mask, blocks) };
    }
}

/// One block in every lane: `state` goes from one block of ciphertext to the next.
///
/// # Safety
/// `keys` are as many as [`encrypt`] says.
#[inline]
#[target_feature(enable = "avx512f,vaes,aes")]
unsafe fn encrypt_block<const ROUNDS: usize, const SHARED: bool>(
    state: &mut [__m512i; VECTORS],
    input: [__m512i; VECTORS],
    keys: *const Block,
) {
    let keys = opaque(keys);
    let key = |round: usize, vector: usize| {
        // SAFETY: `round` is at most `ROUNDS`; a row of the table has `LANES` blocks, aligned as vectors are.
        unsafe {
            if SHARED {
                _mm512_broadcast_i32x4(_mm_load_si128(keys.add(round).cast()))
            } else {
                _mm512_load_si512(keys.add(round * LANES + vector * LANES_IN_VECTOR).cast())
            }
        }
    };
    const XOR_OF_THREE: i32 = 0x96;
    for (vector, (state, input)) in state.iter_mut().zip(input).enumerate() {
        *state = _mm512_ternarylogic_epi64::<XOR_OF_THREE>(*state, input, key(0, vector));
    }
    for round in 1..ROUNDS {
        for (vector, state) in state.iter_mut().enumerate() {
            *state = _mm512_aesenc_epi128(*state, key(round, vector));
        }
    }
    for (vector, state) in state.iter_mut().enumerate() {
        *state = _mm512_aesenclast_epi128(*state, key(ROUNDS, vector));
    }
}

/// A tile's part of the four lanes of `vector`: element `i` has block `i` of each.
///
/// # Safety
/// The lanes can be read for a tile at `offset`, or as much of it as `mask` says if not `FULL`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn read_lines<const FULL: bool>(
    table: &Table<LANES>,
    vector: usize,
    offset: usize,
    mask: __mmask8,
) -> [__m512i; TILE] {
    transpose(std::array::from_fn(|lane| {
        let line = table.src[vector * LANES_IN_VECTOR + lane].wrapping_add(offset);
        // SAFETY: the caller's promise; a masked load touches what its mask has only.
        unsafe {
            if FULL { _mm512_loadu_si512(line.cast()) } else { _mm512_maskz_loadu_epi64(mask, line.cast()) }
        }
    }))
}

/// The reverse of [`read_lines`].
///
/// # Safety
/// The lanes can be written for a tile at `offset`, or as much of it as `mask` says if not `FULL`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn write_lines<const FULL: bool>(
    table: &Table<LANES>,
    vector: usize,
    offset: usize,
    mask: __mmask8,
    blocks: [__m512i; TILE],
) {
    for (lane, bytes) in transpose(blocks).into_iter().enumerate() {
        let line = table.dst[vector * LANES_IN_VECTOR + lane].wrapping_add(offset);
        // SAFETY: the caller's promise; a masked store touches what its mask has only.
        unsafe {
            if FULL {
                _mm512_storeu_si512(line.cast(), bytes);
            } else {
                _mm512_mask_storeu_epi64(line.cast(), mask, bytes);
            }
        }
    }
}

/// Rows of blocks become columns, and the other way round.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let ab_low = _mm512_shuffle_i64x2::<0b01_00_01_00>(a, b);
    let ab_high = _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b);
    let cd_low = _mm512_shuffle_i64x2::<0b01_00_01_00>(c, d);
    let cd_high = _mm512_shuffle_i64x2::<0b11_10_11_10>(c, d);
    [
        _mm512_shuffle_i64x2::<0b10_00_10_00>(ab_low, cd_low),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(ab_low, cd_low),
        _mm512_shuffle_i64x2::<0b10_00_10_00>(ab_high, cd_high),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(ab_high, cd_high),
    ]
}
