//! Public-key operations, on private memory.

use super::aws::{EcKey, Failed, Numbers, RsaKey, equal};
use super::der::{OCTET_STRING, Reader};
use crate::algorithm::{Akcipher, Curve, Hash, KeyKind, MAX_RSA_BITS, RsaPadding};
use crate::engine::{AkcipherOp, KeyError, Outcome};
use crate::keys;
use std::sync::OnceLock;

/// A public-key algorithm and its key, which is understood when it is first used: that takes as long as an operation.
pub struct AkcipherKey {
    algorithm: Akcipher,
    kind: KeyKind,
    output_len: usize,
    key: OnceLock<Key>,
}

enum Key {
    Rsa(RsaKey),
    Ec(EcKey),
    /// It is none.
    Bad,
}

impl AkcipherKey {
    /// Looks at the key's shape and size.
    pub fn new(algorithm: Akcipher, kind: KeyKind, der: &[u8]) -> Result<Self, KeyError> {
        let output_len = match algorithm {
            Akcipher::Rsa { .. } => rsa_numbers(kind, der)?.modulus.len(),
            Akcipher::Ecdsa { curve } => {
                if kind == KeyKind::Public {
                    point(curve, der)?;
                }
                longest_signature(curve)
            }
        };
        Ok(Self { algorithm, kind, output_len, key: OnceLock::new() })
    }

    /// The longest result.
    pub fn output_len(&self) -> usize {
        self.output_len
    }

    /// Does an operation. `der` is what this key was made of; `output` has [`output_len`](Self::output_len) bytes at
    /// least.
    pub fn operate(
        &self,
        der: &[u8],
        op: AkcipherOp,
        input: &[u8],
        digest: &[u8],
        output: &mut [u8],
    ) -> Outcome {
        if self.kind == KeyKind::Public && matches!(op, AkcipherOp::Decrypt | AkcipherOp::Sign) {
            return Outcome::NotSupported;
        }
        if output.len() < self.output_len && op != AkcipherOp::Verify {
            return Outcome::Error;
        }
        let Some(key) = self.key(der) else { return Outcome::Error };
        match (key, self.algorithm) {
            (Key::Rsa(key), Akcipher::Rsa { padding: RsaPadding::Raw }) => raw(key, op, input, output),
            (Key::Rsa(key), Akcipher::Rsa { padding: RsaPadding::Pkcs1(hash) }) => {
                pkcs1(key, hash, op, input, digest, output)
            }
            (Key::Ec(key), _) => ecdsa(key, op, input, digest, output),
            (Key::Rsa(_) | Key::Bad, _) => Outcome::KeyRejected,
        }
    }

    /// The key, understood; `None` when there is no memory for it now.
    fn key(&self, der: &[u8]) -> Option<&Key> {
        if let Some(key) = self.key.get() {
            return Some(key);
        }
        let building = keys::Building::beside(der);
        // Two threads may do this at once; the first one's is kept.
        let key = match self.algorithm {
            Akcipher::Rsa { .. } => rsa_numbers(self.kind, der)
                .map_err(|_| Failed)
                .and_then(|numbers| RsaKey::new(&numbers))
                .map(Key::Rsa),
            Akcipher::Ecdsa { curve } => ec_key(curve, self.kind, der).map(Key::Ec),
        };
        if key.is_err() && building.refused() {
            return None;
        }
        Some(self.key.get_or_init(|| key.unwrap_or(Key::Bad)))
    }
}

/// The numbers of an `RSAPublicKey` or `RSAPrivateKey` (RFC 8017 §A.1).
fn rsa_numbers(kind: KeyKind, der: &[u8]) -> Result<Numbers<'_>, KeyError> {
    let numbers = match kind {
        KeyKind::Public => public_numbers(der),
        KeyKind::Private => private_numbers(der),
    };
    let numbers = numbers.ok_or(KeyError::Rejected("it is no DER of an RSA key"))?;
    match numbers.modulus.len() * 8 {
        0 => Err(KeyError::Rejected("its modulus is zero")),
        bits if bits > MAX_RSA_BITS => Err(KeyError::Rejected("its modulus has more than 8192 bits")),
        _ => Ok(numbers),
    }
}

fn public_numbers(der: &[u8]) -> Option<Numbers<'_>> {
    let mut outer = Reader::new(der);
    let mut inner = outer.sequence()?;
    let numbers = Numbers { modulus: inner.number()?, public: inner.number()?, ..Numbers::default() };
    (outer.is_empty() && inner.is_empty()).then_some(numbers)
}

fn private_numbers(der: &[u8]) -> Option<Numbers<'_>> {
    let mut outer = Reader::new(der);
    let mut inner = outer.sequence()?;
    let version = inner.number()?;
    let (modulus, public, private) = (inner.number()?, inner.number()?, inner.number()?);
    let mut numbers = Numbers { modulus, public, private, ..Numbers::default() };
    // Some write only what is needed, or zeros for the rest.
    let mut rest = [&[][..]; 5];
    if !inner.is_empty() {
        for number in &mut rest {
            *number = inner.number()?;
        }
    }
    if rest.iter().all(|number| !number.is_empty()) {
        let [p, q, dp, dq, coefficient] = rest;
        (numbers.primes, numbers.exponents, numbers.coefficient) = ([p, q], [dp, dq], coefficient);
    }
    // Version 0 has two primes and nothing behind them; 1 says that there may be more, but the self-test of Linux
    // before 6.13 has it with none.
    let known = matches!(version, [] | [1]);
    (known && outer.is_empty() && inner.is_empty() && !private.is_empty()).then_some(numbers)
}

