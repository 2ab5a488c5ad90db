//! One request to an engine, and what became of it.

#![expect(unsafe_code, reason = "a job is plain data that names memory and keys of the caller")]

use super::prepared::Prepared;
use super::ranges::Ranges;
use crate::algorithm::MAX_TAG;
use std::ptr::NonNull;

/// The longest initialisation vector, nonce or tweak of a request.
pub const MAX_IV: usize = 32;

/// A key of a job: a pointer, so that a request costs no reference count.
///
/// Whoever submits a job keeps the key alive until the job's outcome was delivered: that is part of the contract of
/// [`Engine::submit`](super::Engine::submit).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct KeyRef(NonNull<Prepared>);

// SAFETY: a `Prepared` is `Sync`, and the pointer is only followed under the contract of `KeyRef::get`.
unsafe impl Send for KeyRef {}
// SAFETY: as above.
unsafe impl Sync for KeyRef {}

impl KeyRef {
    /// The key.
    ///
    /// # Safety
    ///
    /// The [`Prepared`] that this was made of is alive, and stays so for `'a`.
    #[inline]
    pub unsafe fn get<'a>(self) -> &'a Prepared {
        // SAFETY: the caller's promise.
        unsafe { self.0.as_ref() }
    }
}

impl From<&Prepared> for KeyRef {
    fn from(key: &Prepared) -> Self {
        Self(NonNull::from(key))
    }
}

/// A private copy of an initialisation vector, nonce, first counter or tweak.
#[derive(Clone, Copy)]
pub struct Iv {
    bytes: [u8; MAX_IV],
    len: u8,
}

impl Iv {
    /// None at all, as ECB wants it.
    pub const EMPTY: Self = Self { bytes: [0; MAX_IV], len: 0 };

    /// A copy; `None` for more than [`MAX_IV`] bytes.
    #[inline]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut iv = Self { bytes: [0; MAX_IV], len: bytes.len() as u8 };
        iv.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(iv)
    }

    /// So many zeros, to be filled in; `None` for more than [`MAX_IV`] bytes.
    #[inline]
    pub fn zeroed(len: usize) -> Option<Self> {
        (len <= MAX_IV).then_some(Self { bytes: [0; MAX_IV], len: len as u8 })
    }

    /// Its bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The same, to be filled in.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[..usize::from(self.len)]
    }

    /// The first 16 bytes, zeros where there are fewer.
    #[inline]
    pub fn block(&self) -> [u8; 16] {
        *self.bytes.first_chunk().expect("16 of 32 bytes")
    }

    /// How many bytes.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl std::fmt::Debug for Iv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Iv({} bytes)", self.len)
    }
}

/// Private memory of the caller (never the guest's): what is parsed, and associated data.
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    start: *const u8,
    len: usize,
}

// SAFETY: plain data; only `Bytes::get` follows the pointer, under its contract.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// No bytes.
    pub const EMPTY: Self = Self { start: NonNull::<u8>::dangling().as_ptr(), len: 0 };

    /// How many bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    ///
    /// # Safety
    ///
    /// The memory that this was made of is where it was, and nobody writes to it during `'a`.
    #[inline]
    pub unsafe fn get<'a>(&self) -> &'a [u8] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl From<&[u8]> for Bytes {
    #[inline]
    fn from(bytes: &[u8]) -> Self {
        Self { start: bytes.as_ptr(), len: bytes.len() }
    }
}

impl Default for Bytes {
    fn default() -> Self {
        Self::EMPTY
    }
}

/// Some bytes of the source of a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    /// Bytes before them.
    pub start: usize,
    /// How many.
    pub len: usize,
}

impl Span {
    /// The byte behind the last one, unless that overflows.
    pub fn end(self) -> Option<usize> {
        self.start.checked_add(self.len)
    }
}

/// The tag of an authenticated cipher.
#[derive(Clone, Copy, Debug)]
pub enum Tag {
    /// Encryption writes it here; as long as the key's tags are.
    Write(Ranges),
    /// Decryption compares it with this private copy, of which the key's tag length counts.
    Check([u8; MAX_TAG]),
}

