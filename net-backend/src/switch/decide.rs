//! The decisions of one worker.

use super::compiled::{Hot, flag};
use super::fabric::Fabric;
use super::filter::Direction;
use super::limit::Storm;
use super::mirror::Mirror;
use super::policy::{MirrorTarget, Policy};
use super::ports::{MAX_PORTS, PortId, PortSet};
use super::reason::Drop;
use super::receive::ReceiveFilter;
use super::table::Moment;
use super::vlan::TagEdit;
use crate::frame::parse::ethertype;
use crate::frame::{Head, MacAddr, Meta};
use std::sync::Arc;

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// To one port.
    Port(PortId),
    /// To each of these, never empty; the source is not among them.
    Flood(PortSet),
    /// Nowhere, though nothing is wrong with it.
    None(Drop),
}

/// What became of a frame that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its VLAN.
    pub vlan: u16,
    /// Where it goes.
    pub to: To,
}

/// The decisions of one worker.
#[derive(Debug)]
pub struct Switch {
    fabric: Arc<Fabric>,
    policy: Arc<Policy>,
    /// What guests want to receive, as last seen, with the number it had in the fabric.
    receive: Box<[(u32, Arc<ReceiveFilter>)]>,
    mirrors: Box<[Option<Mirror>]>,
}

/// Group addresses that bridges do not forward (IEEE 802.1Q table 8-1).
const RESERVED: u64 = 0x0180_c200_0000;

fn is_reserved(mac: MacAddr) -> bool {
    mac.as_u64() & !0xf == RESERVED
}

impl Switch {
    /// A switch that starts with `policy`, which the fabric has [adopted](Fabric::adopt).
    pub fn new(fabric: Arc<Fabric>, policy: Arc<Policy>) -> Self {
        let receive = (0..MAX_PORTS).map(|_| Default::default()).collect();
        let mirrors = (0..MAX_PORTS).map(|_| None).collect();
        let mut switch = Self { fabric, policy: policy.clone(), receive, mirrors };
        switch.set_policy(policy);
        switch
    }

    /// From the next frame on, decides by `policy`. Learned addresses stay.
    pub fn set_policy(&mut self, policy: Arc<Policy>) {
        self.mirrors.fill(None);
        for (port, policy) in policy.ports() {
            self.mirrors[port.index()] = match policy.mirror.as_ref().map(|mirror| &mirror.to) {
                Some(MirrorTarget::Port(target)) => Some(Mirror::Port(*target)),
                Some(MirrorTarget::File(options)) => self.fabric.capture(&options.path).map(Mirror::File),
                None => None,
            };
        }
        self.policy = policy;
    }

    /// The policy in force.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// What all workers share.
    pub fn fabric(&self) -> &Arc<Fabric> {
        &self.fabric
    }

    #[inline]
    fn hot(&self, port: PortId) -> &Hot {
        self.policy.compiled.hot(port)
    }

    /// Whether [`admit`](Self::admit) has to be asked for frames of `port`.
    #[inline]
    pub fn has_admission(&self, port: PortId) -> bool {
        self.hot(port).flags & flag::ADMIT != 0
    }

    /// Whether a frame of `bytes` may leave the guest's ring now; `Err`: ask again from that nanosecond on. Before
    /// [`ingress`](Self::ingress), once a frame.
    pub fn admit(&mut self, port: PortId, bytes: usize, now_ns: u64) -> Result<(), u64> {
        match self.policy.compiled.detail(port) {
            Some(detail) if self.has_admission(port) => {
                self.fabric.buckets(port).ingress().take(&detail.ingress, bytes, now_ns)
            }
            _ => Ok(()),
        }
    }

    /// Whether frames of one burst with the same addresses and tag, from this port, all get the verdict of the first one:
    /// nothing looks deeper into them or counts them.
    #[inline]
    pub fn is_steady(&self, port: PortId) -> bool {
        self.hot(port).flags & flag::UNSTEADY == 0
    }

