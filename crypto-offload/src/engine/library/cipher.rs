//! Plain ciphers.

#![expect(unsafe_code, reason = "works on raw memory under the contract of Engine::submit")]

use super::aws::{AesKey, Counter, Failed, Kind};
use super::blocks::for_blocks;
use super::contexts::Contexts;
use super::{Worker, xts};
use crate::algorithm::{Cipher, Direction};
use crate::engine::{Iv, KeyError, Pairs, Ranges};
use crate::keys::LockedBox;

/// An expanded key of a cipher, for one direction.
pub struct CipherKey {
    direction: Direction,
    mode: Mode,
}

enum Mode {
    Ecb(Contexts),
    Cbc(LockedBox<AesKey>),
    Ctr(LockedBox<AesKey>),
    /// The library's own mode has no AES-128: tweaks by the second key, blocks by the first.
    Xts128(LockedBox<AesKey>, Contexts),
    Xts256(Xts256),
}

/// A key of XTS with AES-256.
struct Xts256 {
    /// Encrypts and decrypts tweaks: the second key.
    tweaks: [LockedBox<AesKey>; 2],
    contexts: Contexts,
}

impl CipherKey {
    /// Expands a key, of which the length was checked.
    pub fn new(cipher: Cipher, direction: Direction, key: &[u8]) -> Result<Self, KeyError> {
        let mode = match cipher {
            Cipher::AesEcb => Mode::Ecb(Contexts::new(Kind::Ecb, direction, key)?),
            Cipher::AesCbc => Mode::Cbc(AesKey::new(key, direction)?),
            Cipher::AesCtr => Mode::Ctr(AesKey::new(key, Direction::Encrypt)?),
            Cipher::AesXts => Self::xts(direction, key)?,
        };
        Ok(Self { direction, mode })
    }

    fn xts(direction: Direction, key: &[u8]) -> Result<Mode, KeyError> {
        let (data, tweak) = key.split_at(key.len() / 2);
        // With equal keys the mode is weak (SP 800-38E, IEEE 1619-2018 §5.1).
        if super::aws::equal(data, tweak) {
            return Err(KeyError::Rejected("the two keys of XTS are the same"));
        }
        if key.len() == 32 {
            let tweaks = AesKey::new(tweak, Direction::Encrypt)?;
            return Ok(Mode::Xts128(tweaks, Contexts::new(Kind::Ecb, direction, data)?));
        }
        let tweaks = [AesKey::new(tweak, Direction::Encrypt)?, AesKey::new(tweak, Direction::Decrypt)?];
        Ok(Mode::Xts256(Xts256 { tweaks, contexts: Contexts::new(Kind::Xts256, direction, key)? }))
    }

    /// Ciphers `src` to `dst`. `key` is what this one was made of; lengths were checked.
    ///
    /// # Safety
    ///
    /// As for [`Engine::submit`](crate::engine::Engine::submit).
    pub(super) unsafe fn cipher(
        &self,
        worker: &mut Worker,
        key: &[u8],
        iv: &Iv,
        src: &Ranges,
        dst: &Ranges,
    ) -> Result<(), Failed> {
        // SAFETY: the caller's promise, here and below: runs of both ranges can be read and written.
        unsafe {
            match &self.mode {
                Mode::Ecb(contexts) => ecb(contexts, worker, key, src, dst),
                Mode::Cbc(key) => {
                    let mut chain = iv.block();
                    for_blocks(src, dst, |from, to, len| key.cbc(self.direction, &mut chain, from, to, len));
                    Ok(())
                }
                Mode::Ctr(key) => {
                    let mut counter = Counter::new(iv.block());
                    Pairs::new(src, dst).for_each(|(from, to, len)| key.ctr(&mut counter, from, to, len));
                    Ok(())
                }
                Mode::Xts128(tweaks, contexts) => {
                    let mut tweak = iv.block();
                    tweaks.encrypt_block(&mut tweak);
                    let first = &key[..key.len() / 2];
                    contexts.with(worker.index, first, |context| {
                        xts::by_blocks(context, self.direction, tweak, src, dst)
                    })
                }
                Mode::Xts256(Xts256 { tweaks, contexts }) => {
                    contexts.with(worker.index, key, |context| match (src.single(), dst.single()) {
                        (Some(from), Some(to)) => {
                            context.set_iv(iv.as_slice())?;
                            context.update(from.base.cast(), to.base.cast(), from.len)
                        }
                        _ => xts::by_pieces(context, tweaks, iv.block(), src, dst),
                    })
                }
            }
        }
    }
}

/// # Safety
///
/// As for [`CipherKey::cipher`].
unsafe fn ecb(
    contexts: &Contexts,
    worker: &mut Worker,
    key: &[u8],
    src: &Ranges,
    dst: &Ranges,
) -> Result<(), Failed> {
    contexts.with(worker.index, key, |context| {
        let mut result = Ok(());
        // SAFETY: the caller's promise.
        unsafe {
            for_blocks(src, dst, |from, to, len| {
                result = result.and_then(|()| context.update(from, to, len));
            });
        }
        result
    })
}
