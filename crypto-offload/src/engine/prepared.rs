//! Keys, expanded and checked once, used by every worker.

use super::job::{AkcipherOp, Outcome, Span, Tag, Work};
use super::library::{AeadKey, AkcipherKey, CipherKey, DigestKey};
use crate::algorithm::{
    Aead, Akcipher, ChainOrder, Cipher, Direction, Hash, KeyKind, MAX_AUTH_KEY, RsaPadding, Service,
};
use crate::keys::{Account, Building, LockedBox, Secret};
use crate::multibuffer::CbcKey;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a session or a stateless request asks for. Borrowed: whoever has the bytes wipes them.
#[derive(Clone, Copy)]
pub enum KeySpec<'a> {
    /// A cipher.
    Cipher {
        /// Which one.
        cipher: Cipher,
        /// Which way. Requests of a session go its way.
        direction: Direction,
        /// Its key.
        key: &'a [u8],
    },
    /// A hash.
    Hash {
        /// Which one.
        hash: Hash,
        /// Bytes of a result: the digest's first ones.
        result_len: usize,
    },
    /// An HMAC.
    Mac {
        /// With which hash.
        hash: Hash,
        /// Its key.
        key: &'a [u8],
        /// Bytes of a result: the first ones.
        result_len: usize,
    },
    /// A cipher and a hash or HMAC.
    Chain {
        /// Which cipher.
        cipher: Cipher,
        /// Which way.
        direction: Direction,
        /// Which first.
        order: ChainOrder,
        /// Which hash.
        hash: Hash,
        /// The key of the cipher.
        cipher_key: &'a [u8],
        /// The key of the HMAC; `None`: a plain hash.
        mac_key: Option<&'a [u8]>,
        /// Bytes of a result of the hash: the first ones.
        result_len: usize,
    },
    /// An authenticated cipher.
    Aead {
        /// Which one.
        aead: Aead,
        /// Which way.
        direction: Direction,
        /// Its key.
        key: &'a [u8],
        /// Bytes of a tag.
        tag_len: usize,
    },
    /// A public-key algorithm.
    Akcipher {
        /// Which one.
        algorithm: Akcipher,
        /// Which half of the pair.
        kind: KeyKind,
        /// RSA: `RSAPublicKey` or `RSAPrivateKey` (RFC 8017 §A.1). ECDSA: a point, bare or as an octet string, or
        /// `ECPrivateKey` (RFC 5915).
        der: &'a [u8],
    },
}

impl fmt::Debug for KeySpec<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} key bytes", self.recipe(), self.key_len())
    }
}