    /// What becomes of a frame of `len` bytes that comes in at `port`.
    #[inline]
    pub fn ingress(
        &mut self,
        port: PortId,
        meta: &Meta,
        head: &Head,
        len: usize,
        now_ns: u64,
    ) -> Result<Verdict, Drop> {
        let compiled = &self.policy.compiled;
        let hot = compiled.hot(port);
        let vlan = match meta.tag {
            None if hot.flags & flag::UNTAGGED != 0 => hot.untagged,
            _ => self.classify(port, meta)?,
        };
        if meta.src.is_multicast() || meta.src.is_zero() {
            return Err(Drop::Malformed);
        }
        let spoofless = hot.flags & flag::ANTI_SPOOF != 0;
        if spoofless && meta.src.as_u64() != hot.mac {
            self.check_source(port, meta.src)?;
        }
        if hot.flags & flag::INSPECT_INGRESS != 0 {
            self.inspect_ingress(port, meta, head, len, vlan, now_ns)?;
            if hot.flags & flag::LOOPBACK != 0 {
                return Ok(Verdict { vlan, to: To::Port(port) });
            }
        }
        let moment = Moment::new(now_ns, compiled.aging);
        // With anti-spoofing, the addresses of the untagged VLAN are static ones.
        if hot.flags & flag::LEARN != 0 && !(spoofless && vlan == hot.untagged) {
            self.fabric.table.learn(vlan, meta.src, port, hot.learn_limit, moment);
        }
        if meta.dst.is_multicast() {
            return self.to_group(port, meta.dst, vlan, now_ns);
        }
        match self.fabric.table.lookup(vlan, meta.dst, moment) {
            Some(to) if hot.reach.contains(to) => Ok(Verdict { vlan, to: To::Port(to) }),
            Some(to) => self.unreachable(port, to, vlan),
            None => self.to_unknown(port, vlan, now_ns),
        }
    }

    /// VLAN of a frame with a tag, or without where a port does not welcome that.
    fn classify(&self, port: PortId, meta: &Meta) -> Result<u16, Drop> {
        let detail = self.policy.compiled.detail(port).ok_or(Drop::NoRoute)?;
        detail.vlan.classify(meta.tag).ok_or(Drop::VlanNotAllowed)
    }

    /// Whether an address that is not the port's first one is another one of it.
    #[cold]
    fn check_source(&self, port: PortId, src: MacAddr) -> Result<(), Drop> {
        let own = self.policy.compiled.detail(port).is_some_and(|detail| detail.guard.owns_mac(src));
        if own { Ok(()) } else { Err(Drop::SpoofedMac) }
    }

    /// Whatever costs more than a load.
    fn inspect_ingress(
        &self,
        port: PortId,
        meta: &Meta,
        head: &Head,
        len: usize,
        vlan: u16,
        now_ns: u64,
    ) -> Result<(), Drop> {
        let detail = self.policy.compiled.detail(port).ok_or(Drop::NoRoute)?;
        let flags = self.hot(port).flags;
        if flags & flag::SINK != 0 {
            return Err(Drop::MirrorPort);
        }
        if flags & flag::GUARD != 0 {
            detail.guard.check(meta, head)?;
        }
        if flags & flag::FILTER_OUT != 0 && !detail.filter.allows(Direction::Out, meta, head, vlan) {
            return Err(Drop::Filtered);
        }
        if flags & flag::POLICE != 0 {
            let buckets = self.fabric.buckets(port).ingress();
            buckets.take(&detail.ingress, len, now_ns).map_err(|_| Drop::RateLimited)?;
        }
        Ok(())
    }

    fn to_group(&self, port: PortId, dst: MacAddr, vlan: u16, now_ns: u64) -> Result<Verdict, Drop> {
        if is_reserved(dst) && self.hot(port).flags & flag::RESERVED == 0 {
            return Err(Drop::Reserved);
        }
        let (storm, reason) = match dst.is_broadcast() {
            true => (Storm::Broadcast, Drop::StormBroadcast),
            false => (Storm::Multicast, Drop::StormMulticast),
        };
        self.calm(port, storm, now_ns).then_some(()).ok_or(reason)?;
        Ok(self.flood(port, vlan, &PortSet::ALL))
    }

    fn to_unknown(&self, port: PortId, vlan: u16, now_ns: u64) -> Result<Verdict, Drop> {
        self.calm(port, Storm::Unknown, now_ns).then_some(()).ok_or(Drop::StormUnknown)?;
        Ok(self.flood(port, vlan, &self.policy.compiled.unknown))
    }

    fn calm(&self, port: PortId, storm: Storm, now_ns: u64) -> bool {
        if self.hot(port).flags & flag::STORM == 0 {
            return true;
        }
        let detail = self.policy.compiled.detail(port);
        detail.is_none_or(|detail| {
            self.fabric.buckets(port).storm(storm).take(detail.storm[storm as usize], 1, now_ns)
        })
    }

    /// A frame to `dst` that was flooded is to be cut into `more` segments besides the first: storm control counts those, too.
    pub fn flooded_more(&self, port: PortId, dst: MacAddr, more: u64, now_ns: u64) {
        if self.hot(port).flags & flag::STORM == 0 {
            return;
        }
        let storm = match dst {
            _ if dst.is_broadcast() => Storm::Broadcast,
            _ if dst.is_multicast() => Storm::Multicast,
            _ => Storm::Unknown,
        };
        if let Some(detail) = self.policy.compiled.detail(port) {
            self.fabric.buckets(port).storm(storm).pay(detail.storm[storm as usize], more, now_ns);
        }
    }

