//! Batches of everything at once, engines that fail, requests that make no sense.

use crate::harness::{Buffer, Layout, all_engines, key, run, run_all};
use crate::oracle;
use crypto_offload::algorithm::{Aead, ChainOrder, Cipher, Direction, Hash};
use crypto_offload::engine::test::{Behaviour, Delayed};
use crypto_offload::engine::{
    Bytes, Choice, Engines, Group, Iv, KeyError, KeySpec, Outcome, Prepared, Ranges, Span, Tag, Work, list,
};

fn delayed(behaviour: Behaviour) -> Engines {
    Engines::with(vec![Box::new(Delayed::new(behaviour))])
}

/// `count` CBC requests of different lengths, and whether every result is right.
fn cbc_batch(engines: &mut Engines, count: usize) -> Vec<Outcome> {
    let keys = [16, 24, 32].map(|len| {
        let secret = vec![len as u8; len];
        key(&KeySpec::Cipher { cipher: Cipher::AesCbc, direction: Direction::Encrypt, key: &secret })
    });
    let texts: Vec<Vec<u8>> = (0..count).map(|i| vec![i as u8; 16 * (i % 9)]).collect();
    let sources: Vec<Buffer> =
        texts.iter().map(|text| Buffer::new(text, &Layout::every(21, 2, text.len()))).collect();
    let results: Vec<Buffer> =
        texts.iter().map(|text| Buffer::zeros(text.len(), &Layout::default())).collect();
    let iv = |i: usize| Iv::new(&[i as u8; 16]).expect("16 bytes");
    let jobs: Vec<(&Prepared, Work)> = (0..count)
        .map(|i| (&*keys[i % 3], Work::Cipher { iv: iv(i), src: sources[i].all(), dst: results[i].all() }))
        .collect();
    let outcomes = run_all(engines, &jobs);
    for i in 0..count {
        let len = 16 + i % 3 * 8;
        let expected = oracle::cipher(
            Cipher::AesCbc,
            Direction::Encrypt,
            &vec![len as u8; len],
            &[i as u8; 16],
            &texts[i],
        );
        assert_eq!(results[i].bytes(), expected, "request {i}");
    }
    outcomes
}

#[test]
fn mixed_batches_are_right_in_every_engine() {
    for mut engines in all_engines() {
        for count in [0, 1, 2, 7, 8, 9, 15, 16, 17, 100, 300] {
            let outcomes = cbc_batch(&mut engines, count);
            assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done { .. })));
        }
        let counters = engines.counters();
        assert_eq!(counters.refused, 0);
        assert_eq!(
            counters.library + counters.offloaded - counters.fallbacks,
            475,
            "{engines:?} {counters:?}"
        );
    }
}

#[test]
fn what_an_engine_fails_at_the_library_does() {
    let mut engines = delayed(Behaviour { fail_every: 4, room: 1000, ..Behaviour::default() });
    cbc_batch(&mut engines, 100);
    let counters = engines.counters();
    assert_eq!((counters.fallbacks, counters.library, counters.offloaded), (25, 25, 100));
}

#[test]
fn an_engine_that_always_fails_harms_nobody() {
    let mut engines = delayed(Behaviour { fail_every: 1, ..Behaviour::default() });
    cbc_batch(&mut engines, 200);
    assert_eq!(engines.counters().fallbacks, 64, "the rest had no room");
    assert_eq!(engines.counters().overflowed, 136);
}

#[test]
fn what_an_engine_has_no_room_for_the_library_does() {
    let mut engines = delayed(Behaviour { room: 10, ..Behaviour::default() });
    cbc_batch(&mut engines, 100);
    let counters = engines.counters();
    assert_eq!(
        (counters.offloaded, counters.overflowed, counters.library, counters.fallbacks),
        (10, 90, 90, 0)
    );
}

#[test]
fn small_requests_go_past_an_engine_that_does_not_want_them() {
    let mut engines = delayed(Behaviour { shortest: 64, room: 1000, ..Behaviour::default() });
    cbc_batch(&mut engines, 90);
    assert_eq!(engines.counters().offloaded, 50, "lengths 64 to 128 of nine");
    assert_eq!(engines.counters().library, 40);
}

