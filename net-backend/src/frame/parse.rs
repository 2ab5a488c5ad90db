//! Where the headers of a frame are.

use thiserror::Error;

use super::head::{Head, TAG_LEN};
use super::mac::MacAddr;

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

/// Reads the network and transport headers, as far as they are in the head.
pub fn deep(head: &Head, meta: &Meta) -> Deep {
    let at = if meta.tag.is_some() { 18 } else { 14 };
    deep_at(head.as_slice(), at, meta.ethertype)
}

/// As [`deep`], on the first bytes of a frame, with `ethertype` right before `at`.
pub(super) fn deep_at(_bytes: &[u8], _at: usize, _ethertype: u16) -> Deep {
    Deep::default()
}
