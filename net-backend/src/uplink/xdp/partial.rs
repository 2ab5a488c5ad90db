//! Frames that the kernel has not finished.
//!
//! A driver without hardware (veth above all) hands frames of the host's own sockets to XDP as they left TCP or UDP: with
//! `CHECKSUM_PARTIAL`, where the checksum field holds the sum of the pseudo-header alone, and in generic mode also
//! unsegmented, up to 64 KiB. What says so is in the `sk_buff` and does not come along. It shows in the frame, though:
//!
//! - The field equals the sum of the pseudo-header, not complemented. A finished checksum does so in one frame of 65536
//!   by chance. Nothing is lost then: completing it gives the value that it had.
//! - A TCP frame longer than the interface's MTU is unsegmented. Its sender would have cut it into segments of the
//!   MTU.
//!
//! Such a frame gets the virtio-net header that a TAP would give it (virtio 1.3 §5.1.6), and whoever receives it takes it
//! unfinished or has it finished. Chance is no help to a frame that a wire has damaged, so hardware that finishes its
//! frames is not looked at in this way.

use crate::frame::{Gso, NetHeader, flag};

/// Bytes of a frame that are looked at: two tags, the longest IPv4 or a common IPv6 header, and a TCP header up to its
/// checksum.
pub(super) const LOOK: usize = 128;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A transport header, and the sum of its pseudo-header.
struct Transport {
    protocol: u8,
    is_ipv6: bool,
    /// Where it starts in the frame.
    at: usize,
    /// Where its packet starts in the frame.
    network: usize,
    pseudo: u16,
}

/// The header of a frame of `len` bytes that starts with `front`, on an interface with this `mtu`; `None` when it is to be
/// segmented in a way that cannot be told from the frame.
#[inline]
pub(super) fn header_of(front: &[u8], len: usize, mtu: u32) -> Option<NetHeader> {
    let Some(transport) = transport_of(front) else { return Some(NetHeader::PLAIN) };
    let csum_offset = if transport.protocol == TCP { 16 } else { 6 };
    let field = u16_at(front, transport.at + csum_offset);
    // A datagram without a checksum has 0 there.
    if field != Some(transport.pseudo) || (transport.protocol == UDP && transport.pseudo == 0) {
        return Some(NetHeader::PLAIN);
    }
    unfinished(front, len, mtu, &transport, csum_offset)
}

#[inline]
fn unfinished(
    front: &[u8],
    len: usize,
    mtu: u32,
    transport: &Transport,
    csum_offset: usize,
) -> Option<NetHeader> {
    let mut header = NetHeader {
        flags: flag::NEEDS_CSUM,
        csum_start: transport.at as u16,
        csum_offset: csum_offset as u16,
        ..NetHeader::PLAIN
    };
    if len.saturating_sub(transport.network) > mtu as usize {
        segment(front, mtu, transport, &mut header)?;
    }
    Some(header)
}

#[cold]
fn segment(front: &[u8], mtu: u32, transport: &Transport, header: &mut NetHeader) -> Option<()> {
    if transport.protocol != TCP {
        return None; // UDP_SEGMENT: the size was in the `sk_buff` alone
    }
    let words = front.get(transport.at + 12)? >> 4;
    let end = transport.at + usize::from(words) * 4;
    let payload = (mtu as usize).checked_sub(end - transport.network).filter(|&payload| payload > 0)?;
    let ecn = front.get(transport.at + 13)? & 0x80 != 0; // CWR
    header.gso = if transport.is_ipv6 { Gso::TcpV6 { ecn } } else { Gso::TcpV4 { ecn } };
    header.gso_size = payload.try_into().ok()?;
    header.hdr_len = end.try_into().ok()?;
    Some(())
}

/// TCP or UDP, in the first and only fragment.
#[inline]
fn transport_of(front: &[u8]) -> Option<Transport> {
    let mut at = 12;
    let mut ethertype = u16_at(front, at)?;
    while ethertype == 0x8100 || ethertype == 0x88a8 {
        at += 4;
        ethertype = u16_at(front, at)?;
    }
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(front, at + 2),
        ETHERTYPE_IPV6 => ipv6(front, at + 2),
        _ => None,
    }
}

#[inline]
fn ipv4(front: &[u8], network: usize) -> Option<Transport> {
    let packet: &[u8; 20] = front.get(network..)?.first_chunk()?;
    let header_len = usize::from(packet[0] & 0xf) * 4;
    let is_fragment = u16_at(packet, 6)? & 0x3fff != 0;
    let protocol = packet[9];
    if is_fragment || (protocol != TCP && protocol != UDP) {
        return None;
    }
    let len = u16_at(packet, 2)?.checked_sub(header_len as u16)?;
    let pseudo = fold(sum(&packet[12..20]) + u32::from(protocol) + u32::from(len));
    Some(Transport { protocol, is_ipv6: false, at: network + header_len, network, pseudo })
}

#[inline]
fn ipv6(front: &[u8], network: usize) -> Option<Transport> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    let packet: &[u8; 40] = front.get(network..)?.first_chunk()?;
    let (mut protocol, mut at) = (packet[6], network + 40);
    while [HOP_BY_HOP, ROUTING, DESTINATION].contains(&protocol) {
        protocol = *front.get(at)?;
        at += usize::from(*front.get(at + 1)?) * 8 + 8;
    }
    if protocol != TCP && protocol != UDP {
        return None;
    }
    let len = usize::from(u16_at(packet, 4)?).checked_sub(at - network - 40)?;
    let pseudo = fold(sum(&packet[8..40]) + u32::from(protocol) + len as u32);
    Some(Transport { protocol, is_ipv6: true, at, network, pseudo })
}

