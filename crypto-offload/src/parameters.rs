//! What a session is asked for, whichever way it came: over the control queue ([`ctrl`](crate::ctrl)), in a message of the
//! frontend ([`description`](crate::description)), or in a stateless request. Numbers of the wire become a [`KeySpec`], or the
//! status that says why not.

use crate::algorithm::{Aead, Akcipher, ChainOrder, Cipher, Curve, Direction, Hash, KeyKind, RsaPadding};
use crate::engine::KeySpec;
use crate::wire::status::Status;

/// The longest key of an asymmetric session, in DER. A private key of 8192 bits takes less than 5 KiB.
pub const MAX_ASYMMETRIC_KEY: usize = 8192;

/// `op_type` of a symmetric session: cipher only (`VIRTIO_CRYPTO_SYM_OP_CIPHER`).
pub const OP_CIPHER: u32 = 1;
/// `op_type` of a symmetric session: cipher and hash (`VIRTIO_CRYPTO_SYM_OP_ALGORITHM_CHAINING`).
pub const OP_CHAINING: u32 = 2;
/// `hash_mode` of a chain: a plain hash (`VIRTIO_CRYPTO_SYM_HASH_MODE_PLAIN`).
pub const HASH_PLAIN: u32 = 1;
/// `hash_mode` of a chain: a MAC (`VIRTIO_CRYPTO_SYM_HASH_MODE_AUTH`).
pub const HASH_AUTH: u32 = 2;

/// A symmetric session (virtio 1.3 §5.9.7.2.1.4), in numbers of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symmetric {
    /// [`OP_CIPHER`] or [`OP_CHAINING`].
    pub op_type: u32,
    /// `VIRTIO_CRYPTO_CIPHER_*`.
    pub cipher: u32,
    /// `VIRTIO_CRYPTO_OP_ENCRYPT` or `_DECRYPT`.
    pub direction: u32,
    /// `VIRTIO_CRYPTO_SYM_ALG_CHAIN_ORDER_*`.
    pub order: u32,
    /// [`HASH_PLAIN`] or [`HASH_AUTH`].
    pub hash_mode: u32,
    /// `VIRTIO_CRYPTO_HASH_*` or `VIRTIO_CRYPTO_MAC_*`, as `hash_mode` says.
    pub hash: u32,
    /// Bytes of the hash that requests return.
    pub result_len: u32,
}

impl Symmetric {
    /// What these numbers mean with these keys. A plain cipher has no use for `auth_key`, nor has a plain hash.
    pub fn spec<'a>(&self, cipher_key: &'a [u8], auth_key: &'a [u8]) -> Result<KeySpec<'a>, Status> {
        if !matches!(self.op_type, OP_CIPHER | OP_CHAINING) {
            return Err(Status::NotSupp);
        }
        let cipher = Cipher::from_wire(self.cipher).ok_or(Status::NotSupp)?;
        let direction = Direction::from_wire(self.direction).ok_or(Status::Err)?;
        if self.op_type == OP_CIPHER {
            return Ok(KeySpec::Cipher { cipher, direction, key: cipher_key });
        }
        let (hash, mac_key) = match self.hash_mode {
            HASH_PLAIN => (Hash::from_wire(self.hash), None),
            HASH_AUTH => (Hash::from_mac_wire(self.hash), Some(auth_key)),
            // Nested hashes, and what nobody has defined.
            _ => return Err(Status::NotSupp),
        };
        Ok(KeySpec::Chain {
            cipher,
            direction,
            order: ChainOrder::from_wire(self.order).ok_or(Status::Err)?,
            hash: hash.ok_or(Status::NotSupp)?,
            cipher_key,
            mac_key,
            result_len: self.result_len as usize,
        })
    }
}

/// An asymmetric session (virtio 1.3 §5.9.7.2.1.6), in numbers of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asymmetric {
    /// `VIRTIO_CRYPTO_AKCIPHER_*`.
    pub algorithm: u32,
    /// `VIRTIO_CRYPTO_AKCIPHER_KEY_TYPE_*`.
    pub key_kind: u32,
    /// RSA: `padding_algo` and `hash_algo`. ECDSA: `curve_id`, and nothing.
    pub parameters: [u32; 2],
}

impl Asymmetric {
    /// What these numbers mean with this key.
    pub fn spec<'a>(&self, der: &'a [u8]) -> Result<KeySpec<'a>, Status> {
        let [first, second] = self.parameters;
        let algorithm = match self.algorithm {
            Akcipher::WIRE_RSA => {
                RsaPadding::from_wire(first, second).map(|padding| Akcipher::Rsa { padding })
            }
            Akcipher::WIRE_ECDSA | Akcipher::WIRE_ECDSA_LINUX => {
                Curve::from_wire(first).map(|curve| Akcipher::Ecdsa { curve })
            }
            _ => None,
        };
        Ok(KeySpec::Akcipher {
            algorithm: algorithm.ok_or(Status::NotSupp)?,
            kind: KeyKind::from_wire(self.key_kind).ok_or(Status::Err)?,
            der,
        })
    }
}

/// A session of plain hashes (virtio 1.3 §5.9.7.2.1.2).
pub fn hash(algorithm: u32, result_len: u32) -> Result<KeySpec<'static>, Status> {
    let hash = Hash::from_wire(algorithm).ok_or(Status::NotSupp)?;
    Ok(KeySpec::Hash { hash, result_len: result_len as usize })
}

