//! What the switch decides about a frame: where it goes, and whether it may.
//!
//! No I/O and no memory of a guest: decisions are made on the private copy of a frame's first bytes. A worker owns a
//! [`Switch`]; all of them share one [`Fabric`], which is atomics, and a [`Policy`], which never changes: a new one is
//! handed to each worker, and what was learned stays.
//!
//! ```text
//! admit (guests with an ingress limit) -> ingress -> for each destination: egress -> deliver, with the tag edit
//! ```

mod compiled;
mod decide;
mod fabric;
mod filter;
mod guard;
mod limit;
mod mirror;
mod policy;
mod ports;
mod reason;
mod receive;
mod table;
mod vlan;

pub use decide::{Switch, To, Verdict};
pub use fabric::{AdoptError, DEFAULT_TABLE_SIZE, Fabric};
pub use filter::{Action, Direction, InvalidRule, MacMask, Prefix, Range, Rule};
pub use limit::{Limits, Rate, RatePair, StormLimits};
pub use mirror::{Capture, CaptureCounters, CaptureOptions, Mirror};
pub use policy::{
    DEFAULT_AGING, DEFAULT_LEARN_LIMIT, MirrorPolicy, MirrorTarget, Policy, PolicyError, PortError, PortName,
    PortPolicy, SwitchOptions, UPLINK_LEARN_LIMIT,
};
pub use ports::{MAX_PORTS, PortId, PortSet};
pub use reason::{DROPS, Drop};
pub use receive::ReceiveFilter;
pub use table::{Census, Entry, TableError};
pub use vlan::{InvalidVlans, MAX_VLAN, TPID_CTAG, TagEdit, UNTAGGED, VlanMode, VlanSet};
