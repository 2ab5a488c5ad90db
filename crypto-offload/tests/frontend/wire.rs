//! Requests and descriptions as drivers and QEMU lay them out, written down from the standard and from messages that were
//! recorded: nothing here is the device's own.

/// Status of a request.
pub const OK: u8 = 0;
pub const ERR: u8 = 1;
pub const NOTSUPP: u8 = 3;
pub const INVSESS: u8 = 4;
pub const NOSPC: u8 = 5;

/// CIPHER requests.
pub const ENCRYPT: u32 = 0x000;
pub const DECRYPT: u32 = 0x001;

/// NIST SP 800-38A §F.2.1: AES-128-CBC.
pub const KEY: [u8; 16] = hex(b"2b7e151628aed2a6abf7158809cf4f3c");
pub const IV: [u8; 16] = hex(b"000102030405060708090a0b0c0d0e0f");
pub const PLAIN: [u8; 32] = hex(b"6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51");
pub const SECRET: [u8; 32] = hex(b"7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2");

/// Bytes from digits.
pub const fn hex<const N: usize>(digits: &[u8]) -> [u8; N] {
    const fn digit(digit: u8) -> u8 {
        match digit {
            b'0'..=b'9' => digit - b'0',
            _ => digit - b'a' + 10,
        }
    }
    assert!(digits.len() == 2 * N);
    let mut bytes = [0; N];
    let mut at = 0;
    while at < N {
        bytes[at] = digit(digits[2 * at]) << 4 | digit(digits[2 * at + 1]);
        at += 1;
    }
    bytes
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn padded(mut bytes: Vec<u8>, len: usize) -> Vec<u8> {
    bytes.resize(len.max(bytes.len()), 0);
    bytes
}

/// Both sizes of QEMU's session descriptions.
pub const DESCRIPTIONS: [usize; 2] = [632, 1072];

/// The description of a cipher session. Pointers hold what QEMU leaves there: addresses of its own.
pub fn description(len: usize, cipher: u32, direction: u8, key: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; len];
    if len == 1072 {
        bytes[..8].copy_from_slice(&2u64.to_ne_bytes());
    }
    for (at, word) in [(8, cipher), (12, key.len() as u32)] {
        bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    bytes[32..34].copy_from_slice(&[1, direction]);
    bytes[40..48].copy_from_slice(&0x5555_aaaa_1234_5678u64.to_ne_bytes());
    let room = key.len().min(64);
    bytes[56..56 + room].copy_from_slice(&key[..room]);
    bytes
}

/// AES-128-CBC, encryption, with [`KEY`].
pub fn cbc_description(len: usize) -> Vec<u8> {
    description(len, 3, 1, &KEY)
}

/// The description of an RSA session (QEMU from 8.1 on).
pub fn rsa_description(kind: u32, padding: u32, hash: u32, der: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1072];
    bytes[..8].copy_from_slice(&0x404u64.to_ne_bytes());
    let words = [(8, 1), (12, kind), (16, der.len() as u32), (32, padding), (36, hash)];
    for (at, word) in words {
        bytes[at..at + 4].copy_from_slice(&u32::to_ne_bytes(word));
    }
    bytes[40..40 + der.len()].copy_from_slice(der);
    bytes
}

/// The identifier in a reply to a description.
pub fn description_id(reply: &[u8]) -> i64 {
    let at = if reply.len() == 632 { 0 } else { 1064 };
    i64::from_ne_bytes(reply[at..at + 8].try_into().unwrap())
}

/// Header and fixed fields of a data request, the latter padded to `fixed` bytes.
pub fn data(opcode: u32, session: Option<u64>, fields: &[u32], fixed: usize) -> Vec<u8> {
    let id = session.unwrap_or_default();
    let header = [opcode, 0, id as u32, (id >> 32) as u32, u32::from(session.is_some()), 0];
    [words(&header), padded(words(fields), fixed)].concat()
}

/// A CIPHER request of a session, as everybody but stateless drivers lays it out: 72 bytes.
pub fn cipher(opcode: u32, session: u64, iv: usize, src: usize, dst: usize) -> Vec<u8> {
    let mut fields = vec![iv as u32, src as u32, dst as u32];
    fields.resize(10, 0);
    fields.extend([1, 0]);
    data(opcode, Some(session), &fields, 48)
}

/// A request of the control queue: fixed fields padded to 56 bytes unless REVISION_1 is negotiated.
pub fn control(opcode: u32, fields: &[u32], keys: &[&[u8]], revision_1: bool) -> Vec<u8> {
    let fixed = if revision_1 { 0 } else { 56 };
    [words(&[opcode, 0, 0, 0]), padded(words(fields), fixed), keys.concat()].concat()
}

/// A session of a cipher. Its fixed fields have 56 bytes in either layout.
pub fn create_cipher(cipher: u32, direction: u32, key: &[u8]) -> Vec<u8> {
    let mut fields = vec![cipher, key.len() as u32, direction, 0];
    fields.resize(12, 0);
    fields.extend([1, 0]);
    control(0x002, &fields, &[key], false)
}

/// AES-128-CBC, encryption, with [`KEY`].
pub fn create_cbc() -> Vec<u8> {
    create_cipher(3, 1, &KEY)
}

/// Destroys a session.
pub fn destroy(opcode: u32, id: u64, revision_1: bool) -> Vec<u8> {
    control(opcode, &[id as u32, (id >> 32) as u32], &[], revision_1)
}
