//! The library engine: AWS-LC, on the thread of the caller.
//!
//! It does everything that the device offers, one job after the other, when it is polled. It is what other engines fall
//! back to, and what they are compared with.

#![expect(unsafe_code, reason = "implements the contract of Engine::submit")]

mod aead;
mod akcipher;
mod aws;
mod blocks;
mod ccm;
mod cipher;
mod contexts;
mod der;
mod digest;
mod xts;

pub(super) use aead::AeadKey;
pub(super) use akcipher::AkcipherKey;
pub(super) use aws::start;
pub(super) use cipher::CipherKey;
pub(super) use digest::DigestKey;

use super::prepared::Expanded;
use super::{Engine, Finished, Job, Outcome, Prepared, Ranges, Span, Work};
use crate::algorithm::ChainOrder;
use crate::keys::Secret;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Computes everything, and delivers each job as soon as it is done.
#[derive(Debug)]
pub struct Library {
    worker: Worker,
    jobs: Vec<Job>,
}

/// Which of the workers this is: where it looks for a context first.
#[derive(Debug)]
pub(super) struct Worker {
    index: usize,
}

impl Library {
    /// An engine with nothing to do.
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let worker = Worker { index: NEXT.fetch_add(1, Ordering::Relaxed) };
        Self { worker, jobs: Vec::with_capacity(256) }
    }

    /// Does one job here and now. It was checked by [`Prepared::check`].
    ///
    /// # Safety
    ///
    /// As for [`Engine::submit`], until this returns.
    pub unsafe fn run(&mut self, job: &Job) -> Outcome {
        // SAFETY: the caller's promise.
        unsafe { perform(&mut self.worker, job.key.get(), &job.work) }
    }
}

impl Default for Library {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine for Library {
    fn name(&self) -> &'static str {
        "library"
    }

    fn takes(&self, _key: &Prepared, _len: usize) -> bool {
        true
    }

    unsafe fn submit(&mut self, jobs: &[Job]) -> usize {
        self.jobs.extend_from_slice(jobs);
        jobs.len()
    }

    fn poll(&mut self, done: &mut dyn FnMut(Finished)) -> usize {
        let Self { worker, jobs } = self;
        for Job { tag, key, work } in &*jobs {
            // SAFETY: the job was not delivered yet, so that the promise of whoever submitted it holds.
            let outcome = unsafe { perform(worker, key.get(), work) };
            done(Finished::Done(*tag, outcome));
        }
        let count = jobs.len();
        jobs.clear();
        count
    }

    fn in_flight(&self) -> usize {
        self.jobs.len()
    }
}

/// # Safety
///
/// As for [`Engine::submit`], until this returns.
unsafe fn perform(worker: &mut Worker, key: &Prepared, work: &Work) -> Outcome {
    // SAFETY: the caller's promise, here and below.
    unsafe {
        match (work, key.expanded()) {
            (Work::Cipher { iv, src, dst }, Expanded::Cipher(cipher)) => {
                ended(cipher.cipher(worker, key.cipher_key(), iv, src, dst), src.len())
            }
            (Work::Digest { src, digest }, Expanded::Digest(hash)) => {
                hash.digest(std::slice::from_ref(src), digest);
                ended(Ok(()), 0)
            }
            (Work::Chain { iv, src, cipher: part, dst, .. }, Expanded::Chain { cipher, order, .. }) => {
                let Some(text) = src.sub(part.start, part.len) else { return Outcome::Error };
                if *order == ChainOrder::HashThenCipher {
                    chain_digest(key, work);
                }
                let result = cipher.cipher(worker, key.cipher_key(), iv, &text, dst);
                if *order == ChainOrder::CipherThenHash {
                    chain_digest(key, work);
                }
                ended(result, part.len)
            }
            (Work::Aead { iv, aad, src, dst, tag }, Expanded::Aead(aead)) => {
                let (aad, tag_len) = (aad.get(), key.tag_len());
                let request = aead::Request { iv, aad, src: *src, dst: *dst, tag: *tag, tag_len };
                aead.cipher(worker, key.cipher_key(), &request)
            }
            (Work::Akcipher { op, input, digest, dst }, Expanded::Akcipher(_)) => {
                let Ok(mut output) = Secret::zeroed(key.output_len()) else { return Outcome::Error };
                let outcome = key.akcipher(*op, input.get(), digest.get(), &mut output);
                if let Outcome::Done { written } = outcome {
                    dst.write(0, &output[..written as usize]);
                }
                outcome
            }
            _ => Outcome::NotSupported,
        }
    }
}

/// The hash half of a chain, for an engine that does the cipher half by itself: before that where the key's order is
/// hash first, after it where it is cipher first. Does nothing to other work.
///
/// # Safety
///
/// As for [`Engine::submit`], until this returns, with work that [`Prepared::check`] accepted for this key.
pub unsafe fn chain_digest(key: &Prepared, work: &Work) {
    let (Work::Chain { src, cipher, hash, dst, digest, .. }, Expanded::Chain { order, hash: with, .. }) =
        (work, key.expanded())
    else {
        return;
    };
    let covered = match order {
        ChainOrder::CipherThenHash => digest::after_cipher(src, *cipher, *hash, dst),
        ChainOrder::HashThenCipher => [sub(src, *hash), Ranges::EMPTY, Ranges::EMPTY],
    };
    // SAFETY: the caller's promise.
    unsafe { with.digest(&covered, digest) }
}

fn sub(ranges: &Ranges, span: Span) -> Ranges {
    ranges.sub(span.start, span.len).unwrap_or(Ranges::EMPTY)
}

fn ended(result: Result<(), aws::Failed>, written: usize) -> Outcome {
    match result {
        Ok(()) => Outcome::Done { written: written as u32 },
        Err(aws::Failed) => Outcome::Error,
    }
}
