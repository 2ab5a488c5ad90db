//! A virtio-crypto device on the library, one request after the other, able to lie on demand. It parses by the text of the
//! specification, apart from the driver's encoder.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use benches::crypto::algorithm::{Aead, Algorithm, Curve, Direction, Hash, Mode};
use benches::crypto::library::{Keys, Library, LibraryError};
use benches::crypto::wire::{Config, feature, status};
use memory::MemoryView;
use vhost_user::Refused;
use vhost_user::message::{features, protocol};
use virtqueue::Chain;
use zerocopy::IntoBytes;

use crate::backend::Model;

/// Data queues; the control queue comes behind them.
pub const DATA_QUEUES: u16 = 2;

/// Ways of the card to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Lie {
    None,
    /// One bit of every 50th result is flipped.
    Corrupt,
    /// Every 50th request is completed as if it was done.
    Skip,
    /// Every 50th request works with the keys of another session.
    WrongKeys,
    /// Every 50th request is completed with ERR.
    Fail,
    /// Every 50th request is completed without a status.
    NoStatus,
    /// No session is made.
    NoSessions,
    /// The device is not ready.
    NotReady,
}

/// The state of the card.
pub struct Card {
    sessions: Mutex<BTreeMap<u64, Session>>,
    next: AtomicU64,
    served: AtomicU64,
    features: AtomicU64,
    lie: AtomicU32,
}

#[derive(Clone)]
struct Session {
    algorithm: Algorithm,
    direction: Direction,
    keys: Keys,
}

impl Card {
    pub fn new(lie: Lie) -> Arc<Self> {
        Arc::new(Self {
            sessions: Mutex::default(),
            next: AtomicU64::new(1),
            served: AtomicU64::new(0),
            features: AtomicU64::new(0),
            lie: AtomicU32::new(lie as u32),
        })
    }

    /// Sessions that are open.
    pub fn open(&self) -> usize {
        self.sessions.lock().unwrap().len()
    }

    fn is(&self, lie: Lie) -> bool {
        self.lie.load(Ordering::Relaxed) == lie as u32
    }

