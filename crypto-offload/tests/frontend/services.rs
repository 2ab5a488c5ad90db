//! One request of each service with a known answer, in every layout that the features can ask for.

use super::Whole;
use super::wire::{self, data, hex};
use crypto_offload::features::*;

/// Where the key of a request comes from.
#[derive(Clone, Copy)]
pub enum Key {
    /// A session.
    Session(u64),
    /// The request itself.
    Request,
}

/// A request that was answered: its status, and its result if that is OK.
pub type Answer = Result<Vec<u8>, u8>;

const AES: [u8; 16] = wire::KEY;
/// RFC 4231, case 2.
pub const MAC_KEY: &[u8] = b"Jefe";
/// McGrew and Viega, test case 2.
const GCM_KEY: [u8; 16] = [0; 16];
/// RFC 6979 §A.2.5: the public key.
const EC_POINT: [u8; 65] = hex(
    b"0460fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb67903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299",
);
/// The signature of "sample" with SHA-256, in DER.
const EC_SIGNATURE: [u8; 72] = hex(
    b"3046022100efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716022100f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8",
);
/// The digest of "sample".
const EC_DIGEST: [u8; 32] = hex(b"af2bdbe1aa9b6ec1e2ade1d694f41fc71a831d0268e9891562113d8a62add1bf");

/// The services, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Cipher,
    Hash,
    Mac,
    Aead,
    Akcipher,
}

impl Service {
    pub const ALL: [Self; 5] = [Self::Cipher, Self::Hash, Self::Mac, Self::Aead, Self::Akcipher];

    /// The feature bit of its stateless mode.
    pub fn stateless(self) -> u64 {
        match self {
            Self::Cipher => VIRTIO_CRYPTO_F_CIPHER_STATELESS_MODE,
            Self::Hash => VIRTIO_CRYPTO_F_HASH_STATELESS_MODE,
            Self::Mac => VIRTIO_CRYPTO_F_MAC_STATELESS_MODE,
            Self::Aead => VIRTIO_CRYPTO_F_AEAD_STATELESS_MODE,
            Self::Akcipher => VIRTIO_CRYPTO_F_AKCIPHER_STATELESS_MODE,
        }
    }

    /// The opcodes that make and destroy its sessions.
    pub fn opcodes(self) -> (u32, u32) {
        match self {
            Self::Cipher => (0x002, 0x003),
            Self::Hash => (0x102, 0x103),
            Self::Mac => (0x202, 0x203),
            Self::Aead => (0x302, 0x303),
            Self::Akcipher => (0x404, 0x405),
        }
    }

    /// A session that is good for [`Service::known`].
    pub fn create(self, revision_1: bool) -> Vec<u8> {
        let opcode = self.opcodes().0;
        let akcipher: Vec<u32> = [2, 1, 65, 3].into_iter().chain([0; 10]).collect();
        match self {
            Self::Cipher => wire::create_cbc(),
            Self::Hash => wire::control(opcode, &[4, 32], &[], revision_1),
            Self::Mac => wire::control(opcode, &[4, 32, 4, 0], &[MAC_KEY], revision_1),
            Self::Aead => wire::control(opcode, &[1, 16, 16, 0, 1, 0], &[&GCM_KEY], revision_1),
            Self::Akcipher => wire::control(opcode, &akcipher, &[&EC_POINT], revision_1),
        }
    }

    /// What [`Service::known`] must answer.
    pub fn expected(self) -> Vec<u8> {
        match self {
            Self::Cipher => wire::SECRET.to_vec(),
            Self::Hash => {
                hex::<32>(b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad").to_vec()
            }
            Self::Mac => {
                hex::<32>(b"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843").to_vec()
            }
            Self::Aead => {
                hex::<32>(b"0388dace60b6a392f328c2b971b2fe78ab6e47d42cec13bdf53a67b21257bddf").to_vec()
            }
            Self::Akcipher => Vec::new(),
        }
    }

    /// A request of which the answer is known, laid out for the features negotiated.
    pub fn known(self, vmm: &mut Whole, key: Key) -> Answer {
        let features = vmm.session.features();
        let stateless = features & self.stateless() != 0;
        let revision_1 = features & VIRTIO_CRYPTO_F_REVISION_1 != 0;
        let (session, own_key) = match key {
            Key::Session(id) => (Some(id), false),
            Key::Request => (None, true),
        };
        let fixed = if revision_1 { 0 } else { 48 };
        // Key (stateless requests), IV, source, associated data: in this order.
        let (opcode, fields, secret, iv, source, result): (_, Vec<u32>, &[u8], &[u8], Vec<u8>, usize) =
            match self {
                Self::Cipher => {
                    let lengths = [16, 32, 32];
                    let fields = if stateless {
                        let mut fields = vec![3, 16, 1];
                        fields.extend(lengths);
                        fields.resize(18, 0);
                        fields.push(1);
                        fields
                    } else {
                        let mut fields = lengths.to_vec();
                        fields.resize(10, 0);
                        fields.extend([1, 0]);
                        fields
                    };
                    (0x000, fields, &AES, &wire::IV, wire::PLAIN.to_vec(), 32)
                }
                Self::Hash => {
                    let fields = if stateless { vec![4, 3, 32, 0] } else { vec![3, 32] };
                    (0x100, fields, &[], &[], b"abc".to_vec(), 32)
                }
                Self::Mac => {
                    let fields = if stateless { vec![4, 4, 28, 32] } else { vec![28, 32] };
                    (0x200, fields, MAC_KEY, &[], b"what do ya want for nothing?".to_vec(), 32)
                }
                Self::Aead => {
                    let fields = match (stateless, revision_1) {
                        (true, _) => vec![1, 16, 1, 12, 16, 0, 16, 32],
                        (false, true) => vec![12, 0, 16, 32, 16, 0],
                        (false, false) => vec![12, 0, 16, 32],
                    };
                    (0x300, fields, &GCM_KEY, &[0; 12], vec![0; 16], 32)
                }
                Self::Akcipher => {
                    let fields = if stateless { vec![2, 1, 65, 3, 0, 72, 32] } else { vec![72, 32] };
                    (0x403, fields, &EC_POINT, &[], [&EC_SIGNATURE[..], &EC_DIGEST].concat(), 0)
                }
            };
        let header = data(opcode, session, &fields, fixed);
        let secret = if own_key { secret } else { &[] };
        let parts: Vec<&[u8]> =
            [&header[..], secret, iv, &source].into_iter().filter(|part| !part.is_empty()).collect();
        let writable: Vec<usize> = [result, 1].into_iter().filter(|len| *len > 0).collect();
        let mut outcome = vmm.ask(&parts, &writable);
        match outcome.pop() {
            Some(wire::OK) => Ok(outcome),
            status => Err(status.unwrap_or(0xee)),
        }
    }

    /// The known answer, with a session made and destroyed for it.
    pub fn check_session(self, vmm: &mut Whole) {
        let revision_1 = vmm.session.features() & VIRTIO_CRYPTO_F_REVISION_1 != 0;
        let id = vmm.session(&self.create(revision_1));
        assert_eq!(self.known(vmm, Key::Session(id)), Ok(self.expected()), "{self:?}");
        let destroy = wire::destroy(self.opcodes().1, id, revision_1);
        assert_eq!(vmm.control(&destroy, 1), [wire::OK], "{self:?}");
        assert_eq!(self.known(vmm, Key::Session(id)), Err(wire::INVSESS), "{self:?}");
    }
}
