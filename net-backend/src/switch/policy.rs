//! What the operator wants of each port.

use super::compiled::Compiled;
use super::filter::{Direction, Prefix, Rule};
use super::limit::{Limits, StormLimits};
use super::mirror::CaptureOptions;
use super::ports::{MAX_PORTS, PortId};
use super::vlan::{MAX_VLAN, VlanMode};
use crate::frame::MacAddr;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;

/// Addresses a guest's port learns at most, unless told otherwise: 64 such ports fit into a table of the default size beside
/// an uplink.
pub const DEFAULT_LEARN_LIMIT: u32 = 256;
/// Addresses an uplink learns at most, unless told otherwise: half of such a table.
pub const UPLINK_LEARN_LIMIT: u32 = 16_384;
/// Seconds after which an address that was not seen is forgotten (IEEE 802.1Q table 8-6).
pub const DEFAULT_AGING: u32 = 300;

/// Where mirrored frames go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum MirrorTarget {
    /// To this port, which then takes part in nothing else.
    Port(PortId),
    /// To a pcapng file. Mirrors of several ports may share one.
    File(CaptureOptions),
}

/// A mirror of one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MirrorPolicy {
    /// Where to.
    pub to: MirrorTarget,
    /// One direction only; `None`: both.
    #[serde(default)]
    pub direction: Option<Direction>,
}

impl MirrorPolicy {
    /// Whether frames of this direction are copied.
    pub fn wants(&self, direction: Direction) -> bool {
        self.direction.is_none_or(|wanted| wanted == direction)
    }
}

/// One port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PortPolicy {
    /// What people call it; in mirror files.
    pub name: String,
    /// Addresses that are behind this port, in its untagged VLAN, whatever other ports send.
    pub macs: Vec<MacAddr>,
    /// Frames from any other source address are dropped. Needs `macs`.
    pub anti_spoof: bool,
    /// IP addresses the guest may claim in ARP, IPv4 and IPv6; none: any. Router advertisements are then not its business
    /// either.
    pub addresses: Vec<Prefix>,
    /// VLANs.
    pub vlan: VlanMode,
    /// Talks to ports that are not isolated only.
    pub isolated: bool,
    /// The way out of the host: its frames cannot be held back, and it is never isolated.
    pub uplink: bool,
    /// Frames from the port go back to it and to nobody else.
    pub loopback: bool,
    /// Whether source addresses are learned.
    pub learning: bool,
    /// Most addresses learned; `None`: [`DEFAULT_LEARN_LIMIT`], for the uplink [`UPLINK_LEARN_LIMIT`].
    pub learn_limit: Option<u32>,
    /// Whether frames to unknown unicast addresses are sent here.
    pub flood_unknown: bool,
    /// Whether bridge group addresses (01:80:c2:00:00:0x) from this port are forwarded.
    pub forward_reserved: bool,
    /// Rate limits.
    pub limits: Limits,
    /// Storm control of frames from this port.
    pub storm: StormLimits,
    /// Filter rules, first match wins, none: allow.
    pub filter: Vec<Rule>,
    /// Copies of frames from and to this port.
    pub mirror: Option<MirrorPolicy>,
}

impl Default for PortPolicy {
    fn default() -> Self {
        Self {
            name: String::new(),
            macs: Vec::new(),
            anti_spoof: false,
            addresses: Vec::new(),
            vlan: VlanMode::Open,
            isolated: false,
            uplink: false,
            loopback: false,
            learning: true,
            learn_limit: None,
            flood_unknown: true,
            forward_reserved: false,
            limits: Limits::default(),
            storm: StormLimits::default(),
            filter: Vec::new(),
            mirror: None,
        }
    }
}

/// What all ports share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SwitchOptions {
    /// Seconds after which an address that was not seen is forgotten.
    pub aging: u32,
}

impl Default for SwitchOptions {
    fn default() -> Self {
        Self { aging: DEFAULT_AGING }
    }
}

/// A port as an error names it: what it is called, or its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortName(String);

