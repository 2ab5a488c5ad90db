//! The configuration space (virtio 1.3 §5.9.4), which only door B's frontends read: QEMU's cryptodev makes up its own.

use crate::algorithm::{Aead, Akcipher, Cipher, Hash, MAX_AUTH_KEY, MAX_CIPHER_KEY, Service};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes, KnownLayout};

/// The device is ready (`VIRTIO_CRYPTO_S_HW_READY`).
pub const HW_READY: u32 = 1;

/// `struct virtio_crypto_config`, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CryptoConfig {
    /// [`HW_READY`].
    pub status: U32,
    /// Data queues; the control queue is the one behind them.
    pub max_dataqueues: U32,
    /// [`Service::bit`]s.
    pub crypto_services: U32,
    /// Ciphers 0 to 31, by their numbers.
    pub cipher_algo_l: U32,
    /// Ciphers from 32 on: none.
    pub cipher_algo_h: U32,
    /// Hashes.
    pub hash_algo: U32,
    /// MACs 0 to 31.
    pub mac_algo_l: U32,
    /// MACs from 32 on: none.
    pub mac_algo_h: U32,
    /// Authenticated ciphers.
    pub aead_algo: U32,
    /// Bytes of the longest cipher key.
    pub max_cipher_key_len: U32,
    /// Bytes of the longest key of a MAC.
    pub max_auth_key_len: U32,
    /// Asymmetric algorithms.
    pub akcipher_algo: U32,
    /// Bytes of the longest request: of what is behind its fixed fields.
    pub max_size: U64,
}

const _: () = assert!(size_of::<CryptoConfig>() == 56, "virtio 1.3 §5.9.4");

impl CryptoConfig {
    /// The device with so many data queues and so long requests.
    pub fn new(data_queues: u16, max_size: u64) -> Self {
        Self {
            status: HW_READY.into(),
            max_dataqueues: u32::from(data_queues).into(),
            crypto_services: Service::ALL.iter().fold(0, |bits, service| bits | service.bit()).into(),
            cipher_algo_l: Cipher::mask().into(),
            cipher_algo_h: 0.into(),
            hash_algo: Hash::mask().into(),
            mac_algo_l: Hash::mac_mask().into(),
            mac_algo_h: 0.into(),
            aead_algo: Aead::mask().into(),
            max_cipher_key_len: (MAX_CIPHER_KEY as u32).into(),
            max_auth_key_len: (MAX_AUTH_KEY as u32).into(),
            akcipher_algo: Akcipher::mask().into(),
            max_size: max_size.into(),
        }
    }

    /// Copies configuration bytes from `offset`; what lies beyond the end reads as zero (frontends ask for as much as their
    /// own idea of the structure holds).
    pub fn read(&self, offset: usize, buf: &mut [u8]) {
        buf.fill(0);
        if let Some(bytes) = self.as_bytes().get(offset..) {
            let n = bytes.len().min(buf.len());
            buf[..n].copy_from_slice(&bytes[..n]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(offset: usize) -> u32 {
        let mut buf = [0; 4];
        CryptoConfig::new(3, 1 << 20).read(offset, &mut buf);
        u32::from_le_bytes(buf)
    }

    #[test]
    fn fields_sit_where_the_specification_puts_them() {
        assert_eq!(field(0), 1, "status");
        assert_eq!(field(4), 3, "max_dataqueues");
        assert_eq!(field(8), 0b11111, "crypto_services");
        assert_eq!(field(12), 1 << 2 | 1 << 3 | 1 << 4 | 1 << 13, "cipher_algo_l");
        assert_eq!(field(16), 0, "cipher_algo_h");
        assert_eq!(field(20), 0b111_1100, "hash_algo");
        assert_eq!(field(24), 0b111_1100, "mac_algo_l");
        assert_eq!(field(28), 0, "mac_algo_h");
        assert_eq!(field(32), 0b1110, "aead_algo");
        assert_eq!(field(36), 64, "max_cipher_key_len");
        assert_eq!(field(40), 512, "max_auth_key_len");
        assert_eq!(field(44), 0b1110, "akcipher_algo");
        assert_eq!((field(48), field(52)), (1 << 20, 0), "max_size");
    }

    #[test]
    fn a_read_past_the_end_gives_zeroes() {
        let config = CryptoConfig::new(1, u64::MAX);
        let mut buf = [0xff; 64];
        config.read(0, &mut buf);
        assert_eq!(buf[..56], *config.as_bytes());
        assert_eq!(buf[56..], [0; 8]);
        config.read(usize::MAX, &mut buf);
        assert_eq!(buf, [0; 64]);
    }
}
