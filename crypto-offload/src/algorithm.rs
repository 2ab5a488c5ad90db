//! The vocabulary of virtio-crypto (virtio 1.3 §5.9.4): services, algorithms, key kinds, with their wire numbers and
//! sizes.
//!
//! Only what this device computes has a name here; [`Cipher::from_wire`] and its like give `None` for the rest, which a
//! request is told as `NOTSUPP`. The masks of the configuration space have the bit of the wire number set.

use std::fmt;

/// One of the services of the device, in the order of their feature and configuration bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Service {
    /// Ciphers, plain and chained with a hash or MAC.
    Cipher,
    /// Plain hashes.
    Hash,
    /// Message authentication codes.
    Mac,
    /// Authenticated encryption with associated data.
    Aead,
    /// Public-key operations.
    Akcipher,
}

/// A block cipher in a mode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Cipher {
    /// AES, every block by itself.
    AesEcb,
    /// AES, cipher block chaining.
    AesCbc,
    /// AES, counter mode with a 128-bit big-endian counter.
    AesCtr,
    /// AES, IEEE 1619: two keys, a tweak of 16 bytes, ciphertext stealing.
    AesXts,
}

/// A hash function, by itself or inside HMAC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Hash {
    /// SHA-1.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// An authenticated cipher.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Aead {
    /// AES in Galois/counter mode.
    AesGcm,
    /// AES in counter mode with CBC-MAC.
    AesCcm,
    /// ChaCha20 with Poly1305 (RFC 8439).
    ChaCha20Poly1305,
}

/// A public-key algorithm with its parameters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Akcipher {
    /// RSA, to [`MAX_RSA_BITS`].
    Rsa {
        /// How the number is made from the input.
        padding: RsaPadding,
    },
    /// ECDSA; signatures in DER.
    Ecdsa {
        /// The group.
        curve: Curve,
    },
}

/// How RSA pads its input.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum RsaPadding {
    /// Not at all: the input is a number. For encryption and decryption only (virtio 1.3 §5.9.7.7).
    Raw,
    /// PKCS#1 v1.5. The hash says how signatures name the digest; `None`: the input is signed as it is.
    Pkcs1(Option<Hash>),
}

/// An elliptic curve.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
}

/// Which half of a key pair.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum KeyKind {
    /// Encrypts and verifies.
    Public,
    /// Does everything.
    Private,
}

/// Which way a cipher works.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Direction {
    /// Plaintext to ciphertext.
    Encrypt,
    /// Ciphertext to plaintext.
    Decrypt,
}

/// What comes first in a chain of cipher and hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum ChainOrder {
    /// The hash covers the source as it came.
    HashThenCipher,
    /// The hash covers what the cipher made.
    CipherThenHash,
}

/// The longest RSA modulus, in bits.
pub const MAX_RSA_BITS: usize = 8192;
/// The longest cipher key: XTS with two AES-256 keys.
pub const MAX_CIPHER_KEY: usize = 64;
/// The longest key of a MAC. HMAC takes any length; this one bounds a session.
pub const MAX_AUTH_KEY: usize = 512;
/// The longest digest: SHA-512.
pub const MAX_DIGEST: usize = 64;
/// The longest tag of an AEAD.
pub const MAX_TAG: usize = 16;

/// The wire numbers of an enumeration: `VIRTIO_CRYPTO_*` constants.
macro_rules! wire_numbers {
    ($name:ident { $($variant:ident = $number:literal),+ $(,)? }) => {
        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The number on the wire.
            pub const fn wire(self) -> u32 {
                match self { $(Self::$variant => $number),+ }
            }

            /// The value of a number on the wire; `None` for one that the device does not know.
            pub const fn from_wire(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

wire_numbers!(Service { Cipher = 0, Hash = 1, Mac = 2, Aead = 3, Akcipher = 4 });
wire_numbers!(Cipher { AesEcb = 2, AesCbc = 3, AesCtr = 4, AesXts = 13 });
wire_numbers!(Hash { Sha1 = 2, Sha224 = 3, Sha256 = 4, Sha384 = 5, Sha512 = 6 });
wire_numbers!(Aead { AesGcm = 1, AesCcm = 2, ChaCha20Poly1305 = 3 });
wire_numbers!(Curve { P256 = 3, P384 = 4 });
wire_numbers!(KeyKind { Public = 1, Private = 2 });
wire_numbers!(Direction { Encrypt = 1, Decrypt = 2 });
wire_numbers!(ChainOrder { HashThenCipher = 1, CipherThenHash = 2 });

impl Service {
    /// The bit of the service in the configuration space.
    pub const fn bit(self) -> u32 {
        1 << self.wire()
    }

    /// Lower-case name, for counters and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cipher => "cipher",
            Self::Hash => "hash",
            Self::Mac => "mac",
            Self::Aead => "aead",
            Self::Akcipher => "akcipher",
        }
    }
}

impl Cipher {
    /// Bytes of a block.
    pub const BLOCK: usize = 16;

    /// Name as Linux spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AesEcb => "ecb(aes)",
            Self::AesCbc => "cbc(aes)",
            Self::AesCtr => "ctr(aes)",
            Self::AesXts => "xts(aes)",
        }
    }

    /// Whether there is such a key. XTS takes two keys of 128 or of 256 bits, one behind the other.
    pub const fn takes_key(self, len: usize) -> bool {
        match self {
            Self::AesXts => matches!(len, 32 | 64),
            Self::AesEcb | Self::AesCbc | Self::AesCtr => matches!(len, 16 | 24 | 32),
        }
    }

    /// Bytes of the initialisation vector, first counter or tweak.
    pub const fn iv_len(self) -> usize {
        match self {
            Self::AesEcb => 0,
            Self::AesCbc | Self::AesCtr | Self::AesXts => 16,
        }
    }

    /// Whether `len` bytes can be ciphered: whole blocks in ECB and CBC, a block or more in XTS.
    pub const fn takes_len(self, len: usize) -> bool {
        match self {
            Self::AesEcb | Self::AesCbc => len.is_multiple_of(Self::BLOCK),
            Self::AesCtr => true,
            Self::AesXts => len >= Self::BLOCK && len <= 1 << 24,
        }
    }

    /// The mask of the configuration space (`cipher_algo_l`).
    pub fn mask() -> u32 {
        Self::ALL.iter().fold(0, |mask, cipher| mask | 1 << cipher.wire())
    }
}

