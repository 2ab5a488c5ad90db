//! Requests of every shape, good and bad, from a guest's ring to the status byte.

mod rings;

use crypto_offload::algorithm::{Aead, ChainOrder, Cipher, Direction, Hash};
use crypto_offload::engine::KeySpec;
use crypto_offload::flush::Policy;
use crypto_offload::journal::Journals;
use crypto_offload::stats::Algo;
use crypto_offload::wire::status::Status;
use memory::Area;
use rings::{Cut, Request, Rig, Shape, UNTOUCHED, legacy};

const KEY: [u8; 32] = *b"0123456789abcdefghijklmnopqrstuv";
const IV: [u8; 16] = [7; 16];

fn spec(cipher: Cipher, direction: Direction) -> KeySpec<'static> {
    KeySpec::Cipher { cipher, direction, key: &KEY[..16] }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 % 251) as u8).collect()
}

/// What the library makes of it, in one piece each.
fn expected(rig: &mut Rig, session: u64, src: &[u8]) -> Vec<u8> {
    let answer = rig.ask(&legacy::cipher(0, session, &IV, src));
    answer.result().to_vec()
}

#[test]
fn what_is_encrypted_is_decrypted_again() {
    let mut rig = Rig::single(Policy::default());
    for cipher in [Cipher::AesEcb, Cipher::AesCbc, Cipher::AesCtr] {
        let iv = &IV[..cipher.iv_len()];
        let there = rig.session(&spec(cipher, Direction::Encrypt));
        let back = rig.session(&spec(cipher, Direction::Decrypt));
        for len in [16, 64, 4096, 65536, 1 << 20] {
            let text = bytes(len);
            let secret = rig.ask(&legacy::cipher(0, there, iv, &text));
            assert_ne!(secret.result(), text);
            let plain = rig.ask(&legacy::cipher(1, back, iv, secret.result()));
            assert_eq!(plain.result(), text, "{cipher}, {len} bytes");
        }
    }
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(&spec(Cipher::AesCbc, Direction::Encrypt));
    let src = bytes(256);
    let good = expected(&mut rig, session, &src);
    let cuts = [Cut::Whole, Cut::Every(1), Cut::Every(7), Cut::Every(16), Cut::Every(72), Cut::Every(24)];
    let random = (0..200).map(|seed| Cut::Random(seed, 2 + seed as usize % 90));
    for cut in cuts.into_iter().chain(random) {
        let answer = rig.ask(&Request { cut, ..legacy::cipher(0, session, &IV, &src) });
        assert_eq!((answer.status, answer.used), (0, 257), "{cut:?}");
        assert_eq!(answer.result(), good, "{cut:?}");
    }
}

#[test]
fn a_request_may_have_as_many_descriptors_as_the_ring() {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(&spec(Cipher::AesCbc, Direction::Encrypt));
    let src = bytes(4096);
    let good = expected(&mut rig, session, &src);
    for descriptors in [2, 3, 17, 100, 512, 1000, 1024] {
        let total = 72 + 16 + 4096 + 4097;
        let cut = Cut::Every(total / descriptors + 1 + usize::from(descriptors > 1000));
        let answer = rig.ask(&Request { cut, ..legacy::cipher(0, session, &IV, &src) });
        assert_eq!(answer.result(), good, "{descriptors} descriptors");
    }
}

#[test]
fn an_indirect_table_is_as_good_as_descriptors() {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(&spec(Cipher::AesCbc, Direction::Encrypt));
    let src = bytes(512);
    let good = expected(&mut rig, session, &src);
    for cut in [Cut::Linux, Cut::Whole, Cut::Every(32)] {
        let request = Request { cut, indirect: true, ..legacy::cipher(0, session, &IV, &src) };
        assert_eq!(rig.ask(&request).result(), good, "{cut:?}");
    }
}

#[test]
fn the_result_may_go_where_the_source_is() {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(&spec(Cipher::AesCbc, Direction::Encrypt));
    let src = bytes(1024);
    let good = expected(&mut rig, session, &src);
    for cut in [Cut::Linux, Cut::Every(64), Cut::Every(37)] {
        let request = Request { cut, in_place: Some(88), ..legacy::cipher(0, session, &IV, &src) };
        assert_eq!(rig.ask(&request).result(), good, "{cut:?}");
    }
}

