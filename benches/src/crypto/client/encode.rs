//! Requests and session descriptions as bytes.

use zerocopy::IntoBytes;

use crate::crypto::algorithm::{Algorithm, Direction, Sizes, TAG};
use crate::crypto::library::Keys;
use crate::crypto::wire::{
    CONTROL_FIXED, ControlHeader, DATA_FIXED, DataHeader, Fields, description, number,
};

/// What is computed, with what.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// What is done with it.
    pub direction: Direction,
    /// Its keys.
    pub keys: &'a Keys,
}

/// Which of the formats of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Format {
    /// REVISION_1 is negotiated: nothing is padded.
    pub revision_1: bool,
    /// The stateless mode of the service is negotiated: requests have room for what a session would say.
    pub stateless: bool,
}

/// In a chain, what is encrypted is authenticated: the cipher first, or on the way back the MAC.
fn chain_order(direction: Direction) -> u32 {
    if direction == Direction::Decrypt { 1 } else { 2 }
}

/// Public 1, private 2.
fn key_type(direction: Direction) -> u32 {
    if direction.is_private() { 2 } else { 1 }
}

impl Task<'_> {
    /// What the device is given as key, in the order of the variable part.
    fn key_bytes(&self) -> Vec<u8> {
        if self.algorithm.is_asymmetric() {
            return self.keys.half(self.direction).to_vec();
        }
        [&self.keys.key[..], &self.keys.other[..]].concat()
    }

    /// A control request that creates a session, without the room for its answer.
    pub fn create(&self, format: Format, queue: u32) -> Vec<u8> {
        let Self { algorithm, direction, keys } = *self;
        let service = algorithm.service();
        let (key, other) = (keys.key.len() as u32, keys.other.len() as u32);
        let algo = algorithm.number();
        let cipher = [3, key, direction.cipher_op(), 0];
        let fixed = match algorithm {
            Algorithm::Cipher(..) => {
                Fields::new(&[algo, key, direction.cipher_op(), 0]).padded(48).and(&[number::SYM_CIPHER, 0])
            }
            Algorithm::Chain(_, hash) => Fields::new(&[chain_order(direction), number::HASH_MODE_AUTH])
                .and(&cipher)
                .and(&[hash.number(), hash.digest_len() as u32, other, 0])
                .padded(48)
                .and(&[number::SYM_CHAIN, 0]),
            Algorithm::Hash(hash) => Fields::new(&[algo, hash.digest_len() as u32]),
            Algorithm::Mac(hash) => Fields::new(&[algo, hash.digest_len() as u32, other, 0]),
            Algorithm::Aead(..) => Fields::new(&[algo, key, TAG as u32, 0, direction.cipher_op(), 0]),
            Algorithm::Rsa(_) | Algorithm::Ecdsa(_) => {
                let len = keys.half(direction).len() as u32;
                Fields::new(&[algo, key_type(direction), len])
                    .and(&algorithm.parameters(direction))
                    .padded(CONTROL_FIXED)
            }
        };
        control(service.create(), algo, queue, fixed, format, &self.key_bytes())
    }

    /// The head of a data request: header, fixed part, and the keys when there is no session.
    pub fn head(&self, sizes: Sizes, session: Option<u64>, format: Format) -> Vec<u8> {
        let algorithm = self.algorithm;
        let header = DataHeader {
            opcode: algorithm.service().opcode(self.direction.operation()).into(),
            algo: algorithm.number().into(),
            session_id: session.unwrap_or(0).into(),
            flag: if session.is_some() { number::SESSION_MODE } else { 0 }.into(),
            padding: 0.into(),
        };
        let lengths = Lengths::of(algorithm, self.direction, sizes);
        let fixed = match (format.stateless, format.revision_1) {
            (true, _) => self.stateless(lengths),
            (false, true) => self.fixed(lengths),
            (false, false) => self.fixed(lengths).padded(DATA_FIXED),
        };
        let mut head = header.as_bytes().to_vec();
        head.extend(fixed.0);
        if session.is_none() {
            head.extend(self.key_bytes());
        }
        head
    }

    /// The fixed part when a session says the rest.
    fn fixed(&self, Lengths { iv, src, dst, digest }: Lengths) -> Fields {
        match self.algorithm {
            Algorithm::Cipher(..) => Fields::new(&[iv, src, dst, 0]).padded(40).and(&[number::SYM_CIPHER, 0]),
            Algorithm::Chain(..) => {
                Fields::new(&[iv, src, dst, 0, src, 0, src, 0, digest, 0]).and(&[number::SYM_CHAIN, 0])
            }
            Algorithm::Hash(_) | Algorithm::Mac(_) => Fields::new(&[src, digest]),
            Algorithm::Aead(..) => Fields::new(&[iv, 0, src, dst, TAG as u32, 0]),
            Algorithm::Rsa(_) | Algorithm::Ecdsa(_) => Fields::new(&[src, dst]),
        }
    }

    /// The fixed part that says it all.
    fn stateless(&self, Lengths { iv, src, dst, digest }: Lengths) -> Fields {
        let Self { algorithm, direction, keys } = *self;
        let (key, other) = (keys.key.len() as u32, keys.other.len() as u32);
        let (algo, op) = (algorithm.number(), direction.cipher_op());
        match algorithm {
            Algorithm::Cipher(..) => {
                Fields::new(&[algo, key, op, iv, src, dst]).padded(72).and(&[number::SYM_CIPHER])
            }
            Algorithm::Chain(_, hash) => Fields::new(&[chain_order(direction), 0, algo, key, op])
                .and(&[hash.number(), other, number::HASH_MODE_AUTH])
                .and(&[iv, src, dst, 0, src, 0, src, 0, digest, 0])
                .and(&[number::SYM_CHAIN]),
            Algorithm::Hash(_) => Fields::new(&[algo, src, digest, 0]),
            Algorithm::Mac(_) => Fields::new(&[algo, other, src, digest]),
            Algorithm::Aead(..) => Fields::new(&[algo, key, op, iv, TAG as u32, 0, src, dst]),
            Algorithm::Rsa(_) | Algorithm::Ecdsa(_) => {
                let len = keys.half(direction).len() as u32;
                Fields::new(&[algo, key_type(direction), len])
                    .and(&algorithm.parameters(direction))
                    .and(&[src, dst])
            }
        }
    }

    /// The session description of CREATE_CRYPTO_SESSION; `None` for what has none, or whose key is too long for it.
    pub fn description(&self, len: usize) -> Option<Vec<u8>> {
        let Self { algorithm, direction, keys } = *self;
        let is_new = len == description::NEW;
        let mut bytes = vec![0; len];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        let service = algorithm.service();
        if is_new {
            put(description::OPCODE_AT, &u64::from(service.create()).to_le_bytes());
        }
        match algorithm {
            Algorithm::Cipher(..) | Algorithm::Chain(..) => {
                let (hash, digest, op_type) = match algorithm {
                    Algorithm::Chain(_, hash) => (hash.number(), hash.digest_len() as u32, number::SYM_CHAIN),
                    _ => (0, 0, number::SYM_CIPHER),
                };
                let (key, other) = (keys.key.len() as u32, keys.other.len() as u32);
                let fields = Fields::new(&[algorithm.number(), key, hash, digest, other, 0]);
                put(description::SYM_AT, &fields.0);
                let mode = if op_type == number::SYM_CHAIN { number::HASH_MODE_AUTH } else { 0 };
                let order = if op_type == number::SYM_CHAIN { chain_order(direction) } else { 0 };
                put(32, &[op_type, direction.cipher_op(), mode, order].map(|field| field as u8));
                put(description::CIPHER_KEY_AT, &keys.key);
                put(description::AUTH_KEY_AT, &keys.other);
            }
            Algorithm::Rsa(_) | Algorithm::Ecdsa(_) if is_new => {
                let half = keys.half(direction);
                if half.len() > description::ASYM_KEY {
                    return None;
                }
                let fields = [algorithm.number(), key_type(direction), half.len() as u32];
                put(description::ASYM_AT, &Fields::new(&fields).0);
                put(description::ASYM_PARA_AT, &Fields::new(&algorithm.parameters(direction)).0);
                put(description::ASYM_KEY_AT, half);
            }
            _ => return None,
        }
        Some(bytes)
    }
}

