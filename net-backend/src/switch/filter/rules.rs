//! Rules as the workers read them.

use super::{Action, Direction, MacMask, Prefix, Range, Rule, top_bits};
use crate::frame::parse::{self, ethertype, protocol};
use crate::frame::{Deep, Fragment, Head, L3, MacAddr, Meta};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bits wanted under a mask; the zero mask matches everything.
#[derive(Clone, Copy, Debug, Default)]
struct Bits<T> {
    wanted: T,
    mask: T,
}

impl From<Option<MacMask>> for Bits<u64> {
    fn from(mac: Option<MacMask>) -> Self {
        mac.map_or_else(Self::default, |MacMask { mac, mask }| Self {
            wanted: mac.as_u64(),
            mask: mask.as_u64(),
        })
    }
}

impl From<Option<Prefix>> for Bits<u128> {
    fn from(prefix: Option<Prefix>) -> Self {
        prefix.map(Prefix::bits).map_or_else(Self::default, |(wanted, mask)| Self { wanted, mask })
    }
}

impl Bits<u64> {
    fn matches(self, mac: MacAddr) -> bool {
        mac.as_u64() & self.mask == self.wanted
    }
}

impl Range {
    const ALL: Self = Self { first: 0, last: u16::MAX };

    fn contains(self, n: u16) -> bool {
        (self.first..=self.last).contains(&n)
    }
}

/// Which IP packets a rule wants.
#[derive(Clone, Copy, Debug)]
struct Packet {
    /// 4 or 6 only.
    version: Option<u8>,
    src: Bits<u128>,
    dst: Bits<u128>,
    protocol: Option<u8>,
    ports: Option<(Range, Range)>,
}

#[derive(Clone, Debug)]
struct Compiled {
    deny: bool,
    ethertype: Option<u16>,
    vlan: Range,
    src_mac: Bits<u64>,
    dst_mac: Bits<u64>,
    packet: Option<Packet>,
    hits: Arc<AtomicU64>,
}

/// What a frame says about a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Yes,
    No,
    /// What the rule asks for is not there to be read: cut off, or broken.
    Unknown,
}

impl From<bool> for Match {
    fn from(matches: bool) -> Self {
        if matches { Self::Yes } else { Self::No }
    }
}

impl Packet {
    fn of(rule: &Rule) -> Option<Self> {
        let wanted = rule.src.is_some() || rule.dst.is_some() || rule.protocol.is_some();
        let ports = rule.sport.or(rule.dport);
        let version = rule.ethertype.and_then(version);
        if !wanted && ports.is_none() && version.is_none() {
            return None;
        }
        let address = rule.src.or(rule.dst).map(|prefix| prefix.address);
        Some(Self {
            version: version.or(address.map(|address| if IpAddr::is_ipv4(&address) { 4 } else { 6 })),
            src: rule.src.into(),
            dst: rule.dst.into(),
            protocol: rule.protocol,
            ports: ports.map(|_| (rule.sport.unwrap_or(Range::ALL), rule.dport.unwrap_or(Range::ALL))),
        })
    }

    fn matches(&self, meta: &Meta, deep: &Deep) -> Match {
        let (version, src, dst, fragment) = match deep.l3 {
            L3::Ipv4 { src, dst, fragment, .. } => (4, IpAddr::from(src), IpAddr::from(dst), fragment),
            L3::Ipv6 { src, dst, fragment, .. } => (6, IpAddr::from(src), IpAddr::from(dst), fragment),
            L3::None => return self.unreadable(meta.ethertype, deep),
        };
        let addresses = self.version.is_none_or(|wanted| wanted == version)
            && top_bits(src) & self.src.mask == self.src.wanted
            && top_bits(dst) & self.dst.mask == self.dst.wanted;
        if !addresses {
            return Match::No;
        }
        match self.protocol {
            Some(wanted) if wanted == deep.protocol => {}
            Some(_) if knows_protocol(deep) => return Match::No,
            Some(_) => return Match::Unknown,
            None => {}
        }
        match (self.ports, deep.ports) {
            (None, _) => Match::Yes,
            (Some((sport, dport)), Some((src, dst))) => (sport.contains(src) && dport.contains(dst)).into(),
            (Some(_), None) if fragment == Fragment::Later => Match::No,
            (Some(_), None) if deep.truncated => Match::Unknown,
            (Some(_), None) => Match::No,
        }
    }

    /// A frame that says it is IP and is not a packet that can be read, or one with tags on it up to its end.
    fn unreadable(&self, ethertype: u16, deep: &Deep) -> Match {
        match version(ethertype) {
            Some(version) if self.version.is_none_or(|wanted| wanted == version) => Match::Unknown,
            None if deep.truncated => Match::Unknown,
            _ => Match::No,
        }
    }
}

