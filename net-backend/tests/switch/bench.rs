//! A switch on a bench: ports, frames in, verdicts and tag edits out.

pub use net_backend::frame::{Head, MacAddr, Meta, parse};
pub use net_backend::switch::{
    AdoptError, CaptureOptions, Direction, Drop, Fabric, Mirror, MirrorPolicy, MirrorTarget, Policy, PortId,
    PortPolicy, PortSet, Rate, RatePair, ReceiveFilter, StormLimits, Switch, SwitchOptions, TagEdit, To,
    Verdict, VlanMode, VlanSet,
};
pub use std::collections::BTreeMap;
pub use std::sync::Arc;

pub const A: PortId = PortId(0);
pub const B: PortId = PortId(1);
pub const C: PortId = PortId(200);
pub const UPLINK: PortId = PortId(255);
pub const SECOND: u64 = 1_000_000_000;

pub fn mac(n: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, n])
}

/// A frame with these tags, innermost last, and a UDP datagram's worth of zeros.
pub fn frame(dst: MacAddr, src: MacAddr, tags: &[u16]) -> Vec<u8> {
    let mut bytes = [dst.0, src.0].concat();
    tags.iter().for_each(|tci| bytes.extend([[0x81, 0], tci.to_be_bytes()].concat()));
    bytes.extend([0x08, 0x00]);
    bytes.resize(64, 0);
    bytes
}

pub struct Bench {
    pub fabric: Arc<Fabric>,
    pub switch: Switch,
    pub now: u64,
}

impl Bench {
    pub fn new(ports: impl IntoIterator<Item = (PortId, PortPolicy)>) -> Self {
        let policy =
            Policy::new(SwitchOptions::default(), ports.into_iter().collect()).expect("a good policy");
        let fabric = Arc::new(Fabric::new(1));
        fabric.adopt(&policy).expect("room for the static addresses");
        let switch = Switch::new(fabric.clone(), Arc::new(policy));
        Self { fabric, switch, now: 1000 * SECOND }
    }

    pub fn plain(ports: &[PortId]) -> Self {
        Self::new(ports.iter().map(|port| (*port, PortPolicy::default())))
    }

    pub fn change(&mut self, change: impl FnOnce(&Policy) -> Policy) {
        let policy = change(self.switch.policy());
        self.fabric.adopt(&policy).expect("room for the static addresses");
        self.switch.set_policy(Arc::new(policy));
    }

    pub fn bytes_in(&mut self, port: PortId, bytes: &[u8]) -> Result<Verdict, Drop> {
        let head = Head::from_slice(bytes);
        let meta = parse::l2(&head).expect("an Ethernet header");
        self.switch.ingress(port, &meta, &head, bytes.len(), self.now)
    }

    pub fn tagged(
        &mut self,
        port: PortId,
        dst: MacAddr,
        src: MacAddr,
        tags: &[u16],
    ) -> Result<Verdict, Drop> {
        self.bytes_in(port, &frame(dst, src, tags))
    }

    pub fn send(&mut self, port: PortId, dst: MacAddr, src: MacAddr) -> Result<To, Drop> {
        self.tagged(port, dst, src, &[]).map(|verdict| verdict.to)
    }

    /// What leaves at each port that the frame gets to.
    pub fn forward(&mut self, port: PortId, bytes: &[u8]) -> BTreeMap<PortId, Result<TagEdit, Drop>> {
        let Ok(verdict) = self.bytes_in(port, bytes) else { return BTreeMap::new() };
        let ports = match verdict.to {
            To::Port(port) => [port].into_iter().collect(),
            To::Flood(ports) => ports,
            To::None(_) => PortSet::EMPTY,
        };
        ports.iter().map(|to| (to, self.leave(to, &verdict, bytes))).collect()
    }

    pub fn leave(&mut self, port: PortId, verdict: &Verdict, bytes: &[u8]) -> Result<TagEdit, Drop> {
        let head = Head::from_slice(bytes);
        let meta = parse::l2(&head).expect("an Ethernet header");
        self.switch.egress(port, verdict, &meta, &head, bytes.len(), self.now)
    }
}

pub fn flood(ports: &[PortId]) -> Result<To, Drop> {
    Ok(To::Flood(ports.iter().copied().collect()))
}

pub fn port(edit: impl FnOnce(&mut PortPolicy)) -> PortPolicy {
    let mut policy = PortPolicy::default();
    edit(&mut policy);
    policy
}

pub fn access(vlan: u16) -> PortPolicy {
    port(|port| port.vlan = VlanMode::Access(vlan))
}

pub fn trunk(allowed: &str, native: Option<u16>) -> PortPolicy {
    let allowed = allowed.parse().expect("VLANs");
    port(|port| port.vlan = VlanMode::Trunk { allowed, native })
}
