#![expect(unsafe_code, reason = "the contract of the daemon's engines")]
//! The daemon's engines without the daemon: as many requests at once as a device has in flight.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use crypto_offload::algorithm as theirs;
use crypto_offload::engine::{
    Bytes, Choice, Engines, Iv, Job, KeyRef, KeySpec, Outcome, Prepared, Ranges, Span, Tag, Work,
};
use memory::{GuestAddr, HostRange, OwnMemory};

use super::algorithm::{Aead, Algorithm, Direction, Hash, Mode, Sizes, TAG};
use super::client::Setup;
use super::library::Keys;
use super::sample::Sample;
use crate::guest::memory::{PAGE, footprint};

/// From here on AWS-LC allocates where the daemon's keys are. Nothing of it may have been used before in this process, or it
/// would be freed to where it does not come from.
pub fn start() -> Result<()> {
    Prepared::new(&KeySpec::Hash { hash: theirs::Hash::Sha256, result_len: 32 })?;
    Ok(())
}

/// Jobs on the engines of one worker.
pub struct Batch {
    engines: Engines,
    jobs: Vec<Job>,
    memory: OwnMemory,
    /// Per slot: source, destination, digest. Jobs point into it.
    ranges: Vec<[HostRange; 3]>,
    /// By slot: address of the source.
    places: Vec<Places>,
    sizes: Sizes,
    /// Jobs point at it.
    _key: Arc<Prepared>,
}

#[derive(Clone, Copy)]
struct Places {
    dst: GuestAddr,
    digest: GuestAddr,
}

impl Batch {
    /// One job for each sample.
    pub fn new(choice: Choice, setup: &Setup, keys: &Keys, samples: &[Sample]) -> Result<Self> {
        let sizes = setup.algorithm.sizes(setup.direction, setup.size);
        let key = Prepared::new(&spec(setup.algorithm, setup.direction, keys)?)?;
        let each = footprint([sizes.src, sizes.dst, sizes.digest]);
        let memory = OwnMemory::new((samples.len() * each).next_multiple_of(PAGE), GuestAddr(PAGE as u64))?;
        let (mut ranges, mut places) = (Vec::new(), Vec::new());
        for sample in samples {
            let [src, dst, digest] = [sizes.src, sizes.dst, sizes.digest].map(|len| place(&memory, len));
            let (src, dst, digest) = (src?, dst?, digest?);
            memory.slice(src, sizes.src)?.write(0, &sample.src);
            let range = |at, len| memory.slice(at, len).map(|slice| slice.range());
            ranges.push([range(src, sizes.src)?, range(dst, sizes.dst)?, range(digest, sizes.digest)?]);
            places.push(Places { dst, digest });
        }
        let mut batch = Self {
            engines: Engines::new(choice),
            jobs: Vec::new(),
            memory,
            ranges,
            places,
            sizes,
            _key: Arc::clone(&key),
        };
        for (slot, sample) in samples.iter().enumerate() {
            let work = batch.work(setup, slot, sample)?;
            batch.jobs.push(Job { tag: slot as u64, key: KeyRef::from(&*key), work });
        }
        Ok(batch)
    }

    fn work(&self, setup: &Setup, slot: usize, sample: &Sample) -> Result<Work> {
        let [source, target, result] = &self.ranges[slot];
        let part = |range: &HostRange, skip, len| {
            Ranges::new(std::slice::from_ref(range), skip, len).unwrap_or(Ranges::EMPTY)
        };
        let iv = Iv::new(&sample.iv).unwrap_or(Iv::EMPTY);
        let (size, whole) = (setup.size, Span { start: 0, len: setup.size });
        let (src, dst, digest) =
            (part(source, 0, size), part(target, 0, size), part(result, 0, self.sizes.digest));
        Ok(match (setup.algorithm, setup.direction) {
            (Algorithm::Cipher(..), _) => Work::Cipher { iv, src, dst },
            (Algorithm::Chain(..), _) => Work::Chain { iv, src, cipher: whole, hash: whole, dst, digest },
            (Algorithm::Hash(_) | Algorithm::Mac(_), _) => Work::Digest { src, digest },
            (Algorithm::Aead(..), Direction::Decrypt) => {
                let tag = sample.src.last_chunk::<TAG>().copied().unwrap_or_default();
                Work::Aead { iv, aad: Bytes::EMPTY, src, dst, tag: Tag::Check(tag) }
            }
            (Algorithm::Aead(..), _) => {
                let tag = Tag::Write(part(target, size, TAG));
                Work::Aead { iv, aad: Bytes::EMPTY, src, dst, tag }
            }
            _ => bail!("Public-key operations are the library's: use --engine-alone library"),
        })
    }