#[test]
fn nothing_is_delivered_before_its_time() {
    let key = key(&KeySpec::Hash { hash: Hash::Sha256, result_len: 32 });
    let digest = Buffer::zeros(32, &Layout::default());
    let mut engines = delayed(Behaviour { delay: 3, ..Behaviour::default() });
    let work = Work::Digest { src: Ranges::EMPTY, digest: digest.all() };
    assert_eq!(run(&mut engines, &key, work), Outcome::Done { written: 0 });
    assert_eq!(digest.bytes(), oracle::digest(Hash::Sha256, None, b""));
}

#[test]
fn requests_that_make_no_sense_are_refused_and_the_others_go_on() {
    let encrypts = Direction::Encrypt;
    let cbc = key(&KeySpec::Cipher { cipher: Cipher::AesCbc, direction: encrypts, key: &[1; 16] });
    let xts = key(&KeySpec::Cipher { cipher: Cipher::AesXts, direction: encrypts, key: &oracle_key() });
    let gcm = key(&KeySpec::Aead { aead: Aead::AesGcm, direction: encrypts, key: &[1; 16], tag_len: 12 });
    let hash = key(&KeySpec::Hash { hash: Hash::Sha1, result_len: 20 });
    let chain = key(&KeySpec::Chain {
        cipher: Cipher::AesCtr,
        direction: encrypts,
        order: ChainOrder::CipherThenHash,
        hash: Hash::Sha1,
        cipher_key: &[1; 16],
        mac_key: None,
        result_len: 20,
    });
    let memory = Buffer::zeros(64, &Layout::default());
    let part = |len| memory.all().sub(0, len).expect("64 bytes");
    let iv = |len| Iv::new(&vec![0; len]).expect("at most 32");
    let cipher = |nonce, src, dst| Work::Cipher { iv: iv(nonce), src: part(src), dst: part(dst) };
    let digest = |len| Work::Digest { src: part(8), digest: part(len) };
    let aead = |nonce, tag| Work::Aead { iv: iv(nonce), aad: Bytes::EMPTY, src: part(8), dst: part(8), tag };
    let span = |start, len| Span { start, len };
    let chained = |cipher: Span, hash, dst, sum| {
        let (src, dst, digest) = (part(32), part(dst), part(sum));
        Work::Chain { iv: iv(16), src, cipher, hash, dst, digest }
    };
    let good = (&*hash, digest(20));
    let bad: Vec<(&Prepared, Work, Outcome)> = vec![
        (&cbc, cipher(16, 17, 17), Outcome::Error),
        (&cbc, cipher(15, 16, 16), Outcome::Error),
        (&cbc, cipher(16, 16, 32), Outcome::Error),
        (&xts, cipher(16, 15, 15), Outcome::Error),
        (&gcm, aead(0, Tag::Write(part(12))), Outcome::Error),
        (&gcm, aead(12, Tag::Write(part(16))), Outcome::Error),
        (&gcm, aead(12, Tag::Check([0; 16])), Outcome::Error),
        (&hash, digest(19), Outcome::Error),
        (&chain, chained(span(30, 3), span(0, 1), 3, 20), Outcome::Error),
        (&chain, chained(span(0, 3), span(32, 1), 3, 20), Outcome::Error),
        (&chain, chained(span(usize::MAX, 3), span(0, 1), 3, 20), Outcome::Error),
        (&chain, chained(span(0, 3), span(0, 1), 4, 20), Outcome::Error),
        (&chain, chained(span(0, 3), span(0, 1), 3, 16), Outcome::Error),
        (&hash, cipher(16, 16, 16), Outcome::NotSupported),
        (&cbc, digest(20), Outcome::NotSupported),
        (&gcm, cipher(16, 16, 16), Outcome::NotSupported),
    ];
    for mut engines in all_engines() {
        let jobs: Vec<_> = bad.iter().flat_map(|(key, work, _)| [(*key, *work), good]).collect();
        let outcomes = run_all(&mut engines, &jobs);
        for (pair, (key, work, expected)) in outcomes.chunks(2).zip(&bad) {
            assert_eq!(pair, [*expected, Outcome::Done { written: 0 }], "{key:?} {work:?}");
        }
        assert_eq!(engines.counters().refused, bad.len() as u64);
    }
}

