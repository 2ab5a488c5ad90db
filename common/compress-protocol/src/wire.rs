//! Integers at places.

/// The `N` bytes at `at`, of a structure that is known to be longer.
pub(crate) fn bytes<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    core::array::from_fn(|index| from[at + index])
}

pub(crate) fn u16_at(from: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes(from, at))
}

pub(crate) fn u32_at(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(from, at))
}

pub(crate) fn u64_at(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes(from, at))
}

/// Puts bytes at `at`.
pub(crate) fn put<const N: usize>(into: &mut [u8], at: usize, bytes: [u8; N]) {
    into[at..at + N].copy_from_slice(&bytes);
}
