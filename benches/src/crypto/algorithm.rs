//! The algorithms of a load, under the names of OpenSSL.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;

use super::wire::Service;

/// Mode of AES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every block by itself.
    Ecb,
    /// Cipher block chaining.
    Cbc,
    /// Counter mode.
    Ctr,
    /// Two keys and a tweak.
    Xts,
}

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are well known")]
pub enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// An authenticated cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are well known")]
pub enum Aead {
    Gcm,
    Ccm,
    ChaCha20Poly1305,
}

/// An elliptic curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are well known")]
pub enum Curve {
    P256,
    P384,
}

/// What is computed. Key lengths in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// AES in a mode.
    Cipher(Mode, u16),
    /// AES-CBC, and HMAC over the ciphertext.
    Chain(u16, Hash),
    /// A plain hash.
    Hash(Hash),
    /// HMAC.
    Mac(Hash),
    /// An authenticated cipher with a tag of 16 bytes.
    Aead(Aead, u16),
    /// RSA: signatures are PKCS#1 over SHA-256, encryption is raw.
    Rsa(u16),
    /// ECDSA.
    Ecdsa(Curve),
}

/// What is done.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "lower")]
pub enum Direction {
    /// Ciphers and RSA
    Encrypt,
    /// Ciphers and RSA
    Decrypt,
    /// RSA and ECDSA
    Sign,
    /// RSA and ECDSA
    Verify,
    /// Hashes and MACs
    Digest,
}

/// Not the name of an algorithm.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{0}' is no algorithm; write aes-128-cbc (-192-, -256-; -ecb, -ctr, -xts, -gcm, -ccm), chacha20-poly1305, sha1 (sha224 to \
     sha512), hmac-sha256, aes-128-cbc-hmac-sha1, rsa-2048 (to 8192) or ecdsa-p256 (-p384)"
)]
pub struct UnknownAlgorithm(String);

const HASHES: [(&str, Hash); 5] = [
    ("sha1", Hash::Sha1),
    ("sha224", Hash::Sha224),
    ("sha256", Hash::Sha256),
    ("sha384", Hash::Sha384),
    ("sha512", Hash::Sha512),
];

const MODES: [(&str, Mode); 4] =
    [("ecb", Mode::Ecb), ("cbc", Mode::Cbc), ("ctr", Mode::Ctr), ("xts", Mode::Xts)];

const AEADS: [(&str, Aead); 2] = [("gcm", Aead::Gcm), ("ccm", Aead::Ccm)];

fn by_name<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(known, _)| *known == name).map(|&(_, value)| value)
}

fn name_of<T: Copy + PartialEq>(table: &[(&'static str, T)], value: T) -> &'static str {
    table.iter().find(|(_, known)| *known == value).map_or("", |&(name, _)| name)
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        let lower = text.to_ascii_lowercase();
        let found = match lower.split_once('-') {
            None => by_name(&HASHES, &lower).map(Self::Hash),
            Some(("hmac", hash)) => by_name(&HASHES, hash).map(Self::Mac),
            Some(("aes", rest)) => aes(rest),
            Some(("chacha20", "poly1305")) => Some(Self::Aead(Aead::ChaCha20Poly1305, 256)),
            Some(("rsa", bits)) => {
                let bits = bits.parse().ok().filter(|bits| (1024..=8192).contains(bits) && bits % 64 == 0);
                bits.map(Self::Rsa)
            }
            Some(("ecdsa", "p256")) => Some(Self::Ecdsa(Curve::P256)),
            Some(("ecdsa", "p384")) => Some(Self::Ecdsa(Curve::P384)),
            _ => None,
        };
        found.ok_or_else(|| UnknownAlgorithm(text.to_owned()))
    }
}

/// What comes behind `aes-`.
fn aes(rest: &str) -> Option<Algorithm> {
    let (bits, mode) = rest.split_once('-')?;
    let bits: u16 = bits.parse().ok().filter(|bits| matches!(bits, 128 | 192 | 256))?;
    if let Some(hash) = mode.strip_prefix("cbc-hmac-") {
        return by_name(&HASHES, hash).map(|hash| Algorithm::Chain(bits, hash));
    }
    if let Some(aead) = by_name(&AEADS, mode) {
        return Some(Algorithm::Aead(aead, bits));
    }
    let mode = by_name(&MODES, mode).filter(|&mode| mode != Mode::Xts || bits != 192)?;
    Some(Algorithm::Cipher(mode, bits))
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Cipher(mode, bits) => write!(f, "aes-{bits}-{}", name_of(&MODES, mode)),
            Self::Chain(bits, hash) => write!(f, "aes-{bits}-cbc-hmac-{}", name_of(&HASHES, hash)),
            Self::Hash(hash) => f.write_str(name_of(&HASHES, hash)),
            Self::Mac(hash) => write!(f, "hmac-{}", name_of(&HASHES, hash)),
            Self::Aead(Aead::ChaCha20Poly1305, _) => f.write_str("chacha20-poly1305"),
            Self::Aead(aead, bits) => write!(f, "aes-{bits}-{}", name_of(&AEADS, aead)),
            Self::Rsa(bits) => write!(f, "rsa-{bits}"),
            Self::Ecdsa(Curve::P256) => f.write_str("ecdsa-p256"),
            Self::Ecdsa(Curve::P384) => f.write_str("ecdsa-p384"),
        }
    }
}

