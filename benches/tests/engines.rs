//! The daemon's engines without the daemon. In a process of its own: they take AWS-LC's memory over.

use benches::crypto::Load;
use benches::crypto::alone::{self, Engine};
use benches::guest::Shown;

#[test]
fn every_symmetric_algorithm_comes_out_as_the_library_has_it() {
    for options in [
        "--algorithm aes-128-cbc",
        "--algorithm aes-256-cbc --direction decrypt",
        "--algorithm aes-192-ctr",
        "--algorithm aes-256-xts",
        "--algorithm aes-128-gcm",
        "--algorithm aes-128-gcm --direction decrypt",
        "--algorithm aes-256-ccm",
        "--algorithm chacha20-poly1305",
        "--algorithm aes-128-cbc-hmac-sha1",
        "--algorithm aes-256-cbc-hmac-sha256 --direction decrypt",
        "--algorithm sha256",
        "--algorithm hmac-sha512",
    ] {
        for engine in [Engine::Auto, Engine::Multibuffer] {
            let load =
                Load::parse(&format!("--size 1k --depth 20 --requests 40 --verify {options}")).unwrap();
            let report = alone::run(engine, &load, &mut |_| {}).unwrap();
            assert_eq!((report.verified, report.wrong), (20, 0), "{options}: {}", report.table());
            assert_eq!(report.operations, 40, "{options}: {}", report.table());
        }
    }
}

#[test]
fn public_keys_are_refused_in_one_sentence() {
    let load = Load::parse("--algorithm rsa-1024 --depth 1").unwrap();
    let error = alone::run(Engine::Auto, &load, &mut |_| {}).err().unwrap().to_string();
    assert!(error.contains("--engine-alone library"), "{error}");
}
