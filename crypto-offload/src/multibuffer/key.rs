//! Expanded AES keys for encryption.
#![expect(unsafe_code, reason = "says that zeros are a key")]

use std::fmt;

use zeroize::Zeroize;

use super::Block;
use super::schedule::{self, Schedule};
use crate::keys::Plain;

/// Round keys of the longest AES key: fourteen rounds, and the one before the first.
pub(super) const MAX_ROUND_KEYS: usize = 15;

/// Key sizes of AES. Lanes that run together have the same, because it decides the number of rounds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum KeySize {
    /// 16 bytes, ten rounds.
    Aes128 = 0,
    /// 24 bytes, twelve rounds.
    Aes192 = 1,
    /// 32 bytes, fourteen rounds.
    Aes256 = 2,
}

impl KeySize {
    /// All of them, shortest first.
    pub const ALL: [Self; 3] = [Self::Aes128, Self::Aes192, Self::Aes256];

    /// The size of a key of `len` bytes.
    pub const fn from_len(len: usize) -> Option<Self> {
        match len {
            16 => Some(Self::Aes128),
            24 => Some(Self::Aes192),
            32 => Some(Self::Aes256),
            _ => None,
        }
    }

    /// Bytes of the key as the user gives it.
    pub const fn key_len(self) -> usize {
        16 + 8 * self as usize
    }

    /// Rounds of the cipher.
    pub const fn rounds(self) -> usize {
        10 + 2 * self as usize
    }
}

/// An AES key, expanded for CBC encryption. Plain data without pointers, so that it can lie in locked memory; wiped
/// when it is dropped. Expanding one takes less than a tenth of a microsecond where the CPU has AES instructions.
#[repr(C, align(64))]
pub struct CbcKey {
    schedule: Schedule,
    size: KeySize,
    form: Form,
}

/// What the schedule holds: what this CPU's fastest code wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Form {
    /// Round keys in the byte order of FIPS 197, which is what the AES instructions take.
    Standard = 0,
    /// The library's own form, which depends on the code it chose.
    Library = 1,
}

// SAFETY: zeros are the first size, the first form, and round keys like any others.
unsafe impl Plain for CbcKey {}

impl CbcKey {
    /// Expands `key`; `None` unless it has 16, 24 or 32 bytes. The value is moved, and may leave copies on the stack:
    /// where that matters, [`CbcKey::expand`] one that lies where it shall stay.
    pub fn new(key: &[u8]) -> Option<Self> {
        let mut expanded = Self::zeroed();
        expanded.expand(key).then_some(expanded)
    }

    /// As [`CbcKey::new`] on a CPU without AES instructions: only the library can use this key. For tests and
    /// comparisons.
    pub fn portable(key: &[u8]) -> Option<Self> {
        let size = KeySize::from_len(key.len())?;
        let mut expanded = Self { schedule: Schedule::ZERO, size, form: Form::Library };
        expanded.schedule.expand_with_library(key);
        Some(expanded)
    }

    /// Becomes `key`, expanded in place; false, and no key, unless it has 16, 24 or 32 bytes.
    pub fn expand(&mut self, key: &[u8]) -> bool {
        self.wipe();
        let Some(size) = KeySize::from_len(key.len()) else { return false };
        self.size = size;
        self.form = if schedule::has_aes_instructions() { Form::Standard } else { Form::Library };
        match self.form {
            Form::Standard => self.schedule.expand(key, size),
            Form::Library => self.schedule.expand_with_library(key),
        }
        true
    }

    /// Zero bytes: valid, but nobody's key.
    const fn zeroed() -> Self {
        Self { schedule: Schedule::ZERO, size: KeySize::Aes128, form: Form::Standard }
    }

    /// A key whose expansion is known.
    #[cfg(test)]
    pub(super) fn from_round_keys(size: KeySize, round_keys: [Block; MAX_ROUND_KEYS]) -> Self {
        Self { schedule: Schedule::from_round_keys(&round_keys), size, form: Form::Standard }
    }

    /// The size of the key.
    #[inline]
    pub fn size(&self) -> KeySize {
        self.size
    }

    /// The round keys for the AES instructions, if this CPU has them. Those beyond the size's number are zero.
    #[inline]
    pub(super) fn round_keys(&self) -> Option<&[Block; MAX_ROUND_KEYS]> {
        (self.form == Form::Standard).then(|| self.schedule.round_keys())
    }

    /// The library's form, if that is what this key has.
    #[inline]
    pub(super) fn library(&self) -> Option<&Schedule> {
        (self.form == Form::Library).then_some(&self.schedule)
    }

    fn wipe(&mut self) {
        self.schedule.zeroize();
    }
}

impl Drop for CbcKey {
    fn drop(&mut self) {
        self.wipe();
    }
}

impl fmt::Debug for CbcKey {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CbcKey").field("size", &self.size).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_lengths_of_aes_only() {
        for len in 0..=64 {
            assert_eq!(CbcKey::new(&vec![1; len]).is_some(), [16, 24, 32].contains(&len), "{len}");
        }
        for size in KeySize::ALL {
            assert_eq!(KeySize::from_len(size.key_len()), Some(size));
        }
    }

    #[test]
    fn a_key_does_not_show_in_its_debug_form() {
        let key = CbcKey::new(&[0xa5; 16]).unwrap();
        assert_eq!(format!("{key:?}"), "CbcKey { size: Aes128, .. }");
    }

    #[test]
    fn a_dropped_key_is_wiped() {
        // `wipe` is all that drop does; called by hand, the memory stays ours to look at.
        for mut key in [CbcKey::new(&[0xa5; 32]).unwrap(), CbcKey::portable(&[0xa5; 32]).unwrap()] {
            assert!(!key.schedule.is_zero());
            key.wipe();
            assert!(key.schedule.is_zero());
        }
    }

    #[test]
    fn a_key_is_expanded_anew_in_place() {
        let mut key = CbcKey::new(&[1; 32]).unwrap();
        assert!(key.expand(&[2; 16]));
        assert_eq!(key.size(), KeySize::Aes128);
        assert_eq!(key.round_keys(), CbcKey::new(&[2; 16]).unwrap().round_keys());
        assert!(!key.expand(&[2; 17]));
        assert!(key.schedule.is_zero());
    }
}