#[test]
fn room_beyond_the_result_is_not_touched() {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(&spec(Cipher::AesCbc, Direction::Encrypt));
    let mut request = legacy::cipher(0, session, &IV, &bytes(64));
    request.room = 100;
    let answer = rig.ask(&request);
    assert_eq!((answer.status, answer.used), (0, 65));
    assert!(answer.data[64..].iter().all(|byte| *byte == UNTOUCHED));
}

/// Sends a request that has to fail, and sees that nothing was written but the status.
fn refused(rig: &mut Rig, request: &Request, status: Status, why: &str) {
    let answer = rig.ask(request);
    assert_eq!((answer.status, answer.used), (status as u8, 1), "{why}");
    assert!(answer.data.iter().all(|byte| *byte == UNTOUCHED), "{why}: the result was touched");
}

/// A good request with one word of its header or fixed part changed.
fn changed(request: &Request, word: usize, value: u32) -> Request {
    let mut request = request.clone();
    request.readable[word * 4..word * 4 + 4].copy_from_slice(&value.to_le_bytes());
    request
}

#[test]
fn bad_requests_get_their_status_and_write_nothing_else() {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(&spec(Cipher::AesCbc, Direction::Encrypt));
    let good = legacy::cipher(0, session, &IV, &bytes(64));
    assert_eq!(rig.ask(&good).status, 0);
    let (iv_len, src_len, dst_len, op_type) = (6, 7, 8, 16);
    let bad = [
        (changed(&good, 0, 0x001), Status::Err, "the session encrypts"),
        (changed(&good, 0, 0x007), Status::NotSupp, "unknown operation"),
        (changed(&good, 0, 0x900), Status::NotSupp, "unknown service"),
        (changed(&good, 0, 0x100), Status::InvSess, "a session of another service"),
        (changed(&good, 2, session as u32 + 1), Status::InvSess, "no such session"),
        (changed(&good, 3, 1), Status::InvSess, "an id that cannot be"),
        (changed(&good, iv_len, 15), Status::Err, "short IV"),
        (changed(&good, iv_len, 0), Status::Err, "no IV"),
        (changed(&good, iv_len, u32::MAX), Status::Err, "an IV of 4 GiB"),
        (changed(&good, src_len, 63), Status::Err, "no whole blocks"),
        (changed(&good, src_len, 80), Status::Err, "more source than there is"),
        (changed(&good, src_len, !15), Status::Err, "a source of 4 GiB"),
        (changed(&good, dst_len, 48), Status::Err, "a short destination"),
        (changed(&good, op_type, 0), Status::NotSupp, "no operation"),
        (changed(&good, op_type, 2), Status::Err, "a chain, with a session of a cipher"),
        (Request { room: 63, ..good.clone() }, Status::Err, "too little room"),
        (Request { room: 0, ..good.clone() }, Status::Err, "room for the status only"),
    ];
    for (request, status, why) in bad {
        refused(&mut rig, &request, status, why);
    }
    let big = vec![0; (1 << 20) + 16];
    refused(&mut rig, &legacy::cipher(0, session, &IV, &big), Status::Err, "larger than max_size");
    assert_eq!(rig.ask(&good).status, 0, "and the ring still works");
}

#[test]
fn a_request_that_ends_early_is_an_error_wherever_it_ends() {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(&spec(Cipher::AesCbc, Direction::Encrypt));
    let good = legacy::cipher(0, session, &IV, &bytes(64));
    for len in 1..good.readable.len() {
        let mut short = good.clone();
        short.readable.truncate(len);
        refused(&mut rig, &short, Status::Err, &format!("{len} bytes"));
    }
    let status_only = Request { room: 8, ..Request::default() };
    refused(&mut rig, &status_only, Status::Err, "nothing to read");
}

#[test]
fn a_request_without_room_for_a_status_comes_back_and_is_counted() {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(&spec(Cipher::AesCbc, Direction::Encrypt));
    let good = legacy::cipher(0, session, &IV, &bytes(64));
    let answer = rig.ask(&Request { mute: true, room: 0, ..good.clone() });
    assert_eq!(answer.used, 0);
    assert_eq!(rig.guests[0].unit.totals().malformed, 1);
    assert_eq!(rig.ask(&good).status, 0);
}