impl Hash {
    /// Name as Linux spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

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

    /// Bytes of a block, which HMAC pads its key to.
    pub const fn block_len(self) -> usize {
        match self {
            Self::Sha1 | Self::Sha224 | Self::Sha256 => 64,
            Self::Sha384 | Self::Sha512 => 128,
        }
    }

    /// The number of the HMAC with this hash (`VIRTIO_CRYPTO_MAC_HMAC_*`).
    pub const fn mac_wire(self) -> u32 {
        self.wire() // both lists begin with MD5 and go on in the same order
    }

    /// The hash of an HMAC by its number.
    pub const fn from_mac_wire(number: u32) -> Option<Self> {
        Self::from_wire(number)
    }

    /// The number of this hash in an RSA session (`VIRTIO_CRYPTO_RSA_*`).
    pub const fn rsa_wire(self) -> u32 {
        match self {
            Self::Sha1 => 5,
            Self::Sha256 => 6,
            Self::Sha384 => 7,
            Self::Sha512 => 8,
            Self::Sha224 => 9,
        }
    }

    /// The hash of an RSA session by its number.
    pub const fn from_rsa_wire(number: u32) -> Option<Self> {
        match number {
            5 => Some(Self::Sha1),
            6 => Some(Self::Sha256),
            7 => Some(Self::Sha384),
            8 => Some(Self::Sha512),
            9 => Some(Self::Sha224),
            _ => None,
        }
    }

    /// The mask of the configuration space (`hash_algo`).
    pub fn mask() -> u32 {
        Self::ALL.iter().fold(0, |mask, hash| mask | 1 << hash.wire())
    }

    /// The mask of the configuration space for HMAC (`mac_algo_l`).
    pub fn mac_mask() -> u32 {
        Self::ALL.iter().fold(0, |mask, hash| mask | 1 << hash.mac_wire())
    }
}

impl Aead {
    /// Name as Linux spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AesGcm => "gcm(aes)",
            Self::AesCcm => "ccm(aes)",
            Self::ChaCha20Poly1305 => "rfc7539(chacha20,poly1305)",
        }
    }

    /// Whether there is such a key.
    pub const fn takes_key(self, len: usize) -> bool {
        match self {
            Self::AesGcm | Self::AesCcm => matches!(len, 16 | 24 | 32),
            Self::ChaCha20Poly1305 => len == 32,
        }
    }

    /// Whether a nonce may have this length. GCM hashes one that has no 96 bits; CCM trades it for the longest message.
    pub const fn takes_iv(self, len: usize) -> bool {
        match self {
            Self::AesGcm => len >= 1 && len <= 32,
            Self::AesCcm => len >= 7 && len <= 13,
            Self::ChaCha20Poly1305 => len == 12,
        }
    }

    /// Whether a tag may have this length (NIST SP 800-38D §5.2.1.2, SP 800-38C §A.1, RFC 8439).
    pub const fn takes_tag(self, len: usize) -> bool {
        match self {
            Self::AesGcm => matches!(len, 4 | 8 | 12..=16),
            Self::AesCcm => matches!(len, 4 | 6 | 8 | 10 | 12 | 14 | 16),
            Self::ChaCha20Poly1305 => len == 16,
        }
    }

    /// The mask of the configuration space (`aead_algo`).
    pub fn mask() -> u32 {
        Self::ALL.iter().fold(0, |mask, aead| mask | 1 << aead.wire())
    }
}

impl Akcipher {
    /// `VIRTIO_CRYPTO_AKCIPHER_RSA`.
    pub const WIRE_RSA: u32 = 1;
    /// `VIRTIO_CRYPTO_AKCIPHER_ECDSA` as the text of the standard has it.
    pub const WIRE_ECDSA: u32 = 2;
    /// `VIRTIO_CRYPTO_AKCIPHER_ECDSA` as `linux/virtio_crypto.h` has it, where 2 is DSA, which nobody implements.
    pub const WIRE_ECDSA_LINUX: u32 = 3;