/// Why a key cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// No such algorithm, key size or combination: `NOTSUPP`.
    #[error("The device does not support {0}")]
    NotSupported(&'static str),
    /// The key does not fit the algorithm: `KEY_REJECTED`.
    #[error("The key is refused: {0}")]
    Rejected(&'static str),
    /// A parameter makes no sense: `ERR`.
    #[error("The session makes no sense: {0}")]
    Invalid(&'static str),
    /// No room: `NOSPC`.
    #[error(transparent)]
    NoMemory(#[from] crate::keys::NoMemory),
}

/// Which requests may share a batch: those of one algorithm, direction and key size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Group(u16);

/// Names a key as long as the process lives; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct KeyId(u64);

/// The algorithms of a key, without the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Recipe {
    Cipher { cipher: Cipher, direction: Direction },
    Hash { hash: Hash },
    Mac { hash: Hash },
    Chain { cipher: Cipher, direction: Direction, order: ChainOrder, hash: Hash, keyed: bool },
    Aead { aead: Aead, direction: Direction },
    Akcipher { algorithm: Akcipher, kind: KeyKind },
}

/// Expanded keys in locked memory, wiped when the last owner drops them.
pub struct Prepared {
    id: KeyId,
    group: Group,
    recipe: Recipe,
    /// The key of the cipher first, then that of the MAC; or what the guest sent of an asymmetric one.
    raw: Secret,
    /// How much of `raw` is the cipher's.
    cipher_key_len: usize,
    expanded: Expanded,
    /// For the multi-buffer engine.
    cbc: Option<LockedBox<CbcKey>>,
    tag_len: usize,
    result_len: usize,
}

/// What the library makes of a key.
pub(super) enum Expanded {
    Cipher(CipherKey),
    Digest(DigestKey),
    Chain { cipher: CipherKey, order: ChainOrder, hash: DigestKey },
    Aead(AeadKey),
    Akcipher(AkcipherKey),
}

impl Prepared {
    /// Checks and expands. Takes microseconds: asymmetric keys are only looked at, and understood at their first use.
    pub fn new(spec: &KeySpec<'_>) -> Result<Arc<Self>, KeyError> {
        Self::build(spec, Building::new)
    }

    /// The same, with all of its memory charged to a device.
    pub fn on(account: &Account, spec: &KeySpec<'_>) -> Result<Arc<Self>, KeyError> {
        Self::build(spec, || Building::on(account))
    }

    fn build(spec: &KeySpec<'_>, building: impl FnOnce() -> Building) -> Result<Arc<Self>, KeyError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        check(spec)?;
        super::library::start()?;
        let _building = building();
        let raw = match *spec {
            KeySpec::Chain { cipher_key, mac_key, .. } => {
                Secret::concat(cipher_key, mac_key.unwrap_or_default())?
            }
            KeySpec::Hash { .. } => Secret::concat(&[], &[])?,
            KeySpec::Cipher { key, .. } | KeySpec::Mac { key, .. } | KeySpec::Aead { key, .. } => {
                Secret::concat(key, &[])?
            }
            KeySpec::Akcipher { der, .. } => Secret::concat(der, &[])?,
        };
        let cipher_key_len = match *spec {
            KeySpec::Chain { cipher_key, .. } => cipher_key.len(),
            _ => raw.len(),
        };
        Ok(Arc::new(Self {
            id: KeyId(NEXT.fetch_add(1, Ordering::Relaxed)),
            group: spec.group(),
            recipe: spec.recipe(),
            raw,
            cipher_key_len,
            expanded: expand(spec)?,
            cbc: cbc_key(spec)?,
            tag_len: spec.tag_len(),
            result_len: spec.result_len(),
        }))
    }

    /// The name of this key, under which an engine may keep what it made of it until
    /// [`Engine::forget`](super::Engine::forget).
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Which batches its requests belong to.
    #[inline]
    pub fn group(&self) -> Group {
        self.group
    }

    /// Its algorithms.
    #[inline]
    pub(crate) fn recipe(&self) -> Recipe {
        self.recipe
    }

    /// Which service it is for.
    #[inline]
    pub fn service(&self) -> Service {
        self.recipe.service()
    }

    /// What it was made of: all that a hardware engine needs to set up a session of its own. The bytes are in locked
    /// memory.
    pub fn spec(&self) -> KeySpec<'_> {
        let (first, second) = self.raw.split_at(self.cipher_key_len);
        let result_len = self.result_len;
        match self.recipe {
            Recipe::Cipher { cipher, direction } => KeySpec::Cipher { cipher, direction, key: first },
            Recipe::Hash { hash } => KeySpec::Hash { hash, result_len },
            Recipe::Mac { hash } => KeySpec::Mac { hash, key: first, result_len },
            Recipe::Chain { cipher, direction, order, hash, keyed } => KeySpec::Chain {
                cipher,
                direction,
                order,
                hash,
                cipher_key: first,
                mac_key: keyed.then_some(second),
                result_len,
            },
            Recipe::Aead { aead, direction } => {
                KeySpec::Aead { aead, direction, key: first, tag_len: self.tag_len }
            }
            Recipe::Akcipher { algorithm, kind } => KeySpec::Akcipher { algorithm, kind, der: first },
        }
    }

    /// Whether a nonce of `len` bytes fits.
    #[inline]
    pub fn takes_iv(&self, len: usize) -> bool {
        match self.recipe {
            Recipe::Cipher { cipher, .. } | Recipe::Chain { cipher, .. } => len == cipher.iv_len(),
            Recipe::Aead { aead, .. } => aead.takes_iv(len),
            Recipe::Hash { .. } | Recipe::Mac { .. } | Recipe::Akcipher { .. } => len == 0,
        }
    }

    /// Which way its cipher works, if it has one.
    #[inline]
    pub fn direction(&self) -> Option<Direction> {
        match self.recipe {
            Recipe::Cipher { direction, .. }
            | Recipe::Chain { direction, .. }
            | Recipe::Aead { direction, .. } => Some(direction),
            Recipe::Hash { .. } | Recipe::Mac { .. } | Recipe::Akcipher { .. } => None,
        }
    }

    /// Bytes of a tag; 0 unless it is an authenticated cipher.
    #[inline]
    pub fn tag_len(&self) -> usize {
        self.tag_len
    }

    /// Bytes of a digest; 0 unless it hashes or authenticates.
    #[inline]
    pub fn result_len(&self) -> usize {
        self.result_len
    }

    /// The longest result of an asymmetric operation; 0 for every other key.
    pub fn output_len(&self) -> usize {
        match &self.expanded {
            Expanded::Akcipher(key) => key.output_len(),
            _ => 0,
        }
    }

    /// The key of AES-CBC encryption, if that is what the cipher does, also as a part of a chain.
    #[inline]
    pub fn cbc_encrypt_key(&self) -> Option<&CbcKey> {
        self.cbc.as_deref()
    }

    #[inline]
    pub(super) fn expanded(&self) -> &Expanded {
        &self.expanded
    }

    /// The bytes of the (cipher's) key.
    #[inline]
    pub(super) fn cipher_key(&self) -> &[u8] {
        &self.raw[..self.cipher_key_len]
    }

    /// Does a public-key operation, which takes its time. Private memory on both sides; any thread, several at once.
    ///
    /// `input` is the plaintext, ciphertext, digest or signature; `digest` is what a signature is checked against.
    /// The result goes to the first bytes of `output`, which has [`output_len`](Self::output_len) bytes at least.
    pub fn akcipher(&self, op: AkcipherOp, input: &[u8], digest: &[u8], output: &mut [u8]) -> Outcome {
        match &self.expanded {
            Expanded::Akcipher(key) => key.operate(self.cipher_key(), op, input, digest, output),
            _ => Outcome::NotSupported,
        }
    }

    /// Whether the request makes sense for this key: lengths, nonce, the shape of the work. Engines get no other.
    pub fn check(&self, work: &Work) -> Result<(), Outcome> {
        let sensible = match (work, self.recipe) {
            (Work::Cipher { iv, src, dst }, Recipe::Cipher { cipher, .. }) => {
                iv.len() == cipher.iv_len() && cipher.takes_len(src.len()) && src.len() == dst.len()
            }
            (Work::Digest { digest, .. }, Recipe::Hash { .. } | Recipe::Mac { .. }) => {
                digest.len() == self.result_len
            }
            (Work::Chain { iv, src, cipher: part, hash, dst, digest }, Recipe::Chain { cipher, .. }) => {
                iv.len() == cipher.iv_len()
                    && cipher.takes_len(part.len)
                    && within(*part, src.len())
                    && within(*hash, src.len())
                    && dst.len() == part.len
                    && digest.len() == self.result_len
            }
            (Work::Aead { iv, src, dst, tag, .. }, Recipe::Aead { aead, direction }) => {
                aead.takes_iv(iv.len()) && src.len() == dst.len() && self.fits(tag, direction)
            }
            (Work::Akcipher { dst, .. }, Recipe::Akcipher { .. }) => dst.len() >= self.output_len(),
            _ => return Err(Outcome::NotSupported),
        };
        if sensible { Ok(()) } else { Err(Outcome::Error) }
    }

    fn fits(&self, tag: &Tag, direction: Direction) -> bool {
        match (tag, direction) {
            (Tag::Write(place), Direction::Encrypt) => place.len() == self.tag_len,
            (Tag::Check(_), Direction::Decrypt) => true,
            _ => false,
        }
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}: {}", self.id.0, self.recipe)
    }
}

