//! Where the headers of a frame are.

use thiserror::Error;

use super::head::{Head, TAG_LEN};
use super::mac::MacAddr;

/// Bytes of an Ethernet header without a tag.
const ETHERNET: usize = 14;

/// Ethertypes a switch knows.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// RARP.
    pub const RARP: u16 = 0x8035;
    /// A VLAN tag (IEEE 802.1Q C-tag).
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// An outer VLAN tag (IEEE 802.1ad S-tag).
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// IP protocol numbers (next headers).
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// IPsec authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6: nothing follows.
    pub const NONE: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
}

/// Why a frame is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BadFrame {
    /// Shorter than an Ethernet header.
    #[error("The frame is shorter than an Ethernet header")]
    Runt,
    /// Ends inside its VLAN tag.
    #[error("The frame ends inside its VLAN tag")]
    CutTag,
    /// Two tags have been pushed already.
    #[error("The frame has no room for another VLAN tag")]
    NoRoomForTag,
}

/// A VLAN tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// Its ethertype: [`ethertype::VLAN`] or [`ethertype::SERVICE_VLAN`].
    pub tpid: u16,
    /// Priority, drop eligibility and VLAN.
    pub tci: u16,
}

impl Tag {
    /// A C-tag.
    #[inline]
    pub fn new(tci: u16) -> Self {
        Self { tpid: ethertype::VLAN, tci }
    }

    /// The VLAN, 0 for a tag that carries a priority only.
    #[inline]
    pub fn vid(self) -> u16 {
        self.tci & 0x0fff
    }

    /// The priority, 0 to 7.
    #[inline]
    pub fn pcp(self) -> u8 {
        (self.tci >> 13) as u8
    }

    /// The tag at the place of an ethertype, if that is what is there.
    #[inline]
    pub(super) fn read(&[a, b, c, d]: &[u8; TAG_LEN]) -> Option<Self> {
        let (tpid, tci) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        is_tag(tpid).then_some(Self { tpid, tci })
    }

    #[inline]
    pub(super) fn to_bytes(self) -> [u8; TAG_LEN] {
        let ([a, b], [c, d]) = (self.tpid.to_be_bytes(), self.tci.to_be_bytes());
        [a, b, c, d]
    }
}

#[inline]
fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, ethertype::VLAN | ethertype::SERVICE_VLAN)
}

/// What every frame is asked: addresses, outer tag, and what follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta {
    /// To whom.
    pub dst: MacAddr,
    /// From whom.
    pub src: MacAddr,
    /// The outer VLAN tag.
    pub tag: Option<Tag>,
    /// What follows the outer tag, or the addresses when there is none. Another tag, in a stack.
    pub ethertype: u16,
}

/// Reads the Ethernet header and the outer tag.
#[inline]
pub fn l2(head: &Head) -> Result<Meta, BadFrame> {
    let bytes = head.as_slice();
    let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1, ref rest @ ..] = bytes else {
        return Err(BadFrame::Runt);
    };
    let (dst, src) = (MacAddr([d0, d1, d2, d3, d4, d5]), MacAddr([s0, s1, s2, s3, s4, s5]));
    let ethertype = u16::from_be_bytes([t0, t1]);
    if !is_tag(ethertype) {
        return Ok(Meta { dst, src, tag: None, ethertype });
    }
    let &[c0, c1, e0, e1, ..] = rest else { return Err(BadFrame::CutTag) };
    let tag = Some(Tag { tpid: ethertype, tci: u16::from_be_bytes([c0, c1]) });
    Ok(Meta { dst, src, tag, ethertype: u16::from_be_bytes([e0, e1]) })
}

/// Whether a packet is a part of a larger one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fragment {
    /// It is whole.
    #[default]
    No,
    /// The first part, which has the transport header.
    First,
    /// A later part, which has none.
    Later,
}

/// The network header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum L3 {
    /// Not IP, or broken.
    #[default]
    None,
    /// IPv4.
    Ipv4 {
        /// Offset from the start of the frame.
        at: usize,
        /// Bytes, with options.
        len: usize,
        /// Whether it is a fragment.
        fragment: Fragment,
        /// Source address.
        src: [u8; 4],
        /// Destination address.
        dst: [u8; 4],
    },
    /// IPv6.
    Ipv6 {
        /// Offset from the start of the frame.
        at: usize,
        /// Bytes, with extension headers.
        len: usize,
        /// Whether it is a fragment.
        fragment: Fragment,
        /// Source address.
        src: [u8; 16],
        /// Destination address.
        dst: [u8; 16],
    },
}