#[inline]
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Of at most 32 bytes, so nothing is carried out of the 32 bits.
#[inline]
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
}

#[inline]
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP or UDP frame with `options` bytes of IP options and the checksum field given.
    fn ipv4_frame(protocol: u8, payload: usize, field: impl Fn(u16) -> u16) -> Vec<u8> {
        let transport_len = payload + if protocol == TCP { 20 } else { 8 };
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((20 + transport_len as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 192, 168, 0, 1, 192, 168, 255, 254]);
        let words = [0xc0a8, 1, 0xc0a8, 0xfffe, u32::from(protocol), transport_len as u32];
        let pseudo = fold(words.iter().sum());
        let mut transport = vec![0x5a; transport_len];
        let at = if protocol == TCP { 16 } else { 6 };
        if protocol == TCP {
            transport[12] = 5 << 4;
            transport[13] = 0x10;
        }
        transport[at..at + 2].copy_from_slice(&field(pseudo).to_be_bytes());
        frame.extend(transport);
        frame
    }

    fn look(frame: &[u8]) -> NetHeader {
        header_of(&frame[..frame.len().min(LOOK)], frame.len(), 1500).expect("a frame that can be helped")
    }

    #[test]
    fn a_field_with_the_sum_of_the_pseudo_header_asks_for_completion() {
        for (protocol, offset) in [(TCP, 16), (UDP, 6)] {
            let header = look(&ipv4_frame(protocol, 100, |pseudo| pseudo));
            let expected = NetHeader {
                flags: flag::NEEDS_CSUM,
                csum_start: 34,
                csum_offset: offset,
                ..NetHeader::PLAIN
            };
            assert_eq!(header, expected);
            assert_eq!(look(&ipv4_frame(protocol, 100, |pseudo| !pseudo)), NetHeader::PLAIN);
            assert_eq!(look(&ipv4_frame(protocol, 100, |pseudo| pseudo ^ 1)), NetHeader::PLAIN);
            assert_eq!(look(&ipv4_frame(protocol, 100, |_| 0)), NetHeader::PLAIN);
        }
    }

    #[test]
    fn fragments_and_other_protocols_are_left_as_they_are() {
        let mut frame = ipv4_frame(UDP, 100, |pseudo| pseudo);
        frame[20] = 0x20; // more fragments
        assert_eq!(look(&frame), NetHeader::PLAIN);
        frame[20] = 0;
        frame[21] = 5; // a later fragment
        assert_eq!(look(&frame), NetHeader::PLAIN);
        frame[21] = 0;
        frame[23] = 47;
        assert_eq!(look(&frame), NetHeader::PLAIN);
    }

    #[test]
    fn tags_move_the_checksum() {
        let mut frame = ipv4_frame(TCP, 100, |pseudo| pseudo);
        frame.splice(12..12, [0x81, 0, 0, 7]);
        assert_eq!(look(&frame).csum_start, 38);
        frame.splice(12..12, [0x88, 0xa8, 0, 9]);
        assert_eq!(look(&frame).csum_start, 42);
    }

    #[test]
    fn tcp_longer_than_the_mtu_is_to_be_segmented_at_the_mtu() {
        let header = look(&ipv4_frame(TCP, 20_000, |pseudo| pseudo));
        assert_eq!((header.gso, header.gso_size, header.hdr_len), (Gso::TcpV4 { ecn: false }, 1460, 54));
        let longest = look(&ipv4_frame(TCP, 1460, |pseudo| pseudo));
        assert_eq!((longest.gso, longest.needs_csum()), (Gso::None, true));
    }

    #[test]
    fn datagrams_longer_than_the_mtu_cannot_be_helped() {
        let frame = ipv4_frame(UDP, 1473, |pseudo| pseudo);
        assert_eq!(header_of(&frame, frame.len(), 1500), None);
        assert!(header_of(&frame, frame.len(), 1501).is_some_and(|header| header.needs_csum()));
        let finished = ipv4_frame(UDP, 1473, |pseudo| !pseudo);
        assert_eq!(header_of(&finished, finished.len(), 1500), Some(NetHeader::PLAIN));
    }

    #[test]
    fn ipv6_is_seen_through_its_extension_headers() {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 0, 64]); // 24 bytes follow, hop-by-hop first
        frame.extend([0x11; 32]);
        frame.extend([UDP, 0, 0, 0, 0, 0, 0, 0]);
        let pseudo = fold(16 * 0x1111 + u32::from(UDP) + 16);
        frame.extend([0, 1, 0, 2, 0, 16]);
        frame.extend(pseudo.to_be_bytes());
        frame.extend([9; 8]);
        let header = look(&frame);
        assert_eq!((header.flags, header.csum_start, header.csum_offset), (flag::NEEDS_CSUM, 62, 6));
    }

    #[test]
    fn no_front_of_a_frame_harms() {
        let frame = ipv4_frame(TCP, 60, |pseudo| pseudo);
        for len in 0..frame.len() {
            let front = &frame[..len];
            let header = header_of(front, frame.len(), 1500).expect("not to be segmented");
            assert_eq!(header.needs_csum(), len >= 14 + 20 + 18, "{len}");
        }
        for byte in 0..=255_u8 {
            for at in 12..50 {
                let mut frame = frame.clone();
                frame[at] = byte;
                header_of(&frame, frame.len(), 1500);
                header_of(&frame, 9000, 20);
            }
        }
    }
}