    fn insert(&self, session: Session) -> Option<u64> {
        if self.is(Lie::NoSessions) {
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.sessions.lock().unwrap().insert(id, session);
        Some(id)
    }

    fn has(&self, bit: u64) -> bool {
        self.features.load(Ordering::Relaxed) & bit != 0
    }

    fn control(&self, chain: &mut Chain, view: &MemoryView) -> u32 {
        let request = Words(readable(chain, view));
        let (opcode, service) = (request.at(0), request.at(0) >> 8);
        let creates = opcode & 0xff == if service == 4 { 4 } else { 2 };
        if !creates {
            let id = u64::from(request.at(16)) | u64::from(request.at(20)) << 32;
            let known = self.sessions.lock().unwrap().remove(&id).is_some();
            chain.write_at(view, 0, &[if known { status::OK } else { status::ERR }]).unwrap();
            return 1;
        }
        let made = request.session(service, self.has(feature::REVISION_1)).and_then(|it| self.insert(it));
        let (id, code) = made.map_or((0, status::NOTSUPP), |id| (id, status::OK));
        let mut answer = id.to_le_bytes().to_vec();
        answer.extend([code, 0, 0, 0, 0, 0, 0, 0]);
        chain.write_at(view, 0, &answer).unwrap();
        16
    }

    fn data(&self, chain: &mut Chain, view: &MemoryView) -> Option<u32> {
        let number = self.served.fetch_add(1, Ordering::Relaxed);
        let lies = |lie| self.is(lie) && number % 50 == 49;
        chain.detach_status().unwrap();
        let request = Words(readable(chain, view));
        let (code, written) = match self.compute(&request, lies(Lie::WrongKeys)) {
            _ if lies(Lie::Fail) => (status::ERR, 0),
            _ if lies(Lie::Skip) => (status::OK, chain.writable_len() as u32),
            Ok(mut result) => {
                if let Some(byte) = result.last_mut().filter(|_| lies(Lie::Corrupt)) {
                    *byte ^= 1;
                }
                chain.write_at(view, 0, &result).unwrap();
                (status::OK, result.len() as u32)
            }
            Err(code) => (code, 0),
        };
        if !lies(Lie::NoStatus) {
            chain.write_status(view, code).unwrap();
        }
        Some(written + 1)
    }

    fn compute(&self, request: &Words, wrong_keys: bool) -> Result<Vec<u8>, u8> {
        let service = request.at(0) >> 8;
        let stateless = self.has(feature::CIPHER_STATELESS << service);
        let parsed = request.data(service, stateless).ok_or(status::ERR)?;
        let session = match parsed.session {
            Some(session) => session,
            None => {
                let id = u64::from(request.at(8)) | u64::from(request.at(12)) << 32;
                let sessions = self.sessions.lock().unwrap();
                let id = if wrong_keys { *sessions.keys().find(|&&it| it != id).unwrap_or(&id) } else { id };
                sessions.get(&id).cloned().ok_or(status::INVSESS)?
            }
        };
        let Session { algorithm, direction, keys } = session;
        let asked = match request.at(0) & 0xff {
            0 if service == 1 || service == 2 => Direction::Digest,
            0 => Direction::Encrypt,
            1 => Direction::Decrypt,
            2 => Direction::Sign,
            _ => Direction::Verify,
        };
        assert!(service == 4 || asked == direction, "{asked:?} in a session for {direction:?}");
        let (iv, src) = request.0[parsed.at..].split_at(parsed.iv);
        let mut out = vec![0; parsed.room];
        let mut library = Library::new(algorithm, asked, &keys).map_err(|_| status::KEY_REJECTED)?;
        match library.run(iv, src, &mut out) {
            Ok(len) => {
                out.truncate(len);
                Ok(out)
            }
            Err(LibraryError::Forged) if asked == Direction::Verify => Err(status::KEY_REJECTED),
            Err(LibraryError::Forged) => Err(status::BADMSG),
            Err(LibraryError::Refused(_)) => Err(status::ERR),
        }
    }
}

fn readable(chain: &mut Chain, view: &MemoryView) -> Vec<u8> {
    let mut bytes = vec![0; chain.readable_len() as usize];
    chain.read_prefix(view, &mut bytes).unwrap();
    bytes
}

/// A request by its 32-bit fields.
struct Words(Vec<u8>);

/// A data request.
struct Parsed {
    /// Of a stateless request.
    session: Option<Session>,
    /// Where the IV begins.
    at: usize,
    iv: usize,
    /// Bytes of destination and digest.
    room: usize,
}

impl Words {
    fn at(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.0[offset..offset + 4].try_into().unwrap())
    }

    /// `len` fields from `offset` on.
    fn fields<const N: usize>(&self, offset: usize) -> [usize; N] {
        std::array::from_fn(|n| self.at(offset + 4 * n) as usize)
    }

    fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        self.0[offset..offset + len].to_vec()
    }

    /// The session that a control request asks for.
    fn session(&self, service: u32, revision_1: bool) -> Option<Session> {
        let key_at = |fixed: usize| 16 + if revision_1 { fixed } else { 56 };
        let plain = |algorithm, direction, key, other| {
            let keys = Keys { key, other };
            Some(Session { algorithm, direction, keys })
        };
        match service {
            0 if self.at(64) == 1 => {
                let [algo, len, op] = self.fields(16);
                let key = self.bytes(key_at(56), len);
                plain(cipher(algo, len)?, direction(op), key, Vec::new())
            }
            0 => {
                let [order, mode, 3, len, op, _, hash_number, result, other] = self.fields(16) else {
                    return None;
                };
                let hash = hash(hash_number)?;
                assert_eq!((order, mode, result), (3 - op, 2, hash.digest_len()));
                let key = self.bytes(key_at(56), len);
                let mac_key = self.bytes(key_at(56) + len, other);
                plain(Algorithm::Chain(len as u16 * 8, hash), direction(op), key, mac_key)
            }
            1 => plain(Algorithm::Hash(hash(self.fields::<1>(16)[0])?), Direction::Digest, vec![], vec![]),
            2 => {
                let [algo, _, len] = self.fields(16);
                let key = self.bytes(key_at(16), len);
                plain(Algorithm::Mac(hash(algo)?), Direction::Digest, vec![], key)
            }
            3 => {
                let [algo, len, 16, _, op] = self.fields(16) else { return None };
                plain(aead(algo, len)?, direction(op), self.bytes(key_at(24), len), vec![])
            }
            _ => {
                let [algo, kind, len, first] = self.fields(16);
                public(algo, kind, first, self.bytes(key_at(56), len))
            }
        }
    }

    fn data(&self, service: u32, stateless: bool) -> Option<Parsed> {
        let brings_key = stateless && self.at(16) & 1 == 0;
        let end = |fixed: usize| 24 + fixed;
        let keyed = |algorithm, op, key_at: usize, key: usize, other: usize| {
            let keys = Keys { key: self.bytes(key_at, key), other: self.bytes(key_at + key, other) };
            brings_key.then_some(Session { algorithm, direction: op, keys })
        };
        let parsed = |session, at, iv, room| Some(Parsed { session, at, iv, room });
        let key_len = |len: usize| if brings_key { len } else { 0 };
        match (service, stateless) {
            (0, false) if self.at(64) == 1 => {
                let [iv, _, dst] = self.fields(24);
                parsed(None, end(48), iv, dst)
            }
            (0, false) => {
                let [iv, src, dst, 0, ciphered, 0, hashed, 0, digest] = self.fields(24) else { return None };
                assert_eq!((src, src), (ciphered, hashed));
                parsed(None, end(48), iv, dst + digest)
            }
            (0, true) if self.at(24 + 72) == 1 => {
                let [algo, key, op, iv, _, dst] = self.fields(24);
                let session = keyed(cipher(algo, key)?, direction(op), end(76), key, 0);
                parsed(session, end(76) + key_len(key), iv, dst)
            }
            (0, true) => {
                let [_, _, 3, key, op, hash_number, other, 2, iv, _, dst] = self.fields(24) else {
                    return None;
                };
                let [digest] = self.fields(24 + 64);
                let algorithm = Algorithm::Chain(key as u16 * 8, hash(hash_number)?);
                let session = keyed(algorithm, direction(op), end(76), key, other);
                parsed(session, end(76) + key_len(key + other), iv, dst + digest)
            }
            (1, false) | (2, false) => parsed(None, self.padded(8), 0, self.fields::<2>(24)[1]),
            (1, true) => {
                let [algo, _, digest] = self.fields(24);
                let session = keyed(Algorithm::Hash(hash(algo)?), Direction::Digest, end(16), 0, 0);
                parsed(session, end(16), 0, digest)
            }
            (2, true) => {
                let [algo, key, _, digest] = self.fields(24);
                let session = keyed(Algorithm::Mac(hash(algo)?), Direction::Digest, end(16), 0, key);
                parsed(session, end(16) + key_len(key), 0, digest)
            }
            (3, false) => {
                let [iv, _, _, dst] = self.fields(24);
                parsed(None, self.padded(24), iv, dst)
            }
            (3, true) => {
                let [algo, key, op, iv, 16, 0, _, dst] = self.fields(24) else { return None };
                let session = keyed(aead(algo, key)?, direction(op), end(32), key, 0);
                parsed(session, end(32) + key_len(key), iv, dst)
            }
            (_, false) => parsed(None, self.padded(8), 0, self.fields::<2>(24)[1]),
            (_, true) => {
                let [algo, kind, key, first, _, _, dst] = self.fields(24);
                let session = public(algo, kind, first, self.bytes(end(28), key_len(key)));
                parsed(session.filter(|_| brings_key), end(28) + key_len(key), 0, dst)
            }
        }
    }

    /// Where the variable part begins: REVISION_1 is known by the length that is left.
    fn padded(&self, fixed: usize) -> usize {
        let [first, second, third] = self.fields(24);
        let service = self.at(0) >> 8;
        let variable = match service {
            3 => first + third,
            4 if self.at(0) & 0xff == 3 => first + second,
            _ => first,
        };
        let at = self.0.len() - variable;
        assert!(at == 24 + fixed || at == 72, "a head of {at} bytes");
        at
    }
}

fn direction(op: usize) -> Direction {
    if op == 2 { Direction::Decrypt } else { Direction::Encrypt }
}

