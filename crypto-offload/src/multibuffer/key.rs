//! Expanded AES keys for encryption.

use std::fmt;

use zeroize::Zeroize;

use super::Block;
use super::schedule::{self, LibrarySchedule};

/// Round keys of the longest AES key: fourteen rounds, and the one before the first.
pub(super) const MAX_ROUND_KEYS: usize = 15;

/// Key sizes of AES. Lanes that run together have the same, because it decides the number of rounds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u32)]
pub enum KeySize {
    /// 16 bytes, ten rounds.
    Aes128 = 10,
    /// 24 bytes, twelve rounds.
    Aes192 = 12,
    /// 32 bytes, fourteen rounds.
    Aes256 = 14,
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
        (self.rounds() - 6) * 4
    }

    /// Rounds of the cipher.
    pub const fn rounds(self) -> usize {
        self as usize
    }
}

/// An AES key, expanded for CBC encryption. Plain data without pointers, so that it can lie in locked memory; wiped
/// when it is dropped. Expanding one takes less than a tenth of a microsecond where the CPU has AES instructions.
#[repr(C, align(64))]
pub struct CbcKey {
    size: KeySize,
    schedule: Schedule,
}

/// The expanded key in the form that this CPU's fastest code wants.
enum Schedule {
    /// Round keys in the byte order of FIPS 197, which is what the AES instructions take.
    Standard([Block; MAX_ROUND_KEYS]),
    /// The library's own form, which depends on the code it chose.
    Library(LibrarySchedule),
}

impl CbcKey {
    /// Expands `key`; `None` unless it has 16, 24 or 32 bytes.
    pub fn new(key: &[u8]) -> Option<Self> {
        let size = KeySize::from_len(key.len())?;
        let schedule = match schedule::expand(key, size) {
            Some(round_keys) => Schedule::Standard(round_keys),
            None => Schedule::Library(schedule::expand_with_library(key)),
        };
        Some(Self { size, schedule })
    }

    /// As [`CbcKey::new`] on a CPU without AES instructions: only the library can use this key. For tests and
    /// comparisons.
    pub fn portable(key: &[u8]) -> Option<Self> {
        let size = KeySize::from_len(key.len())?;
        Some(Self { size, schedule: Schedule::Library(schedule::expand_with_library(key)) })
    }

    /// The size of the key.
    #[inline]
    pub fn size(&self) -> KeySize {
        self.size
    }

    /// The round keys for the AES instructions, if this CPU has them. Those beyond the size's number are zero.
    #[inline]
    pub(super) fn round_keys(&self) -> Option<&[Block; MAX_ROUND_KEYS]> {
        match &self.schedule {
            Schedule::Standard(round_keys) => Some(round_keys),
            Schedule::Library(_) => None,
        }
    }

    /// The library's form, if that is what this key has.
    #[inline]
    pub(super) fn library(&self) -> Option<&LibrarySchedule> {
        match &self.schedule {
            Schedule::Standard(_) => None,
            Schedule::Library(schedule) => Some(schedule),
        }
    }

    fn wipe(&mut self) {
        match &mut self.schedule {
            Schedule::Standard(round_keys) => round_keys.iter_mut().for_each(|block| block.0.zeroize()),
            Schedule::Library(schedule) => schedule.wipe(),
        }
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
        let mut key = CbcKey::new(&[0xa5; 32]).unwrap();
        key.wipe();
        assert!(key.round_keys().is_none_or(|keys| keys.iter().all(|block| block.0 == [0; 16])));
        let mut key = CbcKey::portable(&[0xa5; 32]).unwrap();
        key.wipe();
        assert!(key.library().is_some_and(LibrarySchedule::is_wiped));
    }
}