impl Hash {
    /// Bytes of a digest.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// `VIRTIO_CRYPTO_HASH_*`; `VIRTIO_CRYPTO_MAC_HMAC_*` has the same numbers.
    pub const fn number(self) -> u32 {
        match self {
            Self::Sha1 => 2,
            Self::Sha224 => 3,
            Self::Sha256 => 4,
            Self::Sha384 => 5,
            Self::Sha512 => 6,
        }
    }
}

/// Bytes of the tag of an AEAD.
pub const TAG: usize = 16;
/// `VIRTIO_CRYPTO_RSA_PKCS1_PADDING` and `VIRTIO_CRYPTO_RSA_SHA256`.
const PKCS1_SHA256: [u32; 2] = [1, 6];
/// `VIRTIO_CRYPTO_RSA_RAW_PADDING`.
const RAW: [u32; 2] = [0, 0];
/// Bytes of what RSA signs: a SHA-256 digest.
pub const RSA_DIGEST: usize = 32;

/// Bytes of the parts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Initialisation vector, counter, tweak or nonce.
    pub iv: usize,
    /// What the device reads.
    pub src: usize,
    /// Room for what it writes in place of the source.
    pub dst: usize,
    /// Room for a digest behind that.
    pub digest: usize,
}

impl Algorithm {
    /// The service it belongs to.
    pub fn service(self) -> Service {
        match self {
            Self::Cipher(..) | Self::Chain(..) => Service::Cipher,
            Self::Hash(_) => Service::Hash,
            Self::Mac(_) => Service::Mac,
            Self::Aead(..) => Service::Aead,
            Self::Rsa(_) | Self::Ecdsa(_) => Service::Akcipher,
        }
    }

    /// Its number in its service.
    pub fn number(self) -> u32 {
        match self {
            Self::Cipher(Mode::Ecb, _) => 2,
            Self::Cipher(Mode::Cbc, _) | Self::Chain(..) => 3,
            Self::Cipher(Mode::Ctr, _) => 4,
            Self::Cipher(Mode::Xts, _) => 13,
            Self::Hash(hash) | Self::Mac(hash) => hash.number(),
            Self::Aead(Aead::Gcm, _) | Self::Rsa(_) => 1,
            Self::Aead(Aead::Ccm, _) | Self::Ecdsa(_) => 2,
            Self::Aead(Aead::ChaCha20Poly1305, _) => 3,
        }
    }

    /// What is done with it when nothing is said.
    pub fn usual(self) -> Direction {
        match self {
            Self::Hash(_) | Self::Mac(_) => Direction::Digest,
            Self::Rsa(_) | Self::Ecdsa(_) => Direction::Sign,
            _ => Direction::Encrypt,
        }
    }

    /// Whether that can be done with it.
    pub fn does(self, direction: Direction) -> bool {
        use Direction::{Decrypt, Digest, Encrypt, Sign, Verify};
        match self {
            Self::Hash(_) | Self::Mac(_) => direction == Digest,
            Self::Rsa(_) => matches!(direction, Encrypt | Decrypt | Sign | Verify),
            Self::Ecdsa(_) => matches!(direction, Sign | Verify),
            _ => matches!(direction, Encrypt | Decrypt),
        }
    }

    /// Public keys work on numbers of their own size.
    pub fn is_asymmetric(self) -> bool {
        self.service() == Service::Akcipher
    }

    /// Bytes of the cipher key; 0 without one or where it is made.
    pub fn key_len(self) -> usize {
        match self {
            Self::Cipher(Mode::Xts, bits) => usize::from(bits) / 4,
            Self::Cipher(_, bits) | Self::Chain(bits, _) | Self::Aead(_, bits) => usize::from(bits) / 8,
            _ => 0,
        }
    }

    /// Bytes of the key of the MAC.
    pub fn auth_key_len(self) -> usize {
        match self {
            Self::Mac(hash) | Self::Chain(_, hash) => hash.digest_len(),
            _ => 0,
        }
    }