/// A control request that destroys a session, without the room for its answer.
pub fn destroy(algorithm: Algorithm, session: u64, format: Format) -> Vec<u8> {
    let fixed = Fields::new(&[session as u32, (session >> 32) as u32]);
    control(algorithm.service().destroy(), algorithm.number(), 0, fixed, format, &[])
}

fn control(opcode: u32, algo: u32, queue: u32, fixed: Fields, format: Format, key: &[u8]) -> Vec<u8> {
    let [opcode, algo, queue_id] = [opcode, algo, queue].map(Into::into);
    let header = ControlHeader { opcode, algo, flag: 0.into(), queue_id };
    let fixed = if format.revision_1 { fixed } else { fixed.padded(CONTROL_FIXED) };
    [header.as_bytes(), &fixed.0, key].concat()
}

/// The lengths of a request as its fixed part has them.
#[derive(Clone, Copy)]
struct Lengths {
    iv: u32,
    src: u32,
    dst: u32,
    digest: u32,
}

impl Lengths {
    fn of(algorithm: Algorithm, direction: Direction, sizes: Sizes) -> Self {
        let [iv, mut src, mut dst, digest] =
            [sizes.iv, sizes.src, sizes.dst, sizes.digest].map(|len| len as u32);
        if direction == Direction::Verify {
            dst = algorithm.digest_len() as u32;
            src -= dst;
        }
        Self { iv, src, dst, digest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(algorithm: Algorithm) -> Keys {
        Keys { key: vec![0xaa; algorithm.key_len()], other: vec![0xbb; algorithm.auth_key_len()] }
    }

    fn field(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn with(name: &str, check: impl Fn(Task<'_>)) {
        let algorithm: Algorithm = name.parse().unwrap();
        let keys = keys(algorithm);
        check(Task { algorithm, direction: algorithm.usual(), keys: &keys });
    }

    #[test]
    fn a_cipher_request_is_what_linux_sends() {
        with("aes-128-cbc", |task| {
            let create = task.create(Format::default(), 0);
            assert_eq!(create.len(), 72 + 16);
            assert_eq!([0, 16, 20, 24, 64].map(|at| field(&create, at)), [0x002, 3, 16, 1, 1]);
            let sizes = task.algorithm.sizes(task.direction, 4096);
            let head = task.head(sizes, Some(5), Format::default());
            assert_eq!(head.len(), 72);
            assert_eq!([8, 16, 24, 28, 32, 64].map(|at| field(&head, at)), [5, 1, 16, 4096, 4096, 1]);
        });
    }

    #[test]
    fn a_chain_says_what_is_hashed_in_which_order() {
        with("aes-256-cbc-hmac-sha1", |task| {
            let create = task.create(Format::default(), 0);
            assert_eq!(create.len(), 72 + 32 + 20);
            // order, mode, cipher, key, op; hash, result, key; type
            let fields = [16, 20, 24, 28, 32, 40, 44, 48, 64].map(|at| field(&create, at));
            assert_eq!(fields, [2, 2, 3, 32, 1, 2, 20, 20, 2]);
            let head = task.head(task.algorithm.sizes(task.direction, 64), Some(1), Format::default());
            assert_eq!([40, 48, 56, 64].map(|at| field(&head, at)), [64, 64, 20, 2]);
        });
    }

    #[test]
    fn fixed_parts_are_padded_without_revision_1_only() {
        let revision_1 = Format { revision_1: true, stateless: false };
        for (name, control, data) in
            [("sha256", 8, 8), ("hmac-sha256", 16, 8), ("aes-128-gcm", 24, 24), ("aes-128-ctr", 56, 48)]
        {
            with(name, |task| {
                let key = task.key_bytes().len();
                let sizes = task.algorithm.sizes(task.direction, 64);
                assert_eq!(task.create(revision_1, 0).len(), 16 + control + key, "{name}");
                assert_eq!(task.create(Format::default(), 0).len(), 72 + key, "{name}");
                assert_eq!(task.head(sizes, Some(1), revision_1).len(), 24 + data, "{name}");
                assert_eq!(task.head(sizes, Some(1), Format::default()).len(), 72, "{name}");
            });
        }
        assert_eq!(destroy("sha1".parse().unwrap(), 7, revision_1).len(), 24);
        assert_eq!(destroy("sha1".parse().unwrap(), 7, Format::default()).len(), 72);
    }

    #[test]
    fn a_stateless_request_brings_its_key_and_no_session_flag() {
        let format = Format { revision_1: true, stateless: true };
        for (name, fixed) in [
            ("aes-128-cbc", 76),
            ("aes-128-cbc-hmac-sha256", 76),
            ("sha1", 16),
            ("hmac-sha1", 16),
            ("aes-256-gcm", 32),
            ("rsa-2048", 28),
        ] {
            with(name, |task| {
                let sizes = task.algorithm.sizes(task.direction, 64);
                let head = task.head(sizes, None, format);
                assert_eq!(head.len(), 24 + fixed + task.key_bytes().len(), "{name}");
                assert_eq!(field(&head, 16), 0, "{name}");
                assert_eq!(field(&task.head(sizes, Some(1), format), 16), 1, "{name}");
            });
        }
    }

    #[test]
    fn a_verification_has_the_length_of_the_digest_as_its_destination() {
        with("rsa-2048", |task| {
            let task = Task { direction: Direction::Verify, ..task };
            let head = task.head(task.algorithm.sizes(task.direction, 0), Some(1), Format::default());
            assert_eq!([0, 24, 28].map(|at| field(&head, at)), [0x403, 256, 32]);
        });
    }

    #[test]
    fn descriptions_have_their_fields_where_qemu_has_them() {
        with("aes-256-xts", |task| {
            for len in [description::OLD, description::NEW] {
                let bytes = task.description(len).unwrap();
                assert_eq!((bytes.len(), field(&bytes, 8), field(&bytes, 12)), (len, 13, 64));
                assert_eq!((&bytes[32..36], bytes[56], bytes[119]), (&[1, 1, 0, 0][..], 0xaa, 0xaa));
            }
            assert_eq!(field(&task.description(description::NEW).unwrap(), 0), 0x002);
        });
        with("sha1", |task| assert_eq!(task.description(description::NEW), None));
        with("rsa-1024", |task| {
            let keys = Keys { key: vec![1; 608], other: vec![2; 140] };
            let task = Task { keys: &keys, ..task };
            assert_eq!(task.description(description::OLD), None);
            let bytes = task.description(description::NEW).unwrap();
            assert_eq!([0, 8, 12, 16, 32, 36].map(|at| field(&bytes, at)), [0x404, 1, 2, 608, 1, 6]);
            assert_eq!((bytes[40], bytes[40 + 607]), (1, 1));
            let keys = Keys { key: vec![1; 1191], other: Vec::new() };
            assert_eq!(Task { keys: &keys, ..task }.description(description::NEW), None);
        });
    }
}
