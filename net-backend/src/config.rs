//! The configuration space (virtio 1.3 §5.1.4).

use crate::frame::{MacAddr, hash};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes, KnownLayout};

/// The link is up (VIRTIO_NET_S_LINK_UP).
pub const LINK_UP: u16 = 1;
/// The driver is asked to announce its addresses (VIRTIO_NET_S_ANNOUNCE).
pub const ANNOUNCE: u16 = 2;
/// `speed` of a link whose speed is not known.
pub const SPEED_UNKNOWN: u32 = u32::MAX;
/// `duplex`: both ways at once.
pub const DUPLEX_FULL: u8 = 1;
/// Entries of the longest indirection table a driver may set (virtio 1.3 §5.1.4.1: at least 128).
pub const MAX_RSS_TABLE: u16 = 128;

/// `struct virtio_net_config`, little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetConfig {
    /// The address (MAC).
    pub mac: [u8; 6],
    /// [`LINK_UP`] and [`ANNOUNCE`] (STATUS).
    pub status: U16,
    /// Most pairs of queues (MQ, RSS).
    pub max_virtqueue_pairs: U16,
    /// Largest MTU (MTU).
    pub mtu: U16,
    /// Speed in Mbit/s (SPEED_DUPLEX).
    pub speed: U32,
    /// [`DUPLEX_FULL`] (SPEED_DUPLEX).
    pub duplex: u8,
    /// Bytes of the longest key (RSS, HASH_REPORT).
    pub rss_max_key_size: u8,
    /// Entries of the longest indirection table (RSS).
    pub rss_max_indirection_table_length: U16,
    /// VIRTIO_NET_HASH_TYPE bits (RSS, HASH_REPORT).
    pub supported_hash_types: U32,
}

const _: () = assert!(size_of::<NetConfig>() == 24, "virtio 1.3 §5.1.4");

/// What the fields come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The address; zeros when there is none.
    pub mac: Option<MacAddr>,
    /// The link is up.
    pub link: bool,
    /// An announcement is asked for.
    pub announce: bool,
    /// Pairs of queues.
    pub pairs: u16,
    /// The MTU; 0 when none is set.
    pub mtu: u16,
    /// The speed, if it is known.
    pub speed: Option<u32>,
}

impl From<Facts> for NetConfig {
    fn from(facts: Facts) -> Self {
        let status = if facts.link { LINK_UP } else { 0 } | if facts.announce { ANNOUNCE } else { 0 };
        Self {
            mac: facts.mac.unwrap_or_default().0,
            status: status.into(),
            max_virtqueue_pairs: facts.pairs.into(),
            mtu: facts.mtu.into(),
            speed: facts.speed.unwrap_or(SPEED_UNKNOWN).into(),
            duplex: DUPLEX_FULL,
            rss_max_key_size: hash::KEY_LEN as u8,
            rss_max_indirection_table_length: MAX_RSS_TABLE.into(),
            supported_hash_types: hash::types::ALL.into(),
        }
    }
}

impl NetConfig {
    /// Copies configuration bytes from `offset`; what lies beyond the end reads as zero (frontends ask for as much as
    /// their own idea of the structure holds).
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

    fn sample() -> NetConfig {
        let mac = Some(MacAddr([0x52, 0x54, 0, 1, 2, 3]));
        Facts { mac, link: true, announce: true, pairs: 4, mtu: 9000, speed: Some(25_000) }.into()
    }

    fn field<const N: usize>(offset: usize) -> [u8; N] {
        let mut buf = [0; N];
        sample().read(offset, &mut buf);
        buf
    }

    #[test]
    fn fields_sit_where_the_specification_puts_them() {
        assert_eq!(field(0), [0x52, 0x54, 0, 1, 2, 3], "mac");
        assert_eq!(u16::from_le_bytes(field(6)), 3, "status");
        assert_eq!(u16::from_le_bytes(field(8)), 4, "max_virtqueue_pairs");
        assert_eq!(u16::from_le_bytes(field(10)), 9000, "mtu");
        assert_eq!(u32::from_le_bytes(field(12)), 25_000, "speed");
        assert_eq!(field(16), [1], "duplex");
        assert_eq!(field(17), [40], "rss_max_key_size");
        assert_eq!(u16::from_le_bytes(field(18)), 128, "rss_max_indirection_table_length");
        assert_eq!(u32::from_le_bytes(field(20)), 0x1ff, "supported_hash_types");
    }

    #[test]
    fn a_read_past_the_end_gives_zeroes() {
        let mut buf = [0xff; 64];
        sample().read(0, &mut buf);
        assert_eq!(buf[..24], *sample().as_bytes());
        assert_eq!(buf[24..], [0; 40]);
        let mut far = [0xff; 8];
        sample().read(usize::MAX, &mut far);
        assert_eq!(far, [0; 8]);
    }
}
