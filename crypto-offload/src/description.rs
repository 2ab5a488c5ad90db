//! Session descriptions: what the message `CREATE_CRYPTO_SESSION` carries (door A).
//!
//! No document gives their layout: it is a C structure of QEMU's for 64-bit hosts, with padding and even pointers in it, and it
//! has changed. QEMU up to 8.0 sends 632 bytes: the identifier, then a symmetric session. QEMU from 8.1 on sends 1,072: an
//! opcode, a symmetric or asymmetric session, and the identifier at the end. Only the size tells them apart.

use crate::algorithm::{MAX_AUTH_KEY, MAX_CIPHER_KEY, Service};
use crate::engine::KeySpec;
use crate::parameters::{Asymmetric, Symmetric};
use crate::wire::status::Status;
use zerocopy::byteorder::native_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Bytes of a description of QEMU up to 8.0.
pub const OLD: usize = 632;
/// Bytes of a description of QEMU from 8.1 on.
pub const NEW: usize = 1072;
/// Room for an asymmetric key in it.
const MAX_DER: usize = 1024;

/// Opcode of a symmetric session in [`NEW`] descriptions (`VIRTIO_CRYPTO_CIPHER_CREATE_SESSION`).
const CREATE_CIPHER: u64 = (Service::Cipher.wire() as u64) << 8 | 2;
/// Opcode of an asymmetric one (`VIRTIO_CRYPTO_AKCIPHER_CREATE_SESSION`).
const CREATE_AKCIPHER: u64 = (Service::Akcipher.wire() as u64) << 8 | 4;

/// `CryptoDevBackendSymSessionInfo` and the keys behind it.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SymmetricBlock {
    cipher: U32,
    key_len: U32,
    hash: U32,
    result_len: U32,
    auth_key_len: U32,
    aad_len: U32,
    op_type: u8,
    direction: u8,
    hash_mode: u8,
    order: u8,
    padding: [u8; 4],
    /// Addresses in QEMU, of no use here.
    pointers: [U64; 2],
    cipher_key: [u8; MAX_CIPHER_KEY],
    auth_key: [u8; MAX_AUTH_KEY],
}

/// `CryptoDevBackendAsymSessionInfo` and the key behind it.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AsymmetricBlock {
    algorithm: U32,
    key_kind: U32,
    key_len: U32,
    padding: [u8; 4],
    /// An address in QEMU.
    pointer: U64,
    parameters: [U32; 2],
    key: [u8; MAX_DER],
}

/// The identifier and a symmetric session.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OldDescription {
    id: U64,
    session: SymmetricBlock,
}

const _: () = assert!(size_of::<OldDescription>() == OLD);
const _: () = assert!(size_of::<AsymmetricBlock>() == NEW - 16);

/// A description, understood. It borrows the keys from the message, which the session of the frontend wipes.
#[derive(Debug)]
pub struct Description<'a> {
    /// What the identifier's place held. Frontends leave it 0; a keeper numbers its creations there, and repeats the number when
    /// it repeats the message after a crash.
    pub number: u64,
    /// The session.
    pub spec: KeySpec<'a>,
}

impl<'a> Description<'a> {
    /// Understands a message; the status says why not.
    pub fn parse(message: &'a [u8]) -> Result<Self, Status> {
        let words = |at: usize| U64::read_from_prefix(message.get(at..)?).ok().map(|(word, _)| word.get());
        match message.len() {
            OLD => {
                let old = OldDescription::ref_from_bytes(message).map_err(|_| Status::Err)?;
                Ok(Self { number: old.id.get(), spec: symmetric(&old.session)? })
            }
            NEW => {
                let (opcode, number) = (words(0), words(NEW - 8).unwrap_or_default());
                let body = &message[8..NEW - 8];
                let spec = match opcode {
                    Some(CREATE_CIPHER) => {
                        let (session, _) = SymmetricBlock::ref_from_prefix(body).map_err(|_| Status::Err)?;
                        symmetric(session)?
                    }
                    Some(CREATE_AKCIPHER) => {
                        asymmetric(AsymmetricBlock::ref_from_bytes(body).map_err(|_| Status::Err)?)?
                    }
                    _ => return Err(Status::NotSupp),
                };
                Ok(Self { number, spec })
            }
            _ => Err(Status::Err),
        }
    }
}

fn symmetric(session: &SymmetricBlock) -> Result<KeySpec<'_>, Status> {
    let parameters = Symmetric {
        op_type: session.op_type.into(),
        cipher: session.cipher.get(),
        direction: session.direction.into(),
        order: session.order.into(),
        hash_mode: session.hash_mode.into(),
        hash: session.hash.get(),
        result_len: session.result_len.get(),
    };
    parameters.spec(
        part(&session.cipher_key, session.key_len.get())?,
        part(&session.auth_key, session.auth_key_len.get())?,
    )
}

fn asymmetric(session: &AsymmetricBlock) -> Result<KeySpec<'_>, Status> {
    let parameters = Asymmetric {
        algorithm: session.algorithm.get(),
        key_kind: session.key_kind.get(),
        parameters: session.parameters.map(U32::get),
    };
    parameters.spec(part(&session.key, session.key_len.get())?)
}