fn expand(spec: &KeySpec<'_>) -> Result<Expanded, KeyError> {
    Ok(match *spec {
        KeySpec::Cipher { cipher, direction, key } => {
            Expanded::Cipher(CipherKey::new(cipher, direction, key)?)
        }
        KeySpec::Hash { hash, .. } => Expanded::Digest(DigestKey::new(hash, None)?),
        KeySpec::Mac { hash, key, .. } => Expanded::Digest(DigestKey::new(hash, Some(key))?),
        KeySpec::Chain { cipher, direction, order, hash, cipher_key, mac_key, .. } => Expanded::Chain {
            cipher: CipherKey::new(cipher, direction, cipher_key)?,
            order,
            hash: DigestKey::new(hash, mac_key)?,
        },
        KeySpec::Aead { aead, direction, key, .. } => Expanded::Aead(AeadKey::new(aead, direction, key)?),
        KeySpec::Akcipher { algorithm, kind, der } => {
            Expanded::Akcipher(AkcipherKey::new(algorithm, kind, der)?)
        }
    })
}

fn cbc_key(spec: &KeySpec<'_>) -> Result<Option<LockedBox<CbcKey>>, KeyError> {
    let key = match *spec {
        KeySpec::Cipher { cipher: Cipher::AesCbc, direction: Direction::Encrypt, key } => key,
        KeySpec::Chain { cipher: Cipher::AesCbc, direction: Direction::Encrypt, cipher_key, .. } => {
            cipher_key
        }
        _ => return Ok(None),
    };
    // In place: a value that was moved leaves its bytes on the stack.
    let mut expanded = LockedBox::<CbcKey>::zeroed()?;
    expanded.expand(key);
    Ok(Some(expanded))
}

