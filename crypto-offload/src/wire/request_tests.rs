//! Headers of every shape.

use super::*;
use proptest::prelude::*;

const REVISION_1: u64 = VIRTIO_CRYPTO_F_REVISION_1;
/// REVISION_1 and every stateless mode.
const STATELESS: u64 = 0x3f;

/// A fixed part of `len` bytes, with anything behind these words.
fn words(words: &[u32], len: usize) -> Fixed {
    assert!(words.len() * 4 <= len, "the words are longer than the part");
    let mut fixed = Fixed::default();
    fixed[..len / 4].fill(U32::new(0xeeee_eeee));
    fixed.iter_mut().zip(words).for_each(|(place, word)| *place = U32::new(*word));
    fixed
}

fn header(opcode: u32, session_id: u64, flag: u32) -> Header {
    let (opcode, algo, flag) = (opcode.into(), 0xdead.into(), flag.into());
    Header { opcode, algo, session_id: session_id.into(), flag, padding: U32::new(7) }
}

fn parse(features: u64, header: Header, fixed: &[u32]) -> Result<Request, Status> {
    let layout = Layout::of(features);
    let opened = open(layout, &header)?;
    opened.parse(layout.revision_1(), &words(fixed, opened.fixed_len))
}

fn at(words: &mut [u32; 19], index: usize, value: u32) {
    words[index] = value;
}

#[test]
fn the_header_that_linux_sends_is_72_bytes_long_with_its_fixed_part() {
    let layout = Layout::of(0);
    for service in Service::ALL {
        assert_eq!(HEADER_LEN + layout.fixed_len(*service), 72);
    }
}

#[test]
fn fixed_parts_are_as_long_as_their_structures_with_revision_1() {
    let table = [
        (Service::Cipher, 48, 76),
        (Service::Hash, 8, 16),
        (Service::Mac, 8, 16),
        (Service::Aead, 24, 32),
        (Service::Akcipher, 8, 28),
    ];
    for (service, session, stateless) in table {
        assert_eq!(Layout::of(REVISION_1).fixed_len(service), session, "{service}");
        assert_eq!(Layout::of(STATELESS).fixed_len(service), stateless, "{service}");
    }
}

#[test]
fn stateless_modes_need_revision_1() {
    assert_eq!(Layout::of(STATELESS & !REVISION_1), Layout::of(0));
    let one = Layout::of(REVISION_1 | 1 << 3);
    assert!(one.stateless(Service::Mac) && !one.stateless(Service::Cipher));
}

#[test]
fn a_cipher_request_of_a_session_is_understood() {
    let mut fixed = [0; 12];
    (fixed[0], fixed[1], fixed[2], fixed[10]) = (16, 4096, 4096, VIRTIO_CRYPTO_SYM_OP_CIPHER);
    for features in [0, REVISION_1] {
        let request = parse(features, header(0x001, 77, 1), &fixed).unwrap();
        assert_eq!((request.service, request.op), (Service::Cipher, Op::Decrypt));
        assert_eq!(request.key, KeySource::Session(77));
        assert_eq!(request.data, Data::Cipher { iv: 16, src: 4096, dst: 4096 });
    }
}

#[test]
fn a_chained_request_of_a_session_is_understood() {
    let fixed = [16, 100, 120, 10, 80, 0, 90, 0, 20, 0, VIRTIO_CRYPTO_SYM_OP_ALGORITHM_CHAINING, 0];
    let request = parse(0, header(0x000, 5, 0), &fixed).unwrap();
    let expected = Data::Chain {
        iv: 16,
        src: 100,
        dst: 120,
        cipher: Span { start: 10, len: 80 },
        hash: Span { start: 0, len: 90 },
        aad: 0,
        result: 20,
    };
    assert_eq!(request.data, expected);
}

#[test]
fn the_flag_counts_only_with_revision_1() {
    let fixed = [64, 32];
    assert!(parse(0, header(0x100, 5, 0), &fixed).is_ok(), "ignored without");
    assert_eq!(parse(REVISION_1, header(0x100, 5, 0), &fixed), Err(Status::NotSupp), "not negotiated");
    assert!(parse(REVISION_1, header(0x100, 5, 1), &fixed).is_ok());
}

