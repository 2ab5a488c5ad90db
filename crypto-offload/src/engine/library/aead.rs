//! Authenticated ciphers.

#![expect(unsafe_code, reason = "works on raw memory under the contract of Engine::submit")]

use super::aws::{AesKey, ChaChaKey, Context, Failed, Kind, Message};
use super::contexts::Contexts;
use super::{Worker, ccm};
use crate::algorithm::{Aead, Direction, MAX_TAG};
use crate::engine::{Iv, KeyError, Outcome, Pairs, Ranges, Tag};
use crate::keys::LockedBox;

/// An expanded key of an authenticated cipher, for one direction.
pub enum AeadKey {
    /// Galois/counter mode.
    Gcm(Contexts),
    /// Counter mode with CBC-MAC.
    Ccm(LockedBox<AesKey>),
    /// ChaCha20-Poly1305: for contiguous messages, and for others.
    ChaCha(LockedBox<ChaChaKey>, Contexts),
}

/// The parts of a request.
pub(super) struct Request<'a> {
    pub iv: &'a Iv,
    pub aad: &'a [u8],
    pub src: Ranges,
    pub dst: Ranges,
    pub tag: Tag,
    pub tag_len: usize,
}

impl AeadKey {
    /// Expands a key, of which the length was checked.
    pub fn new(aead: Aead, direction: Direction, key: &[u8]) -> Result<Self, KeyError> {
        Ok(match aead {
            Aead::AesGcm => Self::Gcm(Contexts::new(Kind::Gcm, direction, key)?),
            Aead::AesCcm => Self::Ccm(AesKey::new(key, Direction::Encrypt)?),
            Aead::ChaCha20Poly1305 => {
                Self::ChaCha(ChaChaKey::new(key)?, Contexts::none(Kind::ChaCha, direction))
            }
        })
    }

    /// Does the request. `key` is what this one was made of; lengths were checked.
    ///
    /// # Safety
    ///
    /// As for [`Engine::submit`](crate::engine::Engine::submit).
    pub(super) unsafe fn cipher(&self, worker: &mut Worker, key: &[u8], request: &Request<'_>) -> Outcome {
        // SAFETY: the caller's promise, here and below.
        unsafe {
            match self {
                Self::Gcm(contexts) => {
                    let len = request.iv.len();
                    stream(contexts, worker, key, request, |context| context.set_iv_len(len))
                }
                Self::Ccm(key) => ccm::cipher(key, &request.into()),
                Self::ChaCha(one, contexts) => match contiguous(&request.src, &request.dst) {
                    Some((from, to)) => chacha(one, request, from, to),
                    None => stream(contexts, worker, key, request, |_| Ok(())),
                },
            }
        }
    }
}

impl<'a> From<&Request<'a>> for ccm::Message<'a> {
    fn from(request: &Request<'a>) -> Self {
        let Request { iv, aad, src, dst, tag, tag_len } = *request;
        Self { nonce: iv.as_slice(), aad, src, dst, tag, tag_len }
    }
}

/// Piece by piece through a context of the library.
///
/// # Safety
///
/// As for [`AeadKey::cipher`].
unsafe fn stream(
    contexts: &Contexts,
    worker: &mut Worker,
    key: &[u8],
    request: &Request<'_>,
    prepare: impl FnOnce(&mut Context) -> Result<(), Failed>,
) -> Outcome {
    let Request { iv, aad, src, dst, tag, tag_len } = request;
    let result = contexts.with(worker.index, key, |context| {
        prepare(context)?;
        context.set_iv(iv.as_slice())?;
        context.aad(aad)?;
        // SAFETY: the caller's promise.
        for (from, to, len) in unsafe { Pairs::new(src, dst) } {
            // SAFETY: the caller's promise.
            unsafe { context.update(from, to, len)? };
        }
        match tag {
            Tag::Write(place) => {
                let made = context.tag()?;
                // SAFETY: the caller's promise.
                unsafe { place.write(0, &made[..*tag_len]) };
                Ok(true)
            }
            Tag::Check(expected) => Ok(context.check_tag(&expected[..*tag_len]).is_ok()),
        }
    });
    // SAFETY: the caller's promise.
    unsafe { conclude(result, dst) }
}

/// In one go.
///
/// # Safety
///
/// As for [`AeadKey::cipher`], and the source lies together at `from`, the destination at `to`.
unsafe fn chacha(key: &ChaChaKey, request: &Request<'_>, from: *const u8, to: *mut u8) -> Outcome {
    let Request { iv, aad, src, dst, tag, .. } = *request;
    let Some(nonce) = iv.as_slice().first_chunk::<12>() else { return Outcome::Error };
    let message = Message { nonce, aad, from, to, len: src.len() };
    // SAFETY: the caller's promise.
    unsafe {
        let result = match tag {
            Tag::Write(place) => key.seal(message).map(|made| {
                place.write(0, &made[..place.len().min(MAX_TAG)]);
                true
            }),
            Tag::Check(expected) => Ok(key.open(message, &expected).is_ok()),
        };
        conclude(result, &dst)
    }
}

/// What has not the right tag, or could not be finished, leaves no plaintext behind.
///
/// # Safety
///
/// As for [`AeadKey::cipher`].
unsafe fn conclude(right: Result<bool, Failed>, dst: &Ranges) -> Outcome {
    match right {
        Ok(true) => return Outcome::Done { written: dst.len() as u32 },
        // SAFETY: the caller's promise.
        Ok(false) | Err(Failed) => unsafe { dst.wipe() },
    }
    if right.is_ok() { Outcome::BadMessage } else { Outcome::Error }
}

/// Where both lie, when each lies together; nothing lies together anywhere.
///
/// # Safety
///
/// As for [`AeadKey::cipher`].
unsafe fn contiguous(src: &Ranges, dst: &Ranges) -> Option<(*const u8, *mut u8)> {
    if src.is_empty() {
        let nowhere = std::ptr::NonNull::<u8>::dangling().as_ptr();
        return Some((nowhere, nowhere));
    }
    // SAFETY: the caller's promise.
    let (from, to) = unsafe { (src.single()?, dst.single()?) };
    Some((from.base.cast(), to.base.cast()))
}
