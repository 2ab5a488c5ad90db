//! Data requests (virtio 1.3 §5.9.7.4 and following): the general header and the fixed part behind it, as values.
//!
//! A request is, in this order: a header of 24 bytes, a fixed part, then the variable part: keys (stateless requests), IV,
//! source data and additional data. The driver's writable buffers hold the result and, last, the status byte. Any of it
//! may be split over descriptors anywhere. This module is pure: it looks at private copies only, and checks what can be
//! checked without knowing the keys.
//!
//! # Which fixed part
//!
//! Without `VIRTIO_CRYPTO_F_REVISION_1` every fixed part is padded to 48 bytes, sessions are the only mode, and the header's
//! flag is ignored. With it, a fixed part is as long as its structure; and a service for which stateless mode was
//! negotiated has the stateless structures in every request, of which the session's parameters are ignored when the flag
//! says that there is a session (there is no key in the variable part then).

use crate::algorithm::{ChainOrder, Direction, Service};
use crate::wire::status::Status;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// VIRTIO_CRYPTO_F_REVISION_1
pub const VIRTIO_CRYPTO_F_REVISION_1: u64 = 1 << 0;
/// VIRTIO_CRYPTO_FLAG_SESSION_MODE
pub const VIRTIO_CRYPTO_FLAG_SESSION_MODE: u32 = 1;
/// VIRTIO_CRYPTO_SYM_OP_CIPHER
pub const VIRTIO_CRYPTO_SYM_OP_CIPHER: u32 = 1;
/// VIRTIO_CRYPTO_SYM_OP_ALGORITHM_CHAINING
pub const VIRTIO_CRYPTO_SYM_OP_ALGORITHM_CHAINING: u32 = 2;
/// VIRTIO_CRYPTO_SYM_HASH_MODE_PLAIN
pub const VIRTIO_CRYPTO_SYM_HASH_MODE_PLAIN: u32 = 1;
/// VIRTIO_CRYPTO_SYM_HASH_MODE_AUTH
pub const VIRTIO_CRYPTO_SYM_HASH_MODE_AUTH: u32 = 2;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// CIPHER, AEAD, AKCIPHER.
    Encrypt,
    /// CIPHER, AEAD, AKCIPHER.
    Decrypt,
    /// HASH, MAC.
    Digest,
    /// AKCIPHER.
    Sign,
    /// AKCIPHER.
    Verify,
}

/// Length of the general header.
pub const HEADER_LEN: usize = 24;
/// Length of the longest fixed part: that of a stateless symmetric request.
pub const MAX_FIXED_LEN: usize = 76;
/// A fixed part, in whose layout there are only words; what is behind a shorter one is zero.
pub type Fixed = [U32; MAX_FIXED_LEN / 4];
/// VIRTIO_CRYPTO_DATAQ_OP_SPEC_HDR_LEGACY: length of every fixed part without REVISION_1.
pub const LEGACY_FIXED_LEN: usize = 48;

/// `struct virtio_crypto_op_header` (virtio 1.3 §5.9.7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Service and operation.
    pub opcode: U32,
    /// Repeats the algorithm of the session; ignored.
    pub algo: U32,
    /// The session, in session mode.
    pub session_id: U64,
    /// VIRTIO_CRYPTO_FLAG_SESSION_MODE.
    pub flag: U32,
    /// Ignored.
    pub padding: U32,
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);

/// The opcode of a data request.
pub fn opcode(service: Service, op: Op) -> u32 {
    let number = match op {
        Op::Encrypt | Op::Digest => 0,
        Op::Decrypt => 1,
        Op::Sign => 2,
        Op::Verify => 3,
    };
    service.wire() << 8 | number
}

/// Service and operation of an opcode; `None` for one the device does not know.
fn operation(opcode: u32) -> Option<(Service, Op)> {
    let service = Service::from_wire(opcode >> 8)?;
    let op = match (service, opcode & 0xff) {
        (Service::Hash | Service::Mac, 0) => Op::Digest,
        (Service::Hash | Service::Mac, _) => return None,
        (_, 0) => Op::Encrypt,
        (_, 1) => Op::Decrypt,
        (Service::Akcipher, 2) => Op::Sign,
        (Service::Akcipher, 3) => Op::Verify,
        _ => return None,
    };
    Some((service, op))
}

