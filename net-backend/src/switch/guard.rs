//! Which addresses a guest may claim (`anti-spoof`, `addresses`).

use super::filter::{Prefix, knows_protocol};
use super::reason::Drop;
use crate::frame::parse::{self, ethertype, protocol};
use crate::frame::{Deep, Fragment, Head, L3, L4, MacAddr, Meta};
use std::net::{IpAddr, Ipv6Addr};

/// Offset of the ARP packet's fields from its start (RFC 826): hardware type Ethernet, protocol IPv4, lengths 6 and 4.
const ARP_BEGINNING: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ARP_SENDER_MAC: usize = 8;
const ARP_SENDER_IP: usize = 14;

/// ICMPv6 types of neighbour discovery (RFC 4861 §4).
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// Offset of the target address in a neighbour advertisement.
const ADVERTISED: usize = 8;

/// An ethertype below this is a length: an LLC header follows (IEEE 802.3 §3.2.6).
const ETHERTYPES: u16 = 0x600;

/// Whether an LLC header names an ethertype (RFC 1042; IEEE 802.1H), which some receivers go by.
fn is_encapsulated(llc: [u8; 6]) -> bool {
    matches!(llc, [0xaa, 0xaa, 3, 0, 0, 0 | 0xf8])
}

/// What a port may claim.
#[derive(Clone, Debug, Default)]
pub(super) struct Guard {
    macs: Vec<MacAddr>,
    addresses: Vec<Prefix>,
}

fn bytes<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..at.checked_add(N)?)?.try_into().ok()
}

impl Guard {
    pub(super) fn new(macs: &[MacAddr], addresses: &[Prefix]) -> Self {
        Self { macs: macs.to_vec(), addresses: addresses.to_vec() }
    }

    /// Whether `mac` is one of the port's.
    pub(super) fn owns_mac(&self, mac: MacAddr) -> bool {
        self.macs.contains(&mac)
    }

    /// Refuses a frame that claims an IP address that is not the port's.
    pub(super) fn check(&self, meta: &Meta, head: &Head) -> Result<(), Drop> {
        match self.claims_only_its_own(meta, head) {
            Some(true) => Ok(()),
            _ => Err(Drop::SpoofedAddress),
        }
    }

    fn owns(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        self.addresses.iter().any(|prefix| prefix.contains(address))
    }

    /// `None`: the frame is too short, or too deep, to tell.
    fn claims_only_its_own(&self, meta: &Meta, head: &Head) -> Option<bool> {
        let frame = head.as_slice();
        let at = if meta.tag.is_some() { 18 } else { 14 };
        match meta.ethertype {
            ethertype::ARP => self.arp(frame, at, meta.src),
            ethertype::RARP => Some(bytes(frame, at + ARP_SENDER_MAC).map(MacAddr)? == meta.src),
            ethertype::IPV4 | ethertype::IPV6 => self.ip(frame, &parse::deep(head, meta)),
            ..ETHERTYPES => Some(!bytes(frame, at).is_some_and(is_encapsulated)),
            // What a second tag covers is not looked at, so it is not let through either.
            ethertype::VLAN | ethertype::SERVICE_VLAN => Some(false),
            _ => Some(true),
        }
    }

    /// The sender of an ARP packet: 0.0.0.0 asks whether an address is free (RFC 5227 §2.1.1).
    fn arp(&self, frame: &[u8], at: usize, src: MacAddr) -> Option<bool> {
        let beginning: [u8; 6] = bytes(frame, at)?;
        let mac = MacAddr(bytes(frame, at + ARP_SENDER_MAC)?);
        let ip: [u8; 4] = bytes(frame, at + ARP_SENDER_IP)?;
        Some(beginning == ARP_BEGINNING && mac == src && (ip == [0; 4] || self.owns(ip)))
    }

    fn ip(&self, frame: &[u8], deep: &Deep) -> Option<bool> {
        match deep.l3 {
            L3::None => None,
            // 0.0.0.0: a guest that asks for its address by DHCP (RFC 2131 §4.1).
            L3::Ipv4 { src, .. } => Some(src == [0; 4] || self.owns(src)),
            L3::Ipv6 { src, fragment, .. } => {
                let address = Ipv6Addr::from(src);
                let own = address.is_unspecified() || address.is_unicast_link_local() || self.owns(address);
                Some(own && self.discovery(frame, deep, fragment)?)
            }
        }
    }