    /// Requests of a round.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Does all jobs at once; calls `done` for each one that has ended.
    pub fn round(&mut self, mut done: impl FnMut()) -> Result<()> {
        // SAFETY: `self` keeps the key, the lists of ranges (which never change) and the mapped, writable memory they name; all
        // jobs are delivered below, before anything else can happen to `self`.
        unsafe { self.engines.submit(&self.jobs) };
        self.engines.flush();
        let mut failed = None;
        while self.engines.in_flight() > 0 {
            self.engines.poll(&mut |_, outcome| {
                done();
                if !matches!(outcome, Outcome::Done { .. }) {
                    failed = Some(outcome);
                }
            });
        }
        ensure!(failed.is_none(), "The engine ended a request with {failed:?}");
        Ok(())
    }

    /// Destination and digest of a slot.
    pub fn result(&self, slot: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.sizes.dst + self.sizes.digest];
        let (text, digest) = bytes.split_at_mut(self.sizes.dst);
        self.memory.slice(self.places[slot].dst, text.len())?.read(0, text);
        self.memory.slice(self.places[slot].digest, digest.len())?.read(0, digest);
        Ok(bytes)
    }
}

/// Memory on pages of its own.
fn place(memory: &OwnMemory, len: usize) -> Result<GuestAddr> {
    memory.alloc(len.max(1), PAGE).ok_or_else(|| anyhow::anyhow!("The memory is too small"))
}

/// What a session is told.
fn spec<'a>(algorithm: Algorithm, direction: Direction, keys: &'a Keys) -> Result<KeySpec<'a>> {
    let way = match direction {
        Direction::Decrypt => theirs::Direction::Decrypt,
        _ => theirs::Direction::Encrypt,
    };
    let (key, other) = (&keys.key[..], &keys.other[..]);
    Ok(match algorithm {
        Algorithm::Cipher(mode, _) => KeySpec::Cipher { cipher: cipher(mode), direction: way, key },
        Algorithm::Chain(_, hash) => KeySpec::Chain {
            cipher: theirs::Cipher::AesCbc,
            direction: way,
            order: match direction {
                Direction::Decrypt => theirs::ChainOrder::HashThenCipher,
                _ => theirs::ChainOrder::CipherThenHash,
            },
            hash: hash_of(hash),
            cipher_key: key,
            mac_key: Some(other),
            result_len: hash.digest_len(),
        },
        Algorithm::Hash(hash) => KeySpec::Hash { hash: hash_of(hash), result_len: hash.digest_len() },
        Algorithm::Mac(hash) => {
            KeySpec::Mac { hash: hash_of(hash), key: other, result_len: hash.digest_len() }
        }
        Algorithm::Aead(aead, _) => {
            let aead = match aead {
                Aead::Gcm => theirs::Aead::AesGcm,
                Aead::Ccm => theirs::Aead::AesCcm,
                Aead::ChaCha20Poly1305 => theirs::Aead::ChaCha20Poly1305,
            };
            KeySpec::Aead { aead, direction: way, key, tag_len: TAG }
        }
        Algorithm::Rsa(_) | Algorithm::Ecdsa(_) => {
            bail!("Public-key operations are the library's: use --engine-alone library")
        }
    })
}

fn cipher(mode: Mode) -> theirs::Cipher {
    match mode {
        Mode::Ecb => theirs::Cipher::AesEcb,
        Mode::Cbc => theirs::Cipher::AesCbc,
        Mode::Ctr => theirs::Cipher::AesCtr,
        Mode::Xts => theirs::Cipher::AesXts,
    }
}

fn hash_of(hash: Hash) -> theirs::Hash {
    match hash {
        Hash::Sha1 => theirs::Hash::Sha1,
        Hash::Sha224 => theirs::Hash::Sha224,
        Hash::Sha256 => theirs::Hash::Sha256,
        Hash::Sha384 => theirs::Hash::Sha384,
        Hash::Sha512 => theirs::Hash::Sha512,
    }
}
