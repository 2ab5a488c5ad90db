//! The guest's side of any vhost-user device, without a VM: what the drivers of [`crate::blk`], [`crate::net`] and
//! [`crate::crypto`] and [`crate::compress`] have in common.
//!
//! - [`Guest`]: connection, memory and rings; attached, taken to another backend, detached.
//! - [`Ring`]: one ring with its events, owned by the thread that drives it.
//! - [`Job`]: the requests of one ring, in a closed or an open loop, for devices that answer requests ([`Workload`]).
//! - [`SlotRing`]: the requests in flight on such a ring. [`Figures`]: what is reported of them.
//! - [`Supervisor`]: the threads of a run and its phases. [`Plane`]: what it does for a device that answers requests.
//! - [`alone`]: the same run on an engine without a device.
//! - [`options`]: what all of them take on the command line.

pub mod alone;
mod attach;
mod figures;
mod job;
pub mod memory;
pub mod options;
mod plane;
mod ring;
mod slots;
mod supervisor;
mod tally;
mod verified;

pub use attach::{AttachError, Attachment, Guest, Socket};
pub use figures::{Figures, Lines, Shown};
pub use job::{Finished, Job, Outcome, Workload};
pub use plane::{Observed, Plane};
pub use ring::{Ring, Shape, Signals};
pub use slots::{RingError, SlotRing};
pub use supervisor::{CpuMeter, Hooks, Supervisor, come_back, ensure_reconnect};
pub use tally::{Counts, Tally, Totals};
pub use verified::Verified;