    /// To all members of the VLAN that the source may reach, itself not among them.
    fn flood(&self, port: PortId, vlan: u16, wanted: &PortSet) -> Verdict {
        let compiled = &self.policy.compiled;
        let ports = compiled.members(vlan).intersection(&compiled.hot(port).reach).intersection(wanted);
        let to = if ports.is_empty() { To::None(Drop::NoRoute) } else { To::Flood(ports) };
        Verdict { vlan, to }
    }

    /// The address is behind a port that frames from here do not go to.
    #[cold]
    fn unreachable(&self, port: PortId, to: PortId, vlan: u16) -> Result<Verdict, Drop> {
        if to == port {
            return Ok(Verdict { vlan, to: To::None(Drop::SamePort) });
        }
        let flags = self.hot(to).flags;
        match () {
            () if flags & flag::SINK != 0 => Err(Drop::MirrorPort),
            () if flags & flag::PRESENT == 0 => Err(Drop::NoRoute),
            () => Err(Drop::Isolated),
        }
    }

    /// Whether a frame without a tag leaves at `port` unchanged and unasked: [`egress`](Self::egress) would say so, and
    /// change nothing.
    #[inline]
    pub fn is_plain_egress(&self, port: PortId, verdict: &Verdict) -> bool {
        let hot = self.hot(port);
        hot.flags & (flag::UNTAGGED | flag::INSPECT_EGRESS) == flag::UNTAGGED
            && hot.untagged == verdict.vlan
            && self.fabric.receive_number(port) == 0
    }

    /// Whether the frame may leave at `port`, one of the verdict's destinations, and what becomes of its tag. `meta`, `head` and
    /// `len` are those that came in.
    #[inline]
    pub fn egress(
        &mut self,
        port: PortId,
        verdict: &Verdict,
        meta: &Meta,
        head: &Head,
        len: usize,
        now_ns: u64,
    ) -> Result<TagEdit, Drop> {
        if meta.tag.is_none() && self.is_plain_egress(port, verdict) {
            return Ok(TagEdit::None);
        }
        self.inspect_egress(port, verdict, meta, head, len, now_ns)
    }

    fn inspect_egress(
        &mut self,
        port: PortId,
        verdict: &Verdict,
        meta: &Meta,
        head: &Head,
        len: usize,
        now_ns: u64,
    ) -> Result<TagEdit, Drop> {
        let detail = self.policy.compiled.detail(port).ok_or(Drop::NoRoute)?;
        if !detail.vlan.is_member(verdict.vlan) {
            return Err(Drop::VlanNotAllowed);
        }
        let stacked = matches!(meta.ethertype, ethertype::VLAN | ethertype::SERVICE_VLAN);
        let edit = detail.vlan.edit(verdict.vlan, meta.tag, stacked);
        let flags = self.hot(port).flags;
        if flags & flag::FILTER_IN != 0 && !detail.filter.allows(Direction::In, meta, head, verdict.vlan) {
            return Err(Drop::Filtered);
        }
        let number = self.fabric.receive_number(port);
        if number != 0 && !wants(&self.fabric, &mut self.receive, port, number, meta, edit) {
            return Err(Drop::ReceiveFilter);
        }
        if flags & flag::EGRESS_LIMIT != 0 {
            let leaving = len.saturating_add_signed(edit.growth());
            let buckets = self.fabric.buckets(port).egress();
            buckets.take(&detail.egress, leaving, now_ns).map_err(|_| Drop::RateLimited)?;
        }
        Ok(edit)
    }

    /// Who gets a copy of the frames that `port` sends ([`Direction::Out`], whatever [`ingress`](Self::ingress) says of them) or is
    /// to receive ([`Direction::In`], whatever [`egress`](Self::egress) says of them): both as they came in.
    #[inline]
    pub fn mirror(&self, port: PortId, direction: Direction) -> Option<&Mirror> {
        let flag = match direction {
            Direction::In => flag::MIRROR_IN,
            Direction::Out => flag::MIRROR_OUT,
        };
        if self.hot(port).flags & flag == 0 {
            return None;
        }
        self.mirrors.get(port.index())?.as_ref()
    }
}

/// Whether the guest wants the frame. Its filter is fetched again when its number has changed.
fn wants(
    fabric: &Fabric,
    seen: &mut [(u32, Arc<ReceiveFilter>)],
    port: PortId,
    number: u32,
    meta: &Meta,
    edit: TagEdit,
) -> bool {
    let Some(known) = seen.get_mut(port.index()) else { return true };
    if known.0 != number {
        *known = fabric.numbered_filter(port);
    }
    let vlan = match edit {
        TagEdit::None => meta.tag.map(|tag| tag.vid()),
        TagEdit::Push(tci) | TagEdit::Set(tci) => Some(tci & 0x0fff),
        TagEdit::Pop => None,
    };
    known.1.wants(meta.dst, vlan)
}