fn version(ethertype: u16) -> Option<u8> {
    match ethertype {
        ethertype::IPV4 => Some(4),
        ethertype::IPV6 => Some(6),
        _ => None,
    }
}

/// Whether [`Deep::protocol`] is that of the upper layer, and not one of the headers before it, behind which the bytes
/// at hand end.
pub(in crate::switch) fn knows_protocol(deep: &Deep) -> bool {
    use protocol::{ICMP, ICMPV6, NONE, TCP, UDP};
    !deep.truncated || matches!(deep.protocol, TCP | UDP | ICMP | ICMPV6 | NONE)
}

impl Compiled {
    fn new(rule: &Rule, hits: Arc<AtomicU64>) -> Self {
        Self {
            deny: rule.action == Action::Deny,
            // What is IP is looked for behind a second tag too.
            ethertype: rule.ethertype.filter(|ethertype| version(*ethertype).is_none()),
            vlan: rule.vlan.unwrap_or(Range::ALL),
            src_mac: rule.src_mac.into(),
            dst_mac: rule.dst_mac.into(),
            packet: Packet::of(rule),
            hits,
        }
    }

    fn matches(&self, frame: &mut Looked<'_>) -> bool {
        let meta = frame.meta;
        let layer2 = self.ethertype.is_none_or(|wanted| wanted == meta.ethertype)
            && self.vlan.contains(frame.vlan)
            && self.src_mac.matches(meta.src)
            && self.dst_mac.matches(meta.dst);
        let verdict = match &self.packet {
            _ if !layer2 => Match::No,
            None => Match::Yes,
            Some(packet) => packet.matches(meta, frame.deep()),
        };
        // What cannot be read must not get around a rule that denies, nor be let in by one that allows.
        verdict == Match::Yes || verdict == Match::Unknown && self.deny
    }
}

/// A frame, its upper layers looked at when the first rule asks.
struct Looked<'a> {
    meta: &'a Meta,
    head: &'a Head,
    vlan: u16,
    deep: Option<Deep>,
}

impl Looked<'_> {
    fn deep(&mut self) -> &Deep {
        self.deep.get_or_insert_with(|| parse::deep(self.head, self.meta))
    }
}

/// The rules of a port and how often each one decided.
#[derive(Clone, Debug, Default)]
pub(in crate::switch) struct Filter {
    inward: Vec<Compiled>,
    outward: Vec<Compiled>,
    hits: Vec<(Rule, Arc<AtomicU64>)>,
}

impl Filter {
    /// Rules that are in `before` too go on counting where they were.
    pub(in crate::switch) fn new(rules: &[Rule], before: Option<&Self>) -> Self {
        let mut old: Vec<_> = before.map(|before| before.hits.clone()).unwrap_or_default();
        let mut counter = |rule: &Rule| match old.iter().position(|(other, _)| other == rule) {
            Some(at) => old.swap_remove(at).1,
            None => Arc::default(),
        };
        let hits: Vec<_> = rules.iter().map(|rule| (*rule, counter(rule))).collect();
        let side = |direction| {
            let rules = hits.iter().filter(move |(rule, _)| rule.direction == direction);
            rules.map(|(rule, hits)| Compiled::new(rule, hits.clone())).collect()
        };
        Self { inward: side(Direction::In), outward: side(Direction::Out), hits }
    }

    fn side(&self, direction: Direction) -> &[Compiled] {
        match direction {
            Direction::In => &self.inward,
            Direction::Out => &self.outward,
        }
    }

    /// Whether frames of this direction are looked at.
    pub(in crate::switch) fn has(&self, direction: Direction) -> bool {
        !self.side(direction).is_empty()
    }

    /// Whether a frame may pass: the first rule that matches decides; without one it may.
    pub(in crate::switch) fn allows(
        &self,
        direction: Direction,
        meta: &Meta,
        head: &Head,
        vlan: u16,
    ) -> bool {
        let mut frame = Looked { meta, head, vlan, deep: None };
        match self.side(direction).iter().find(|rule| rule.matches(&mut frame)) {
            None => true,
            Some(rule) => {
                rule.hits.fetch_add(1, Relaxed);
                !rule.deny
            }
        }
    }

    /// The rules with the number of frames each decided about, in their order.
    pub(in crate::switch) fn hits(&self) -> impl Iterator<Item = (&Rule, u64)> {
        self.hits.iter().map(|(rule, hits)| (rule, hits.load(Relaxed)))
    }
}