/// The transport header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum L4 {
    /// None that is known, a later fragment, or beyond the bytes at hand.
    #[default]
    None,
    /// TCP.
    Tcp {
        /// Offset from the start of the frame.
        at: usize,
        /// Bytes, with options.
        len: usize,
    },
    /// UDP.
    Udp {
        /// Offset from the start of the frame.
        at: usize,
    },
    /// ICMP or ICMPv6.
    Icmp {
        /// Offset from the start of the frame.
        at: usize,
    },
}

/// Network and transport headers of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Deep {
    /// The network header.
    pub l3: L3,
    /// The transport header.
    pub l4: L4,
    /// The protocol after all extension headers; 0 when it is not IP.
    pub protocol: u8,
    /// Source and destination port, of TCP and UDP.
    pub ports: Option<(u16, u16)>,
    /// The headers go on behind the bytes at hand.
    pub truncated: bool,
}

/// Reads the network and transport headers, as far as they are in the head: behind at most two tags, past IPv4 options
/// and IPv6 extension headers.
pub fn deep(head: &Head, meta: &Meta) -> Deep {
    match meta.tag {
        None => behind_tags(head.as_slice(), ETHERNET, meta.ethertype, 2),
        Some(_) => behind_tags(head.as_slice(), ETHERNET + TAG_LEN, meta.ethertype, 1),
    }
}

/// As [`deep`], on the first bytes of a frame.
pub(super) fn deep_bytes(bytes: &[u8]) -> Deep {
    match be16(bytes, ETHERNET - 2) {
        Some(ethertype) => behind_tags(bytes, ETHERNET, ethertype, 2),
        None => Deep::TRUNCATED,
    }
}

fn behind_tags(bytes: &[u8], mut at: usize, mut ethertype: u16, tags: usize) -> Deep {
    for _ in 0..tags {
        if is_tag(ethertype) {
            let Some(inner) = be16(bytes, at + 2) else { return Deep::TRUNCATED };
            (at, ethertype) = (at + TAG_LEN, inner);
        }
    }
    match ethertype {
        ethertype::IPV4 => ipv4(bytes, at),
        ethertype::IPV6 => ipv6(bytes, at),
        _ => Deep::default(),
    }
}

fn ipv4(bytes: &[u8], at: usize) -> Deep {
    let Some(fixed) = array::<20>(bytes, at) else { return Deep::TRUNCATED };
    let len = usize::from(fixed[0] & 0xf) * 4;
    if fixed[0] >> 4 != 4 || len < fixed.len() {
        return Deep::default();
    }
    let offset = u16::from_be_bytes([fixed[6], fixed[7]]);
    let fragment = match (offset & 0x1fff, offset & 0x2000) {
        (0, 0) => Fragment::No,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *fixed;
    let l3 = L3::Ipv4 { at, len, fragment, src: [s0, s1, s2, s3], dst: [d0, d1, d2, d3] };
    Deep { l3, ..transport(bytes, at + len, fixed[9], fragment) }
}

fn ipv6(bytes: &[u8], at: usize) -> Deep {
    let Some(fixed) = array::<40>(bytes, at) else { return Deep::TRUNCATED };
    if fixed[0] >> 4 != 6 {
        return Deep::default();
    }
    let mut fragment = Fragment::No;
    let (mut end, mut next) = (at + fixed.len(), fixed[6]);
    for header in Extensions::new(bytes, end, next) {
        (end, next) = (header.at + header.len, header.next);
        fragment = header.fragment.unwrap_or(fragment);
    }
    let (mut src, mut dst) = ([0; 16], [0; 16]);
    src.copy_from_slice(&fixed[8..24]);
    dst.copy_from_slice(&fixed[24..]);
    let l3 = L3::Ipv6 { at, len: end - at, fragment, src, dst };
    let deep = transport(bytes, end, next, fragment);
    let cut = end > bytes.len() || (is_extension(next) && fragment != Fragment::Later);
    Deep { l3, truncated: deep.truncated || cut, ..deep }
}

/// Offset and "more" bit of an IPv6 fragment header (RFC 8200 section 4.5).
fn fragment_of(offset: [u8; 2]) -> Fragment {
    let offset = u16::from_be_bytes(offset);
    match (offset & 0xfff8, offset & 1) {
        (0, 0) => Fragment::No,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    }
}

fn transport(bytes: &[u8], at: usize, protocol: u8, fragment: Fragment) -> Deep {
    let mut deep = Deep { protocol, ..Deep::default() };
    let known = matches!(protocol, protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6);
    if fragment == Fragment::Later || !known {
        return deep;
    }
    if let Some(&[a, b, c, d]) = array(bytes, at) {
        let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        deep.ports = matches!(protocol, protocol::TCP | protocol::UDP).then_some(ports);
    }
    let needed = match protocol {
        protocol::TCP => bytes.get(at + 12).map(|offset| usize::from(offset >> 4) * 4),
        _ => Some(8),
    };
    deep.truncated = needed.is_none_or(|len| bytes.len() < at + len);
    deep.l4 = match (protocol, needed) {
        (protocol::TCP, Some(len)) if len >= 20 => L4::Tcp { at, len },
        (protocol::TCP, _) => L4::None,
        _ if bytes.len() < at + 8 => L4::None,
        (protocol::UDP, _) => L4::Udp { at },
        _ => L4::Icmp { at },
    };
    deep
}

fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::DESTINATION
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
    )
}