/// The first bytes of the room for a key.
fn part(room: &[u8], len: u32) -> Result<&[u8], Status> {
    room.get(..len as usize).ok_or(Status::Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Akcipher, ChainOrder, Cipher, Direction, Hash, KeyKind, RsaPadding};

    fn put(message: &mut [u8], at: usize, bytes: &[u8]) {
        message[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn words(message: &mut [u8], at: usize, words: &[u32]) {
        for (i, word) in words.iter().enumerate() {
            put(message, at + 4 * i, &word.to_ne_bytes());
        }
    }

    /// Offsets as found in messages of QEMU 7.2 and in the sources of 10.0: the symmetric block begins at 8 in both.
    fn symmetric_message(len: usize) -> Vec<u8> {
        let mut message = vec![0; len];
        if len == NEW {
            put(&mut message, 0, &2u64.to_ne_bytes());
        }
        words(&mut message, 8, &[3, 24, 4, 32, 20, 0]);
        put(&mut message, 32, &[1, 2, 2, 1]);
        put(&mut message, 40, &[0xee; 16]);
        put(&mut message, 56, &[7; 24]);
        put(&mut message, 120, &[9; 20]);
        message
    }

    #[test]
    fn a_cipher_session_is_read_from_either_size() {
        for len in [OLD, NEW] {
            let message = symmetric_message(len);
            let description = Description::parse(&message).unwrap();
            let KeySpec::Cipher { cipher: Cipher::AesCbc, direction: Direction::Decrypt, key } =
                description.spec
            else {
                panic!("{description:?}");
            };
            assert_eq!((key, description.number), (&[7; 24][..], 0));
        }
    }

    #[test]
    fn a_chain_is_read_from_either_size() {
        for len in [OLD, NEW] {
            let mut message = symmetric_message(len);
            message[32] = 2;
            let description = Description::parse(&message).unwrap();
            let KeySpec::Chain { order, hash, cipher_key, mac_key, result_len, .. } = description.spec else {
                panic!("{description:?}");
            };
            assert_eq!((order, hash, result_len), (ChainOrder::HashThenCipher, Hash::Sha256, 32));
            assert_eq!((cipher_key, mac_key), (&[7; 24][..], Some(&[9; 20][..])));
        }
    }

    fn rsa_message() -> Vec<u8> {
        let mut message = vec![0; NEW];
        put(&mut message, 0, &0x404u64.to_ne_bytes());
        words(&mut message, 8, &[1, 2, 608]);
        put(&mut message, 24, &[0xee; 8]);
        words(&mut message, 32, &[1, 5]);
        put(&mut message, 40, &[3; 608]);
        message
    }

    #[test]
    fn an_rsa_session_is_read_from_the_new_size() {
        let message = rsa_message();
        let description = Description::parse(&message).unwrap();
        let KeySpec::Akcipher { algorithm, kind, der } = description.spec else { panic!("{description:?}") };
        assert_eq!(algorithm, Akcipher::Rsa { padding: RsaPadding::Pkcs1(Some(Hash::Sha1)) });
        assert_eq!((kind, der), (KeyKind::Private, &[3; 608][..]));
    }

    #[test]
    fn the_number_of_a_creation_is_where_the_identifier_goes() {
        for (len, at) in [(OLD, 0), (NEW, 1064)] {
            let mut message = symmetric_message(len);
            put(&mut message, at, &77u64.to_ne_bytes());
            assert_eq!(Description::parse(&message).unwrap().number, 77);
        }
    }

    #[test]
    fn lengths_beyond_the_room_for_the_keys_are_errors() {
        for (at, most) in [(12, 64), (24, 512)] {
            let mut message = symmetric_message(OLD);
            message[32] = 2;
            words(&mut message, at, &[most]);
            assert!(Description::parse(&message).is_ok());
            for len in [most + 1, u32::MAX] {
                words(&mut message, at, &[len]);
                assert_eq!(Description::parse(&message).err(), Some(Status::Err));
            }
        }
        let mut message = rsa_message();
        words(&mut message, 16, &[1024]);
        assert!(Description::parse(&message).is_ok());
        words(&mut message, 16, &[1025]);
        assert_eq!(Description::parse(&message).err(), Some(Status::Err));
    }

    #[test]
    fn other_sizes_and_opcodes_are_refused() {
        for len in [0, 8, OLD - 1, OLD + 1, 640, NEW - 1, NEW + 1] {
            assert_eq!(Description::parse(&vec![0; len]).err(), Some(Status::Err), "{len}");
        }
        for opcode in [0u64, 3, 0x102, 0x202, 0x302, 0x402, 0x405, 2 << 32 | 2, u64::MAX] {
            let mut message = symmetric_message(NEW);
            put(&mut message, 0, &opcode.to_ne_bytes());
            assert_eq!(Description::parse(&message).err(), Some(Status::NotSupp), "{opcode:#x}");
        }
    }

    #[test]
    fn no_message_is_too_strange() {
        use proptest::prelude::*;
        let size = prop_oneof![Just(OLD), Just(NEW)];
        let message = size.prop_flat_map(|len| proptest::collection::vec(any::<u8>(), len));
        proptest!(|(mut message in message, small in any::<bool>())| {
            // Numbers small enough to mean something.
            if small {
                let start = usize::from(message.len() == NEW) * 8;
                message[..start].copy_from_slice(&CREATE_CIPHER.to_ne_bytes()[..start]);
                for byte in &mut message[8..36] {
                    *byte = if *byte & 0xe0 == 0 { *byte % 6 } else { 0 };
                }
            }
            let _ = Description::parse(&message);
        });
    }
}
