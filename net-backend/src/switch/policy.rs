//! What the operator wants of each port.

use super::filter::{Direction, Prefix, Rule};
use super::limit::{Limits, StormLimits};
use super::ports::PortId;
use super::vlan::VlanMode;
use crate::frame::MacAddr;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Learned addresses of a guest's port, unless told otherwise.
pub const DEFAULT_LEARN_LIMIT: u32 = 1024;
/// Seconds after which an address that was not seen is forgotten (IEEE 802.1Q table 8-6).
pub const DEFAULT_AGING: u32 = 300;

/// Where mirrored frames go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum MirrorTarget {
    /// To this port, which then takes part in nothing else.
    Port(PortId),
    /// To a pcapng file.
    File(PathBuf),
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

/// One port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PortPolicy {
    /// Addresses that are behind this port, in its untagged VLAN, whatever other ports send.
    pub macs: Vec<MacAddr>,
    /// Frames from any other source address are dropped. Needs `macs`.
    pub anti_spoof: bool,
    /// IP addresses the guest may claim in ARP, IPv4 and IPv6; none: any.
    pub addresses: Vec<Prefix>,
    /// VLANs.
    pub vlan: VlanMode,
    /// Talks to ports that are not isolated only.
    pub isolated: bool,
    /// The way out of the host: its frames cannot be held back, and it learns without limit.
    pub uplink: bool,
    /// Frames from the port go back to it and to nobody else.
    pub loopback: bool,
    /// Whether source addresses are learned.
    pub learning: bool,
    /// Most addresses learned; `None`: [`DEFAULT_LEARN_LIMIT`], for the uplink no limit.
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

/// Why a policy cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// More ports than a switch has.
    #[error("port {0}: a switch has at most {max} ports", max = super::MAX_PORTS)]
    TooManyPorts(PortId),
}

/// An immutable snapshot: checked, and compiled into what the workers read.
#[derive(Clone, Debug)]
pub struct Policy {
    options: SwitchOptions,
    ports: BTreeMap<PortId, PortPolicy>,
}

impl Policy {
    /// Checks and compiles.
    pub fn new(options: SwitchOptions, ports: BTreeMap<PortId, PortPolicy>) -> Result<Self, PolicyError> {
        match ports.keys().find(|port| port.index() >= super::MAX_PORTS) {
            Some(port) => Err(PolicyError::TooManyPorts(*port)),
            None => Ok(Self { options, ports }),
        }
    }

    /// The same with this port added or changed. Counters of unchanged rules go on.
    pub fn with_port(&self, port: PortId, policy: PortPolicy) -> Result<Self, PolicyError> {
        let mut ports = self.ports.clone();
        ports.insert(port, policy);
        Self::new(self.options, ports)
    }

    /// The same without this port.
    pub fn without_port(&self, port: PortId) -> Result<Self, PolicyError> {
        let mut ports = self.ports.clone();
        ports.remove(&port);
        Self::new(self.options, ports)
    }

    /// What was asked of a port.
    pub fn port(&self, port: PortId) -> Option<&PortPolicy> {
        self.ports.get(&port)
    }

    /// All ports.
    pub fn ports(&self) -> &BTreeMap<PortId, PortPolicy> {
        &self.ports
    }

    /// What all ports share.
    pub fn options(&self) -> SwitchOptions {
        self.options
    }
}