fn hash(number: usize) -> Option<Hash> {
    [Hash::Sha1, Hash::Sha224, Hash::Sha256, Hash::Sha384, Hash::Sha512].get(number.checked_sub(2)?).copied()
}

fn cipher(number: usize, key: usize) -> Option<Algorithm> {
    let bits = key as u16 * 8;
    Some(match number {
        2 => Algorithm::Cipher(Mode::Ecb, bits),
        3 => Algorithm::Cipher(Mode::Cbc, bits),
        4 => Algorithm::Cipher(Mode::Ctr, bits),
        13 => Algorithm::Cipher(Mode::Xts, bits / 2),
        _ => return None,
    })
}

fn aead(number: usize, key: usize) -> Option<Algorithm> {
    let aead = [Aead::Gcm, Aead::Ccm, Aead::ChaCha20Poly1305].get(number.checked_sub(1)?)?;
    Some(Algorithm::Aead(*aead, key as u16 * 8))
}

/// A public-key session; its direction is that of each request. Both halves are the one that came.
fn public(algo: usize, kind: usize, first: usize, key: Vec<u8>) -> Option<Session> {
    let algorithm = match (algo, first) {
        (1, _) => Algorithm::Rsa(0),
        (2, 3) => Algorithm::Ecdsa(Curve::P256),
        (2, 4) => Algorithm::Ecdsa(Curve::P384),
        _ => return None,
    };
    let direction = if kind == 2 { Direction::Sign } else { Direction::Verify };
    Some(Session { algorithm, direction, keys: Keys { key: key.clone(), other: key } })
}

impl Model for Card {
    fn queues(&self) -> u16 {
        DATA_QUEUES + 1
    }

    fn features(&self) -> u64 {
        let stateless = feature::CIPHER_STATELESS
            | feature::HASH_STATELESS
            | feature::MAC_STATELESS
            | feature::AEAD_STATELESS
            | feature::AKCIPHER_STATELESS;
        features::VERSION_1 | feature::REVISION_1 | stateless
    }

    fn protocol_features(&self) -> u64 {
        protocol::CONFIG | protocol::CRYPTO_SESSION
    }

    fn config(&self) -> Vec<u8> {
        let ready = u32::from(!self.is(Lie::NotReady));
        let config = Config {
            status: ready.into(),
            max_dataqueues: u32::from(DATA_QUEUES).into(),
            crypto_services: 0x1f.into(),
            ..Config::default()
        };
        config.as_bytes().to_vec()
    }

    fn negotiated(&self, features: u64) {
        self.features.store(features, Ordering::Relaxed);
    }

    fn execute(&self, index: u16, chain: &mut Chain, view: &MemoryView) -> Option<u32> {
        if index == DATA_QUEUES { Some(self.control(chain, view)) } else { self.data(chain, view) }
    }

    /// QEMU's structure in either size.
    fn create_session(&self, description: &[u8]) -> Result<u64, Refused> {
        let words = Words(description.to_vec());
        let refused = Refused("no such algorithm");
        let is_public = match description.len() {
            632 => false,
            1072 => words.at(0) == 0x404,
            _ => return Err(Refused("no such size")),
        };
        let session = if is_public {
            let [algo, kind, len] = words.fields(8);
            public(algo, kind, words.at(32) as usize, words.bytes(40, len))
        } else {
            let [algo, key, hash_number, _, other] = words.fields(8);
            let (op_type, op) = (description[32], usize::from(description[33]));
            let algorithm = match op_type {
                1 => cipher(algo, key),
                _ => hash(hash_number).map(|hash| Algorithm::Chain(key as u16 * 8, hash)),
            };
            let keys = Keys { key: words.bytes(56, key), other: words.bytes(120, other) };
            algorithm.map(|algorithm| Session { algorithm, direction: direction(op), keys })
        };
        session.and_then(|session| self.insert(session)).ok_or(refused)
    }

    fn close_session(&self, id: u64) -> Result<(), Refused> {
        let removed = self.sessions.lock().unwrap().remove(&id);
        removed.map(|_| ()).ok_or(Refused("no such session"))
    }
}
