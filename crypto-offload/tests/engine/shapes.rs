//! Every algorithm against another implementation, over lengths, splits, alignments, in place and out of place.

use crate::harness::{Layout, Shape, all_engines, chain, cipher, digest, key, open, seal};
use crate::oracle;
use crypto_offload::algorithm::{Aead, ChainOrder, Cipher, Direction, Hash};
use crypto_offload::engine::{KeySpec, Outcome, Span};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const DIRECTIONS: [Direction; 2] = [Direction::Encrypt, Direction::Decrypt];

fn key_lengths(cipher: Cipher) -> Vec<usize> {
    (1..=64).filter(|len| cipher.takes_key(*len)).collect()
}

/// Bytes that differ.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8 ^ seed).collect()
}

/// A length near `len` that the cipher takes.
fn fitting(cipher: Cipher, len: usize) -> usize {
    match cipher {
        Cipher::AesEcb | Cipher::AesCbc => len / 16 * 16,
        Cipher::AesCtr => len,
        Cipher::AesXts => len.max(16),
    }
}

fn layout() -> impl Strategy<Value = Layout> {
    let cuts = prop_oneof![Just(Vec::new()), vec(0..300usize, 0..6), vec(0..3000usize, 0..12)];
    (cuts, 0..32usize).prop_map(|(cuts, shift)| Layout { cuts, shift })
}

fn shape() -> impl Strategy<Value = Shape> {
    (layout(), layout(), any::<bool>()).prop_map(|(src, dst, in_place)| Shape { src, dst, in_place })
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![0..100usize, 0..3000usize, select(vec![255, 256, 257, 511, 512, 513, 1024, 4096, 4097])]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn ciphers_match_the_oracle_whatever_the_shape(
        kind in select(Cipher::ALL), direction in select(&DIRECTIONS), size in any::<prop::sample::Index>(),
        len in length(), shape in shape(), seed in any::<u8>(),
    ) {
        let key_len = *size.get(&key_lengths(kind));
        let (secret, iv) = (pattern(key_len, seed), pattern(kind.iv_len(), !seed));
        let text = pattern(fitting(kind, len), seed.wrapping_mul(3));
        let expected = oracle::cipher(kind, direction, &secret, &iv, &text);
        let key = key(&KeySpec::Cipher { cipher: kind, direction, key: &secret });
        for mut engines in all_engines() {
            let result = cipher(&mut engines, &key, &iv, &text, &shape);
            prop_assert!(result.as_ref() == Ok(&expected), "{engines:?}");
        }
    }

    #[test]
    fn digests_match_the_oracle_whatever_the_shape(
        hash in select(Hash::ALL), secret in prop::option::of(vec(any::<u8>(), 0..200)), len in length(),
        layout in layout(), cut in any::<prop::sample::Index>(),
    ) {
        let text = pattern(len, 9);
        let result_len = cut.index(hash.digest_len()) + 1;
        let expected = oracle::digest(hash, secret.as_deref(), &text);
        let key = key(&match &secret {
            None => KeySpec::Hash { hash, result_len },
            Some(secret) => KeySpec::Mac { hash, key: secret, result_len },
        });
        for mut engines in all_engines() {
            prop_assert_eq!(&digest(&mut engines, &key, &text, &layout), &expected[..result_len]);
        }
    }

    #[test]
    fn chains_match_the_oracle_in_both_orders(
        kind in select(Cipher::ALL), direction in select(&DIRECTIONS), order in select(ChainOrder::ALL),
        hash in select(Hash::ALL), keyed in any::<bool>(), len in 16..1500usize, shape in shape(),
        spans in any::<[prop::sample::Index; 4]>(),
    ) {
        let secret = pattern(*key_lengths(kind).last().expect("a key"), 4);
        let iv = pattern(kind.iv_len(), 5);
        let text = pattern(len, 6);
        let span = |start: &prop::sample::Index, size: &prop::sample::Index, least: usize| {
            let start = start.index(len - least + 1);
            Span { start, len: least + size.index(len - start - least + 1) }
        };
        let mut part = span(&spans[0], &spans[1], 16);
        part.len = fitting(kind, part.len);
        let covered = span(&spans[2], &spans[3], 0);
        let mac_key = keyed.then_some(&b"a key of the MAC"[..]);
        let result_len = hash.digest_len();

        let expected = oracle::cipher(kind, direction, &secret, &iv, &text[part.start..part.start + part.len]);
        let mut hashed = text.clone();
        if order == ChainOrder::CipherThenHash {
            hashed[part.start..part.start + part.len].copy_from_slice(&expected);
        }
        let sum = oracle::digest(hash, mac_key, &hashed[covered.start..covered.start + covered.len]);

        let key = key(&KeySpec::Chain { cipher: kind, direction, order, hash, cipher_key: &secret, mac_key, result_len });
        for mut engines in all_engines() {
            let result = chain(&mut engines, &key, &iv, &text, (part, covered), &shape);
            prop_assert!(result == (expected.clone(), sum.clone()), "{engines:?}");
        }
    }

    #[test]
    fn authenticated_ciphers_match_the_oracle_whatever_the_shape(
        aead in select(Aead::ALL), size in select(vec![16usize, 24, 32]), len in length(), shape in shape(),
        aad in vec(any::<u8>(), 0..80), seed in any::<u8>(), flip in any::<prop::sample::Index>(),
    ) {
        let key_len = if aead == Aead::ChaCha20Poly1305 { 32 } else { size };
        let (secret, text) = (pattern(key_len, seed), pattern(len, !seed));
        let nonce = pattern(if aead == Aead::AesCcm { 13 } else { 12 }, seed / 2);
        let (expected, tag) = oracle::seal(aead, &secret, &nonce, &aad, &text);
        let keys = DIRECTIONS.map(|direction| key(&KeySpec::Aead { aead, direction, key: &secret, tag_len: 16 }));
        let mut wrong = tag.clone();
        wrong[flip.index(16)] ^= 1 << flip.index(8);
        for mut engines in all_engines() {
            let sealed = seal(&mut engines, &keys[0], (&nonce, &aad), &text, &shape);
            prop_assert!(sealed.as_ref() == Ok(&(expected.clone(), tag.clone())), "{engines:?}");
            let opened = open(&mut engines, &keys[1], (&nonce, &aad), &expected, &tag, &shape);
            prop_assert!(opened.as_ref() == Ok(&text), "{engines:?}");
            let refused = open(&mut engines, &keys[1], (&nonce, &aad), &expected, &wrong, &shape);
            prop_assert_eq!(refused, Err(Outcome::BadMessage));
        }
    }
}

