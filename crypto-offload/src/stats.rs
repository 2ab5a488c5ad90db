//! What happened on the queues of a device and in the engines of a worker: written by the worker that owns them, read
//! by anybody.

use crate::algorithm::{Aead, Akcipher, Cipher, Hash, Service};
use crate::engine::Recipe;
use crate::wire::status::{STATUSES, Status};
use crossbeam_utils::CachePadded;
use offload::stats::{BatchCounters, BatchSnapshot};
use runtime::stats::{Counter, HistogramSnapshot, Log2Histogram};
use std::ops::Deref;

/// What a request computes, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
#[expect(missing_docs, reason = "the names of the algorithms")]
pub enum Algo {
    AesEcb,
    AesCbc,
    AesCtr,
    AesXts,
    /// A cipher chained with a hash or MAC.
    Chain,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    HmacSha1,
    HmacSha224,
    HmacSha256,
    HmacSha384,
    HmacSha512,
    AesGcm,
    AesCcm,
    ChaCha20Poly1305,
    Rsa,
    Ecdsa,
    /// Whatever was refused before its algorithm was known.
    Other,
}

/// Number of [`Algo`]s.
pub const ALGOS: usize = 21;

impl Algo {
    /// All, in the order of the counters.
    pub const ALL: [Self; ALGOS] = [
        Self::AesEcb,
        Self::AesCbc,
        Self::AesCtr,
        Self::AesXts,
        Self::Chain,
        Self::Sha1,
        Self::Sha224,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
        Self::HmacSha1,
        Self::HmacSha224,
        Self::HmacSha256,
        Self::HmacSha384,
        Self::HmacSha512,
        Self::AesGcm,
        Self::AesCcm,
        Self::ChaCha20Poly1305,
        Self::Rsa,
        Self::Ecdsa,
        Self::Other,
    ];

    /// Label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AesEcb => "aes-ecb",
            Self::AesCbc => "aes-cbc",
            Self::AesCtr => "aes-ctr",
            Self::AesXts => "aes-xts",
            Self::Chain => "chain",
            Self::Sha1 => "sha1",
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::HmacSha1 => "hmac-sha1",
            Self::HmacSha224 => "hmac-sha224",
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha384 => "hmac-sha384",
            Self::HmacSha512 => "hmac-sha512",
            Self::AesGcm => "aes-gcm",
            Self::AesCcm => "aes-ccm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Rsa => "rsa",
            Self::Ecdsa => "ecdsa",
            Self::Other => "other",
        }
    }

    /// The service it belongs to; `None` for what was refused before that was known.
    pub const fn service(self) -> Option<Service> {
        Some(match self {
            Self::AesEcb | Self::AesCbc | Self::AesCtr | Self::AesXts | Self::Chain => Service::Cipher,
            Self::Sha1 | Self::Sha224 | Self::Sha256 | Self::Sha384 | Self::Sha512 => Service::Hash,
            Self::HmacSha1 | Self::HmacSha224 | Self::HmacSha256 | Self::HmacSha384 | Self::HmacSha512 => {
                Service::Mac
            }
            Self::AesGcm | Self::AesCcm | Self::ChaCha20Poly1305 => Service::Aead,
            Self::Rsa | Self::Ecdsa => Service::Akcipher,
            Self::Other => return None,
        })
    }

    /// What a key is for.
    #[inline]
    pub(crate) fn of(recipe: Recipe) -> Self {
        match recipe {
            Recipe::Cipher { cipher, .. } => Self::cipher(cipher),
            Recipe::Chain { .. } => Self::Chain,
            Recipe::Hash { hash } => Self::hash(hash),
            Recipe::Mac { hash } => Self::mac(hash),
            Recipe::Aead { aead, .. } => Self::aead(aead),
            Recipe::Akcipher { algorithm, .. } => Self::akcipher(algorithm),
        }
    }

    /// A plain cipher.
    pub const fn cipher(cipher: Cipher) -> Self {
        match cipher {
            Cipher::AesEcb => Self::AesEcb,
            Cipher::AesCbc => Self::AesCbc,
            Cipher::AesCtr => Self::AesCtr,
            Cipher::AesXts => Self::AesXts,
        }
    }

    /// A plain hash.
    pub const fn hash(hash: Hash) -> Self {
        match hash {
            Hash::Sha1 => Self::Sha1,
            Hash::Sha224 => Self::Sha224,
            Hash::Sha256 => Self::Sha256,
            Hash::Sha384 => Self::Sha384,
            Hash::Sha512 => Self::Sha512,
        }
    }

    /// HMAC with this hash.
    pub const fn mac(hash: Hash) -> Self {
        match hash {
            Hash::Sha1 => Self::HmacSha1,
            Hash::Sha224 => Self::HmacSha224,
            Hash::Sha256 => Self::HmacSha256,
            Hash::Sha384 => Self::HmacSha384,
            Hash::Sha512 => Self::HmacSha512,
        }
    }

    /// Authenticated encryption.
    pub const fn aead(aead: Aead) -> Self {
        match aead {
            Aead::AesGcm => Self::AesGcm,
            Aead::AesCcm => Self::AesCcm,
            Aead::ChaCha20Poly1305 => Self::ChaCha20Poly1305,
        }
    }

    /// A public-key algorithm.
    pub const fn akcipher(akcipher: Akcipher) -> Self {
        match akcipher {
            Akcipher::Rsa { .. } => Self::Rsa,
            Akcipher::Ecdsa { .. } => Self::Ecdsa,
        }
    }
}

