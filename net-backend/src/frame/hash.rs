//! Hashes of flows: the RSS hash that virtio reports (virtio 1.3 §5.1.6.4.3), and a cheap one to spread flows.

use std::fmt;

use super::parse::{self, Deep, Extensions, Fragment, L3, Meta, ethertype, protocol};
use super::{HashReport, Head};

/// Bytes of the RSS key (`rss_max_key_size`).
pub const KEY_LEN: usize = 40;
/// Bytes of the longest input: two IPv6 addresses and two ports.
pub const INPUT_MAX: usize = 36;
/// Bytes of an IPv6 header.
const IPV6_LEN: usize = 40;

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

/// What a one in bit `bit` of the input adds (XOR) to its Toeplitz hash: 32 bits of the key from there on. Input beyond the 36
/// bytes the key reaches counts with a key of zeros.
fn window(key: &[u8; KEY_LEN], bit: usize) -> u32 {
    let byte = |at: usize| u64::from(key.get(at).copied().unwrap_or(0));
    let word = (0..5).fold(0, |word, at| word << 8 | byte(bit / 8 + at));
    (word >> (8 - bit % 8)) as u32
}

/// The Toeplitz hash of `input` under `key`: the key, shifted left by one bit a bit of input, added up (XOR) where the
/// input has ones.
pub fn toeplitz(key: &[u8; KEY_LEN], input: &[u8]) -> u32 {
    let bits = (0..input.len() * 8).filter(|bit| input[bit / 8] >> (7 - bit % 8) & 1 != 0);
    bits.fold(0, |hash, bit| hash ^ window(key, bit))
}

/// What a driver set with VIRTIO_NET_CTRL_MQ_RSS_CONFIG or HASH_CONFIG: computes the hash of its received frames.
#[derive(Clone)]
pub struct Rss {
    /// The hash of each value of each four bits of input, so that a hash is as many look-ups.
    nibbles: Box<[[u32; 16]; 2 * INPUT_MAX]>,
    types: u32,
}

impl Rss {
    /// Hashes the [`types`] given, under `key`.
    pub fn new(key: [u8; KEY_LEN], types: u32) -> Self {
        let mut nibbles = Box::new([[0; 16]; 2 * INPUT_MAX]);
        for (place, row) in nibbles.iter_mut().enumerate() {
            // A guest may ask for this as often as it likes: a value differs from a lower one by its lowest bit.
            let windows = [3, 2, 1, 0].map(|bit| window(&key, 4 * place + bit));
            for value in 1..row.len() {
                row[value] = row[value & (value - 1)] ^ windows[value.trailing_zeros() as usize];
            }
        }
        Self { nibbles, types }
    }

    /// The hash of a frame and what went into it (virtio 1.3 §5.1.6.4.3).
    pub fn report(&self, head: &Head, meta: &Meta) -> HashReport {
        let deep = parse::deep(head, meta);
        let Some((input, report)) = self.input(&deep, head.as_slice()) else { return HashReport::default() };
        HashReport { value: self.hash(input.as_slice()), report }
    }

    /// [`toeplitz`] of at most [`INPUT_MAX`] bytes.
    fn hash(&self, input: &[u8]) -> u32 {
        let rows = self.nibbles.as_chunks::<2>().0;
        let byte = |([high, low], &byte): (&[[u32; 16]; 2], &u8)| {
            high[usize::from(byte >> 4)] ^ low[usize::from(byte & 0xf)]
        };
        rows.iter().zip(input).map(byte).fold(0, |hash, bits| hash ^ bits)
    }

    /// What is hashed, and what that is called.
    fn input(&self, deep: &Deep, bytes: &[u8]) -> Option<(Input, u16)> {
        match deep.l3 {
            L3::None => None,
            L3::Ipv4 { fragment, src, dst, .. } => {
                let ports = Ports::of(deep, fragment);
                let kinds = Kinds {
                    tcp: (types::TCPV4, report::TCPV4),
                    udp: (types::UDPV4, report::UDPV4),
                    ip: (types::IPV4, report::IPV4),
                };
                self.choose(kinds, ports, &src, &dst)
            }
            L3::Ipv6 { at, len, fragment, src, dst } => {
                let ports = Ports::of(deep, fragment);
                let extended = (len > IPV6_LEN).then(|| {
                    let (home, routed) = extended_addresses(bytes, at);
                    self.choose(Kinds::EXTENDED, ports, &home.unwrap_or(src), &routed.unwrap_or(dst))
                });
                extended.flatten().or_else(|| self.choose(Kinds::IPV6, ports, &src, &dst))
            }
        }
    }