    /// The mask of the configuration space (`akcipher_algo`).
    pub const fn mask() -> u32 {
        1 << Self::WIRE_RSA | 1 << Self::WIRE_ECDSA | 1 << Self::WIRE_ECDSA_LINUX
    }

    /// Name, for counters and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rsa { padding: RsaPadding::Raw } => "rsa",
            Self::Rsa { padding: RsaPadding::Pkcs1(_) } => "pkcs1pad(rsa)",
            Self::Ecdsa { curve: Curve::P256 } => "ecdsa-nist-p256",
            Self::Ecdsa { curve: Curve::P384 } => "ecdsa-nist-p384",
        }
    }
}

impl RsaPadding {
    /// From `padding_algo` and `hash_algo` of an RSA session. Only PKCS#1 looks at the hash.
    pub const fn from_wire(padding: u32, hash: u32) -> Option<Self> {
        match (padding, hash) {
            (0, _) => Some(Self::Raw),
            (1, 0) => Some(Self::Pkcs1(None)),
            (1, number) => match Hash::from_rsa_wire(number) {
                Some(hash) => Some(Self::Pkcs1(Some(hash))),
                None => None,
            },
            _ => None,
        }
    }

    /// `padding_algo` and `hash_algo` of an RSA session.
    pub const fn wire(self) -> (u32, u32) {
        match self {
            Self::Raw => (0, 0),
            Self::Pkcs1(None) => (1, 0),
            Self::Pkcs1(Some(hash)) => (1, hash.rsa_wire()),
        }
    }
}

impl Curve {
    /// Bytes of a coordinate, and of the numbers in a signature.
    pub const fn coordinate_len(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }
}

impl Direction {
    /// The other way.
    pub const fn reverse(self) -> Self {
        match self {
            Self::Encrypt => Self::Decrypt,
            Self::Decrypt => Self::Encrypt,
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Aead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Akcipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `linux/virtio_crypto.h`, which has the numbers of virtio 1.3 §5.9.
    #[test]
    fn numbers_are_those_of_the_standard() {
        assert_eq!(Service::ALL.iter().map(|service| service.wire()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(Cipher::ALL.iter().map(|cipher| cipher.wire()).collect::<Vec<_>>(), [2, 3, 4, 13]);
        assert_eq!(Hash::ALL.iter().map(|hash| hash.wire()).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        assert_eq!(Hash::ALL.iter().map(|hash| hash.mac_wire()).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        assert_eq!(Hash::ALL.iter().map(|hash| hash.rsa_wire()).collect::<Vec<_>>(), [5, 9, 6, 7, 8]);
        assert_eq!(Aead::ALL.iter().map(|aead| aead.wire()).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(Curve::ALL.iter().map(|curve| curve.wire()).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn every_value_comes_back_from_its_number_and_no_other_number_is_one() {
        for number in 0..1000 {
            assert!(Cipher::from_wire(number).is_none_or(|cipher| cipher.wire() == number));
            assert!(Hash::from_wire(number).is_none_or(|hash| hash.wire() == number));
            assert!(Hash::from_mac_wire(number).is_none_or(|hash| hash.mac_wire() == number));
            assert!(Hash::from_rsa_wire(number).is_none_or(|hash| hash.rsa_wire() == number));
            assert!(Aead::from_wire(number).is_none_or(|aead| aead.wire() == number));
        }
        let known = |from: fn(u32) -> bool| (0..1000).filter(|number| from(*number)).count();
        assert_eq!(known(|number| Cipher::from_wire(number).is_some()), 4);
        assert_eq!(known(|number| Hash::from_wire(number).is_some()), 5);
        assert_eq!(known(|number| Hash::from_rsa_wire(number).is_some()), 5);
        assert_eq!(known(|number| Aead::from_wire(number).is_some()), 3);
    }

    #[test]
    fn paddings_come_back_from_their_numbers() {
        let hashes = Hash::ALL.iter().map(|hash| RsaPadding::Pkcs1(Some(*hash)));
        for padding in hashes.chain([RsaPadding::Raw, RsaPadding::Pkcs1(None)]) {
            let (number, hash) = padding.wire();
            assert_eq!(RsaPadding::from_wire(number, hash), Some(padding));
        }
        assert_eq!(RsaPadding::from_wire(1, 4), None, "MD5");
        assert_eq!(RsaPadding::from_wire(2, 5), None);
    }

    #[test]
    fn masks_have_a_bit_for_each_number() {
        assert_eq!(Cipher::mask(), 1 << 2 | 1 << 3 | 1 << 4 | 1 << 13);
        assert_eq!((Hash::mask(), Hash::mac_mask()), (0b111_1100, 0b111_1100));
        assert_eq!(Aead::mask(), 0b1110);
        assert_eq!(Akcipher::mask() & 0b10, 0b10, "the driver of Linux looks for RSA");
    }
}
