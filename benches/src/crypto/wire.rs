//! virtio-crypto as it stands in memory: headers of control and data requests, configuration space, the session
//! description of vhost-user (virtio 1.3 §5.9).
//!
//! Written from the specification and apart from the device: what both sides misread would else go unnoticed.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Feature bits, virtio 1.3 §5.9.3.
pub mod feature {
    /// Requests have the sizes they need instead of 72 bytes.
    pub const REVISION_1: u64 = 1 << 0;
    /// CIPHER requests may bring their key.
    pub const CIPHER_STATELESS: u64 = 1 << 1;
    /// HASH requests may do without a session.
    pub const HASH_STATELESS: u64 = 1 << 2;
    /// MAC requests may bring their key.
    pub const MAC_STATELESS: u64 = 1 << 3;
    /// AEAD requests may bring their key.
    pub const AEAD_STATELESS: u64 = 1 << 4;
    /// AKCIPHER requests may bring their key.
    pub const AKCIPHER_STATELESS: u64 = 1 << 5;
}

/// Services, virtio 1.3 §5.9.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Service {
    /// Ciphers, and ciphers chained with a MAC.
    Cipher = 0,
    /// Plain hashes.
    Hash = 1,
    /// Message authentication codes.
    Mac = 2,
    /// Authenticated encryption.
    Aead = 3,
    /// Public keys.
    Akcipher = 4,
}

impl Service {
    /// `VIRTIO_CRYPTO_OPCODE`.
    pub const fn opcode(self, operation: u32) -> u32 {
        (self as u32) << 8 | operation
    }

    /// `*_CREATE_SESSION`.
    pub const fn create(self) -> u32 {
        self.opcode(if matches!(self, Self::Akcipher) { 4 } else { 2 })
    }

    /// `*_DESTROY_SESSION`.
    pub const fn destroy(self) -> u32 {
        self.opcode(if matches!(self, Self::Akcipher) { 5 } else { 3 })
    }

    /// The feature bit of its stateless mode.
    pub const fn stateless(self) -> u64 {
        feature::CIPHER_STATELESS << self as u32
    }
}

/// Status bytes, `enum VIRTIO_CRYPTO_STATUS`, and our own mark for "not written".
pub mod status {
    /// Success.
    pub const OK: u8 = 0;
    /// Any failure without a status of its own.
    pub const ERR: u8 = 1;
    /// The data or its tag are not authentic.
    pub const BADMSG: u8 = 2;
    /// Not supported.
    pub const NOTSUPP: u8 = 3;
    /// No such session.
    pub const INVSESS: u8 = 4;
    /// No room for another session.
    pub const NOSPC: u8 = 5;
    /// The signature is not valid.
    pub const KEY_REJECTED: u8 = 6;
    /// What the driver writes before the request; a device that leaves it has lied about completion.
    pub const UNTOUCHED: u8 = 0xee;

    /// Name of a status byte for messages.
    pub fn name(code: u8) -> &'static str {
        match code {
            OK => "OK",
            ERR => "ERR",
            BADMSG => "BADMSG",
            NOTSUPP => "NOTSUPP",
            INVSESS => "INVSESS",
            NOSPC => "NOSPC",
            KEY_REJECTED => "KEY_REJECTED",
            UNTOUCHED => "the backend wrote no status",
            _ => "unknown",
        }
    }
}

/// `op_type` and its like.
pub mod number {
    /// `VIRTIO_CRYPTO_SYM_OP_CIPHER`.
    pub const SYM_CIPHER: u32 = 1;
    /// `VIRTIO_CRYPTO_SYM_OP_ALGORITHM_CHAINING`.
    pub const SYM_CHAIN: u32 = 2;
    /// `VIRTIO_CRYPTO_SYM_HASH_MODE_AUTH`.
    pub const HASH_MODE_AUTH: u32 = 2;
    /// `VIRTIO_CRYPTO_FLAG_SESSION_MODE`.
    pub const SESSION_MODE: u32 = 1;
    /// `VIRTIO_CRYPTO_S_HW_READY`.
    pub const HW_READY: u32 = 1;
}

/// `struct virtio_crypto_config`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Config {
    /// [`number::HW_READY`].
    pub status: U32,
    /// Data queues; the control queue comes behind them.
    pub max_dataqueues: U32,
    /// Bit by [`Service`].
    pub crypto_services: U32,
    /// Bits by number.
    pub cipher_algo_l: U32,
    /// Bits from 32 on.
    pub cipher_algo_h: U32,
    /// Bits by number.
    pub hash_algo: U32,
    /// Bits by number.
    pub mac_algo_l: U32,
    /// Bits from 32 on.
    pub mac_algo_h: U32,
    /// Bits by number.
    pub aead_algo: U32,
    /// Bytes.
    pub max_cipher_key_len: U32,
    /// Bytes.
    pub max_auth_key_len: U32,
    /// Bits by number.
    pub akcipher_algo: U32,
    /// Bytes of a request.
    pub max_size: U64,
}

