//! Memory for keys: locked, left out of core files, wiped.

use std::ops::Deref;
use zeroize::Zeroizing;

/// There is no more locked memory for keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("No locked memory for {wanted} bytes of key material")]
pub struct NoMemory {
    /// Bytes.
    pub wanted: usize,
}

/// Secret bytes.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// A copy of two parts, one behind the other.
    pub fn concat(first: &[u8], second: &[u8]) -> Result<Self, NoMemory> {
        Ok(Self(Zeroizing::new([first, second].concat())))
    }

    /// A copy.
    pub fn copy(bytes: &[u8]) -> Result<Self, NoMemory> {
        Self::concat(bytes, &[])
    }
}

impl Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