#[test]
fn one_bad_request_never_stops_the_batch() {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(&spec(Cipher::AesCbc, Direction::Encrypt));
    let src = bytes(4096);
    let expected = expected(&mut rig, session, &src);
    let good = legacy::cipher(0, session, &IV, &src);
    let bad = [
        changed(&good, 2, 0x7fff_0000),
        changed(&good, 7, 4095),
        changed(&good, 0, 0xffff),
        Request { room: 1, ..good.clone() },
        Request { mute: true, room: 0, ..good.clone() },
    ];
    let guest = &mut rig.guests[0];
    let sent: Vec<(u32, bool)> = (0..60)
        .map(|n| match n % 3 {
            0 => (guest.put(0, &bad[n / 3 % bad.len()]), false),
            _ => (guest.put(0, &good), true),
        })
        .collect();
    guest.publish(0);
    rig.run();
    for (cookie, well) in sent {
        let answer = rig.guests[0].answer(cookie);
        if well {
            assert_eq!(answer.result(), expected);
        } else {
            assert_ne!(answer.status, 0);
        }
    }
    let totals = rig.guests[0].unit.totals();
    assert_eq!(totals.status(Status::Ok), 41);
    assert_eq!(totals.total() + totals.malformed, 61);
}

#[test]
fn a_closed_session_is_invalid_at_once_and_its_requests_in_flight_end_well() {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(&spec(Cipher::AesCbc, Direction::Encrypt));
    let good = legacy::cipher(0, session, &IV, &bytes(64));
    assert_eq!(rig.ask(&good).status, 0);
    rig.guests[0].close(session);
    refused(&mut rig, &good, Status::InvSess, "closed");
    let again = rig.session(&spec(Cipher::AesCbc, Direction::Encrypt));
    assert_ne!(session, again);
    refused(&mut rig, &good, Status::InvSess, "closed, and another one open");
}

#[test]
fn hashes_and_macs_are_as_long_as_the_session_says() {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(&KeySpec::Hash { hash: Hash::Sha256, result_len: 32 });
    let answer = rig.ask(&legacy::hash(session, b"abc", 32));
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(hex(answer.result()), digest);
    let short = rig.session(&KeySpec::Hash { hash: Hash::Sha256, result_len: 20 });
    let answer = rig.ask(&legacy::hash(short, b"abc", 32));
    assert_eq!((hex(answer.result()), answer.used), (digest[..40].to_owned(), 21));
    refused(&mut rig, &legacy::hash(session, b"abc", 31), Status::Err, "no room for the digest");
    let empty = rig.ask(&legacy::hash(session, b"", 32));
    assert!(hex(empty.result()).starts_with("e3b0c442"), "an empty message");
    let mac = rig.session(&KeySpec::Mac { hash: Hash::Sha256, key: b"key", result_len: 32 });
    let answer = rig.ask(&legacy::mac(mac, b"The quick brown fox jumps over the lazy dog", 32));
    assert_eq!(hex(answer.result()), "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8");
    refused(&mut rig, &legacy::mac(session, b"abc", 32), Status::InvSess, "a session of HASH");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn aead(direction: Direction) -> KeySpec<'static> {
    KeySpec::Aead { aead: Aead::AesGcm, direction, key: &KEY, tag_len: 16 }
}

#[test]
fn a_forged_message_is_told_and_leaves_no_plaintext() {
    let mut rig = Rig::single(Policy::default());
    let (seal, open) = (rig.session(&aead(Direction::Encrypt)), rig.session(&aead(Direction::Decrypt)));
    let (text, aad, iv) = (bytes(1000), b"header".as_slice(), &IV[..12]);
    let sealed = rig.ask(&legacy::aead(0, seal, iv, aad, &text, 1016));
    assert_eq!(sealed.used, 1017);
    let opened = rig.ask(&legacy::aead(1, open, iv, aad, sealed.result(), 1000));
    assert_eq!(opened.result(), text);
    for bit in [0, 999, 1000, 1015] {
        let mut forged = sealed.result().to_vec();
        forged[bit] ^= 1;
        let answer = rig.ask(&legacy::aead(1, open, iv, aad, &forged, 1000));
        assert_eq!(answer.status, Status::BadMsg as u8, "byte {bit}");
        assert!(answer.data.iter().all(|byte| *byte == 0), "the destination is wiped");
    }
    let answer = rig.ask(&legacy::aead(1, open, iv, b"Header", sealed.result(), 1000));
    assert_eq!(answer.status, Status::BadMsg as u8, "other additional data");
    refused(&mut rig, &legacy::aead(1, open, iv, aad, &bytes(15), 15), Status::Err, "shorter than a tag");
    refused(&mut rig, &legacy::aead(0, seal, iv, aad, &text, 1015), Status::Err, "no room for the tag");
    refused(&mut rig, &legacy::aead(0, open, iv, aad, &text, 1016), Status::Err, "the session decrypts");
}