/// 64 bytes, the halves of which differ.
fn oracle_key() -> Vec<u8> {
    (0..64).collect()
}

#[test]
fn keys_that_make_no_sense_are_refused() {
    let direction = Direction::Encrypt;
    let cipher = |cipher, key| KeySpec::Cipher { cipher, direction, key };
    let aead = |aead, key, tag_len| KeySpec::Aead { aead, direction, key, tag_len };
    let long = [7; 600];
    for spec in [
        cipher(Cipher::AesCbc, &long[..0]),
        cipher(Cipher::AesCbc, &long[..17]),
        cipher(Cipher::AesCtr, &long[..64]),
        cipher(Cipher::AesXts, &long[..16]),
        cipher(Cipher::AesXts, &long[..48]),
        cipher(Cipher::AesXts, &long[..64]),
        aead(Aead::AesGcm, &long[..15], 16),
        aead(Aead::ChaCha20Poly1305, &long[..16], 16),
        KeySpec::Mac { hash: Hash::Sha1, key: &long, result_len: 20 },
    ] {
        assert!(matches!(Prepared::new(&spec), Err(KeyError::Rejected(_))), "{spec:?}");
    }
    for spec in [
        aead(Aead::AesGcm, &long[..16], 3),
        aead(Aead::AesGcm, &long[..16], 17),
        aead(Aead::AesCcm, &long[..16], 5),
        aead(Aead::ChaCha20Poly1305, &long[..32], 12),
        KeySpec::Mac { hash: Hash::Sha1, key: b"key", result_len: 21 },
        KeySpec::Hash { hash: Hash::Sha256, result_len: 0 },
    ] {
        assert!(matches!(Prepared::new(&spec), Err(KeyError::Invalid(_))), "{spec:?}");
    }
}

#[test]
fn engines_forget_keys_when_they_are_told_to() {
    use crypto_offload::engine::{Engine, Job, KeyRef};
    let key = key(&KeySpec::Hash { hash: Hash::Sha1, result_len: 20 });
    let mut engine = Delayed::new(Behaviour::default());
    let sum = Buffer::zeros(20, &Layout::default());
    let work = Work::Digest { src: Ranges::EMPTY, digest: sum.all() };
    crate::harness::finish(&mut engine, &Job { tag: 1, key: KeyRef::from(&*key), work });
    assert_eq!(engine.sessions(), 1);
    engine.forget(key.id());
    assert_eq!(engine.sessions(), 0);
}

#[test]
fn groups_keep_apart_what_cannot_share_a_batch() {
    let mut groups = std::collections::HashMap::new();
    for cipher in Cipher::ALL {
        for (len, direction) in
            (0..=64).flat_map(|len| [(len, Direction::Encrypt), (len, Direction::Decrypt)])
        {
            if cipher.takes_key(len) {
                let spec = KeySpec::Cipher { cipher: *cipher, direction, key: &vec![1; len] };
                assert!(groups.insert(spec.group(), (*cipher, len, direction)).is_none());
                for hash in Hash::ALL {
                    for (order, mac_key) in
                        ChainOrder::ALL.iter().flat_map(|order| [(*order, None), (*order, Some(&[][..]))])
                    {
                        let (cipher, hash, cipher_key) = (*cipher, *hash, &vec![1; len]);
                        let spec = KeySpec::Chain {
                            cipher,
                            direction,
                            order,
                            hash,
                            cipher_key,
                            mac_key,
                            result_len: 20,
                        };
                        assert!(groups.insert(spec.group(), (cipher, len, direction)).is_none());
                    }
                }
            }
        }
    }
    assert!(groups.keys().all(|group| group.index() < Group::COUNT));
}

#[test]
fn every_choice_has_a_name_and_the_library_comes_last() {
    for name in Choice::NAMES {
        let choice: Choice = name.parse().expect("a choice");
        assert_eq!(choice.name(), name);
        assert_eq!(Engines::new(choice).names().last(), Some("library"));
    }
    assert!("qat".parse::<Choice>().is_err());
    assert_eq!(list().last().map(|engine| engine.name), Some("library"));
}