#[test]
fn hash_and_mac_requests_are_understood_in_every_layout() {
    let expected = Data::Digest { src: 64, result: 32 };
    for opcode in [0x100, 0x200] {
        for features in [0, REVISION_1] {
            assert_eq!(parse(features, header(opcode, 5, 1), &[64, 32]).unwrap().data, expected);
        }
    }
    let hash = parse(STATELESS, header(0x100, 5, 0), &[4, 64, 32, 0]).unwrap();
    assert_eq!(hash.key, KeySource::Request(Stateless::Hash { algo: 4, result_len: 32 }));
    assert_eq!(hash.data, expected);
    let mac = parse(STATELESS, header(0x200, 5, 0), &[4, 20, 64, 32]).unwrap();
    assert_eq!(mac.key, KeySource::Request(Stateless::Mac { algo: 4, auth_key_len: 20, result_len: 32 }));
    assert_eq!(mac.data, expected);
}

#[test]
fn an_aead_request_has_a_tag_length_only_with_revision_1() {
    let fixed = [12, 20, 64, 80, 16, 0];
    let data = |tag| Data::Aead { iv: 12, aad: 20, src: 64, dst: 80, tag };
    assert_eq!(parse(0, header(0x300, 5, 0), &fixed).unwrap().data, data(None));
    assert_eq!(parse(REVISION_1, header(0x300, 5, 1), &fixed).unwrap().data, data(Some(16)));
    let stateless = parse(STATELESS, header(0x301, 5, 0), &[1, 32, 2, 12, 16, 20, 64, 80]).unwrap();
    let params = Stateless::Aead { algo: 1, key_len: 32, tag_len: 16, direction: Direction::Decrypt };
    assert_eq!((stateless.key, stateless.data), (KeySource::Request(params), data(Some(16))));
}

#[test]
fn asymmetric_requests_have_four_operations() {
    let ops = [(0x400, Op::Encrypt), (0x401, Op::Decrypt), (0x402, Op::Sign), (0x403, Op::Verify)];
    for (number, op) in ops {
        let request = parse(0, header(number, 5, 0), &[128, 256]).unwrap();
        assert_eq!((request.op, request.data), (op, Data::Akcipher { src: 128, dst: 256 }));
        assert_eq!(opcode(Service::Akcipher, op), number);
    }
    let fixed = [1, 2, 1191, 1, 6, 32, 256];
    let stateless = parse(STATELESS, header(0x402, 0, 0), &fixed).unwrap();
    let params = Stateless::Akcipher { algo: 1, key_type: 2, key_len: 1191, parameters: [1, 6] };
    assert_eq!(stateless.key, KeySource::Request(params));
    assert_eq!(stateless.data, Data::Akcipher { src: 32, dst: 256 });
}

#[test]
fn a_stateless_cipher_request_brings_its_parameters() {
    let mut fixed = [0; 19];
    for (index, value) in [3, 32, 1, 16, 64, 64].into_iter().enumerate() {
        at(&mut fixed, index, value);
    }
    at(&mut fixed, 18, VIRTIO_CRYPTO_SYM_OP_CIPHER);
    let request = parse(STATELESS, header(0x000, 0, 0), &fixed).unwrap();
    let params = Stateless::Cipher { algo: 3, key_len: 32, direction: Direction::Encrypt };
    assert_eq!(request.key, KeySource::Request(params));
    assert_eq!(request.data, Data::Cipher { iv: 16, src: 64, dst: 64 });
    at(&mut fixed, 2, 2);
    assert_eq!(parse(STATELESS, header(0x000, 0, 0), &fixed), Err(Status::Err), "it says both");
    let session = parse(STATELESS, header(0x000, 9, 1), &fixed).unwrap();
    assert_eq!(session.key, KeySource::Session(9), "the session's parameters are ignored");
}