    fn choose(&self, kinds: Kinds, ports: Ports, src: &[u8], dst: &[u8]) -> Option<(Input, u16)> {
        let wanted = |(kind, report): (u32, u16)| (self.types & kind != 0).then_some(report);
        let with_ports = match ports {
            Ports::Tcp(a, b) => wanted(kinds.tcp).map(|report| (report, a, b)),
            Ports::Udp(a, b) => wanted(kinds.udp).map(|report| (report, a, b)),
            Ports::None => None,
        };
        let mut input = Input::default();
        input.push(src);
        input.push(dst);
        if let Some((report, a, b)) = with_ports {
            input.push(&a.to_be_bytes());
            input.push(&b.to_be_bytes());
            return Some((input, report));
        }
        wanted(kinds.ip).map(|report| (input, report))
    }
}

impl fmt::Debug for Rss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rss").field("types", &self.types).finish_non_exhaustive()
    }
}

/// The hash type a driver must have asked for, and what is reported then.
struct Kinds {
    tcp: (u32, u16),
    udp: (u32, u16),
    ip: (u32, u16),
}

impl Kinds {
    const IPV6: Self = Self {
        tcp: (types::TCPV6, report::TCPV6),
        udp: (types::UDPV6, report::UDPV6),
        ip: (types::IPV6, report::IPV6),
    };
    const EXTENDED: Self = Self {
        tcp: (types::TCP_EX, report::TCPV6_EX),
        udp: (types::UDP_EX, report::UDPV6_EX),
        ip: (types::IP_EX, report::IPV6_EX),
    };
}

/// Ports, when all frames of the flow have them: fragments do not.
#[derive(Clone, Copy)]
enum Ports {
    None,
    Tcp(u16, u16),
    Udp(u16, u16),
}

impl Ports {
    fn of(deep: &Deep, fragment: Fragment) -> Self {
        match (deep.ports, deep.protocol) {
            (Some((a, b)), protocol::TCP) if fragment == Fragment::No => Self::Tcp(a, b),
            (Some((a, b)), protocol::UDP) if fragment == Fragment::No => Self::Udp(a, b),
            _ => Self::None,
        }
    }
}

/// Bytes to be hashed.
#[derive(Default)]
struct Input {
    bytes: [[u8; 4]; INPUT_MAX / 4],
    len: usize,
}

impl Input {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.as_flattened_mut()[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes.as_flattened()[..self.len]
    }
}

/// The home address of a mobile node (RFC 6275 section 6.3) and the one a type 2 routing header leads to (section
/// 6.4): what such a flow is known by wherever the node is.
fn extended_addresses(bytes: &[u8], at: usize) -> (Option<[u8; 16]>, Option<[u8; 16]>) {
    let (mut home, mut routed) = (None, None);
    let Some(&next) = bytes.get(at + 6) else { return (home, routed) };
    for header in Extensions::new(bytes, at + IPV6_LEN, next) {
        let Some(content) = bytes.get(header.at..header.at + header.len) else { break };
        match (header.protocol, content) {
            (protocol::DESTINATION, [_, _, options @ ..]) => home = home.or(home_address(options)),
            (protocol::ROUTING, [_, 2, 2, _, _, _, _, _, address @ ..]) => {
                routed = address.first_chunk().copied();
            }
            _ => {}
        }
    }
    (home, routed)
}

fn home_address(mut options: &[u8]) -> Option<[u8; 16]> {
    const PAD1: u8 = 0;
    const HOME_ADDRESS: u8 = 0xc9;
    loop {
        options = match options {
            [PAD1, rest @ ..] => rest,
            [HOME_ADDRESS, 16, rest @ ..] => return rest.first_chunk().copied(),
            [_, len, rest @ ..] => rest.get(usize::from(*len)..)?,
            _ => return None,
        };
    }
}

/// A cheap hash of the flow a frame belongs to, to choose a queue by: the same for all frames of a flow, and for all
/// fragments of a datagram.
#[inline]
pub fn flow(head: &Head, meta: &Meta) -> u32 {
    let at = if meta.tag.is_some() { 18 } else { 14 };
    let packet = head.as_slice().get(at..).unwrap_or_default();
    let key = match meta.ethertype {
        ethertype::IPV4 => ipv4_key(packet),
        ethertype::IPV6 => ipv6_key(packet),
        _ => None,
    };
    mix(key.unwrap_or_else(|| meta.src.as_u64() ^ meta.dst.as_u64().rotate_left(16)))
}

