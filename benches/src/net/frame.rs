//! The frames that are sent: templates, and the tag that makes each of them one of a kind.
//!
//! A frame is Ethernet, IPv4 and UDP (or TCP where the backend is to leave the segmentation to the receiver). Its payload
//! begins with a [`Tag`]: which stream it belongs to and its number in it. Everything of the header and the tag lies in
//! the first 64 bytes of a buffer, so a receiver that looks at the tag touches one cache line. With `--verify` the
//! rest of the payload follows from the tag, so every byte of every frame is different and can be checked.

use std::net::Ipv4Addr;

use super::wire::{GSO_TCPV4, HEADER, Header, NEEDS_CSUM};

/// Bytes of Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of IPv4 header.
const IPV4: usize = 20;
/// Bytes of UDP header.
const UDP: usize = 8;
/// Bytes of TCP header.
const TCP: usize = 20;
/// Port that all frames are for.
const PORT: u16 = 5000;
/// Bytes of a tag.
pub const TAG: usize = 8;
/// Smallest frame: all headers and a tag, with the padding of Ethernet.
pub const MIN_FRAME: usize = 60;
/// Largest frame: what the length field of IPv4 can say.
pub const MAX_FRAME: usize = ETHERNET + u16::MAX as usize;
/// Payload of the segments that a TSO frame stands for: an MTU of 1500 less IPv4 and TCP with time stamps.
pub const MSS: u16 = 1448;

/// The sender's address: locally administered, the last byte tells the guests apart.
pub const fn mac(guest: usize) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, guest as u8 + 1]
}

/// Stream and number of a frame, as 8 bytes of payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Which sender and queue.
    pub stream: u8,
    /// The how-manieth frame of that stream; 48 bits.
    pub number: u64,
}

impl Tag {
    /// Tells our frames from announcements and other traffic.
    const MAGIC: u64 = 0xb7;
    const NUMBER: u64 = (1 << 48) - 1;

    /// As it stands in the frame.
    #[inline]
    pub fn word(self) -> u64 {
        (Self::MAGIC << 56) | (u64::from(self.stream) << 48) | (self.number & Self::NUMBER)
    }

    /// `None` when these are not the first bytes of a payload of ours.
    #[inline]
    pub fn of(word: u64) -> Option<Self> {
        (word >> 56 == Self::MAGIC)
            .then_some(Self { stream: (word >> 48) as u8, number: word & Self::NUMBER })
    }
}

/// What all frames of a stream have in common.
#[derive(Clone, Debug)]
pub struct Template {
    /// virtio-net header and frame up to the payload, as they stand in a transmit buffer.
    head: Vec<u8>,
    /// Bytes of the whole frame, without the virtio-net header.
    len: usize,
}

/// From whom to whom.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// The guest that sends.
    pub from: usize,
    /// The guest that receives; the sender itself in a loop.
    pub to: usize,
    /// Queue pair of the sender: another UDP source port.
    pub queue: u16,
}

impl Template {
    /// Frames of `len` bytes; `tso`: one TCP segment that stands for many.
    pub fn new(flow: Flow, len: usize, tso: bool) -> Self {
        let transport = if tso { TCP } else { UDP };
        let mut frame = ethernet(flow);
        frame.extend(ipv4(flow, len - ETHERNET, transport));
        frame.extend(if tso { tcp(flow, len - ETHERNET - IPV4) } else { udp(flow, len - ETHERNET - IPV4) });
        let header = if tso { tso_header() } else { Header::default() };
        let head = [zerocopy::IntoBytes::as_bytes(&header), &frame].concat();
        Self { head, len }
    }

    /// The same with a UDP checksum, which is right as long as the payload is all zeroes.
    pub fn with_checksum(mut self) -> Self {
        let (at, len) = (HEADER + ETHERNET + IPV4, (self.len - ETHERNET - IPV4) as u16);
        let pseudo = sum(&self.head[at - 8..at]) + 17 + u32::from(len);
        let checksum = !fold(pseudo + sum(&self.head[at..at + UDP]));
        self.head[at + 6..at + 8].copy_from_slice(&checksum.to_be_bytes());
        self
    }

    /// A broadcast that lets a switch learn where guest `guest` is: an ARP announcement.
    pub fn announcement(guest: usize) -> Vec<u8> {
        let source = mac(guest);
        let ip = address(guest);
        let arp = [&[0, 1, 8, 0, 6, 4, 0, 1], &source[..], &ip, &[0; 6], &ip].concat();
        let mut frame = [&[0; HEADER][..], &[0xff; 6], &source, &[8, 6], &arp].concat();
        frame.resize(HEADER + MIN_FRAME, 0);
        frame
    }

    /// virtio-net header and frame up to the tag.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Offset of the tag in a buffer.
    pub fn tag_at(&self) -> usize {
        self.head.len()
    }

    /// Bytes of a buffer: virtio-net header and frame.
    pub fn buffer_len(&self) -> usize {
        HEADER + self.len
    }

    /// Bytes behind the tag.
    pub fn rest(&self) -> usize {
        self.buffer_len().saturating_sub(self.tag_at() + TAG)
    }
}

