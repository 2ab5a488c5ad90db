//! What happens to locked memory, each in a process of its own.

#![expect(unsafe_code, reason = "gives up rights and limits of the process")]

use crate::fixtures::{P256, RSA_1024};
use crate::harness::{Layout, Shape, all_engines, cipher, key, seal};
use crypto_offload::algorithm::{
    Aead, Akcipher, ChainOrder, Cipher, Curve, Direction, Hash, KeyKind, RsaPadding,
};
use crypto_offload::engine::{AkcipherOp, KeyError, KeySpec, Outcome, Prepared};
use crypto_offload::keys;
use std::process::Command;

/// Runs the test of this name, which is the body, in a process of its own, and there only.
fn alone(name: &str, body: impl FnOnce()) {
    const ALONE: &str = "VHOSTD_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let program = std::env::current_exe().expect("this program");
    let output =
        Command::new(program).args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Sets `RLIMIT_MEMLOCK`, and gives up the right to ignore it.
fn limit_locked_memory(bytes: u64) {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    let header = Header { version: 0x2008_0522, pid: 0 };
    let none = [0u32; 6];
    // SAFETY: both read what they are pointed at, and change nothing but the rights of this process.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
        assert_eq!(libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()), 0);
    }
}

fn cbc(key: &[u8]) -> KeySpec<'_> {
    KeySpec::Cipher { cipher: Cipher::AesCbc, direction: Direction::Encrypt, key }
}

#[test]
fn a_limit_that_is_too_low_is_reported_with_what_to_do() {
    alone("limits::a_limit_that_is_too_low_is_reported_with_what_to_do", || {
        limit_locked_memory(128 << 10);
        let error = crypto_offload::engine::start().expect_err("there is not enough");
        assert!(
            error.to_string().contains("RLIMIT_MEMLOCK") && error.to_string().contains("131072"),
            "{error}"
        );
        let error = Prepared::new(&cbc(&[1; 16])).expect_err("no memory, no key");
        assert!(matches!(error, KeyError::NoMemory(_)));
    });
}

#[test]
fn when_memory_is_used_up_new_keys_are_refused_and_old_ones_work() {
    alone("limits::when_memory_is_used_up_new_keys_are_refused_and_old_ones_work", || {
        limit_locked_memory(2 << 20);
        let padding = RsaPadding::Pkcs1(None);
        let der: Vec<u8> = hex(RSA_1024);
        let spec =
            KeySpec::Akcipher { algorithm: Akcipher::Rsa { padding }, kind: KeyKind::Private, der: &der };
        let rsa = key(&spec);
        let mut output = vec![0; rsa.output_len()];
        assert!(matches!(rsa.akcipher(AkcipherOp::Sign, b"text", &[], &mut output), Outcome::Done { .. }));
        // Its contexts are made when they are needed.
        let late = [
            key(&KeySpec::Aead {
                aead: Aead::ChaCha20Poly1305,
                direction: Direction::Encrypt,
                key: &[1; 32],
                tag_len: 16,
            }),
            key(&spec),
        ];
        let mut keys = Vec::new();
        let error = loop {
            match Prepared::new(&cbc(&[1; 16])) {
                Ok(key) => keys.push(key),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, KeyError::NoMemory(_)), "{error}");
        assert!(keys.len() > 500, "{} keys in a megabyte", keys.len());
        for _ in 0..100 {
            let outcome = rsa.akcipher(AkcipherOp::Sign, b"text", &[], &mut output);
            assert!(matches!(outcome, Outcome::Done { .. }), "operations have memory of their own");
        }
        let outcome = late[1].akcipher(AkcipherOp::Sign, b"text", &[], &mut output);
        assert_ne!(outcome, Outcome::KeyRejected, "whatever memory is left, the key is a good one");
        let pieces = Shape { src: Layout::every(24, 0, 64), ..Shape::default() };
        for mut engines in all_engines() {
            assert!(cipher(&mut engines, &keys[0], &[0; 16], &[0; 64], &Shape::default()).is_ok());
            assert!(seal(&mut engines, &late[0], (&[0; 12], &[]), &[0; 64], &pieces).is_ok());
        }
        keys.truncate(10);
        assert!(Prepared::new(&cbc(&[1; 16])).is_ok(), "what was closed can be had again");
        let outcome = late[1].akcipher(AkcipherOp::Sign, b"text", &[], &mut output);
        assert!(matches!(outcome, Outcome::Done { .. }), "the key was good all the time");
    });
}

#[test]
fn keys_leave_nothing_behind() {
    alone("limits::keys_leave_nothing_behind", || {
        use_every_kind();
        let before = keys::usage();
        for _ in 0..50 {
            use_every_kind();
        }
        assert_eq!(keys::usage(), before);
    });
}

/// Makes, uses and drops a key of every kind.
fn use_every_kind() {
    let secret: Vec<u8> = (0..64).collect();
    let direction = Direction::Encrypt;
    for kind in Cipher::ALL {
        for len in (0..=64).filter(|len| kind.takes_key(*len)) {
            let key = key(&KeySpec::Cipher { cipher: *kind, direction, key: &secret[..len] });
            let shape = Shape { src: Layout::every(24, 0, 64), ..Shape::default() };
            for mut engines in all_engines() {
                assert!(cipher(&mut engines, &key, &secret[..kind.iv_len()], &secret, &shape).is_ok());
            }
        }
    }
    for aead in Aead::ALL {
        drop(key(&KeySpec::Aead { aead: *aead, direction, key: &secret[..32], tag_len: 16 }));
    }
    let (order, hash, result_len) = (ChainOrder::HashThenCipher, Hash::Sha1, 20);
    let (cipher_key, mac_key) = (&secret[..16], Some(&secret[..]));
    let cipher = Cipher::AesCbc;
    drop(key(&KeySpec::Chain { cipher, direction, order, hash, cipher_key, mac_key, result_len }));
    let rsa = Akcipher::Rsa { padding: RsaPadding::Pkcs1(Some(Hash::Sha256)) };
    for (algorithm, der) in [(rsa, RSA_1024), (Akcipher::Ecdsa { curve: Curve::P256 }, P256)] {
        let key = key(&KeySpec::Akcipher { algorithm, kind: KeyKind::Private, der: &hex(der) });
        let mut output = vec![0; key.output_len()];
        assert!(matches!(key.akcipher(AkcipherOp::Sign, &[1; 32], &[], &mut output), Outcome::Done { .. }));
    }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hexadecimal"))
        .collect()
}