/// `struct virtio_crypto_op_header`, in front of each data request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DataHeader {
    /// Service and operation.
    pub opcode: U32,
    /// Algorithm; the session knows better.
    pub algo: U32,
    /// The session.
    pub session_id: U64,
    /// [`number::SESSION_MODE`].
    pub flag: U32,
    /// Nothing.
    pub padding: U32,
}

/// `struct virtio_crypto_ctrl_header`, in front of each control request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ControlHeader {
    /// Service and operation.
    pub opcode: U32,
    /// Algorithm.
    pub algo: U32,
    /// Nothing yet.
    pub flag: U32,
    /// Data queue that the session is for; Linux and QEMU fill it in.
    pub queue_id: U32,
}

/// `struct virtio_crypto_create_session_input`: the answer to a request for a session.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Created {
    /// The session.
    pub session_id: U64,
    /// [`status`], four bytes wide here.
    pub status: U32,
    /// Nothing.
    pub padding: U32,
}

/// Fixed part of a control request without REVISION_1.
pub const CONTROL_FIXED: usize = 56;
/// Fixed part of a data request without REVISION_1.
pub const DATA_FIXED: usize = 48;

/// A structure of 32-bit fields, written one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<u8>);

impl Fields {
    /// With these fields.
    pub fn new(fields: &[u32]) -> Self {
        Self::default().and(fields)
    }

    /// More fields.
    pub fn and(mut self, fields: &[u32]) -> Self {
        fields.iter().for_each(|field| self.0.extend(field.to_le_bytes()));
        self
    }

    /// Zeros up to `len` bytes.
    pub fn padded(mut self, len: usize) -> Self {
        self.0.resize(len.max(self.0.len()), 0);
        self
    }
}

/// The session description of CREATE_CRYPTO_SESSION: QEMU's C structure, in two sizes.
pub mod description {
    /// Up to QEMU 8.0.
    pub const OLD: usize = 632;
    /// From QEMU 8.1 on.
    pub const NEW: usize = 1072;
    /// Longest cipher key.
    pub const CIPHER_KEY: usize = 64;
    /// Longest key of a MAC.
    pub const AUTH_KEY: usize = 512;
    /// Longest key of a public-key session, DER.
    pub const ASYM_KEY: usize = 1024;
    /// `op_code` in the new size.
    pub const OPCODE_AT: usize = 0;
    /// cipher_alg, key_len, hash_alg, hash_result_len, auth_key_len, add_len; op_type, direction, hash_mode,
    /// alg_chain_order in a byte each.
    pub const SYM_AT: usize = 8;
    /// The cipher key.
    pub const CIPHER_KEY_AT: usize = 56;
    /// The key of the MAC.
    pub const AUTH_KEY_AT: usize = 120;
    /// algo, keytype, keylen.
    pub const ASYM_AT: usize = 8;
    /// Padding and hash of RSA, or the curve.
    pub const ASYM_PARA_AT: usize = 32;
    /// The key.
    pub const ASYM_KEY_AT: usize = 40;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn structures_have_the_sizes_of_the_specification() {
        assert_eq!(size_of::<Config>(), 56);
        assert_eq!(offset_of!(Config, aead_algo), 32);
        assert_eq!(offset_of!(Config, max_size), 48);
        assert_eq!(size_of::<DataHeader>() + DATA_FIXED, 72);
        assert_eq!(size_of::<ControlHeader>() + CONTROL_FIXED, 72);
        assert_eq!(size_of::<Created>(), 16);
    }

    #[test]
    fn opcodes_are_service_and_operation() {
        assert_eq!((Service::Cipher.create(), Service::Cipher.destroy()), (0x002, 0x003));
        assert_eq!((Service::Aead.create(), Service::Aead.opcode(1)), (0x302, 0x301));
        assert_eq!((Service::Akcipher.create(), Service::Akcipher.destroy()), (0x404, 0x405));
        assert_eq!(Service::Akcipher.stateless(), feature::AKCIPHER_STATELESS);
        assert_eq!(Service::Hash.stateless(), feature::HASH_STATELESS);
    }

    #[test]
    fn fields_are_little_endian_and_padded() {
        assert_eq!(Fields::new(&[1]).and(&[0x0203]).padded(10).0, [1, 0, 0, 0, 3, 2, 0, 0, 0, 0]);
    }
}