/// What the negotiated features say about the shape of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    revision_1: bool,
    /// Bit `n`: stateless mode was negotiated for service `n`.
    stateless: u8,
}

impl Layout {
    /// Of these feature bits. Stateless modes count only with REVISION_1 (virtio 1.3 §5.9.3.1).
    pub fn of(features: u64) -> Self {
        let revision_1 = features & VIRTIO_CRYPTO_F_REVISION_1 != 0;
        Self { revision_1, stateless: if revision_1 { (features >> 1) as u8 & 0x1f } else { 0 } }
    }

    /// Whether VIRTIO_CRYPTO_F_REVISION_1 was negotiated.
    pub fn revision_1(self) -> bool {
        self.revision_1
    }

    /// Whether requests of a service have the stateless structures.
    pub fn stateless(self, service: Service) -> bool {
        self.stateless >> service.wire() & 1 != 0
    }

    /// Length of the fixed part of a request.
    pub fn fixed_len(self, service: Service) -> usize {
        if !self.revision_1 {
            return LEGACY_FIXED_LEN;
        }
        match (service, self.stateless(service)) {
            (Service::Cipher, true) => MAX_FIXED_LEN,
            (Service::Cipher, false) => 48,
            (Service::Hash | Service::Mac, true) => 16,
            (Service::Hash | Service::Mac | Service::Akcipher, false) => 8,
            (Service::Aead, true) => 32,
            (Service::Aead, false) => 24,
            (Service::Akcipher, true) => 28,
        }
    }
}

/// Part of the source data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// Bytes.
    pub len: u32,
}

impl Span {
    fn within(self, len: u32) -> bool {
        self.start.checked_add(self.len).is_some_and(|end| end <= len)
    }
}

/// Where the keys of a request come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A session.
    Session(u64),
    /// The request itself: algorithms by their wire numbers, and the lengths of the keys in front of the variable part.
    Request(Stateless),
}

/// The session's parameters in a stateless request, unchecked but for their direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the field names of the specification")]
pub enum Stateless {
    Cipher { algo: u32, key_len: u32, direction: Direction },
    Chain(StatelessChain),
    Hash { algo: u32, result_len: u32 },
    Mac { algo: u32, auth_key_len: u32, result_len: u32 },
    Aead { algo: u32, key_len: u32, tag_len: u32, direction: Direction },
    Akcipher { algo: u32, key_type: u32, key_len: u32, parameters: [u32; 2] },
}

/// The session's parameters in a stateless request of chained algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the field names of the specification")]
pub struct StatelessChain {
    pub order: ChainOrder,
    pub algo: u32,
    pub key_len: u32,
    pub direction: Direction,
    pub hash_algo: u32,
    pub auth_key_len: u32,
    pub hash_mode: u32,
    pub hash_result_len: u32,
}

impl Stateless {
    /// Lengths of the cipher key and of the authentication key in the variable part.
    pub fn key_lens(&self) -> (u32, u32) {
        match *self {
            Self::Cipher { key_len, .. } | Self::Aead { key_len, .. } | Self::Akcipher { key_len, .. } => {
                (key_len, 0)
            }
            Self::Chain(chain) => (chain.key_len, chain.auth_key_len),
            Self::Hash { .. } => (0, 0),
            Self::Mac { auth_key_len, .. } => (0, auth_key_len),
        }
    }
}

/// What is to be done with which bytes of the variable part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the field names of the specification, without their suffixes")]
pub enum Data {
    Cipher {
        iv: u32,
        src: u32,
        dst: u32,
    },
    Chain {
        iv: u32,
        src: u32,
        dst: u32,
        cipher: Span,
        hash: Span,
        aad: u32,
        result: u32,
    },
    /// HASH and MAC.
    Digest {
        src: u32,
        result: u32,
    },
    Aead {
        iv: u32,
        aad: u32,
        src: u32,
        dst: u32,
        /// As the request says; `None` without REVISION_1, where there is no such field.
        tag: Option<u32>,
    },
    Akcipher {
        src: u32,
        dst: u32,
    },
}