impl PortName {
    fn of(ports: &BTreeMap<PortId, PortPolicy>, port: PortId) -> Self {
        match ports.get(&port) {
            Some(policy) if !policy.name.is_empty() => Self(format!("'{}'", policy.name)),
            _ => Self(port.to_string()),
        }
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a policy cannot be: which port and what is wrong with it, by the name of the option.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Port {port}: {why}")]
pub struct PolicyError {
    /// Where.
    pub port: PortName,
    /// What.
    pub why: PortError,
}

/// What is wrong with the policy of a port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// No such number.
    #[error("a switch has at most {MAX_PORTS} ports")]
    TooManyPorts,
    /// A VLAN there is not.
    #[error("vlan: {0} is not from 1 to {MAX_VLAN}")]
    Vlan(u16),
    /// No frame would get in.
    #[error("trunk: no VLAN is allowed and there is no native one")]
    EmptyTrunk,
    /// Every frame would be dropped.
    #[error("anti-spoof needs to know the port's address: give it a mac")]
    NoMac,
    /// A group address or zero.
    #[error("mac: {0} is not the address of a station")]
    NotUnicast(MacAddr),
    /// Two ports want the same address.
    #[error("mac: {mac} is already an address of port {other} in the same VLAN")]
    DuplicateMac {
        /// What.
        mac: MacAddr,
        /// Where else.
        other: PortName,
    },
    /// An isolated uplink could reach nobody it is for.
    #[error("isolated: an uplink cannot be isolated")]
    IsolatedUplink,
    /// The mirror's target is not there, or cannot be one.
    #[error("mirror: port {target} {why}")]
    MirrorPort {
        /// To.
        target: PortName,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two mirrors write one file in different ways.
    #[error("mirror: {path} is written with other options by port {other}", path = .path.display())]
    MirrorFile {
        /// Which file.
        path: PathBuf,
        /// Where else.
        other: PortName,
    },
    /// Options of a file that make no sense.
    #[error("mirror: {0}")]
    MirrorOptions(&'static str),
}

/// An immutable snapshot: checked, and compiled into what the workers read.
#[derive(Clone, Debug)]
pub struct Policy {
    options: SwitchOptions,
    ports: BTreeMap<PortId, PortPolicy>,
    pub(super) compiled: Compiled,
}

impl Policy {
    /// Checks and compiles.
    pub fn new(options: SwitchOptions, ports: BTreeMap<PortId, PortPolicy>) -> Result<Self, PolicyError> {
        Self::build(options, ports, None)
    }

    fn build(
        options: SwitchOptions,
        ports: BTreeMap<PortId, PortPolicy>,
        before: Option<&Compiled>,
    ) -> Result<Self, PolicyError> {
        check(&ports)?;
        let compiled = Compiled::new(options, &ports, before);
        Ok(Self { options, ports, compiled })
    }

    /// The same with this port added or changed. Counters of rules that stay go on.
    pub fn with_port(&self, port: PortId, policy: PortPolicy) -> Result<Self, PolicyError> {
        let mut ports = self.ports.clone();
        ports.insert(port, policy);
        Self::build(self.options, ports, Some(&self.compiled))
    }

    /// The same without this port.
    pub fn without_port(&self, port: PortId) -> Result<Self, PolicyError> {
        let mut ports = self.ports.clone();
        ports.remove(&port);
        Self::build(self.options, ports, Some(&self.compiled))
    }

    /// The same ports with these options.
    pub fn with_options(&self, options: SwitchOptions) -> Result<Self, PolicyError> {
        Self::build(options, self.ports.clone(), Some(&self.compiled))
    }

    /// What was asked of a port.
    pub fn port(&self, port: PortId) -> Option<&PortPolicy> {
        self.ports.get(&port)
    }

    /// What to call a port in a message.
    pub fn port_name(&self, port: PortId) -> PortName {
        PortName::of(&self.ports, port)
    }

    /// All ports.
    pub fn ports(&self) -> &BTreeMap<PortId, PortPolicy> {
        &self.ports
    }

    /// What all ports share.
    pub fn options(&self) -> SwitchOptions {
        self.options
    }

    /// The filter rules of a port with the number of frames each decided about, in their order.
    pub fn rule_hits(&self, port: PortId) -> Vec<(Rule, u64)> {
        let detail = self.compiled.detail(port);
        detail
            .map(|detail| detail.filter.hits().map(|(rule, hits)| (*rule, hits)).collect())
            .unwrap_or_default()
    }
}

impl PortPolicy {
    /// Most addresses the port learns.
    pub fn learn_limit(&self) -> u32 {
        self.learn_limit.unwrap_or(if self.uplink { UPLINK_LEARN_LIMIT } else { DEFAULT_LEARN_LIMIT })
    }

    /// The static entries of the port: its addresses in its untagged VLAN; without one, in no VLAN.
    pub(super) fn static_entries(&self) -> impl Iterator<Item = (u16, MacAddr)> + '_ {
        self.vlan.untagged().into_iter().flat_map(|vlan| self.macs.iter().map(move |mac| (vlan, *mac)))
    }

    fn check(&self) -> Result<(), PortError> {
        if let Some(vlan) = self.vlan.invalid() {
            return Err(PortError::Vlan(vlan));
        }
        if matches!(&self.vlan, VlanMode::Trunk { allowed, native: None } if allowed.is_empty()) {
            return Err(PortError::EmptyTrunk);
        }
        if self.anti_spoof && self.macs.is_empty() {
            return Err(PortError::NoMac);
        }
        if self.uplink && self.isolated {
            return Err(PortError::IsolatedUplink);
        }
        match self.macs.iter().find(|mac| mac.is_multicast() || mac.is_zero()) {
            Some(mac) => Err(PortError::NotUnicast(*mac)),
            None => Ok(()),
        }
    }
}

/// What only one port may have, and which port has it.
#[derive(Default)]
struct Owners<'a> {
    macs: HashMap<(u16, MacAddr), PortId>,
    files: HashMap<&'a PathBuf, (PortId, &'a CaptureOptions)>,
}

