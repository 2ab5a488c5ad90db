//! What the kernels work on: one column a lane.
#![expect(unsafe_code, reason = "says that zeros are a table")]

use super::cursor::Run;
use super::key::MAX_ROUND_KEYS;
use super::{BLOCK, Block, CbcKey};
use crate::keys::{LockedBox, NoMemory, Plain};

/// Blocks that an idle lane can be asked to encrypt: a kernel has no lane that does nothing, so idle ones work on a
/// scratch buffer, which must not crowd the first cache.
pub(super) const SCRATCH_BLOCKS: usize = 128;

/// `N` lanes, as rows of `N` columns: a vector register holds one row of some lanes.
#[repr(C, align(64))]
pub(super) struct Table<const N: usize> {
    /// Round keys of each lane; only up to date in lanes for which `key_of` says so.
    pub keys: [[Block; N]; MAX_ROUND_KEYS],
    /// Last block of ciphertext of each lane.
    pub chain: [Block; N],
    /// The next block to read, and where its ciphertext goes.
    pub src: [*const u8; N],
    pub dst: [*mut u8; N],
    key_of: [*const CbcKey; N],
    scratch: [Block; SCRATCH_BLOCKS],
}

// SAFETY: blocks are bytes, and zeros are a null pointer.
unsafe impl<const N: usize> Plain for Table<N> {}

// SAFETY: the pointers are followed during a call of a kernel only, whose caller vouches for them.
unsafe impl<const N: usize> Send for Table<N> {}

impl<const N: usize> Table<N> {
    /// In locked memory, because round keys pass through it.
    pub(super) fn new() -> Result<LockedBox<Self>, NoMemory> {
        LockedBox::zeroed()
    }

    /// The lane goes on with `run`.
    #[inline]
    pub(super) fn point(&mut self, lane: usize, run: Run) {
        (self.src[lane], self.dst[lane]) = (run.src, run.dst);
    }

    /// The lane has nothing to do: it works on the scratch buffer.
    pub(super) fn idle(&mut self, lane: usize) {
        let scratch = self.scratch.as_mut_ptr().cast::<u8>();
        (self.src[lane], self.dst[lane]) = (scratch, scratch);
    }

    /// Puts `blocks` blocks behind the lane.
    #[inline]
    pub(super) fn advance(&mut self, lane: usize, blocks: usize) {
        self.src[lane] = self.src[lane].wrapping_add(blocks * BLOCK);
        self.dst[lane] = self.dst[lane].wrapping_add(blocks * BLOCK);
    }

    /// Makes the lane's column that of `key`, unless it is already.
    #[inline]
    pub(super) fn set_key(&mut self, lane: usize, key: &CbcKey, round_keys: &[Block; MAX_ROUND_KEYS]) {
        if std::ptr::eq(self.key_of[lane], key) {
            return;
        }
        self.key_of[lane] = key;
        for (row, round_key) in self.keys.iter_mut().zip(round_keys).take(key.size().rounds() + 1) {
            row[lane] = *round_key;
        }
    }

    /// Forgets the keys. No copy of a key may outlive the call that it was used in, because the key itself may not,
    /// and because the column is recognised by the key's address.
    pub(super) fn wipe(&mut self) {
        if self.key_of.iter().all(|key| key.is_null()) {
            return;
        }
        self.key_of = [std::ptr::null(); N];
        self.keys = [[Block::default(); N]; MAX_ROUND_KEYS];
        // Whole vectors at a time, unlike `zeroize`; the compiler must think that somebody reads the zeros.
        std::hint::black_box(&mut self.keys);
    }
}