/// What an asymmetric request asks for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum AkcipherOp {
    /// Public key.
    Encrypt,
    /// Private key.
    Decrypt,
    /// Private key; the input is the digest.
    Sign,
    /// Public key; the input is the signature.
    Verify,
}

/// What is to be done with a key. Source and destination are the same memory or do not overlap at all; anything else
/// gives the guest garbage, and nobody else.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Encrypts or decrypts, as the key says. Both ranges have the same length.
    Cipher {
        /// As long as the cipher wants it.
        iv: Iv,
        /// What is ciphered.
        src: Ranges,
        /// Where the result goes.
        dst: Ranges,
    },
    /// Hashes or authenticates.
    Digest {
        /// What is covered.
        src: Ranges,
        /// Where the result goes; as long as the key's results are.
        digest: Ranges,
    },
    /// Ciphers a part of the source, and hashes or authenticates a part of it, which may be another one. Where the
    /// hash comes after the cipher, it covers the result of the cipher in the place of what was ciphered.
    Chain {
        /// As long as the cipher wants it.
        iv: Iv,
        /// All of it.
        src: Ranges,
        /// What of the source is ciphered.
        cipher: Span,
        /// What of the source is hashed.
        hash: Span,
        /// Where the result of the cipher goes: `cipher.len` bytes. Bytes around it are the caller's to copy.
        dst: Ranges,
        /// Where the digest goes; as long as the key's results are.
        digest: Ranges,
    },
    /// Encrypts and authenticates, or the reverse. Both ranges have the same length: the tag is not part of them.
    Aead {
        /// A nonce of a length that the algorithm takes.
        iv: Iv,
        /// Associated data.
        aad: Bytes,
        /// What is ciphered.
        src: Ranges,
        /// Where the result goes. Zeros when the tag turns out wrong.
        dst: Ranges,
        /// Where the tag goes or what it must be.
        tag: Tag,
    },
    /// A public-key operation. Takes from 20 µs to 100 ms: belongs on a thread of its own, see [`Prepared::akcipher`].
    Akcipher {
        /// Which one.
        op: AkcipherOp,
        /// Plaintext, ciphertext, digest or signature.
        input: Bytes,
        /// The digest that a signature is checked against.
        digest: Bytes,
        /// Where the result goes: [`Prepared::output_len`] bytes always do.
        dst: Ranges,
    },
}

impl Work {
    /// Nothing.
    pub const NONE: Self = Self::Digest { src: Ranges::EMPTY, digest: Ranges::EMPTY };

    /// How many bytes are worked on: what engines choose by.
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Self::Cipher { src, .. }
            | Self::Digest { src, .. }
            | Self::Chain { src, .. }
            | Self::Aead { src, .. } => src.len(),
            Self::Akcipher { input, .. } => input.len(),
        }
    }

    /// Whether there is nothing to work on.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One request to an engine.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// The caller's, and comes back with the outcome.
    pub tag: u64,
    /// With which key.
    pub key: KeyRef,
    /// What.
    pub work: Work,
}

/// What became of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is done, and this many bytes of the destination were written, tags and digests not counted.
    Done {
        /// Bytes.
        written: u32,
    },
    /// The tag of an authenticated cipher is wrong; the destination was wiped. Or what was decrypted has no valid
    /// padding.
    BadMessage,
    /// A signature does not fit, or the key turned out to be none.
    KeyRejected,
    /// The request makes no sense: a length, a nonce, a number that is too large.
    Error,
    /// The key cannot do this.
    NotSupported,
}

/// What [`Engine::poll`](super::Engine::poll) delivers.
#[derive(Clone, Copy, Debug)]
pub enum Finished {
    /// The job with this tag has ended.
    Done(u64, Outcome),
    /// The engine itself failed, and somebody else may try: it wrote nothing to a destination that is also the source.
    Failed(Job),
}
