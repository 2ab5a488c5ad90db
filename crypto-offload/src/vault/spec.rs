//! Algorithm and keys of a session as bytes, for another process of this program, perhaps of another version.

use crate::algorithm::{Aead, Akcipher, ChainOrder, Cipher, Curve, Direction, Hash, KeyKind, RsaPadding};
use crate::engine::KeySpec;
use crate::keys::{NoMemory, Secret};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What comes before the keys: numbers of the wire.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Numbers {
    kind: u32,
    algorithm: u32,
    direction: u32,
    order: u32,
    hash: u32,
    result_len: u32,
    first: u32,
    second: u32,
}

const CIPHER: u32 = 1;
const HASH: u32 = 2;
const MAC: u32 = 3;
const CHAIN: u32 = 4;
/// A chain with an HMAC.
const KEYED_CHAIN: u32 = 5;
const AEAD: u32 = 6;
const RSA_RAW: u32 = 7;
/// RSA with PKCS#1 padding; the hash is 0 for none.
const RSA_PKCS1: u32 = 8;
const ECDSA: u32 = 9;

/// In locked memory, as keys are.
pub(super) fn encode(spec: &KeySpec<'_>) -> Result<Secret, NoMemory> {
    let (mut numbers, first, second) = numbers(spec);
    (numbers.first, numbers.second) = (first.len() as u32, second.len() as u32);
    let mut bytes = Secret::zeroed(size_of::<Numbers>() + first.len() + second.len())?;
    let mut rest = &mut bytes[..];
    for part in [numbers.as_bytes(), first, second] {
        let (place, behind) = rest.split_at_mut(part.len());
        place.copy_from_slice(part);
        rest = behind;
    }
    Ok(bytes)
}

fn numbers<'a>(spec: &KeySpec<'a>) -> (Numbers, &'a [u8], &'a [u8]) {
    let plain = |kind, algorithm, direction: Direction| Numbers {
        kind,
        algorithm,
        direction: direction.wire(),
        ..Numbers::default()
    };
    let digest = |kind, hash: Hash, len: usize| Numbers {
        kind,
        hash: hash.wire(),
        result_len: len as u32,
        ..Numbers::default()
    };
    match *spec {
        KeySpec::Cipher { cipher, direction, key } => (plain(CIPHER, cipher.wire(), direction), key, &[]),
        KeySpec::Hash { hash, result_len } => (digest(HASH, hash, result_len), &[], &[]),
        KeySpec::Mac { hash, key, result_len } => (digest(MAC, hash, result_len), key, &[]),
        KeySpec::Chain { cipher, direction, order, hash, cipher_key, mac_key, result_len } => {
            let kind = if mac_key.is_some() { KEYED_CHAIN } else { CHAIN };
            let chain = Numbers {
                algorithm: cipher.wire(),
                direction: direction.wire(),
                order: order.wire(),
                ..digest(kind, hash, result_len)
            };
            (chain, cipher_key, mac_key.unwrap_or_default())
        }
        KeySpec::Aead { aead, direction, key, tag_len } => {
            (Numbers { result_len: tag_len as u32, ..plain(AEAD, aead.wire(), direction) }, key, &[])
        }
        KeySpec::Akcipher { algorithm, kind, der } => {
            let (number, hash, curve) = match algorithm {
                Akcipher::Rsa { padding: RsaPadding::Raw } => (RSA_RAW, 0, 0),
                Akcipher::Rsa { padding: RsaPadding::Pkcs1(hash) } => {
                    (RSA_PKCS1, hash.map_or(0, Hash::wire), 0)
                }
                Akcipher::Ecdsa { curve } => (ECDSA, 0, curve.wire()),
            };
            // The kind of the key goes where others have a direction.
            let numbers = Numbers {
                kind: number,
                algorithm: curve,
                direction: kind.wire(),
                hash,
                ..Numbers::default()
            };
            (numbers, der, &[])
        }
    }
}

