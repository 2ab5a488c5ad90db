//! Where a checksum may be stored.
//!
//! A sender chooses where the checksum that it leaves undone is stored, and somebody stores it after the switch has decided
//! about the frame: we, the host's kernel, or another guest. Two bytes that the sender's payload decides about could be the
//! source address, the VLAN, or the port that a rule has just looked at. So the place must be one that nothing goes by: the
//! checksum of the transport header, or somewhere behind it.

use super::head::{Head, TAG_LEN};
use super::header::{BadHeader, NetHeader};
use super::parse::{self, Deep, Fragment, L3, Meta, ethertype, protocol};

/// Bytes of an Ethernet header without a tag.
const ETHERNET: usize = 14;
/// Below this it is a length, and the frame says in its LLC header what it is of (IEEE 802.3 §3.2.6).
const ETHERTYPES: u16 = 0x600;
/// Bytes of an ARP packet for Ethernet and IPv4, and of a RARP packet.
const ARP_LEN: usize = 28;
/// Bytes of an IPv4 header without options.
const IPV4_LEN: usize = 20;

/// A transport header: where its checksum is, and how much of it may be looked at.
#[derive(Clone, Copy)]
struct Transport {
    checksum: usize,
    len: usize,
}

const TCP: Transport = Transport { checksum: 16, len: 20 };
const UDP: Transport = Transport { checksum: 6, len: 8 };
/// With the address that a neighbour is asked for or advertises (RFC 4861 §4.3, §4.4).
const ICMP: Transport = Transport { checksum: 2, len: 24 };

impl NetHeader {
    /// Checks that what completes the checksum changes no byte of the frame that somebody may have decided by: to be called
    /// after [`check`](Self::check) for every frame that comes in and starts with `head`.
    #[inline]
    pub fn check_place(&self, head: &Head) -> Result<(), BadHeader> {
        let (start, offset) = (self.csum_start, self.csum_offset);
        if !self.needs_csum() || is_harmless(head, start.into(), offset.into()) {
            return Ok(());
        }
        Err(BadHeader::Place { start, offset })
    }
}

#[inline]
fn is_harmless(head: &Head, start: usize, offset: usize) -> bool {
    let allowed = |meta| allows(head, &meta, start, offset);
    is_plain(head.as_slice(), start, offset) || parse::l2(head).is_ok_and(allowed)
}

/// Of TCP or UDP in a whole IPv4 packet without options or tags: nearly all there is.
#[inline]
fn is_plain(bytes: &[u8], start: usize, offset: usize) -> bool {
    const L4: usize = ETHERNET + IPV4_LEN;
    let Some(&[.., e0, e1, version, _, _, _, _, _, f0, f1, _, number]) = bytes.first_chunk::<24>() else {
        return false;
    };
    let ipv4 = [e0, e1, version] == [8, 0, 0x45] && f0 & 0x3f == 0 && f1 == 0;
    ipv4 && start == L4 && matches!((number, offset), (protocol::TCP, 16) | (protocol::UDP, 6))
}

#[inline(never)]
fn allows(head: &Head, meta: &Meta, start: usize, offset: usize) -> bool {
    let deep = parse::deep(head, meta);
    let (at, fragment) = match deep.l3 {
        L3::Ipv4 { at, len, fragment, .. } | L3::Ipv6 { at, len, fragment, .. } => (at + len, fragment),
        L3::None => return not_ip(head, meta, start),
    };
    let behind_all = start >= at && start + offset >= head.len();
    behind_all || behind_headers(&deep, fragment, start.checked_sub(at), offset)
}

/// In a packet whose transport header is `distance` bytes before the start.
fn behind_headers(deep: &Deep, fragment: Fragment, distance: Option<usize>, offset: usize) -> bool {
    let Some(distance) = distance else { return false };
    let transport = match deep.protocol {
        _ if fragment == Fragment::Later => return true,
        protocol::TCP => TCP,
        protocol::UDP => UDP,
        protocol::ICMP | protocol::ICMPV6 => ICMP,
        _ => return true,
    };
    (distance, offset) == (0, transport.checksum) || distance >= transport.len
}

/// In a frame that is not of IP: behind its tags, and behind the addresses of ARP. What says that it is IP, and cannot be read
/// as such, has no place for it.
fn not_ip(head: &Head, meta: &Meta, start: usize) -> bool {
    let stacked = matches!(meta.ethertype, ethertype::VLAN | ethertype::SERVICE_VLAN);
    let network = ETHERNET + TAG_LEN * (usize::from(meta.tag.is_some()) + usize::from(stacked));
    let Some(&[a, b]) = head.as_slice()[..network.min(head.len())].last_chunk() else { return false };
    match u16::from_be_bytes([a, b]) {
        ethertype::IPV4 | ethertype::IPV6 | ..ETHERTYPES => false,
        ethertype::ARP | ethertype::RARP => start >= network + ARP_LEN,
        _ => start >= network,
    }
}