/// Number of services.
pub const SERVICES: usize = 5;

/// Counters of one queue, on cache lines of their own.
#[derive(Debug, Default)]
pub struct QueueCounters {
    /// Requests completed, by [`Algo`], whatever their status.
    pub ops: [Counter; ALGOS],
    /// Bytes of source data, by [`Algo`].
    pub bytes: [Counter; ALGOS],
    /// Requests completed with a status other than OK, by [`Algo`].
    pub errors: [Counter; ALGOS],
    /// Requests completed, by [`Status`].
    pub statuses: [Counter; STATUSES],
    /// Requests too short for a header, or without room for a status.
    pub malformed: Counter,
    /// Requests that were answered at once, without a batch.
    pub inline: Counter,
    /// Requests that brought their own key.
    pub stateless: Counter,
    /// Requests taken over from a process that died.
    pub resubmitted: Counter,
    /// Rounds in which the ring had to leave the rest to others.
    pub throttled: Counter,
    /// Requests in flight on the queue when a burst was taken, the burst included.
    pub depth: Log2Histogram,
    /// Fetch to completion in nanoseconds, by [`Service`], by the clock read once a round.
    pub latency_ns: [Log2Histogram; SERVICES],
}

/// [`QueueCounters`] where no other queue's counters share a cache line.
pub type QueueStats = CachePadded<QueueCounters>;

impl QueueCounters {
    /// Counts a completed request.
    #[inline]
    pub fn completed(&self, algo: Algo, bytes: u64, status: Status) {
        self.ops[algo as usize].add(1);
        self.bytes[algo as usize].add(bytes);
        self.statuses[status as usize].add(1);
        if status != Status::Ok {
            self.errors[algo as usize].add(1);
        }
    }

    /// Records how long `n` requests took.
    #[inline]
    pub fn took(&self, service: Service, ns: u64, n: u64) {
        self.latency_ns[service.wire() as usize].record_n(ns, n);
    }

    /// A copy of everything.
    pub fn snapshot(&self) -> QueueSnapshot {
        QueueSnapshot {
            ops: self.ops.each_ref().map(Counter::get),
            bytes: self.bytes.each_ref().map(Counter::get),
            errors: self.errors.each_ref().map(Counter::get),
            statuses: self.statuses.each_ref().map(Counter::get),
            malformed: self.malformed.get(),
            inline: self.inline.get(),
            stateless: self.stateless.get(),
            resubmitted: self.resubmitted.get(),
            throttled: self.throttled.get(),
            depth: self.depth.snapshot(),
            latency_ns: self.latency_ns.each_ref().map(Log2Histogram::snapshot),
        }
    }
}

/// [`QueueCounters`] at one moment; fields as there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at the counters")]
pub struct QueueSnapshot {
    pub ops: [u64; ALGOS],
    pub bytes: [u64; ALGOS],
    pub errors: [u64; ALGOS],
    pub statuses: [u64; STATUSES],
    pub malformed: u64,
    pub inline: u64,
    pub stateless: u64,
    pub resubmitted: u64,
    pub throttled: u64,
    pub depth: HistogramSnapshot,
    pub latency_ns: [HistogramSnapshot; SERVICES],
}

