//! Ethernet frames with contents that can be checked.

/// Bytes of an Ethernet header.
pub const HEADER: usize = 14;
/// An EtherType for local experiments (IEEE Std 802).
pub const EXPERIMENTAL: u16 = 0x88b5;
/// The tag protocol of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// The address that everyone listens to.
pub const BROADCAST: Mac = [0xff; 6];

/// A MAC address.
pub type Mac = [u8; 6];

/// `52:54:00:00:00:<host>`.
pub fn mac(host: u8) -> Mac {
    [0x52, 0x54, 0, 0, 0, host]
}

/// The way addresses are written on command lines.
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A frame with a payload of `len` bytes that depend on `seed`, padded to the least length there is.
pub fn plain(dst: Mac, src: Mac, len: usize, seed: u32) -> Vec<u8> {
    with_payload(dst, src, EXPERIMENTAL, &pattern(seed, len))
}

/// The same with an 802.1Q tag.
pub fn tagged(dst: Mac, src: Mac, vlan: u16, len: usize, seed: u32) -> Vec<u8> {
    let inner = [&EXPERIMENTAL.to_be_bytes()[..], &pattern(seed, len)].concat();
    with_payload(dst, src, VLAN, &[&vlan.to_be_bytes()[..], &inner].concat())
}

/// A UDP datagram over IPv4 of the flow `flow`, with a payload of `len` bytes.
pub fn udp(dst: Mac, src: Mac, flow: u16, len: usize, seed: u32) -> Vec<u8> {
    const ADDRESSES: [u8; 8] = [10, 0, 0, 1, 10, 0, 0, 2];
    let total = (28 + len) as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let mut ip = [&ip[..], &ADDRESSES].concat();
    let sum = ip.chunks(2).fold(0, |sum: u32, pair| sum + u32::from(pair[0]) * 256 + u32::from(pair[1]));
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    // RFC 768: a checksum of zero is none.
    let udp = [flow, 9, total - 20, 0].map(u16::to_be_bytes).concat();
    with_payload(dst, src, 0x0800, &[&ip[..], &udp, &pattern(seed, len)].concat())
}

/// A frame of these parts.
pub fn with_payload(dst: Mac, src: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&dst[..], &src, &ethertype.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// `len` bytes in which neither a piece in the wrong place nor one from another frame goes unnoticed.
pub fn pattern(seed: u32, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed) << 1 | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // Knuth's MMIX constants; the upper half is the better one.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&((state >> 32) as u32).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The frame with its two addresses exchanged, as it comes back from a mirror.
pub fn swapped(frame: &[u8]) -> Vec<u8> {
    [&frame[6..12], &frame[..6], &frame[12..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_padded_and_swap_back_and_forth() {
        let frame = plain(mac(1), mac(2), 10, 7);
        assert_eq!(frame.len(), 60);
        assert_eq!(swapped(&swapped(&frame)), frame);
        assert_eq!(swapped(&frame)[..6], mac(2));
        assert_eq!(mac_text(mac(0xab)), "52:54:00:00:00:ab");
    }

    #[test]
    fn patterns_differ_by_seed_and_have_their_length() {
        assert_ne!(pattern(1, 64), pattern(2, 64));
        assert_eq!(pattern(3, 61), pattern(3, 64)[..61]);
    }
}