#[cfg(test)]
mod tests {
    use super::super::head::HEAD;
    use super::*;

    const TCP_V4: usize = 34;

    /// A frame of this ethertype, with these bytes behind it.
    fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&[2; 12], &ethertype.to_be_bytes()[..], payload, &[0; 200]].concat()
    }

    fn ipv4(number: u8) -> Vec<u8> {
        let mut packet = [0; 20];
        (packet[0], packet[9]) = (0x45, number);
        frame(ethertype::IPV4, &packet)
    }

    fn ipv6(next: u8, extension: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        (packet[0], packet[6]) = (0x60, next);
        packet.extend_from_slice(extension);
        frame(ethertype::IPV6, &packet)
    }

    fn tagged(mut frame: Vec<u8>) -> Vec<u8> {
        frame.splice(12..12, [0x81, 0, 0, 7]);
        frame
    }

    /// All places where the checksum may be stored when it starts there, as far as the head goes.
    fn places(frame: &[u8], start: usize) -> Vec<usize> {
        let head = Head::from_slice(&frame[..HEAD]);
        let header = |offset: usize| NetHeader::PLAIN.with_checksum(start as u16, offset as u16);
        (0..150).filter(|offset| header(*offset).check_place(&head).is_ok()).collect()
    }

    #[test]
    fn a_transport_header_has_one_place_for_it_and_its_payload_any() {
        let unseen = |from: usize| (HEAD - from..150).collect::<Vec<_>>();
        for (number, offset, len) in [(6, 16, 20), (17, 6, 8), (1, 2, 24), (58, 2, 24)] {
            let plain = (ipv4(number), TCP_V4);
            let options = (ipv6(60, &[number, 0, 0, 0, 0, 0, 0, 0]), 62);
            for (frame, at) in [plain, (ipv6(number, &[]), 54), options] {
                for (frame, at) in
                    [(frame.clone(), at), (tagged(frame.clone()), at + 4), (tagged(tagged(frame)), at + 8)]
                {
                    let here = [&[offset][..], &unseen(at)].concat();
                    assert_eq!(places(&frame, at), here, "protocol {number} at {at}");
                    assert_eq!(places(&frame, at + 1), unseen(at + 1));
                    assert_eq!(places(&frame, at + len).len(), 150, "a tunnel's");
                    for before in ETHERNET..at {
                        assert_eq!(places(&frame, before), [0; 0], "from {before}");
                    }
                }
            }
        }
    }

    #[test]
    fn protocols_that_nobody_looks_into_have_it_anywhere() {
        assert_eq!(places(&ipv4(47), TCP_V4).len(), 150);
        assert_eq!(places(&ipv4(47), TCP_V4 - 1), [0; 0]);
        assert_eq!(places(&frame(0x8847, &[]), 14).len(), 150);
        assert_eq!(places(&tagged(frame(0x8847, &[])), 17), [0; 0], "the tag");
        assert_eq!(places(&tagged(tagged(frame(0x8847, &[]))), 21), [0; 0], "both tags");
    }

    #[test]
    fn what_claims_to_be_ip_or_says_who_it_is_has_no_place_for_it() {
        assert_eq!(places(&frame(ethertype::IPV4, &[0x55]), 60), [0; 0]);
        assert_eq!(places(&tagged(tagged(frame(ethertype::IPV6, &[0x45]))), 60), [0; 0]);
        assert_eq!(places(&frame(46, &[0xaa, 0xaa, 3, 0, 0, 0]), 60), [0; 0], "a length, not an ethertype");
        assert_eq!(places(&frame(ethertype::ARP, &[]), 41), [0; 0]);
        assert_eq!(places(&frame(ethertype::ARP, &[]), 42).len(), 150);
    }

    #[test]
    fn a_later_fragment_has_no_transport_header() {
        let mut later = ipv4(6);
        later[21] = 1;
        assert_eq!(places(&later, TCP_V4).len(), 150);
        assert_eq!(places(&later, 26), [0; 0], "the source address");
    }

    #[test]
    fn nothing_is_asked_of_a_frame_that_leaves_nothing_undone() {
        let head = Head::from_slice(&frame(ethertype::IPV4, &[])[..20]);
        assert!(NetHeader::PLAIN.check_place(&head).is_ok());
    }
}