/// An IPv6 extension header.
#[derive(Clone, Copy)]
pub(super) struct Extension {
    /// Its own number.
    pub protocol: u8,
    /// Offset from the start of the frame.
    pub at: usize,
    /// Bytes.
    pub len: usize,
    /// The number of what follows.
    pub next: u8,
    /// What a fragment header says.
    pub fragment: Option<Fragment>,
}

/// The extension headers of an IPv6 packet, up to the transport header or to the fragment header of a later fragment,
/// behind which there is payload whatever its number says. The last one may go on behind the bytes at hand.
pub(super) struct Extensions<'a> {
    bytes: &'a [u8],
    at: usize,
    next: Option<u8>,
}

impl<'a> Extensions<'a> {
    /// Those from `at` on, the first of which is a `next`.
    pub fn new(bytes: &'a [u8], at: usize, next: u8) -> Self {
        Self { bytes, at, next: Some(next) }
    }
}

impl Iterator for Extensions<'_> {
    type Item = Extension;

    fn next(&mut self) -> Option<Extension> {
        let (protocol, at) = (self.next.filter(|&next| is_extension(next))?, self.at);
        let &[next, len, a, b] = array(self.bytes, at)?;
        let len = match protocol {
            protocol::FRAGMENT => 8,
            protocol::AUTHENTICATION => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * 8,
        };
        let fragment = (protocol == protocol::FRAGMENT).then(|| fragment_of([a, b]));
        let later = fragment == Some(Fragment::Later);
        (self.at, self.next) = (at + len, (!later).then_some(next));
        Some(Extension { protocol, at, len, next, fragment })
    }
}

impl Deep {
    const TRUNCATED: Self = Self { l3: L3::None, l4: L4::None, protocol: 0, ports: None, truncated: true };
}

#[inline]
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