    /// Bytes of the parts of a request over `size` bytes.
    pub fn sizes(self, direction: Direction, size: usize) -> Sizes {
        let iv = match self {
            Self::Cipher(Mode::Ecb, _) => 0,
            Self::Cipher(..) | Self::Chain(..) => 16,
            Self::Aead(..) => 12,
            _ => 0,
        };
        let part = |src, dst, digest| Sizes { iv, src, dst, digest };
        match (self, direction) {
            (Self::Cipher(..), _) => part(size, size, 0),
            (Self::Chain(_, hash), _) => part(size, size, hash.digest_len()),
            (Self::Hash(hash) | Self::Mac(hash), _) => part(size, 0, hash.digest_len()),
            (Self::Aead(..), Direction::Decrypt) => part(size + TAG, size, 0),
            (Self::Aead(..), _) => part(size, size + TAG, 0),
            (_, Direction::Sign) => part(self.digest_len(), self.signature_len(), 0),
            // The destination's length is that of the digest, which stands behind the signature in the source.
            (_, Direction::Verify) => part(self.signature_len() + self.digest_len(), 0, 0),
            (_, _) => part(self.signature_len(), self.signature_len(), 0),
        }
    }

    /// Bytes of what is signed.
    pub fn digest_len(self) -> usize {
        match self {
            Self::Ecdsa(Curve::P384) => 48,
            _ => RSA_DIGEST,
        }
    }

    /// Most bytes of a signature; of RSA, bytes of the modulus.
    pub fn signature_len(self) -> usize {
        match self {
            Self::Rsa(bits) => usize::from(bits) / 8,
            // A sequence of two integers, each with a zero in front at worst.
            Self::Ecdsa(Curve::P256) => 72,
            Self::Ecdsa(Curve::P384) => 104,
            _ => 0,
        }
    }

    /// `algo_flf` of a public-key session: padding and hash of RSA, or the curve.
    pub fn parameters(self, direction: Direction) -> [u32; 2] {
        match (self, direction) {
            (Self::Ecdsa(Curve::P256), _) => [3, 0],
            (Self::Ecdsa(Curve::P384), _) => [4, 0],
            (_, Direction::Sign | Direction::Verify) => PKCS1_SHA256,
            _ => RAW,
        }
    }
}

impl Direction {
    /// The operation of the opcode.
    pub fn operation(self) -> u32 {
        match self {
            Self::Encrypt | Self::Digest => 0,
            Self::Decrypt => 1,
            Self::Sign => 2,
            Self::Verify => 3,
        }
    }

    /// `VIRTIO_CRYPTO_OP_ENCRYPT` or `VIRTIO_CRYPTO_OP_DECRYPT`.
    pub fn cipher_op(self) -> u32 {
        if self == Self::Decrypt { 2 } else { 1 }
    }

    /// It takes the private key: `VIRTIO_CRYPTO_AKCIPHER_KEY_TYPE_PRIVATE`.
    pub fn is_private(self) -> bool {
        matches!(self, Self::Decrypt | Self::Sign)
    }

    /// What undoes it, and makes its input.
    pub fn inverse(self) -> Self {
        match self {
            Self::Encrypt => Self::Decrypt,
            Self::Decrypt => Self::Encrypt,
            Self::Sign => Self::Verify,
            Self::Verify => Self::Sign,
            Self::Digest => Self::Digest,
        }
    }

    /// Name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_algorithms_and_back() {
        for name in [
            "aes-128-cbc",
            "aes-192-ctr",
            "aes-256-ecb",
            "aes-256-xts",
            "aes-128-gcm",
            "aes-256-ccm",
            "aes-128-cbc-hmac-sha1",
            "chacha20-poly1305",
            "sha384",
            "hmac-sha512",
            "rsa-2048",
            "ecdsa-p384",
        ] {
            assert_eq!(name.parse::<Algorithm>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn what_is_no_algorithm_is_refused_with_those_there_are() {
        for name in
            ["", "aes", "aes-cbc", "aes-129-cbc", "aes-192-xts", "des-56-cbc", "rsa-100", "md5", "ecdsa-p521"]
        {
            let error = name.parse::<Algorithm>().unwrap_err().to_string();
            assert!(error.contains("aes-128-cbc") && error.contains(&format!("'{name}'")), "{error}");
        }
    }

    #[test]
    fn a_tag_travels_with_the_ciphertext_and_a_signature_with_what_it_signs() {
        let gcm: Algorithm = "aes-128-gcm".parse().unwrap();
        let parts = |direction| gcm.sizes(direction, 4096);
        assert_eq!((parts(Direction::Encrypt).src, parts(Direction::Encrypt).dst), (4096, 4112));
        assert_eq!((parts(Direction::Decrypt).src, parts(Direction::Decrypt).dst), (4112, 4096));
        let rsa: Algorithm = "rsa-2048".parse().unwrap();
        assert_eq!(rsa.sizes(Direction::Sign, 4096), Sizes { iv: 0, src: 32, dst: 256, digest: 0 });
        assert_eq!(rsa.sizes(Direction::Verify, 4096), Sizes { iv: 0, src: 288, dst: 0, digest: 0 });
        assert_eq!("aes-256-xts".parse::<Algorithm>().unwrap().key_len(), 64);
    }
}