fn within(span: Span, len: usize) -> bool {
    span.end().is_some_and(|end| end <= len)
}

impl KeySpec<'_> {
    /// Which service it is for.
    pub fn service(&self) -> Service {
        self.recipe().service()
    }

    /// Which batches its requests would belong to.
    pub fn group(&self) -> Group {
        Group::new(self.recipe(), self.key_len())
    }

    /// Bytes of the (cipher's) key.
    fn key_len(&self) -> usize {
        match *self {
            Self::Cipher { key, .. } | Self::Mac { key, .. } | Self::Aead { key, .. } => key.len(),
            Self::Chain { cipher_key, .. } => cipher_key.len(),
            Self::Akcipher { der, .. } => der.len(),
            Self::Hash { .. } => 0,
        }
    }

    fn tag_len(&self) -> usize {
        match *self {
            Self::Aead { tag_len, .. } => tag_len,
            _ => 0,
        }
    }

    fn result_len(&self) -> usize {
        match *self {
            Self::Hash { result_len, .. } | Self::Mac { result_len, .. } | Self::Chain { result_len, .. } => {
                result_len
            }
            _ => 0,
        }
    }

    pub(crate) fn recipe(&self) -> Recipe {
        match *self {
            Self::Cipher { cipher, direction, .. } => Recipe::Cipher { cipher, direction },
            Self::Hash { hash, .. } => Recipe::Hash { hash },
            Self::Mac { hash, .. } => Recipe::Mac { hash },
            Self::Chain { cipher, direction, order, hash, mac_key, .. } => {
                Recipe::Chain { cipher, direction, order, hash, keyed: mac_key.is_some() }
            }
            Self::Aead { aead, direction, .. } => Recipe::Aead { aead, direction },
            Self::Akcipher { algorithm, kind, .. } => Recipe::Akcipher { algorithm, kind },
        }
    }
}

impl Recipe {
    /// Keys of AES that the (cipher's) key consists of.
    const fn ciphers(self) -> usize {
        match self {
            Self::Cipher { cipher: Cipher::AesXts, .. } | Self::Chain { cipher: Cipher::AesXts, .. } => 2,
            _ => 1,
        }
    }

    const fn service(self) -> Service {
        match self {
            Self::Cipher { .. } | Self::Chain { .. } => Service::Cipher,
            Self::Hash { .. } => Service::Hash,
            Self::Mac { .. } => Service::Mac,
            Self::Aead { .. } => Service::Aead,
            Self::Akcipher { .. } => Service::Akcipher,
        }
    }
}