impl QueueSnapshot {
    /// Requests of one kind.
    pub fn op(&self, algo: Algo) -> u64 {
        self.ops[algo as usize]
    }

    /// Requests that ended with one status.
    pub fn status(&self, status: Status) -> u64 {
        self.statuses[status as usize]
    }

    /// Requests in all.
    pub fn total(&self) -> u64 {
        self.ops.iter().sum()
    }

    /// Adds another one, value by value.
    pub fn merge(&mut self, other: &Self) {
        let add = |mine: &mut [u64], theirs: &[u64]| mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        add(&mut self.ops, &other.ops);
        add(&mut self.bytes, &other.bytes);
        add(&mut self.errors, &other.errors);
        add(&mut self.statuses, &other.statuses);
        self.malformed += other.malformed;
        self.inline += other.inline;
        self.stateless += other.stateless;
        self.resubmitted += other.resubmitted;
        self.throttled += other.throttled;
        self.depth.merge(&other.depth);
        self.latency_ns.iter_mut().zip(&other.latency_ns).for_each(|(mine, theirs)| mine.merge(theirs));
    }
}

/// What one worker's batches and engines did.
#[derive(Debug, Default)]
pub struct ServiceCounters {
    /// What every offload daemon counts of its batches; all of it can be reached as if it were here.
    pub batches: BatchCounters,
    /// Asymmetric requests with the pool now.
    pub asym_in_flight: Counter,
    /// Asymmetric requests completed.
    pub asym: Counter,
    /// Asymmetric results per wake-up.
    pub asym_batch: Log2Histogram,
    /// Requests that an engine failed and the library did.
    pub fallbacks: Counter,
    /// Requests that an engine had no room for and that were submitted again.
    pub busy: Counter,
}

/// [`ServiceCounters`] of one worker, on cache lines of their own.
pub type ServiceStats = CachePadded<ServiceCounters>;

impl Deref for ServiceCounters {
    type Target = BatchCounters;

    fn deref(&self) -> &BatchCounters {
        &self.batches
    }
}

impl ServiceCounters {
    /// A copy of everything.
    pub fn snapshot(&self) -> ServiceSnapshot {
        ServiceSnapshot {
            batches: self.batches.snapshot(),
            asym_in_flight: self.asym_in_flight.get(),
            asym: self.asym.get(),
            asym_batch: self.asym_batch.snapshot(),
            fallbacks: self.fallbacks.get(),
            busy: self.busy.get(),
        }
    }
}

/// [`ServiceCounters`] at one moment; fields as there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at the counters")]
pub struct ServiceSnapshot {
    pub batches: BatchSnapshot,
    pub asym_in_flight: u64,
    pub asym: u64,
    pub asym_batch: HistogramSnapshot,
    pub fallbacks: u64,
    pub busy: u64,
}

impl Deref for ServiceSnapshot {
    type Target = BatchSnapshot;

    fn deref(&self) -> &BatchSnapshot {
        &self.batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_names_are_in_the_same_order() {
        assert!(Algo::ALL.iter().enumerate().all(|(i, algo)| *algo as usize == i));
        assert!(Service::ALL.iter().enumerate().all(|(i, service)| service.wire() as usize == i));
        assert_eq!(Service::ALL.len(), SERVICES);
    }

    #[test]
    fn names_are_labels_and_unique() {
        let mut names: Vec<_> = Algo::ALL.map(Algo::name).to_vec();
        assert!(
            names
                .iter()
                .all(|name| name.bytes().all(|c| c.is_ascii_lowercase() || c == b'-' || c.is_ascii_digit()))
        );
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALGOS);
    }

    #[test]
    fn a_request_is_counted_by_algorithm_and_status() {
        let stats = QueueStats::default();
        stats.completed(Algo::AesCbc, 4096, Status::Ok);
        stats.completed(Algo::AesGcm, 16, Status::BadMsg);
        let mut sum = stats.snapshot();
        assert_eq!((sum.op(Algo::AesCbc), sum.bytes[Algo::AesCbc as usize]), (1, 4096));
        assert_eq!((sum.status(Status::Ok), sum.status(Status::BadMsg)), (1, 1));
        sum.merge(&stats.snapshot());
        assert_eq!((sum.total(), sum.op(Algo::AesGcm)), (4, 2));
    }
}
