//! Stateless filter rules.

mod rules;
#[cfg(test)]
mod tests;
mod text;

pub(super) use rules::{Filter, knows_protocol};
pub use text::InvalidRule;

use crate::frame::MacAddr;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Which way a frame goes, seen from the guest behind the port: `In` to the guest, `Out` of the guest into the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the switch to the port.
    In,
    /// From the port into the switch.
    Out,
}

/// What a rule does with a frame it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Let it pass, whatever later rules say.
    Allow,
    /// Drop it.
    Deny,
}

/// A MAC address under a mask, `52:54:00:00:00:00/ff:ff:ff:00:00:00`; without the mask all bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacMask {
    /// The bits wanted; none outside the mask.
    pub mac: MacAddr,
    /// The bits compared.
    pub mask: MacAddr,
}

/// An IPv4 or IPv6 prefix, `10.0.0.0/8`; without a length all bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The network; no bits beyond `len`.
    pub address: IpAddr,
    /// Bits compared.
    pub len: u8,
}

/// Numbers from `first` to `last`, both included: `53` or `1024-2047`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// Lowest.
    pub first: u16,
    /// Highest.
    pub last: u16,
}

/// One rule, written `in deny ip4 src 10.0.0.0/8 udp dport 53`. What is `None` matches everything.
///
/// ```text
/// in|out allow|deny
///   [ip4|ip6|arp|ethertype N] [vlan A[-B]] [src-mac M[/MASK]] [dst-mac M[/MASK]]
///   [src PREFIX] [dst PREFIX] [tcp|udp|icmp|icmp6|sctp|proto N] [sport A[-B]] [dport A[-B]]
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Frames to or from the port.
    pub direction: Direction,
    /// What happens to them.
    pub action: Action,
    /// EtherType behind the VLAN tag.
    pub ethertype: Option<u16>,
    /// VLAN as the switch sees it: of the tag, or of the port.
    pub vlan: Option<Range>,
    /// Source MAC.
    pub src_mac: Option<MacMask>,
    /// Destination MAC.
    pub dst_mac: Option<MacMask>,
    /// Source address.
    pub src: Option<Prefix>,
    /// Destination address.
    pub dst: Option<Prefix>,
    /// IP protocol, behind IPv6 extension headers.
    pub protocol: Option<u8>,
    /// Source port of TCP or UDP.
    pub sport: Option<Range>,
    /// Destination port of TCP or UDP.
    pub dport: Option<Range>,
}

impl Rule {
    /// A rule that matches every frame of a direction.
    pub const fn every(direction: Direction, action: Action) -> Self {
        Self {
            direction,
            action,
            ethertype: None,
            vlan: None,
            src_mac: None,
            dst_mac: None,
            src: None,
            dst: None,
            protocol: None,
            sport: None,
            dport: None,
        }
    }
}

impl Prefix {
    /// The compared bits, from the top of 128, and their mask; IPv4 in the upper 32.
    fn bits(self) -> (u128, u128) {
        let bits = top_bits(self.address);
        let mask = u128::MAX.checked_shl(128 - u32::from(self.len)).unwrap_or(0);
        (bits & mask, mask)
    }

    /// Whether there are no bits beyond the length.
    fn is_network(self) -> bool {
        self.bits().0 == top_bits(self.address)
    }

    /// Whether `address` is of this family and in this network.
    pub fn contains(self, address: IpAddr) -> bool {
        let (bits, mask) = self.bits();
        self.address.is_ipv4() == address.is_ipv4() && top_bits(address) & mask == bits
    }
}

fn top_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}