#[inline]
fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).copied().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESSES: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    const TCP: [u8; 20] = [0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0, 0, 0, 0, 0, 0];

    fn v4(options: usize, offset: [u8; 2], protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet =
            vec![0x45 + (options / 4) as u8, 0, 0, 0, 0, 0, offset[0], offset[1], 64, protocol, 0, 0];
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(vec![1; options]);
        packet.extend(rest);
        packet
    }

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend([[0xfd; 16], [0xfe; 16]].as_flattened());
        packet.extend(rest);
        packet
    }

    fn parse(tags: &[u8], ethertype: u16, packet: &[u8]) -> (Meta, Deep) {
        let frame = [&ADDRESSES[..], tags, &ethertype.to_be_bytes(), packet].concat();
        let head = Head::from_slice(&frame);
        let meta = l2(&head).expect("a frame");
        assert_eq!(deep(&head, &meta), deep_bytes(head.as_slice()));
        (meta, deep(&head, &meta))
    }

    #[test]
    fn addresses_and_outer_tag_are_found() {
        let (meta, _) = parse(&[], ethertype::ARP, &[0; 46]);
        assert_eq!((meta.dst, meta.src), (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])));
        assert_eq!((meta.tag, meta.ethertype), (None, ethertype::ARP));
        let (meta, _) = parse(&[0x81, 0, 0xa1, 0x23], ethertype::ARP, &[0; 46]);
        let tag = meta.tag.expect("a tag");
        assert_eq!((tag.vid(), tag.pcp(), meta.ethertype), (0x123, 5, ethertype::ARP));
        let (meta, _) = parse(&[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2], ethertype::ARP, &[0; 46]);
        assert_eq!(meta.tag, Some(Tag { tpid: ethertype::SERVICE_VLAN, tci: 1 }));
        assert_eq!(meta.ethertype, ethertype::VLAN);
    }

    #[test]
    fn frames_that_end_too_early_are_refused() {
        let tagged = [&ADDRESSES[..], &[0x81, 0, 0, 1, 8, 0]].concat();
        for len in 0..14 {
            assert_eq!(l2(&Head::from_slice(&tagged[..len])), Err(BadFrame::Runt));
        }
        for len in 14..18 {
            assert_eq!(l2(&Head::from_slice(&tagged[..len])), Err(BadFrame::CutTag));
        }
        assert!(l2(&Head::from_slice(&tagged)).is_ok());
    }

    #[test]
    fn transport_headers_are_found_behind_tags_and_options() {
        for (tags, start) in [(&[][..], 14), (&[0x81, 0, 0, 1], 18), (&[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2], 22)]
        {
            let (_, deep) = parse(tags, ethertype::IPV4, &v4(8, [0x40, 0], protocol::TCP, &TCP));
            let (src, dst) = ([10, 0, 0, 1], [10, 0, 0, 2]);
            assert_eq!(deep.l3, L3::Ipv4 { at: start, len: 28, fragment: Fragment::No, src, dst });
            assert_eq!(deep.l4, L4::Tcp { at: start + 28, len: 20 });
            assert_eq!((deep.protocol, deep.ports, deep.truncated), (6, Some((12345, 80)), false));
        }
    }

    #[test]
    fn extension_headers_are_walked_to_the_transport_header() {
        let extensions = [
            &[protocol::DESTINATION, 0, 1, 4, 0, 0, 0, 0][..],
            &[protocol::AUTHENTICATION, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[protocol::UDP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x30, 0x39, 0, 53, 0, 8, 0, 0],
        ];
        let (_, deep) = parse(&[], ethertype::IPV6, &v6(protocol::HOP_BY_HOP, &extensions.concat()));
        let (src, dst) = ([0xfd; 16], [0xfe; 16]);
        assert_eq!(deep.l3, L3::Ipv6 { at: 14, len: 76, fragment: Fragment::No, src, dst });
        assert_eq!((deep.l4, deep.ports), (L4::Udp { at: 90 }, Some((12345, 53))));
        assert!(!deep.truncated);
    }

    #[test]
    fn later_fragments_have_no_transport_header() {
        for (offset, fragment) in
            [([0x20, 0], Fragment::First), ([0x20, 1], Fragment::Later), ([0, 1], Fragment::Later)]
        {
            let (_, v4) = parse(&[], ethertype::IPV4, &v4(0, offset, protocol::TCP, &TCP));
            let [a, b] = (u16::from_be_bytes(offset) << 3 | u16::from(offset[0] != 0)).to_be_bytes();
            let rest = [&[protocol::TCP, 0, a, b, 0, 0, 0, 7], &TCP[..]].concat();
            let (_, v6) = parse(&[], ethertype::IPV6, &v6(protocol::FRAGMENT, &rest));
            assert!(matches!(v4.l3, L3::Ipv4 { fragment: found, .. } if found == fragment));
            assert!(matches!(v6.l3, L3::Ipv6 { fragment: found, .. } if found == fragment));
            for deep in [v4, v6] {
                assert_eq!(deep.protocol, protocol::TCP);
                assert_eq!(deep.l4 == L4::None, fragment == Fragment::Later);
                assert_eq!(deep.ports.is_some(), fragment == Fragment::First);
                assert!(!deep.truncated);
            }
        }
    }

    #[test]
    fn headers_that_go_on_are_told_from_headers_that_are_wrong() {
        let udp = [0x30, 0x39, 0, 53, 0, 8, 0, 0];
        let destination = [protocol::UDP, 0, 1, 4, 0, 0, 0, 0];
        let whole = [
            (ethertype::IPV4, v4(4, [0, 0], protocol::TCP, &TCP)),
            (ethertype::IPV4, v4(0, [0, 0], protocol::UDP, &udp)),
            (ethertype::IPV6, v6(protocol::TCP, &TCP)),
            (ethertype::IPV6, v6(protocol::DESTINATION, &[&destination[..], &udp].concat())),
        ];
        for (ethertype, packet) in whole {
            for len in 0..packet.len() {
                assert!(parse(&[], ethertype, &packet[..len]).1.truncated, "{len} bytes of {packet:?}");
            }
            assert!(!parse(&[], ethertype, &packet).1.truncated);
        }
        let wrong = [
            (ethertype::IPV4, v6(protocol::TCP, &TCP)),
            (ethertype::IPV6, [v4(0, [0, 0], protocol::TCP, &TCP), vec![0; 20]].concat()),
            (ethertype::IPV4, [&[0x44], &v4(0, [0, 0], protocol::TCP, &TCP)[1..]].concat()),
        ];
        for (ethertype, packet) in wrong {
            assert_eq!(parse(&[], ethertype, &packet).1, Deep::default());
        }
    }
}
