//! The inner loops. All `unsafe` of AES instructions on guest memory is in here.
#![expect(unsafe_code, reason = "vector instructions on raw ranges of guest memory")]

#[cfg(target_arch = "x86_64")]
pub(super) mod aesni;
pub(super) mod serial;
#[cfg(target_arch = "x86_64")]
pub(super) mod vaes512;

use super::key::MAX_ROUND_KEYS;
use super::table::Table;
use super::{Block, KeySize};

/// Where the lanes of one call take their keys from.
#[derive(Clone, Copy)]
pub(super) enum Keys<'a> {
    /// The same for all: a request's key is used where it lies.
    Shared(&'a [Block; MAX_ROUND_KEYS]),
    /// Each lane's own column of the table.
    PerLane,
}

/// Encrypts a number of blocks in each of `N` lanes.
pub(super) trait Kernel<const N: usize> {
    /// Encrypts `blocks` blocks of each lane from `table.src` to `table.dst`, and leaves the last ones in
    /// `table.chain`. The pointers stay as they are.
    ///
    /// A kernel may read some blocks ahead: where a lane's destination begins a little behind its source, what it encrypts is
    /// anything.
    ///
    /// # Safety
    /// The CPU has the kernel's instructions. `blocks` blocks can be read at each source and written at each
    /// destination. They may change meanwhile; what is then encrypted is anything.
    unsafe fn run(table: &mut Table<N>, keys: Keys<'_>, size: KeySize, blocks: usize);
}

/// The same pointer, but the compiler does not know: it cannot keep round keys in more registers than there are, which
/// means copies of them on the stack, where nobody wipes them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[expect(
    clippy::pointers_in_nomem_asm_block,
    reason = "there is no instruction that could follow the pointer"
)]
fn opaque(mut keys: *const Block) -> *const Block {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) keys, options(nomem, nostack, preserves_flags)) };
    keys
}
