//! A receiver, written as plainly as possible: checks every field, finishes checksums, puts segments together again.

use net_backend::frame::{Gso, NetHeader, Offloads, flag};

use crate::frames::Out;

/// RFC 1071, two bytes at a time.
pub fn ones_sum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo header of an IP packet (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub fn pseudo_header(packet: &[u8], protocol: u8, len: usize) -> u16 {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    let mut bytes = addresses.to_vec();
    bytes.extend((len as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    ones_sum(0, &bytes)
}

/// A packet taken apart.
#[derive(Debug, Clone)]
pub struct Packet {
    /// Ethernet header and tags.
    pub ethernet: Vec<u8>,
    /// Network header with options or extension headers, but without a fragment header.
    pub network: Vec<u8>,
    pub protocol: u8,
    pub fragment: Option<Fragment>,
    /// All behind the network headers.
    pub rest: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
pub struct Fragment {
    pub offset: usize,
    pub more: bool,
    pub id: u32,
    /// Where the fragment header was in the network header.
    pub at: usize,
}

pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

/// Takes a finished frame apart; every length must be right, and the IPv4 header checksum.
pub fn dissect(frame: &[u8]) -> Packet {
    let mut at = 12;
    while matches!(be16(frame, at), 0x8100 | 0x88a8) {
        at += 4;
    }
    let (ethernet, packet) = frame.split_at(at + 2);
    match be16(frame, at) {
        0x0800 => dissect_v4(ethernet, packet),
        0x86dd => dissect_v6(ethernet, packet),
        other => panic!("not IP: {other:#06x}"),
    }
}

fn dissect_v4(ethernet: &[u8], packet: &[u8]) -> Packet {
    assert_eq!(packet[0] >> 4, 4);
    let (network, rest) = packet.split_at(usize::from(packet[0] & 0xf) * 4);
    assert_eq!(usize::from(be16(packet, 2)), packet.len(), "total length");
    assert_eq!(ones_sum(0, network), 0xffff, "IPv4 header checksum");
    let (offset, more) = (usize::from(be16(packet, 6) & 0x1fff) * 8, packet[6] & 0x20 != 0);
    let id = u32::from(be16(packet, 4));
    let fragment = (offset > 0 || more).then_some(Fragment { offset, more, id, at: 0 });
    Packet {
        ethernet: ethernet.to_vec(),
        network: network.to_vec(),
        protocol: packet[9],
        fragment,
        rest: rest.to_vec(),
    }
}

fn dissect_v6(ethernet: &[u8], packet: &[u8]) -> Packet {
    assert_eq!(packet[0] >> 4, 6);
    assert_eq!(usize::from(be16(packet, 4)), packet.len() - 40, "payload length");
    let (mut network, mut next, mut next_at, mut fragment) = (packet[..40].to_vec(), packet[6], 6, None);
    let mut at = 40;
    while matches!(next, 0 | 43 | 44 | 51 | 60) && fragment.is_none() {
        let len = match next {
            44 => 8,
            51 => (usize::from(packet[at + 1]) + 2) * 4,
            _ => (usize::from(packet[at + 1]) + 1) * 8,
        };
        if next == 44 {
            let (offset, more) = (usize::from(be16(packet, at + 2) & 0xfff8), packet[at + 3] & 1 != 0);
            fragment = Some(Fragment { offset, more, id: be32(packet, at + 4), at });
            network[next_at] = packet[at];
        } else {
            next_at = network.len();
            network.extend(&packet[at..at + len]);
        }
        next = packet[at];
        at += len;
    }
    Packet { ethernet: ethernet.to_vec(), network, protocol: next, fragment, rest: packet[at..].to_vec() }
}

/// Checks that the receiver was promised to take such a frame, and does to it what was left to do.
pub fn finish(out: &Out, can: Offloads) -> Vec<u8> {
    let NetHeader { flags, gso, csum_start, csum_offset, .. } = out.header;
    assert_eq!(gso, Gso::None, "segments are not segmented again");
    assert_eq!((out.header.gso_size, out.header.hdr_len), (0, 0));
    let mut frame = out.frame.clone();
    if flags != 0 {
        assert!(can.csum, "{:?} for a receiver that finishes nothing", out.header);
    }
    if flags & flag::NEEDS_CSUM != 0 {
        let start = usize::from(csum_start);
        // The receiver's part; as any network card, it writes a checksum of 0 as 0xffff.
        let sum = Some(!ones_sum(0, &frame[start..])).filter(|&sum| sum != 0).unwrap_or(0xffff);
        let field = start + usize::from(csum_offset);
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// Checks the transport checksum of a whole packet: it is there, and it is right.
pub fn check_transport(packet: &Packet) {
    let pseudo = pseudo_header(&packet.network, packet.protocol, packet.rest.len());
    assert_eq!(ones_sum(u32::from(pseudo), &packet.rest), 0xffff, "transport checksum");
    if packet.protocol == 17 {
        assert_eq!(usize::from(be16(&packet.rest, 4)), packet.rest.len(), "UDP length");
        assert_ne!(be16(&packet.rest, 6), 0, "a UDP checksum of 0 means none");
    }
}

/// Puts the fragments of one datagram together again, into the frame they were cut from.
pub fn reassemble(fragments: &[Packet]) -> Vec<u8> {
    let first = fragments.first().expect("a fragment");
    let Fragment { id, at: place, .. } = first.fragment.expect("a fragment");
    let mut rest = Vec::new();
    for (index, packet) in fragments.iter().enumerate() {
        let fragment = packet.fragment.expect("a fragment");
        assert_eq!((fragment.id, fragment.at), (id, place), "identification and place");
        assert_eq!(fragment.offset, rest.len(), "offset");
        assert_eq!(fragment.more, index + 1 < fragments.len(), "more fragments");
        assert!(!fragment.more || packet.rest.len() % 8 == 0, "fragments are multiples of eight bytes");
        assert_eq!(packet.ethernet, first.ethernet);
        rest.extend(&packet.rest);
    }
    let mut network = first.network.clone();
    let v6 = network[0] >> 4 == 6;
    let (length_at, len) =
        if v6 { (4, network.len() - 40 + rest.len()) } else { (2, network.len() + rest.len()) };
    network[length_at..length_at + 2].copy_from_slice(&(len as u16).to_be_bytes());
    if !v6 {
        network[6..8].fill(0);
        network[10..12].fill(0);
        let sum = !ones_sum(0, &network);
        network[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    [first.ethernet.clone(), network, rest].concat()
}
