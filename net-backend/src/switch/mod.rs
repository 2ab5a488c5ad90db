//! What the switch decides about a frame: where it goes, and whether it may.
//!
//! No I/O and no memory of a guest: decisions are made on the private copy of a frame's first bytes. A worker owns a
//! [`Switch`]; all of them share one [`Fabric`], which is atomics, and a [`Policy`], which never changes: a new one is
//! handed to each worker, and what was learned stays.
//!
//! ```text
//! admit (guests with an ingress limit) -> ingress -> for each destination: egress -> deliver, with the tag edit
//! ```

mod fabric;
mod filter;
mod limit;
mod mirror;
mod policy;
mod ports;
mod reason;
mod receive;
mod vlan;

pub use fabric::{Entry, Fabric, TableError};
pub use filter::{Action, Direction, InvalidRule, MacMask, Prefix, Range, Rule};
pub use limit::{Limits, Rate, RatePair, StormLimits};
pub use mirror::{Capture, Mirror};
pub use policy::{
    DEFAULT_AGING, DEFAULT_LEARN_LIMIT, MirrorPolicy, MirrorTarget, Policy, PolicyError, PortPolicy,
    SwitchOptions,
};
pub use ports::{MAX_PORTS, PortId, PortSet};
pub use reason::{DROPS, Drop};
pub use receive::ReceiveFilter;
pub use vlan::{InvalidVlans, MAX_VLAN, TPID_CTAG, TagEdit, UNTAGGED, VlanMode, VlanSet};

use crate::frame::{Head, Meta};
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
}

impl Switch {
    /// A switch that starts with `policy`.
    pub fn new(fabric: Arc<Fabric>, policy: Arc<Policy>) -> Self {
        Self { fabric, policy }
    }

    /// From the next frame on, decides by `policy`. Learned addresses stay.
    pub fn set_policy(&mut self, policy: Arc<Policy>) {
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

    /// Whether [`admit`](Self::admit) has to be asked for frames of `port`.
    #[inline]
    pub fn has_admission(&self, _port: PortId) -> bool {
        false
    }

    /// Whether a frame of `bytes` may leave the guest's ring now; `Err`: ask again from that nanosecond on. Before
    /// [`ingress`](Self::ingress), once a frame.
    pub fn admit(&mut self, _port: PortId, _bytes: usize, _now_ns: u64) -> Result<(), u64> {
        Ok(())
    }

    /// What becomes of a frame of `len` bytes that comes in at `port`.
    #[inline]
    pub fn ingress(
        &mut self,
        port: PortId,
        meta: &Meta,
        _head: &Head,
        _len: usize,
        _now_ns: u64,
    ) -> Result<Verdict, Drop> {
        let mut all: PortSet = self.policy.ports().keys().copied().collect();
        all.remove(port);
        Ok(Verdict {
            vlan: meta.tag.map_or(0, |tag| tag.vid()),
            to: if all.is_empty() { To::None(Drop::NoRoute) } else { To::Flood(all) },
        })
    }

    /// Whether the frame may leave at `port`, one of the verdict's destinations, and what becomes of its tag. `meta`, `head` and
    /// `len` are those that came in.
    #[inline]
    pub fn egress(
        &mut self,
        _port: PortId,
        _verdict: &Verdict,
        _meta: &Meta,
        _head: &Head,
        _len: usize,
        _now_ns: u64,
    ) -> Result<TagEdit, Drop> {
        Ok(TagEdit::None)
    }

    /// Who gets a copy of the frames that `port` sends ([`Direction::Out`]; after [`ingress`](Self::ingress) or instead of it, as it came) or
    /// receives ([`Direction::In`]; after the tag edit).
    #[inline]
    pub fn mirror(&self, _port: PortId, _direction: Direction) -> Option<&Mirror> {
        None
    }
}