#[test]
fn aead_data_may_be_cut_anywhere_and_be_done_in_place() {
    let mut rig = Rig::single(Policy::default());
    for (kind, key, iv_len) in
        [(Aead::AesGcm, 16, 12), (Aead::AesCcm, 16, 13), (Aead::ChaCha20Poly1305, 32, 12)]
    {
        let session = |direction| KeySpec::Aead { aead: kind, direction, key: &KEY[..key], tag_len: 16 };
        let seal = rig.session(&session(Direction::Encrypt));
        let open = rig.session(&session(Direction::Decrypt));
        let (text, aad, iv) = (bytes(333), bytes(21), &IV[..iv_len]);
        let sealed = rig.ask(&legacy::aead(0, seal, iv, &aad, &text, 349));
        for seed in 0..40 {
            let cut = Cut::Random(seed, 1 + seed as usize * 3);
            let there = Request { cut, ..legacy::aead(0, seal, iv, &aad, &text, 349) };
            assert_eq!(rig.ask(&there).result(), sealed.result(), "{kind} {cut:?}");
            let back = Request { cut, ..legacy::aead(1, open, iv, &aad, sealed.result(), 333) };
            assert_eq!(rig.ask(&back).result(), text, "{kind} {cut:?}");
            let place = Request { in_place: Some(72 + iv_len), ..back };
            assert_eq!(rig.ask(&place).result(), text, "{kind} {cut:?} in place");
        }
    }
}

#[test]
fn a_chain_ciphers_its_part_hashes_its_part_and_copies_the_rest() {
    let mut rig = Rig::single(Policy::default());
    let chain = |direction, order, result_len| KeySpec::Chain {
        cipher: Cipher::AesCbc,
        direction,
        order,
        hash: Hash::Sha1,
        cipher_key: &KEY[..16],
        mac_key: Some(b"mac key"),
        result_len,
    };
    let cbc = rig.session(&spec(Cipher::AesCbc, Direction::Encrypt));
    let hmac = rig.session(&KeySpec::Mac { hash: Hash::Sha1, key: b"mac key", result_len: 20 });
    let src = bytes(200);
    let secret = expected(&mut rig, cbc, &src[24..184]);
    let image = [&src[..24], &secret[..], &src[184..]].concat();
    let parts = legacy::Parts { cipher: (24, 160), hash: (8, 180), result: 12 };
    for (order, hashed) in [(ChainOrder::CipherThenHash, &image), (ChainOrder::HashThenCipher, &src)] {
        let digest = rig.ask(&legacy::mac(hmac, &hashed[8..188], 20)).result()[..12].to_vec();
        let there = rig.session(&chain(Direction::Encrypt, order, 12));
        for cut in [Cut::Linux, Cut::Whole, Cut::Every(5), Cut::Every(50), Cut::Random(5, 60)] {
            let request = Request { cut, ..legacy::chain(0, there, &IV, &src, &parts) };
            let answer = rig.ask(&request);
            assert_eq!(answer.used, 213);
            assert_eq!(answer.result()[..200], image, "{order:?} {cut:?}");
            assert_eq!(answer.result()[200..], digest, "{order:?} {cut:?}");
        }
    }
    let back = rig.session(&chain(Direction::Decrypt, ChainOrder::HashThenCipher, 20));
    let parts = legacy::Parts { result: 20, ..parts };
    let answer = rig.ask(&legacy::chain(1, back, &IV, &image, &parts));
    assert_eq!(answer.result()[..200], src, "the reverse");
    let there = rig.session(&chain(Direction::Encrypt, ChainOrder::CipherThenHash, 20));
    let mut aad = legacy::chain(0, there, &IV, &src, &parts);
    aad = changed(&aad, 13, 4);
    refused(&mut rig, &aad, Status::NotSupp, "additional data beside the source");
    refused(
        &mut rig,
        &legacy::chain(0, there, &IV, &src, &legacy::Parts { result: 19, ..parts }),
        Status::Err,
        "no room for the digest",
    );
}