impl Data {
    /// Readable bytes behind the keys: IV, source and additional data.
    pub fn readable_len(&self) -> u64 {
        let sum = |parts: &[u32]| parts.iter().map(|part| u64::from(*part)).sum();
        match *self {
            Self::Cipher { iv, src, .. } => sum(&[iv, src]),
            Self::Chain { iv, src, aad, .. } | Self::Aead { iv, aad, src, .. } => sum(&[iv, src, aad]),
            Self::Digest { src, .. } => sum(&[src]),
            // The digest that a signature is checked against.
            Self::Akcipher { src, dst } => sum(&[src, dst]),
        }
    }
}

/// A data request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The service.
    pub service: Service,
    /// What to do.
    pub op: Op,
    /// With which keys.
    pub key: KeySource,
    /// With which data.
    pub data: Data,
}

/// A request whose header was read and whose fixed part is still to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The service.
    pub service: Service,
    /// What to do.
    pub op: Op,
    session: Option<u64>,
    /// The fixed part has the stateless structures.
    stateless: bool,
    /// Length of the fixed part.
    pub fixed_len: usize,
}

/// Looks at the general header.
#[inline]
pub fn open(layout: Layout, header: &Header) -> Result<Opened, Status> {
    let (service, op) = operation(header.opcode.get()).ok_or(Status::NotSupp)?;
    let stateless = layout.stateless(service);
    let session_mode = !layout.revision_1 || header.flag.get() & VIRTIO_CRYPTO_FLAG_SESSION_MODE != 0;
    if !session_mode && !stateless {
        return Err(Status::NotSupp);
    }
    let session = session_mode.then(|| header.session_id.get());
    Ok(Opened { service, op, session, stateless, fixed_len: layout.fixed_len(service) })
}

impl Opened {
    /// Looks at the fixed part, which has `fixed_len` bytes.
    #[inline]
    pub fn parse(&self, revision_1: bool, words: &Fixed) -> Result<Request, Status> {
        let (params, data) = match (self.service, self.stateless) {
            (Service::Cipher, false) => (None, symmetric(words)?),
            (Service::Cipher, true) => self.stateless_symmetric(words)?,
            (Service::Hash | Service::Mac, false) => {
                (None, Data::Digest { src: words[0].get(), result: words[1].get() })
            }
            (Service::Hash, true) => {
                let [algo, src, result] = [words[0].get(), words[1].get(), words[2].get()];
                (Some(Stateless::Hash { algo, result_len: result }), Data::Digest { src, result })
            }
            (Service::Mac, true) => {
                let [algo, auth_key_len, src, result] =
                    [words[0].get(), words[1].get(), words[2].get(), words[3].get()];
                let params = Stateless::Mac { algo, auth_key_len, result_len: result };
                (Some(params), Data::Digest { src, result })
            }
            (Service::Aead, false) => {
                let [iv, aad, src, dst] = [words[0].get(), words[1].get(), words[2].get(), words[3].get()];
                (None, Data::Aead { iv, aad, src, dst, tag: revision_1.then(|| words[4].get()) })
            }
            (Service::Aead, true) => self.stateless_aead(words)?,
            (Service::Akcipher, false) => (None, Data::Akcipher { src: words[0].get(), dst: words[1].get() }),
            (Service::Akcipher, true) => {
                let [algo, key_type, key_len] = [words[0].get(), words[1].get(), words[2].get()];
                let parameters = [words[3].get(), words[4].get()];
                let data = Data::Akcipher { src: words[5].get(), dst: words[6].get() };
                (Some(Stateless::Akcipher { algo, key_type, key_len, parameters }), data)
            }
        };
        check(&data)?;
        let key = match (self.session, params) {
            (Some(session), _) => KeySource::Session(session),
            (None, Some(params)) => KeySource::Request(params),
            (None, None) => return Err(Status::NotSupp),
        };
        Ok(Request { service: self.service, op: self.op, key, data })
    }