fn check(ports: &BTreeMap<PortId, PortPolicy>) -> Result<(), PolicyError> {
    let mut owners = Owners::default();
    ports.iter().try_for_each(|(&port, policy)| {
        let checked = check_port(ports, port, policy, &mut owners);
        checked.map_err(|why| PolicyError { port: PortName::of(ports, port), why })
    })
}

fn check_port<'a>(
    ports: &'a BTreeMap<PortId, PortPolicy>,
    port: PortId,
    policy: &'a PortPolicy,
    owners: &mut Owners<'a>,
) -> Result<(), PortError> {
    if port.index() >= MAX_PORTS {
        return Err(PortError::TooManyPorts);
    }
    policy.check()?;
    for entry in policy.static_entries() {
        match owners.macs.insert(entry, port) {
            Some(other) if other != port => {
                return Err(PortError::DuplicateMac { mac: entry.1, other: PortName::of(ports, other) });
            }
            _ => {}
        }
    }
    match policy.mirror.as_ref().map(|mirror| &mirror.to) {
        None => Ok(()),
        Some(MirrorTarget::Port(target)) => check_target(ports, port, *target),
        Some(MirrorTarget::File(options)) => {
            options.check().map_err(PortError::MirrorOptions)?;
            let (other, first) = *owners.files.entry(&options.path).or_insert((port, options));
            let other = PortName::of(ports, other);
            if first == options {
                Ok(())
            } else {
                Err(PortError::MirrorFile { path: options.path.clone(), other })
            }
        }
    }
}

fn check_target(ports: &BTreeMap<PortId, PortPolicy>, port: PortId, target: PortId) -> Result<(), PortError> {
    let why = match ports.get(&target) {
        _ if target == port => "is the mirrored one itself",
        None => "is not there",
        Some(policy) if policy.uplink => "is the uplink, which cannot be taken out of the switch",
        Some(policy) if policy.mirror.is_some() => "is mirrored itself",
        Some(_) => return Ok(()),
    };
    Err(PortError::MirrorPort { target: PortName::of(ports, target), why })
}