#[test]
fn requests_are_counted_by_algorithm_and_status() {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(&spec(Cipher::AesCtr, Direction::Encrypt));
    for _ in 0..5 {
        rig.ask(&legacy::cipher(0, session, &IV, &bytes(1000)));
    }
    rig.ask(&legacy::cipher(0, session, &IV[..8], &bytes(1000)));
    rig.ask(&legacy::cipher(0, session, &IV, &bytes(16)));
    let totals = rig.guests[0].unit.totals();
    assert_eq!((totals.op(Algo::AesCtr), totals.errors[Algo::AesCtr as usize]), (7, 1));
    assert_eq!(totals.status(Status::Err), 1);
    assert_eq!(totals.inline, 1, "the small one");
    assert!(totals.bytes[Algo::AesCtr as usize] >= 5016);
    assert_eq!(totals.latency_ns[0].count(), 5);
}

#[test]
fn a_length_that_makes_no_sense_is_not_charged_to_the_ring() {
    let mut rig = Rig::single(Policy::default());
    let session = rig.session(&spec(Cipher::AesCbc, Direction::Encrypt));
    let good = legacy::cipher(0, session, &IV, &bytes(4096));
    let mut bad = good.clone();
    // Lengths of source and destination.
    bad.readable[28..36].fill(0xff);
    let bad = rig.guests[0].put(0, &bad);
    let good = rig.guests[0].put(0, &good);
    rig.guests[0].publish(0);
    for _ in 0..4 {
        rig.round();
    }
    rig.guests[0].harvest();
    assert_eq!(rig.guests[0].answer(bad).status, Status::Err as u8);
    assert_eq!(rig.guests[0].answer(good).status, Status::Ok as u8);
    assert_eq!(rig.guests[0].unit.totals().bytes.iter().sum::<u64>(), 4096);
}

#[test]
fn what_takes_time_beside_its_source_uses_up_the_share_of_its_ring() {
    let seal = KeySpec::Aead { aead: Aead::AesGcm, direction: Direction::Encrypt, key: &KEY, tag_len: 16 };
    let mut rig = Rig::single(Policy::default());
    let seal = rig.session(&seal);
    let additional = legacy::aead(0, seal, &IV[..12], &bytes(64 << 10), &[], 16);
    let cipher = rig.session(&spec(Cipher::AesCtr, Direction::Encrypt));
    let crumbs = Request { cut: Cut::Every(2), ..legacy::cipher(0, cipher, &IV, &bytes(16)) };
    for (request, count) in [(additional, 40), (Request { indirect: true, ..crumbs }, 900)] {
        let before = rig.guests[0].unit.totals().throttled;
        for _ in 0..count {
            rig.guests[0].put(0, &request);
        }
        rig.guests[0].publish(0);
        rig.run();
        assert!(rig.guests[0].unit.totals().throttled > before, "{count} at once are more than a share");
        rig.guests[0].rewind();
    }
}

#[test]
fn a_request_in_place_that_is_too_long_for_the_journal_is_served_without() {
    let (_, fd) = Area::shared(1 << 20, "journal").unwrap();
    let journal = Journals::from_fd(fd).unwrap().worker(0, 4);
    let mut rig = Rig::with_journal(Policy::default(), journal);
    rig.add(Shape::default());
    let session = rig.session(&spec(Cipher::AesCbc, Direction::Encrypt));
    for len in [64 << 10, 400 << 10] {
        let request = legacy::cipher(0, session, &IV, &bytes(len));
        let expected = rig.ask(&request);
        let answer = rig.ask(&Request { in_place: Some(legacy::FRONT + IV.len()), ..request });
        assert_eq!(answer.result(), expected.result());
    }
}
