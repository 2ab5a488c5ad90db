//! A [`Policy`](super::Policy) as the workers read it: one line a port for the frames that need nothing special.

use super::filter::{Direction, Filter};
use super::guard::Guard;
use super::limit::{PricePair, StormPrices, storm_prices};
use super::policy::{MirrorTarget, PortPolicy, SwitchOptions};
use super::ports::{MAX_PORTS, PortId, PortSet};
use super::table::ticks;
use super::vlan::VlanMode;
use std::collections::{BTreeMap, HashMap};

/// What a port has that costs something.
pub(super) mod flag {
    /// The port is there. Implied by all others.
    pub(in crate::switch) const PRESENT: u32 = 1;
    /// Untagged frames are welcome, in the VLAN [`Hot::untagged`](super::Hot).
    pub(in crate::switch) const UNTAGGED: u32 = 1 << 1;
    pub(in crate::switch) const LEARN: u32 = 1 << 2;
    /// IP addresses are checked.
    pub(in crate::switch) const GUARD: u32 = 1 << 3;
    pub(in crate::switch) const FILTER_OUT: u32 = 1 << 4;
    pub(in crate::switch) const FILTER_IN: u32 = 1 << 5;
    /// Ingress limit by dropping.
    pub(in crate::switch) const POLICE: u32 = 1 << 6;
    /// Ingress limit by holding back.
    pub(in crate::switch) const ADMIT: u32 = 1 << 7;
    pub(in crate::switch) const EGRESS_LIMIT: u32 = 1 << 8;
    pub(in crate::switch) const STORM: u32 = 1 << 9;
    pub(in crate::switch) const LOOPBACK: u32 = 1 << 10;
    /// Receives mirrored frames and nothing else.
    pub(in crate::switch) const SINK: u32 = 1 << 11;
    /// Bridge group addresses pass.
    pub(in crate::switch) const RESERVED: u32 = 1 << 12;
    pub(in crate::switch) const MIRROR_OUT: u32 = 1 << 13;
    pub(in crate::switch) const MIRROR_IN: u32 = 1 << 14;
    /// Source MACs are checked.
    pub(in crate::switch) const ANTI_SPOOF: u32 = 1 << 15;

    /// What a frame is inspected for when it comes in.
    pub(in crate::switch) const INSPECT_INGRESS: u32 = GUARD | FILTER_OUT | POLICE | LOOPBACK | SINK;
    /// What a frame is inspected for when it leaves.
    pub(in crate::switch) const INSPECT_EGRESS: u32 = FILTER_IN | EGRESS_LIMIT;
    /// What makes the decision about a frame depend on more than its addresses and tag, or on the frames before.
    pub(in crate::switch) const UNSTEADY: u32 = GUARD | FILTER_OUT | POLICE | STORM | MIRROR_OUT;
}

/// What every frame of a port asks.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
pub(super) struct Hot {
    pub(super) flags: u32,
    pub(super) learn_limit: u32,
    /// VLAN of untagged frames.
    pub(super) untagged: u16,
    /// The first of the port's own addresses, as a number.
    pub(super) mac: u64,
    /// Ports that frames from here may go to at all.
    pub(super) reach: PortSet,
}

/// The rest of a port.
#[derive(Clone, Debug)]
pub(super) struct Detail {
    pub(super) vlan: VlanMode,
    pub(super) guard: Guard,
    pub(super) filter: Filter,
    pub(super) ingress: PricePair,
    pub(super) egress: PricePair,
    pub(super) storm: StormPrices,
}

/// Every VLAN's member ports; most VLANs have the same few sets.
#[derive(Clone, Debug)]
struct Members {
    of_vlan: Box<[u16; 4096]>,
    sets: Vec<PortSet>,
}

#[derive(Clone, Debug)]
pub(super) struct Compiled {
    hot: Box<[Hot; MAX_PORTS]>,
    details: Box<[Option<Box<Detail>>]>,
    members: Members,
    /// Ports that get frames to unknown addresses.
    pub(super) unknown: PortSet,
    /// Ticks.
    pub(super) aging: u32,
}

const ABSENT: Hot = Hot { flags: 0, learn_limit: 0, untagged: 0, mac: 0, reach: PortSet::EMPTY };