    /// Neighbour discovery: no router's messages, and no neighbour's address. Its messages are not fragmented (RFC 6980 §5), nor
    /// put behind more headers than a switch can see.
    fn discovery(&self, frame: &[u8], deep: &Deep, fragment: Fragment) -> Option<bool> {
        if deep.protocol != protocol::ICMPV6 || fragment == Fragment::Later {
            return (fragment == Fragment::Later || knows_protocol(deep)).then_some(true);
        }
        let L4::Icmp { at } = deep.l4 else { return None };
        match *frame.get(at)? {
            ROUTER_ADVERTISEMENT | REDIRECT => Some(false),
            NEIGHBOR_ADVERTISEMENT => {
                let target = Ipv6Addr::from(bytes::<16>(frame, at + ADVERTISED)?);
                Some(target.is_unicast_link_local() || self.owns(target))
            }
            _ => Some(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

    fn guard() -> Guard {
        let addresses = ["10.0.0.5", "2001:db8::5", "10.1.0.0/16"].map(|text| text.parse().unwrap());
        Guard::new(&[MacAddr(MAC)], &addresses)
    }

    fn check(ethertype: u16, payload: &[u8]) -> Result<(), Drop> {
        let bytes = [&[0xff; 6], MAC.as_slice(), &ethertype.to_be_bytes(), payload].concat();
        let head = Head::from_slice(&bytes);
        guard().check(&parse::l2(&head).unwrap(), &head)
    }

    fn arp(mac: [u8; 6], ip: [u8; 4]) -> Vec<u8> {
        [[0, 1, 8, 0, 6, 4, 0, 1].as_slice(), &mac, &ip, &[0; 10]].concat()
    }

    fn ipv4(src: [u8; 4]) -> Vec<u8> {
        [[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 17, 0, 0].as_slice(), &src, &[0; 30]].concat()
    }

    fn ipv6(src: &str, next: u8, payload: &[u8]) -> Vec<u8> {
        let src: Ipv6Addr = src.parse().unwrap();
        [[0x60, 0, 0, 0, 0, 40, next, 255].as_slice(), &src.octets(), &[0xff; 16], payload].concat()
    }

    fn discovery(kind: u8, target: &str) -> Vec<u8> {
        let target: Ipv6Addr = target.parse().unwrap();
        [[kind, 0, 0, 0, 0, 0, 0, 0].as_slice(), &target.octets()].concat()
    }

    const REFUSED: Result<(), Drop> = Err(Drop::SpoofedAddress);
    const ICMPV6: u8 = 58;

    #[test]
    fn arp_claims_the_ports_own_addresses_only() {
        assert_eq!(check(ethertype::ARP, &arp(MAC, [10, 0, 0, 5])), Ok(()));
        assert_eq!(check(ethertype::ARP, &arp(MAC, [10, 1, 7, 7])), Ok(()));
        assert_eq!(check(ethertype::ARP, &arp(MAC, [0; 4])), Ok(()), "a probe");
        assert_eq!(check(ethertype::ARP, &arp(MAC, [10, 0, 0, 6])), REFUSED);
        assert_eq!(check(ethertype::ARP, &arp([2; 6], [10, 0, 0, 5])), REFUSED);
        let mut odd = arp(MAC, [10, 0, 0, 5]);
        odd[4] = 8;
        assert_eq!(check(ethertype::ARP, &odd), REFUSED, "an address length that moves the sender elsewhere");
        assert_eq!(check(ethertype::ARP, &arp(MAC, [10, 0, 0, 5])[..17]), REFUSED, "cut off");
        assert_eq!(check(ethertype::RARP, &arp([2; 6], [0; 4])), REFUSED);
    }

    #[test]
    fn ip_comes_from_the_ports_own_addresses_only() {
        assert_eq!(check(ethertype::IPV4, &ipv4([10, 0, 0, 5])), Ok(()));
        assert_eq!(check(ethertype::IPV4, &ipv4([0; 4])), Ok(()), "DHCP");
        assert_eq!(check(ethertype::IPV4, &ipv4([10, 0, 0, 6])), REFUSED);
        assert_eq!(check(ethertype::IPV4, &[0x45, 0, 0]), REFUSED);
        for own in ["2001:db8::5", "fe80::1", "::"] {
            assert_eq!(check(ethertype::IPV6, &ipv6(own, 17, &[0; 8])), Ok(()), "{own}");
        }
        assert_eq!(check(ethertype::IPV6, &ipv6("2001:db8::6", 17, &[0; 8])), REFUSED);
        assert_eq!(check(0x88cc, &[0; 46]), Ok(()), "what is not IP has no address");
        let snap = |oui: [u8; 3]| [&[0xaa, 0xaa, 3][..], &oui, &[8, 0], &ipv4([10, 0, 0, 6])].concat();
        assert_eq!(check(58, &snap([0, 0, 0])), REFUSED, "IPv4 behind an LLC header");
        assert_eq!(check(58, &snap([0, 0, 0x0c])), Ok(()), "a protocol of somebody's own");
        assert_eq!(check(38, &[0x42; 38]), Ok(()), "spanning tree");
    }

    #[test]
    fn neighbours_are_not_taken_over_and_routers_not_played() {
        let sent = |payload: &[u8]| check(ethertype::IPV6, &ipv6("fe80::1", ICMPV6, payload));
        assert_eq!(sent(&discovery(NEIGHBOR_ADVERTISEMENT, "2001:db8::5")), Ok(()));
        assert_eq!(sent(&discovery(NEIGHBOR_ADVERTISEMENT, "fe80::1")), Ok(()));
        assert_eq!(sent(&discovery(NEIGHBOR_ADVERTISEMENT, "2001:db8::1")), REFUSED);
        assert_eq!(sent(&discovery(135, "2001:db8::1")), Ok(()), "asking is allowed");
        assert_eq!(sent(&discovery(ROUTER_ADVERTISEMENT, "::")), REFUSED);
        assert_eq!(sent(&discovery(REDIRECT, "::")), REFUSED);
        assert_eq!(sent(&[]), REFUSED);
    }

    #[test]
    fn headers_before_an_advertisement_do_not_hide_it() {
        let options = |len: u8| [[ICMPV6, len].as_slice(), &vec![0; 6 + usize::from(len) * 8]].concat();
        let advertisement = discovery(ROUTER_ADVERTISEMENT, "::");
        let short = [options(0), advertisement.clone()].concat();
        let long = [options(20), advertisement].concat();
        for payload in [short, long] {
            assert_eq!(check(ethertype::IPV6, &ipv6("fe80::1", 60, &payload)), REFUSED);
        }
        assert_eq!(check(ethertype::VLAN, &[0; 50]), Ok(()), "one tag, and no IP behind it");
        let stacked = [[0, 0, 0x81, 0, 0, 0, 8, 0].as_slice(), &ipv4([10, 0, 0, 6])].concat();
        assert_eq!(check(ethertype::VLAN, &stacked), REFUSED);
    }
}
