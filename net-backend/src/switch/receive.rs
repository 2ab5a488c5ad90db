//! What a guest wants to receive: the state behind VIRTIO_NET_CTRL_RX, CTRL_MAC and CTRL_VLAN (virtio 1.3 §5.1.6.5.1 to .3).

use super::vlan::VlanSet;
use crate::frame::MacAddr;

/// The receive filter of one guest, as its control queue set it. The default takes everything, as does a port whose
/// guest has no control queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveFilter {
    /// The guest's own address (VIRTIO_NET_CTRL_MAC_ADDR_SET); `None`: any unicast frame the switch sends here.
    pub mac: Option<MacAddr>,
    /// VIRTIO_NET_CTRL_RX_PROMISC: everything, of every VLAN.
    pub promisc: bool,
    /// VIRTIO_NET_CTRL_RX_ALLMULTI: all multicasts.
    pub allmulti: bool,
    /// VIRTIO_NET_CTRL_RX_ALLUNI: all unicasts.
    pub alluni: bool,
    /// VIRTIO_NET_CTRL_RX_NOMULTI: no multicast but broadcasts.
    pub nomulti: bool,
    /// VIRTIO_NET_CTRL_RX_NOUNI: no unicast.
    pub nouni: bool,
    /// VIRTIO_NET_CTRL_RX_NOBCAST: no broadcast.
    pub nobcast: bool,
    /// Unicast addresses besides `mac` (VIRTIO_NET_CTRL_MAC_TABLE_SET).
    pub unicast: Vec<MacAddr>,
    /// Multicast addresses (VIRTIO_NET_CTRL_MAC_TABLE_SET).
    pub multicast: Vec<MacAddr>,
    /// VLANs of tagged frames (VIRTIO_NET_CTRL_VLAN_ADD, _DEL); `None`: all, as without VIRTIO_NET_F_CTRL_VLAN.
    pub vlans: Option<VlanSet>,
}

impl Default for ReceiveFilter {
    fn default() -> Self {
        Self {
            mac: None,
            promisc: true,
            allmulti: false,
            alluni: false,
            nomulti: false,
            nouni: false,
            nobcast: false,
            unicast: Vec::new(),
            multicast: Vec::new(),
            vlans: None,
        }
    }
}

impl ReceiveFilter {
    /// Whether it takes everything: such a port pays nothing.
    pub fn is_open(&self) -> bool {
        self.promisc
    }

    /// Whether the guest wants a frame to `dst` that reaches it with a tag for `vlan`, or untagged (`None`).
    pub fn wants(&self, dst: MacAddr, vlan: Option<u16>) -> bool {
        // A priority tag names no VLAN: the guest's table cannot have it.
        let vlan = vlan.filter(|vid| *vid != 0);
        let member = || vlan.zip(self.vlans.as_ref()).is_none_or(|(vid, vlans)| vlans.contains(vid));
        self.promisc || (member() && self.wants_address(dst))
    }

    fn wants_address(&self, dst: MacAddr) -> bool {
        if dst.is_broadcast() {
            return !self.nobcast;
        }
        if dst.is_multicast() {
            return !self.nomulti && (self.allmulti || self.multicast.contains(&dst));
        }
        let own = self.mac.is_none_or(|mac| mac == dst) || self.unicast.contains(&dst);
        !self.nouni && (self.alluni || own)
    }
}
