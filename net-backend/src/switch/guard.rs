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