    /// `struct virtio_crypto_sym_data_flf_stateless`: 72 bytes by the type behind them.
    fn stateless_symmetric(&self, words: &Fixed) -> Result<(Option<Stateless>, Data), Status> {
        match words[18].get() {
            VIRTIO_CRYPTO_SYM_OP_CIPHER => {
                let [iv, src, dst] = [words[3].get(), words[4].get(), words[5].get()];
                let params = || {
                    let direction = self.direction(words[2].get())?;
                    Ok(Stateless::Cipher { algo: words[0].get(), key_len: words[1].get(), direction })
                };
                Ok((self.own(params)?, Data::Cipher { iv, src, dst }))
            }
            VIRTIO_CRYPTO_SYM_OP_ALGORITHM_CHAINING => {
                let data = chain(words, 8);
                Ok((self.own(|| self.stateless_chain(words).map(Stateless::Chain))?, data))
            }
            _ => Err(Status::NotSupp),
        }
    }

    /// `struct virtio_crypto_alg_chain_data_flf_stateless.sess_para`.
    fn stateless_chain(&self, words: &Fixed) -> Result<StatelessChain, Status> {
        let order = ChainOrder::from_wire(words[0].get()).ok_or(Status::NotSupp)?;
        let direction = self.direction(words[4].get())?;
        let [algo, key_len, hash_algo, auth_key_len, hash_mode] =
            [words[2].get(), words[3].get(), words[5].get(), words[6].get(), words[7].get()];
        let hash_result_len = words[16].get();
        Ok(StatelessChain {
            order,
            algo,
            key_len,
            direction,
            hash_algo,
            auth_key_len,
            hash_mode,
            hash_result_len,
        })
    }

    /// `struct virtio_crypto_aead_data_flf_stateless`.
    fn stateless_aead(&self, words: &Fixed) -> Result<(Option<Stateless>, Data), Status> {
        let [iv, tag_len, aad, src, dst] =
            [words[3].get(), words[4].get(), words[5].get(), words[6].get(), words[7].get()];
        let params = || {
            let direction = self.direction(words[2].get())?;
            Ok(Stateless::Aead { algo: words[0].get(), key_len: words[1].get(), tag_len, direction })
        };
        Ok((self.own(params)?, Data::Aead { iv, aad, src, dst, tag: Some(tag_len) }))
    }

    /// The session's parameters, which a request with a session does not have, whatever stands in their place.
    fn own(&self, params: impl FnOnce() -> Result<Stateless, Status>) -> Result<Option<Stateless>, Status> {
        if self.session.is_some() { Ok(None) } else { params().map(Some) }
    }

    /// The direction of a stateless request, which says it twice.
    fn direction(&self, op: u32) -> Result<Direction, Status> {
        let direction = Direction::from_wire(op).ok_or(Status::Err)?;
        let same = matches!(
            (direction, self.op),
            (Direction::Encrypt, Op::Encrypt) | (Direction::Decrypt, Op::Decrypt)
        );
        if same { Ok(direction) } else { Err(Status::Err) }
    }
}

/// `struct virtio_crypto_sym_data_flf`: 40 bytes by the type behind them.
#[inline]
fn symmetric(words: &Fixed) -> Result<Data, Status> {
    match words[10].get() {
        VIRTIO_CRYPTO_SYM_OP_CIPHER => {
            let [iv, src, dst] = [words[0].get(), words[1].get(), words[2].get()];
            Ok(Data::Cipher { iv, src, dst })
        }
        VIRTIO_CRYPTO_SYM_OP_ALGORITHM_CHAINING => Ok(chain(words, 0)),
        _ => Err(Status::NotSupp),
    }
}

/// `struct virtio_crypto_alg_chain_data_flf` from word `first` on.
fn chain(words: &Fixed, first: usize) -> Data {
    let word = |at: usize| words[first + at].get();
    Data::Chain {
        iv: word(0),
        src: word(1),
        dst: word(2),
        cipher: Span { start: word(3), len: word(4) },
        hash: Span { start: word(5), len: word(6) },
        aad: word(7),
        result: word(8),
    }
}

/// What must hold whatever the algorithm: results fit their buffers, parts lie inside the whole.
fn check(data: &Data) -> Result<(), Status> {
    let good = match *data {
        Data::Cipher { src, dst, .. } => dst >= src,
        Data::Chain { src, dst, cipher, hash, .. } => dst >= src && cipher.within(src) && hash.within(src),
        Data::Digest { .. } | Data::Aead { .. } | Data::Akcipher { .. } => true,
    };
    if good { Ok(()) } else { Err(Status::Err) }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