/// A session of MACs (virtio 1.3 §5.9.7.2.1.3).
pub fn mac(algorithm: u32, result_len: u32, key: &[u8]) -> Result<KeySpec<'_>, Status> {
    let hash = Hash::from_mac_wire(algorithm).ok_or(Status::NotSupp)?;
    Ok(KeySpec::Mac { hash, key, result_len: result_len as usize })
}

/// A session of authenticated encryption (virtio 1.3 §5.9.7.2.1.5).
pub fn aead(algorithm: u32, direction: u32, tag_len: u32, key: &[u8]) -> Result<KeySpec<'_>, Status> {
    let aead = Aead::from_wire(algorithm).ok_or(Status::NotSupp)?;
    let direction = Direction::from_wire(direction).ok_or(Status::Err)?;
    Ok(KeySpec::Aead { aead, direction, key, tag_len: tag_len as usize })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CBC: Symmetric = Symmetric {
        op_type: OP_CIPHER,
        cipher: 3,
        direction: 1,
        order: 0,
        hash_mode: 0,
        hash: 0,
        result_len: 0,
    };
    const CHAIN: Symmetric =
        Symmetric { op_type: OP_CHAINING, order: 2, hash_mode: HASH_AUTH, hash: 4, result_len: 32, ..CBC };

    fn status<T>(result: Result<T, Status>) -> Option<Status> {
        result.err()
    }

    #[test]
    fn a_cipher_takes_its_key_only() {
        let spec = CBC.spec(&[1; 16], &[2; 20]).unwrap();
        let KeySpec::Cipher { cipher: Cipher::AesCbc, direction: Direction::Encrypt, key } = spec else {
            panic!("{spec:?}");
        };
        assert_eq!(key, [1; 16]);
    }

    #[test]
    fn a_chain_has_a_mac_or_a_plain_hash_by_its_mode() {
        let spec = CHAIN.spec(&[1; 16], &[2; 20]).unwrap();
        let KeySpec::Chain {
            order: ChainOrder::CipherThenHash, hash: Hash::Sha256, mac_key, result_len, ..
        } = spec
        else {
            panic!("{spec:?}");
        };
        assert_eq!((mac_key, result_len), (Some(&[2; 20][..]), 32));
        let plain = Symmetric { hash_mode: HASH_PLAIN, order: 1, ..CHAIN };
        assert!(matches!(
            plain.spec(&[1; 16], &[2; 20]),
            Ok(KeySpec::Chain { order: ChainOrder::HashThenCipher, mac_key: None, .. })
        ));
    }

    #[test]
    fn what_there_is_not_is_not_supported_and_what_makes_no_sense_is_an_error() {
        for (wrong, expected) in [
            (Symmetric { op_type: 0, ..CBC }, Status::NotSupp),
            (Symmetric { op_type: 3, ..CBC }, Status::NotSupp),
            (Symmetric { cipher: 1, ..CBC }, Status::NotSupp),
            (Symmetric { direction: 0, ..CBC }, Status::Err),
            (Symmetric { direction: 3, ..CBC }, Status::Err),
            (Symmetric { hash_mode: 3, ..CHAIN }, Status::NotSupp),
            (Symmetric { hash: 1, ..CHAIN }, Status::NotSupp),
            (Symmetric { hash: 26, ..CHAIN }, Status::NotSupp),
            (Symmetric { order: 0, ..CHAIN }, Status::Err),
        ] {
            assert_eq!(status(wrong.spec(&[1; 16], &[])), Some(expected), "{wrong:?}");
        }
        assert_eq!(status(hash(1, 16)), Some(Status::NotSupp));
        assert_eq!(status(mac(41, 16, &[])), Some(Status::NotSupp));
        assert_eq!(status(aead(4, 1, 16, &[])), Some(Status::NotSupp));
        assert_eq!(status(aead(1, 0, 16, &[])), Some(Status::Err));
    }

    #[test]
    fn asymmetric_parameters_mean_what_the_algorithm_says() {
        let rsa = Asymmetric { algorithm: 1, key_kind: 2, parameters: [1, 6] };
        assert!(matches!(
            rsa.spec(b"der"),
            Ok(KeySpec::Akcipher {
                algorithm: Akcipher::Rsa { padding: RsaPadding::Pkcs1(Some(Hash::Sha256)) },
                kind: KeyKind::Private,
                der: b"der",
            })
        ));
        for algorithm in [2, 3] {
            let ecdsa = Asymmetric { algorithm, key_kind: 1, parameters: [4, 77] };
            assert!(matches!(
                ecdsa.spec(b"x"),
                Ok(KeySpec::Akcipher {
                    algorithm: Akcipher::Ecdsa { curve: Curve::P384 },
                    kind: KeyKind::Public,
                    ..
                })
            ));
        }
        for (wrong, expected) in [
            (Asymmetric { algorithm: 4, ..rsa }, Status::NotSupp),
            (Asymmetric { parameters: [2, 0], ..rsa }, Status::NotSupp),
            (Asymmetric { parameters: [1, 4], ..rsa }, Status::NotSupp),
            (Asymmetric { algorithm: 2, parameters: [5, 0], ..rsa }, Status::NotSupp),
            (Asymmetric { key_kind: 0, ..rsa }, Status::Err),
        ] {
            assert_eq!(status(wrong.spec(b"x")), Some(expected), "{wrong:?}");
        }
    }
}
