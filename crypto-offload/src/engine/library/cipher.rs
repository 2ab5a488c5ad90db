//! Plain ciphers.

#![expect(unsafe_code, reason = "works on raw memory under the contract of Engine::submit")]

use super::aws::{AesKey, Counter, Failed, Kind};
use super::blocks::for_blocks;
use super::contexts::Contexts;
use super::{Worker, xts};
use crate::algorithm::{Cipher, Direction};
use crate::engine::{Iv, KeyError, Pairs, Ranges};
use crate::keys::{LockedBox, NoMemory};

/// An expanded key of a cipher, for one direction.
pub struct CipherKey {
    direction: Direction,
    mode: Mode,
}

enum Mode {
    Ecb(Contexts),
    Cbc(LockedBox<AesKey>),
    Ctr(LockedBox<AesKey>),
    Xts {
        /// Encrypts tweaks: the second key.
        tweaks: LockedBox<AesKey>,
        /// The block cipher with the first key.
        blocks: Contexts,
        /// The library's own mode, which has no AES-128.
        whole: Option<Contexts>,
    },
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
        let long = key.len() == 64;
        Ok(Mode::Xts {
            tweaks: AesKey::new(tweak, Direction::Encrypt)?,
            blocks: match long {
                true => Contexts::none(Kind::Ecb, direction),
                false => Contexts::new(Kind::Ecb, direction, data)?,
            },
            whole: match long {
                true => Some(Contexts::new(Kind::Xts256, direction, key)?),
                false => None,
            },
        })
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
                Mode::Xts { tweaks, blocks, whole } => {
                    if let (Some(contexts), Some(from), Some(to)) = (whole, src.single(), dst.single()) {
                        return flatten(contexts.with(worker.index, key, |context| {
                            context.set_iv(iv.as_slice())?;
                            context.update(from.base.cast(), to.base.cast(), from.len)
                        }));
                    }
                    let mut tweak = iv.block();
                    tweaks.encrypt_block(&mut tweak);
                    let first = &key[..key.len() / 2];
                    flatten(blocks.with(worker.index, first, |context| {
                        xts::cipher(context, self.direction, tweak, src, dst)
                    }))
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
    flatten(contexts.with(worker.index, key, |context| {
        let mut result = Ok(());
        // SAFETY: the caller's promise.
        unsafe {
            for_blocks(src, dst, |from, to, len| {
                result = result.and_then(|()| context.update(from, to, len));
            });
        }
        result
    }))
}

/// Lack of memory for another context is a failure like any other.
pub(super) fn flatten<T>(result: Result<Result<T, Failed>, NoMemory>) -> Result<T, Failed> {
    result.unwrap_or(Err(Failed))
}