#[inline]
fn ipv4_key(packet: &[u8]) -> Option<u64> {
    let fixed: &[u8; 20] = packet.first_chunk()?;
    let addresses = word(&fixed[12..]);
    let plain = fixed[0] == 0x45 && fixed[6] & 0x3f == 0 && fixed[7] == 0;
    Some(addresses ^ ports(fixed[9], packet, 20).filter(|_| plain).unwrap_or(0))
}

#[inline]
fn ipv6_key(packet: &[u8]) -> Option<u64> {
    let fixed: &[u8; 40] = packet.first_chunk()?;
    let addresses =
        [8, 16, 24, 32].iter().fold(0_u64, |key, &at| key.rotate_left(13).wrapping_add(word(&fixed[at..])));
    Some(addresses ^ ports(fixed[6], packet, 40).unwrap_or(0))
}

/// Both ports, spread so that they do not just flip bits of the addresses.
#[inline]
fn ports(protocol: u8, packet: &[u8], at: usize) -> Option<u64> {
    let ports = *packet.get(at..)?.first_chunk()?;
    let known = matches!(protocol, protocol::TCP | protocol::UDP);
    known.then(|| u64::from(u32::from_ne_bytes(ports)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The first eight of the bytes, of which there are so many.
#[inline]
fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |&chunk| u64::from_ne_bytes(chunk))
}

/// Every bit of the result depends on every bit of the key.
#[inline]
fn mix(key: u64) -> u32 {
    let key = (key ^ key >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let key = (key ^ key >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (key >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of the published vectors ("Verifying the RSS Hash Calculation", Windows driver documentation).
    const KEY: [u8; KEY_LEN] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    /// Source and destination with their ports, the hash of the addresses, and of the addresses and ports.
    const VECTORS: [(&str, u16, &str, u16, u32, u32); 8] = [
        ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323e_8fc2, 0x51cc_c178),
        ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xd718_262a, 0xc626_b0ea),
        ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xd2d0_a5de, 0x5c2b_394a),
        ("38.27.205.30", 48228, "209.142.163.6", 2217, 0x8298_9176, 0xafc7_327f),
        ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5d18_09c5, 0x10e8_28a2),
        ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2cc1_8cd5, 0x4020_7d3d),
        ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0x0f0c_461c, 0xdde5_1bbf),
        (
            "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
            44251,
            "fe80::200:f8ff:fe21:67cf",
            38024,
            0x4b61_e985,
            0x02d1_feef,
        ),
    ];

    use std::net::IpAddr;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// An Ethernet frame with an IP packet of `protocol`; `extensions` go between it and the ports.
    fn frame(src: IpAddr, dst: IpAddr, first: u8, extensions: &[u8], ports: (u16, u16)) -> Vec<u8> {
        let mut frame = vec![2; 12];
        let payload = extensions.len() as u16 + 20;
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend([0x08, 0, 0x45, 0]);
                frame.extend((20 + payload).to_be_bytes());
                frame.extend([0, 0, 0, 0, 64, first, 0, 0]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(payload.to_be_bytes());
                frame.extend([first, 64]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
            }
            _ => unreachable!("addresses of one family"),
        }
        frame.extend(extensions);
        frame.extend(ports.0.to_be_bytes());
        frame.extend(ports.1.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
        frame
    }

    fn report_of(types: u32, frame: &[u8]) -> (u32, u16) {
        let head = Head::from_slice(frame);
        let meta = parse::l2(&head).expect("a frame");
        let HashReport { value, report } = Rss::new(KEY, types).report(&head, &meta);
        (value, report)
    }

    #[test]
    fn published_hashes_come_out_in_both_ways() {
        let rss = Rss::new(KEY, types::ALL);
        for (src, source_port, dst, destination_port, of_addresses, of_all) in VECTORS {
            let mut input = Vec::new();
            for address in [address(src), address(dst)] {
                match address {
                    IpAddr::V4(address) => input.extend(address.octets()),
                    IpAddr::V6(address) => input.extend(address.octets()),
                }
            }
            assert_eq!((toeplitz(&KEY, &input), rss.hash(&input)), (of_addresses, of_addresses));
            input.extend(source_port.to_be_bytes());
            input.extend(destination_port.to_be_bytes());
            assert_eq!((toeplitz(&KEY, &input), rss.hash(&input)), (of_all, of_all));
        }
    }

    #[test]
    fn frames_report_the_most_specific_type_that_was_asked_for() {
        for (src, source_port, dst, destination_port, of_addresses, of_all) in VECTORS {
            let (src, dst, ports) = (address(src), address(dst), (source_port, destination_port));
            let (tcp, udp, ip) = match src {
                IpAddr::V4(_) => (report::TCPV4, report::UDPV4, report::IPV4),
                IpAddr::V6(_) => (report::TCPV6, report::UDPV6, report::IPV6),
            };
            let only_ip = types::IPV4 | types::IPV6;
            for (protocol, specific) in [(protocol::TCP, tcp), (protocol::UDP, udp)] {
                let frame = frame(src, dst, protocol, &[], ports);
                assert_eq!(report_of(types::ALL, &frame), (of_all, specific));
                assert_eq!(report_of(only_ip, &frame), (of_addresses, ip));
                assert_eq!(report_of(0, &frame), (0, report::NONE));
            }
            assert_eq!(report_of(types::ALL, &frame(src, dst, 47, &[], ports)), (of_addresses, ip));
        }
    }

    #[test]
    fn fragments_are_hashed_by_their_addresses() {
        let (src, source_port, dst, destination_port, of_addresses, _) = VECTORS[0];
        let mut frame =
            frame(address(src), address(dst), protocol::UDP, &[], (source_port, destination_port));
        for offset in [[0x20, 0], [0x20, 185], [0, 185]] {
            frame[20..22].copy_from_slice(&offset);
            assert_eq!(report_of(types::ALL, &frame), (of_addresses, report::IPV4));
        }
    }

    #[test]
    fn extension_headers_give_the_addresses_a_mobile_node_keeps() {
        let (src, source_port, dst, destination_port, of_addresses, of_all) = VECTORS[7];
        let octets = |text| match address(text) {
            IpAddr::V6(address) => address.octets(),
            IpAddr::V4(_) => unreachable!("a vector of IPv6"),
        };
        let mut extensions = vec![protocol::DESTINATION, 2, 2, 1, 0, 0, 0, 0];
        extensions.extend(octets(dst));
        extensions.extend([protocol::TCP, 2, 1, 2, 0, 0, 0xc9, 16]);
        extensions.extend(octets(src));
        let ports = (source_port, destination_port);
        let travelling = frame(address("2001::1"), address("2001::2"), protocol::ROUTING, &extensions, ports);
        assert_eq!(report_of(types::ALL, &travelling), (of_all, report::TCPV6_EX));
        assert_eq!(report_of(types::IP_EX | types::TCPV6, &travelling), (of_addresses, report::IPV6_EX));
        let plain = frame(address("2001::1"), address("2001::2"), protocol::TCP, &[], ports);
        assert_eq!(report_of(types::TCPV6, &travelling), report_of(types::TCPV6, &plain));
        assert_eq!(report_of(types::TCP_EX, &plain), (0, report::NONE));
    }

    #[test]
    fn what_is_not_ip_has_no_hash() {
        let mut arp = vec![0xff; 12];
        arp.extend([0x08, 0x06]);
        arp.extend([0; 46]);
        assert_eq!(report_of(types::ALL, &arp), (0, report::NONE));
        assert_eq!(report_of(types::ALL, &arp[..14]), (0, report::NONE));
    }

    fn flow_of(frame: &[u8]) -> u32 {
        let head = Head::from_slice(frame);
        flow(&head, &parse::l2(&head).expect("a frame"))
    }

    #[test]
    fn flows_spread_over_queues_and_fragments_stay_together() {
        for (src, dst) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let (src, dst) = (address(src), address(dst));
            for queues in [2, 3, 4, 16] {
                let mut counts = vec![0_u32; queues];
                for port in 0..4096 {
                    let frame = frame(src, dst, protocol::TCP, &[], (32768 + port, 80));
                    counts[flow_of(&frame) as usize % queues] += 1;
                }
                let fair = 4096 / queues as u32;
                assert!(counts.iter().all(|&count| count > fair * 7 / 10), "{counts:?}");
            }
        }
        let mut fragment = frame(address("10.0.0.1"), address("10.0.0.2"), protocol::UDP, &[], (1, 2));
        fragment[20..22].copy_from_slice(&[0x20, 0]);
        let first = flow_of(&fragment);
        fragment[20..22].copy_from_slice(&[0, 100]);
        fragment[34..38].copy_from_slice(&[9, 9, 9, 9]);
        assert_eq!(flow_of(&fragment), first);
    }
}