/// The payload behind a tag: a stream of numbers that follows from it.
pub fn fill(tag: u64, rest: &mut [u8]) {
    for (word, at) in rest.chunks_mut(8).zip(1u64..) {
        let bytes = mix(tag.wrapping_add(at)).to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

/// The finaliser of SplitMix64.
#[inline]
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

fn ethernet(flow: Flow) -> Vec<u8> {
    [&mac(flow.to)[..], &mac(flow.from), &[8, 0]].concat()
}

/// Documentation addresses (RFC 5737).
const fn address(guest: usize) -> [u8; 4] {
    [192, 0, 2, guest as u8 + 1]
}

fn ipv4(flow: Flow, len: usize, transport: usize) -> Vec<u8> {
    let protocol = if transport == TCP { 6 } else { 17 };
    let [high, low] = (len as u16).to_be_bytes();
    let mut header = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    header.extend(address(flow.from));
    header.extend(address(flow.to));
    let checksum = !fold(sum(&header));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

/// Where datagrams to guest `guest` go.
pub fn destination(guest: usize) -> (Ipv4Addr, u16) {
    (address(guest).into(), PORT)
}

/// Without a checksum, as UDP over IPv4 may be.
fn udp(flow: Flow, len: usize) -> Vec<u8> {
    [4000 + flow.queue, PORT, len as u16, 0].iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// ACK and PSH; the checksum field holds the sum of the pseudo header, as NEEDS_CSUM wants it (virtio 1.3 §5.1.6.2).
fn tcp(flow: Flow, len: usize) -> Vec<u8> {
    let mut header: Vec<u8> = [4000 + flow.queue, PORT, 0, 1, 0, 1, 0x5018, 0xffff]
        .iter()
        .flat_map(|word| word.to_be_bytes())
        .collect();
    let pseudo = [&address(flow.from)[..], &address(flow.to), &[0, 6], &(len as u16).to_be_bytes()].concat();
    header.extend(fold(sum(&pseudo)).to_be_bytes());
    header.extend([0, 0]);
    header
}

fn tso_header() -> Header {
    Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: ((ETHERNET + IPV4 + TCP) as u16).into(),
        gso_size: MSS.into(),
        csum_start: ((ETHERNET + IPV4) as u16).into(),
        csum_offset: 16.into(),
        num_buffers: 0.into(),
    }
}

/// One's complement sum of big-endian words (RFC 1071); `bytes` is even.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: Flow = Flow { from: 0, to: 1, queue: 3 };

    #[test]
    fn a_checksum_covers_the_pseudo_header_and_a_payload_of_zeroes() {
        let flow = Flow { from: 0, to: 1, queue: 3 };
        let template = Template::new(flow, 60, false).with_checksum();
        let frame = &template.head()[HEADER..];
        let udp = &frame[ETHERNET + IPV4..];
        let pseudo = sum(&frame[ETHERNET + 12..ETHERNET + IPV4]) + 17 + 26;
        assert_eq!(fold(pseudo + sum(udp)), 0xffff);
        assert_ne!(udp[6..8], [0, 0]);
    }

    #[test]
    fn a_udp_frame_has_right_lengths_and_a_right_ip_checksum() {
        let template = Template::new(FLOW, 1514, false);
        let frame = &template.head()[HEADER..];
        assert_eq!(&frame[..6], &mac(1));
        assert_eq!(&frame[6..12], &mac(0));
        assert_eq!(u16::from_be_bytes([frame[16], frame[17]]), 1500);
        assert_eq!(fold(sum(&frame[14..34])), 0xffff);
        assert_eq!(u16::from_be_bytes([frame[34], frame[35]]), 4003);
        assert_eq!(u16::from_be_bytes([frame[38], frame[39]]), 1480);
        assert_eq!((template.buffer_len(), template.tag_at() + TAG + template.rest()), (1526, 1526));
    }

    #[test]
    fn header_and_tag_of_a_small_frame_share_a_cache_line() {
        let template = Template::new(FLOW, MIN_FRAME, false);
        assert!(template.tag_at() + TAG <= 64);
        assert_eq!(template.tag_at() + TAG + template.rest(), HEADER + MIN_FRAME);
    }

    #[test]
    fn a_tso_frame_says_where_its_checksum_and_segments_are() {
        let template = Template::new(FLOW, 65536, true);
        let header = tso_header();
        assert_eq!((header.gso_type, header.gso_size.get(), header.hdr_len.get()), (GSO_TCPV4, MSS, 54));
        assert_eq!(header.csum_start.get() + header.csum_offset.get(), 50);
        let frame = &template.head()[HEADER..];
        assert_eq!(frame.len(), 54);
        assert_eq!(u16::from_be_bytes([frame[16], frame[17]]), 65522);
        assert_ne!(&frame[50..52], &[0, 0]);
    }

    #[test]
    fn tags_come_back_and_other_payloads_are_not_taken_for_ours() {
        let tag = Tag { stream: 7, number: 0x1234_5678_9abc };
        assert_eq!(Tag::of(tag.word()), Some(tag));
        assert_eq!(Tag::of(0), None);
    }

    #[test]
    fn the_payload_follows_from_the_tag() {
        let (mut one, mut same, mut other) = (vec![0; 100], vec![0; 100], vec![0; 100]);
        fill(1, &mut one);
        fill(1, &mut same);
        fill(2, &mut other);
        assert_eq!(one, same);
        assert_ne!(one, other);
        assert!(one.chunks(8).all(|word| word.iter().any(|&byte| byte != 0)));
    }

    #[test]
    fn an_announcement_is_a_broadcast_from_the_guest() {
        let frame = Template::announcement(1);
        assert_eq!(&frame[HEADER..HEADER + 12], [[0xff; 6], mac(1)].concat());
        assert_eq!(frame.len(), HEADER + MIN_FRAME);
    }
}