#[test]
fn every_length_to_some_blocks_is_right_in_every_mode() {
    let mut engines = all_engines();
    for kind in Cipher::ALL {
        for (key_len, direction) in
            key_lengths(*kind).into_iter().flat_map(|len| DIRECTIONS.map(|way| (len, way)))
        {
            let (secret, iv) = (pattern(key_len, 1), pattern(kind.iv_len(), 2));
            let key = key(&KeySpec::Cipher { cipher: *kind, direction, key: &secret });
            for len in (0..200).filter(|len| kind.takes_len(*len)) {
                let text = pattern(len, 3);
                let expected = oracle::cipher(*kind, direction, &secret, &iv, &text);
                for (engines, in_place) in engines.iter_mut().zip([false, true, false]) {
                    let shape =
                        Shape { src: Layout::every(13, 1, len), dst: Layout::every(29, 5, len), in_place };
                    assert_eq!(cipher(engines, &key, &iv, &text, &Shape::default()).as_ref(), Ok(&expected));
                    assert_eq!(
                        cipher(engines, &key, &iv, &text, &shape).as_ref(),
                        Ok(&expected),
                        "{kind} {len}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_megabyte_in_pages_and_bytes_is_right() {
    let len = 1 << 20;
    let text = pattern(len, 1);
    for kind in Cipher::ALL {
        let key_len = *key_lengths(*kind).last().expect("a key");
        let (secret, iv) = (pattern(key_len, 2), pattern(kind.iv_len(), 3));
        let expected = oracle::cipher(*kind, Direction::Encrypt, &secret, &iv, &text);
        let key = key(&KeySpec::Cipher { cipher: *kind, direction: Direction::Encrypt, key: &secret });
        let shape =
            Shape { src: Layout::every(4096, 0, len), dst: Layout::every(65521, 3, len), in_place: false };
        for mut engines in all_engines() {
            assert!(
                cipher(&mut engines, &key, &iv, &text, &shape) == Ok(expected.clone()),
                "{kind} {engines:?}"
            );
        }
    }
}

#[test]
fn counters_wrap_at_128_bits() {
    let iv = [0xff; 16];
    let key = key(&KeySpec::Cipher { cipher: Cipher::AesCtr, direction: Direction::Encrypt, key: &[1; 16] });
    let text = pattern(1000, 1);
    let expected = oracle::cipher(Cipher::AesCtr, Direction::Encrypt, &[1; 16], &iv, &text);
    let shape = Shape { src: Layout::every(37, 0, 1000), dst: Layout::default(), in_place: false };
    for mut engines in all_engines() {
        assert_eq!(cipher(&mut engines, &key, &iv, &text, &shape).as_ref(), Ok(&expected));
    }
}

#[test]
fn long_associated_data_is_covered_to_its_last_byte() {
    for aead in Aead::ALL {
        let nonce = pattern(if *aead == Aead::AesCcm { 13 } else { 12 }, 1);
        for len in [0xfeff, 0xff00, 0xff01, 70_000] {
            let mut aad = pattern(len, 2);
            let (expected, tag) = oracle::seal(*aead, &[3; 32], &nonce, &aad, b"text");
            let keys = DIRECTIONS
                .map(|direction| key(&KeySpec::Aead { aead: *aead, direction, key: &[3; 32], tag_len: 16 }));
            let mut engines = all_engines().remove(0);
            let shape = Shape::default();
            let sealed = seal(&mut engines, &keys[0], (&nonce, &aad), b"text", &shape);
            assert_eq!(sealed, Ok((expected.clone(), tag.clone())));
            *aad.last_mut().expect("long") ^= 1;
            let opened = open(&mut engines, &keys[1], (&nonce, &aad), &expected, &tag, &shape);
            assert_eq!(opened, Err(Outcome::BadMessage));
        }
    }
}