/// The point of a public key: bare, or as the octet string that `ECPoint` is (RFC 5480 §2.2).
fn point(curve: Curve, der: &[u8]) -> Result<&[u8], KeyError> {
    let len = curve.coordinate_len();
    let fits = |point: &[u8]| match point.first() {
        Some(2 | 3) => point.len() == 1 + len,
        Some(4) => point.len() == 1 + 2 * len,
        _ => false,
    };
    // An octet string begins with 4 as well, but is longer than an uncompressed point.
    if fits(der) {
        return Ok(der);
    }
    let mut reader = Reader::new(der);
    let inner = reader.element(OCTET_STRING).filter(|point| reader.is_empty() && fits(point));
    inner.ok_or(KeyError::Rejected("it is no point of the curve"))
}

fn ec_key(curve: Curve, kind: KeyKind, der: &[u8]) -> Result<EcKey, Failed> {
    match kind {
        KeyKind::Private => EcKey::private(curve, der),
        KeyKind::Public => EcKey::public(curve, point(curve, der).map_err(|_| Failed)?),
    }
}

/// A sequence of two numbers, each with a zero in front where its first bit is set.
fn longest_signature(curve: Curve) -> usize {
    let numbers = 2 * (2 + 1 + curve.coordinate_len());
    numbers + if numbers < 0x80 { 2 } else { 3 }
}

fn raw(key: &RsaKey, op: AkcipherOp, input: &[u8], output: &mut [u8]) -> Outcome {
    let Some(number) = fill_up(input, key.len()) else { return Outcome::Error };
    let result = match op {
        AkcipherOp::Encrypt => key.public_raw(&number, output),
        AkcipherOp::Decrypt => key.private_raw(&number, output),
        // Without padding, anybody can make signatures of something (virtio 1.3 §5.9.7.7).
        AkcipherOp::Sign | AkcipherOp::Verify => return Outcome::NotSupported,
    };
    done(result, Outcome::Error)
}

/// The number with `len` bytes; `None` when it has more.
fn fill_up(input: &[u8], len: usize) -> Option<keys::Secret> {
    let (extra, significant) = input.split_at(input.len().saturating_sub(len));
    if extra.iter().any(|byte| *byte != 0) {
        return None;
    }
    let mut number = keys::Secret::zeroed(len).ok()?;
    number[len - significant.len()..].copy_from_slice(significant);
    Some(number)
}

fn pkcs1(
    key: &RsaKey,
    hash: Option<Hash>,
    op: AkcipherOp,
    input: &[u8],
    digest: &[u8],
    output: &mut [u8],
) -> Outcome {
    match (op, hash) {
        (AkcipherOp::Encrypt, _) => done(key.encrypt(input, output), Outcome::Error),
        (AkcipherOp::Decrypt, _) if input.len() != key.len() => Outcome::Error,
        (AkcipherOp::Decrypt, _) => done(key.decrypt(input, output), Outcome::BadMessage),
        (AkcipherOp::Sign, Some(hash)) if input.len() != hash.digest_len() => Outcome::Error,
        (AkcipherOp::Sign, Some(hash)) => done(key.sign(hash, input, output), Outcome::Error),
        (AkcipherOp::Sign, None) => done(key.sign_raw(input, output), Outcome::Error),
        (AkcipherOp::Verify, Some(hash)) if digest.len() != hash.digest_len() => Outcome::Error,
        (AkcipherOp::Verify, Some(hash)) => verified(key.verify(hash, digest, input)),
        (AkcipherOp::Verify, None) => verified(recover(key, digest, input)),
    }
}

fn recover(key: &RsaKey, digest: &[u8], signature: &[u8]) -> Result<(), Failed> {
    let mut signed = keys::Secret::zeroed(key.len()).map_err(|_| Failed)?;
    let len = key.recover(signature, &mut signed)?;
    if equal(&signed[..len], digest) { Ok(()) } else { Err(Failed) }
}

fn ecdsa(key: &EcKey, op: AkcipherOp, input: &[u8], digest: &[u8], output: &mut [u8]) -> Outcome {
    match op {
        AkcipherOp::Sign => done(key.sign(input, output), Outcome::Error),
        AkcipherOp::Verify => verified(key.verify(digest, input)),
        AkcipherOp::Encrypt | AkcipherOp::Decrypt => Outcome::NotSupported,
    }
}

fn done(result: Result<usize, Failed>, otherwise: Outcome) -> Outcome {
    result.map_or(otherwise, |written| Outcome::Done { written: written as u32 })
}

fn verified(result: Result<(), Failed>) -> Outcome {
    result.map_or(Outcome::KeyRejected, |()| Outcome::Done { written: 0 })
}