/// Whether there is such a key at all.
fn check(spec: &KeySpec<'_>) -> Result<(), KeyError> {
    match *spec {
        KeySpec::Cipher { cipher, key, .. } => check_cipher(cipher, key),
        KeySpec::Hash { hash, result_len } => check_result(hash, result_len),
        KeySpec::Mac { hash, key, result_len } => {
            check_mac_key(key)?;
            check_result(hash, result_len)
        }
        KeySpec::Chain { cipher, cipher_key, hash, mac_key, result_len, .. } => {
            check_cipher(cipher, cipher_key)?;
            mac_key.map_or(Ok(()), check_mac_key)?;
            check_result(hash, result_len)
        }
        KeySpec::Aead { aead, key, tag_len, .. } => {
            match (aead.takes_key(key.len()), aead.takes_tag(tag_len)) {
                (true, true) => Ok(()),
                (false, _) => Err(KeyError::Rejected("its length")),
                (_, false) => Err(KeyError::Invalid("the length of the tag")),
            }
        }
        KeySpec::Akcipher { der: [], .. } => Err(KeyError::Rejected("it is empty")),
        KeySpec::Akcipher { .. } => Ok(()),
    }
}

fn check_cipher(cipher: Cipher, key: &[u8]) -> Result<(), KeyError> {
    if !cipher.takes_key(key.len()) {
        return Err(KeyError::Rejected("its length"));
    }
    Ok(())
}

fn check_mac_key(key: &[u8]) -> Result<(), KeyError> {
    if key.len() > MAX_AUTH_KEY { Err(KeyError::Rejected("its length")) } else { Ok(()) }
}

fn check_result(hash: Hash, len: usize) -> Result<(), KeyError> {
    if (1..=hash.digest_len()).contains(&len) {
        Ok(())
    } else {
        Err(KeyError::Invalid("the length of the result"))
    }
}

impl Group {
    /// There are this many groups; [`index`](Self::index) is below it.
    pub const COUNT: usize = Self::CHAINS + Self::CIPHERS * 5 * 2 * 2;

    const CIPHERS: usize = 4 * 2 * 3;
    const HASHES: usize = Self::CIPHERS;
    const MACS: usize = Self::HASHES + 5;
    const AEADS: usize = Self::MACS + 5;
    const AKCIPHERS: usize = Self::AEADS + 3 * 2 * 3;
    const CHAINS: usize = Self::AKCIPHERS + 4;

    /// A number for tables: below [`COUNT`](Self::COUNT).
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    fn new(recipe: Recipe, key_len: usize) -> Self {
        let size = match key_len / recipe.ciphers() {
            0..=16 => 0,
            17..=24 => 1,
            _ => 2,
        };
        let sized = |algorithm: usize, direction: Direction| (algorithm * 2 + direction as usize) * 3 + size;
        let index = match recipe {
            Recipe::Cipher { cipher, direction } => sized(cipher as usize, direction),
            Recipe::Hash { hash } => Self::HASHES + hash as usize,
            Recipe::Mac { hash } => Self::MACS + hash as usize,
            Recipe::Aead { aead, direction } => Self::AEADS + sized(aead as usize, direction),
            Recipe::Akcipher { algorithm, .. } => Self::AKCIPHERS + Self::asymmetric(algorithm),
            Recipe::Chain { cipher, direction, order, hash, keyed } => {
                let digest = (hash as usize * 2 + usize::from(keyed)) * 2 + order as usize;
                Self::CHAINS + digest * Self::CIPHERS + sized(cipher as usize, direction)
            }
        };
        Self(index as u16)
    }

    fn asymmetric(algorithm: Akcipher) -> usize {
        match algorithm {
            Akcipher::Rsa { padding: RsaPadding::Raw } => 0,
            Akcipher::Rsa { padding: RsaPadding::Pkcs1(_) } => 1,
            Akcipher::Ecdsa { curve } => 2 + curve as usize,
        }
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Cipher { cipher, .. } => write!(f, "{cipher}"),
            Self::Hash { hash } => write!(f, "{hash}"),
            Self::Mac { hash } => write!(f, "hmac({hash})"),
            Self::Chain { cipher, hash, keyed: true, .. } => write!(f, "{cipher} and hmac({hash})"),
            Self::Chain { cipher, hash, keyed: false, .. } => write!(f, "{cipher} and {hash}"),
            Self::Aead { aead, .. } => write!(f, "{aead}"),
            Self::Akcipher { algorithm, .. } => write!(f, "{algorithm}"),
        }
    }
}
