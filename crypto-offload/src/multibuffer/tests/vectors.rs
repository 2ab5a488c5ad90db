//! Examples that others computed.

use super::super::Kind;
use super::*;

/// NIST SP 800-38A, F.2: the initialisation vector and the four blocks of plaintext of all examples.
const IV: &str = "000102030405060708090a0b0c0d0e0f";
const PLAIN: &str = "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51\
                     30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710";
/// F.2.1, F.2.3 and F.2.5: key, ciphertext.
const EXAMPLES: [(&str, &str); 3] = [
    (
        "2b7e151628aed2a6abf7158809cf4f3c",
        "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2\
         73bed6b8e3c1743b7116e69e222295163ff1caa1681fac09120eca307586e1a7",
    ),
    (
        "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
        "4f021db243bc633d7178183a9fa071e8b4d9ada9ad7dedf4e5e738763f69145a\
         571b242012fb7ae07fa9baac3df102e008b0e27988598881d920a9e64f5615cd",
    ),
    (
        "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
        "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d\
         39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b",
    ),
];

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn all_kernels_reproduce_the_examples_of_nist() {
    let iv = bytes(IV).try_into().unwrap();
    for (key, cipher) in EXAMPLES {
        assert_eq!(oracle(&bytes(key), iv, &bytes(PLAIN)), bytes(cipher), "the oracle itself");
    }
    for kind in kinds() {
        let case = |i: usize| {
            let plain = bytes(PLAIN);
            let src = Scattered::new(&[plain.len()], &[i % 17]);
            Case::new(&bytes(EXAMPLES[i % 3].0), iv, plain, src, None)
        };
        for count in [1, 3, 20, 60] {
            check(kind, &mut (0..count).map(case).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_key_of_the_library_gives_the_same_in_every_machine() {
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_available()) {
        let mut machine = Machine::with(kind).unwrap();
        let mut cases: Vec<_> = (0..20).map(|i| Case::simple(i, 16 + 8 * (i % 3), 16 * (i + 1))).collect();
        check_with(&mut machine, &mut cases, |key| CbcKey::portable(key).unwrap());
    }
}