#[test]
fn a_stateless_chained_request_brings_its_parameters() {
    let mut fixed = [0; 19];
    let values = [2, 0, 3, 16, 1, 2, 20, 2, 16, 100, 120, 10, 80, 0, 90, 0, 12, 0];
    values.into_iter().enumerate().for_each(|(index, value)| at(&mut fixed, index, value));
    at(&mut fixed, 18, VIRTIO_CRYPTO_SYM_OP_ALGORITHM_CHAINING);
    let request = parse(STATELESS, header(0x000, 0, 0), &fixed).unwrap();
    let chain = StatelessChain {
        order: ChainOrder::CipherThenHash,
        algo: 3,
        key_len: 16,
        direction: Direction::Encrypt,
        hash_algo: 2,
        auth_key_len: 20,
        hash_mode: VIRTIO_CRYPTO_SYM_HASH_MODE_AUTH,
        hash_result_len: 12,
    };
    assert_eq!(request.key, KeySource::Request(Stateless::Chain(chain)));
    assert_eq!(Stateless::Chain(chain).key_lens(), (16, 20));
    let Data::Chain { cipher, hash, result, .. } = request.data else { panic!("{request:?}") };
    assert_eq!((cipher.start, cipher.len, hash.len, result), (10, 80, 90, 12));
}

#[test]
fn unknown_operations_are_not_supported() {
    for opcode in [0x002, 0x003, 0x101, 0x201, 0x302, 0x404, 0x500, 0x600, 0x8000_0000, u32::MAX] {
        assert_eq!(parse(0, header(opcode, 1, 0), &[]), Err(Status::NotSupp), "{opcode:#x}");
    }
    for op_type in [0, 3, u32::MAX] {
        let mut fixed = [0; 12];
        fixed[10] = op_type;
        assert_eq!(parse(0, header(0, 1, 0), &fixed), Err(Status::NotSupp), "type {op_type}");
    }
}

#[test]
fn parts_beyond_the_source_and_short_destinations_are_errors() {
    let chain = |change: &dyn Fn(&mut [u32; 12])| {
        let mut fixed = [16, 100, 120, 10, 80, 0, 90, 0, 20, 0, VIRTIO_CRYPTO_SYM_OP_ALGORITHM_CHAINING, 0];
        change(&mut fixed);
        parse(0, header(0, 1, 0), &fixed)
    };
    assert!(chain(&|_| ()).is_ok());
    assert_eq!(chain(&|fixed| fixed[2] = 99), Err(Status::Err), "destination");
    assert_eq!(chain(&|fixed| fixed[4] = 91), Err(Status::Err), "cipher");
    assert_eq!(chain(&|fixed| fixed[5] = 11), Err(Status::Err), "hash");
    assert_eq!(chain(&|fixed| fixed[3] = u32::MAX), Err(Status::Err), "overflow");
    let mut cipher = [0; 12];
    (cipher[1], cipher[2], cipher[10]) = (64, 63, VIRTIO_CRYPTO_SYM_OP_CIPHER);
    assert_eq!(parse(0, header(0, 1, 0), &cipher), Err(Status::Err));
}

proptest! {
    /// No header and no fixed part does anything but say what it is, in any layout; and what it says of chains lies inside
    /// the source.
    #[test]
    fn any_bytes_are_a_request_or_a_status(
        features in 0u64..64,
        header in any::<[u8; HEADER_LEN]>(),
        service in 0u32..6,
        op in 0u32..5,
        fixed in any::<[u8; MAX_FIXED_LEN]>(),
        op_type in 0u32..4,
    ) {
        let mut header = Header::read_from_bytes(&header).unwrap();
        header.opcode = (service << 8 | op).into();
        let layout = Layout::of(features);
        let Ok(opened) = open(layout, &header) else { return Ok(()) };
        let mut fixed = Fixed::read_from_bytes(&fixed).unwrap();
        let place = if layout.stateless(opened.service) { 18 } else { 10 };
        if opened.service == Service::Cipher {
            fixed[place] = op_type.into();
        }
        prop_assert!(opened.fixed_len <= MAX_FIXED_LEN);
        match opened.parse(layout.revision_1(), &fixed) {
            Ok(request) => {
                prop_assert_eq!(request.service, opened.service);
                let session = matches!(request.key, KeySource::Session(_));
                prop_assert!(session || layout.stateless(request.service));
                if let Data::Chain { src, dst, cipher, hash, .. } = request.data {
                    let end = |span: Span| u64::from(span.start) + u64::from(span.len);
                    prop_assert!(end(cipher) <= src.into() && end(hash) <= src.into() && dst >= src);
                }
            }
            Err(status) => prop_assert!(matches!(status, Status::Err | Status::NotSupp)),
        }
    }
}