impl Compiled {
    pub(super) fn new(
        options: SwitchOptions,
        ports: &BTreeMap<PortId, PortPolicy>,
        before: Option<&Self>,
    ) -> Self {
        let sinks: PortSet = ports.values().filter_map(mirror_port).collect();
        let present: PortSet = ports.keys().copied().collect();
        let active = present.difference(&sinks);
        let isolated: PortSet = ids(ports, |policy| policy.isolated);
        let mut hot = Box::new([ABSENT; MAX_PORTS]);
        let mut details: Vec<_> = (0..MAX_PORTS).map(|_| None).collect();
        for (&port, policy) in ports {
            let old = before.and_then(|before| before.detail(port)).map(|detail| &detail.filter);
            let detail = Detail::new(policy, old);
            let mut reach = if policy.isolated { active.difference(&isolated) } else { active };
            reach.remove(port);
            let flags = flags(policy, &detail) | if sinks.contains(port) { flag::SINK } else { 0 };
            let untagged = policy.vlan.untagged().unwrap_or_default();
            let mac = policy.macs.first().map_or(0, |mac| mac.as_u64());
            hot[port.index()] = Hot { flags, learn_limit: policy.learn_limit(), untagged, mac, reach };
            details[port.index()] = Some(Box::new(detail));
        }
        Self {
            hot,
            details: details.into(),
            members: Members::new(ports, active),
            unknown: ids(ports, |policy| policy.flood_unknown),
            aging: ticks(options.aging),
        }
    }

    #[inline]
    pub(super) fn hot(&self, port: PortId) -> &Hot {
        self.hot.get(port.index()).unwrap_or(&ABSENT)
    }

    pub(super) fn detail(&self, port: PortId) -> Option<&Detail> {
        self.details.get(port.index())?.as_deref()
    }

    /// Ports that are members of a VLAN.
    #[inline]
    pub(super) fn members(&self, vlan: u16) -> &PortSet {
        &self.members.sets[usize::from(self.members.of_vlan[usize::from(vlan & 0xfff)])]
    }
}

fn ids(ports: &BTreeMap<PortId, PortPolicy>, wanted: impl Fn(&PortPolicy) -> bool) -> PortSet {
    ports.iter().filter(|(_, policy)| wanted(policy)).map(|(port, _)| *port).collect()
}

fn mirror_port(policy: &PortPolicy) -> Option<PortId> {
    match policy.mirror.as_ref()?.to {
        MirrorTarget::Port(port) => Some(port),
        MirrorTarget::File(_) => None,
    }
}

fn flags(policy: &PortPolicy, detail: &Detail) -> u32 {
    let mirrored = |direction| policy.mirror.as_ref().is_some_and(|mirror| mirror.wants(direction));
    let limited = policy.limits.ingress.is_limit();
    let all = [
        (flag::PRESENT, true),
        (flag::UNTAGGED, policy.vlan.untagged().is_some()),
        (flag::LEARN, policy.learning && policy.learn_limit() > 0),
        (flag::ANTI_SPOOF, policy.anti_spoof),
        (flag::GUARD, !policy.addresses.is_empty()),
        (flag::FILTER_OUT, detail.filter.has(Direction::Out)),
        (flag::FILTER_IN, detail.filter.has(Direction::In)),
        (flag::POLICE, limited && policy.uplink),
        (flag::ADMIT, limited && !policy.uplink),
        (flag::EGRESS_LIMIT, policy.limits.egress.is_limit()),
        (flag::STORM, policy.storm.is_limit()),
        (flag::LOOPBACK, policy.loopback),
        (flag::RESERVED, policy.forward_reserved),
        (flag::MIRROR_OUT, mirrored(Direction::Out)),
        (flag::MIRROR_IN, mirrored(Direction::In)),
    ];
    all.into_iter().filter(|(_, set)| *set).fold(0, |flags, (flag, _)| flags | flag)
}

impl Detail {
    fn new(policy: &PortPolicy, filter: Option<&Filter>) -> Self {
        Self {
            vlan: policy.vlan.clone(),
            guard: Guard::new(&policy.macs, &policy.addresses),
            filter: Filter::new(&policy.filter, filter),
            ingress: PricePair::new(policy.limits.ingress),
            egress: PricePair::new(policy.limits.egress),
            storm: storm_prices(&policy.storm),
        }
    }
}

impl Members {
    fn new(ports: &BTreeMap<PortId, PortPolicy>, active: PortSet) -> Self {
        let mut everywhere = PortSet::EMPTY;
        let mut some: Vec<(PortId, &VlanMode)> = Vec::new();
        for (&port, policy) in ports.iter().filter(|(port, _)| active.contains(**port)) {
            match &policy.vlan {
                VlanMode::Open => everywhere.insert(port),
                mode => some.push((port, mode)),
            }
        }
        let mut known = HashMap::new();
        let mut members = Self { of_vlan: Box::new([0; 4096]), sets: Vec::new() };
        for vlan in 0..4096u16 {
            let mut set = everywhere;
            some.iter().filter(|(_, mode)| mode.is_member(vlan)).for_each(|(port, _)| set.insert(*port));
            let number = *known.entry(set).or_insert_with(|| {
                members.sets.push(set);
                members.sets.len() as u16 - 1
            });
            members.of_vlan[usize::from(vlan)] = number;
        }
        members
    }
}