pub(super) fn decode(bytes: &[u8]) -> Option<KeySpec<'_>> {
    let (numbers, keys) = Numbers::read_from_prefix(bytes).ok()?;
    let (first, second) = keys.split_at_checked(numbers.first as usize)?;
    if second.len() != numbers.second as usize {
        return None;
    }
    let result_len = numbers.result_len as usize;
    let cipher = || Cipher::from_wire(numbers.algorithm);
    let direction = || Direction::from_wire(numbers.direction);
    let hash = || Hash::from_wire(numbers.hash);
    let akcipher = |algorithm| {
        Some(KeySpec::Akcipher { algorithm, kind: KeyKind::from_wire(numbers.direction)?, der: first })
    };
    match numbers.kind {
        CIPHER => Some(KeySpec::Cipher { cipher: cipher()?, direction: direction()?, key: first }),
        HASH => Some(KeySpec::Hash { hash: hash()?, result_len }),
        MAC => Some(KeySpec::Mac { hash: hash()?, key: first, result_len }),
        CHAIN | KEYED_CHAIN => Some(KeySpec::Chain {
            cipher: cipher()?,
            direction: direction()?,
            order: ChainOrder::from_wire(numbers.order)?,
            hash: hash()?,
            cipher_key: first,
            mac_key: (numbers.kind == KEYED_CHAIN).then_some(second),
            result_len,
        }),
        AEAD => Some(KeySpec::Aead {
            aead: Aead::from_wire(numbers.algorithm)?,
            direction: direction()?,
            key: first,
            tag_len: result_len,
        }),
        RSA_RAW => akcipher(Akcipher::Rsa { padding: RsaPadding::Raw }),
        RSA_PKCS1 if numbers.hash == 0 => akcipher(Akcipher::Rsa { padding: RsaPadding::Pkcs1(None) }),
        RSA_PKCS1 => akcipher(Akcipher::Rsa { padding: RsaPadding::Pkcs1(Some(hash()?)) }),
        ECDSA => akcipher(Akcipher::Ecdsa { curve: Curve::from_wire(numbers.algorithm)? }),
        _ => None,
    }
}

#[cfg(test)]
pub(super) use tests::every_kind;

#[cfg(test)]
mod tests {
    use super::*;

    /// One of every kind, with every part different.
    pub(in crate::vault) fn every_kind() -> Vec<KeySpec<'static>> {
        use {ChainOrder::*, Direction::*};
        let chain = |order, mac_key| KeySpec::Chain {
            cipher: Cipher::AesCtr,
            direction: Decrypt,
            order,
            hash: Hash::Sha384,
            cipher_key: &[1; 24],
            mac_key,
            result_len: 17,
        };
        let akcipher = |algorithm, kind, der| KeySpec::Akcipher { algorithm, kind, der };
        let rsa = |padding| Akcipher::Rsa { padding };
        vec![
            KeySpec::Cipher { cipher: Cipher::AesXts, direction: Encrypt, key: &[7; 64] },
            KeySpec::Cipher { cipher: Cipher::AesCbc, direction: Decrypt, key: &[8; 16] },
            KeySpec::Hash { hash: Hash::Sha224, result_len: 28 },
            KeySpec::Mac { hash: Hash::Sha512, key: &[9; 200], result_len: 12 },
            chain(HashThenCipher, None),
            chain(CipherThenHash, Some(&[2; 40])),
            chain(CipherThenHash, Some(&[])),
            KeySpec::Aead { aead: Aead::ChaCha20Poly1305, direction: Encrypt, key: &[3; 32], tag_len: 16 },
            akcipher(rsa(RsaPadding::Raw), KeyKind::Public, &[4; 270]),
            akcipher(rsa(RsaPadding::Pkcs1(None)), KeyKind::Private, &[5; 1191]),
            akcipher(rsa(RsaPadding::Pkcs1(Some(Hash::Sha256))), KeyKind::Private, &[6; 4600]),
            akcipher(Akcipher::Ecdsa { curve: Curve::P384 }, KeyKind::Private, &[10; 167]),
        ]
    }

    #[test]
    fn every_kind_of_session_comes_back_as_it_was() {
        for spec in every_kind() {
            let bytes = encode(&spec).unwrap();
            let back = decode(&bytes).unwrap_or_else(|| panic!("{spec:?} does not come back"));
            assert_eq!(*encode(&back).unwrap(), *bytes, "{spec:?}");
            assert_eq!(format!("{back:?}"), format!("{spec:?}"));
        }
    }

    #[test]
    fn what_is_recorded_is_copied_in_locked_memory() {
        let before = crate::keys::usage().used;
        let copies: Vec<_> = every_kind().iter().map(|spec| encode(spec).unwrap()).collect();
        let bytes: usize = copies.iter().map(|copy| copy.len()).sum();
        // Other tests have and give back keys meanwhile, but hardly as many.
        let many: Vec<_> = (0..64).flat_map(|_| every_kind()).map(|spec| encode(&spec).unwrap()).collect();
        assert!(crate::keys::usage().used >= before + 32 * bytes, "{} copies are elsewhere", many.len());
    }

    #[test]
    fn different_sessions_have_different_bytes() {
        let all: std::collections::BTreeSet<_> =
            every_kind().iter().map(|spec| encode(spec).unwrap().to_vec()).collect();
        assert_eq!(all.len(), every_kind().len());
    }

    #[test]
    fn what_is_cut_off_or_unknown_is_no_session() {
        for spec in every_kind() {
            let mut bytes = encode(&spec).unwrap().to_vec();
            for len in 0..bytes.len() {
                assert!(decode(&bytes[..len]).is_none(), "{spec:?} cut off at {len}");
            }
            bytes[0] = 99;
            assert!(decode(&bytes).is_none());
        }
    }
}
